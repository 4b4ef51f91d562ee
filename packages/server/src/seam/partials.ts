/**
 * Partial aggregates of the lake's rows, computed beside Postgres's of the heap's.
 *
 * Where few rows are deleted, they are computed as a difference: of all rows, less those of the deleted ones, which are
 * kept in a table. What is counted or added exactly can be taken off again; a minimum or maximum stands when no deleted row
 * reaches it, and otherwise (`unsure`) the live rows are read after all. The answer is the same either way.
 */
import type { PgColumnPlan } from "@spillway/pg/columns/plan";
import { duckIdent, emptySql, type Engine, type EngineSession } from "../engine/engine.ts";
import { type AggregatePlan, COUNT_STAR } from "./aggregate.ts";
import { toDuckCondition } from "./predicates.ts";
import type { SeamColumn } from "./resolve.ts";
import type { LakeDifference, LakePart } from "./table-read.ts";

/** One partial value: what computes it in each tier, and what combines it. */
export interface Partial {
  readonly name: string;
  readonly plan: PgColumnPlan;
  readonly pg: string;
  readonly duck: string;
  /** How deleted rows are taken off again; null when they cannot be. */
  readonly difference: "count" | "min" | "max" | { readonly sumOf: SeamColumn } | null;
}

export interface Shape {
  readonly groups: readonly SeamColumn[];
  readonly partials: Map<string, Partial>;
}

/** The partials of the lake, once they are there. */
export interface LakePartials {
  readonly sql: string;
  /** Whether deleted rows were taken off instead of being looked up. */
  readonly isDifference: boolean;
  drop(): Promise<void>;
}

/** Differences whose minimum or maximum was reached by a deleted row, by their statement. */
const MAX_UNSURE = 1000;

export class PartialReader {
  readonly #engine: Engine;
  readonly #unsure = new Set<string>();

  constructor(engine: Engine) {
    this.#engine = engine;
  }

  /** Computes them into a table that every session sees; in the view itself when only the statement's can read the rows. */
  async read(plan: AggregatePlan, part: LakePart, signal: AbortSignal): Promise<LakePartials> {
    const direct = (sql: string): LakePartials => ({ sql, isDifference: false, drop: () => Promise.resolve() });
    const counted = countedSql(plan, part);
    if (counted !== null) return direct(counted);
    if (!part.shared) return direct(rowsSql(plan, part.lakeSql ?? emptyPart(part)));
    const table = this.#engine.freshName("partials");
    const isDifference = await this.#engine.use((session) => this.#fill(session, table, plan, part, signal));
    return {
      sql: `SELECT ${namesOf(plan.shape)} FROM ${table}`,
      isDifference,
      drop: () => this.#engine.use((session) => session.run(`DROP TABLE IF EXISTS ${table}`)).catch(() => {}),
    };
  }

  async #fill(
    session: EngineSession,
    table: string,
    plan: AggregatePlan,
    part: LakePart,
    signal: AbortSignal,
  ): Promise<boolean> {
    const { difference } = part;
    if (difference && (await this.#fillDifference(session, table, plan, difference, signal))) return true;
    await session.run(`CREATE TABLE ${table} AS ${rowsSql(plan, part.lakeSql ?? emptyPart(part))}`, { signal });
    return false;
  }

  async #fillDifference(
    session: EngineSession,
    table: string,
    plan: AggregatePlan,
    difference: LakeDifference,
    signal: AbortSignal,
  ): Promise<boolean> {
    if (![...plan.shape.partials.values()].every((p) => p.difference !== null)) return false;
    const key = `${difference.id}\0${rowsSql(plan, "")}`;
    if (this.#unsure.has(key)) return false;
    const sql = differenceSql(plan, difference.allSql, await difference.hiddenSql());
    await session.run(`CREATE TABLE ${table} AS ${sql}`, { signal });
    if (![...plan.shape.partials.values()].some(isExtreme)) return true;
    const unsure = await session.rows(`SELECT 1 FROM ${table} WHERE ${UNSURE} LIMIT 1`, { signal });
    if (unsure.length === 0) return true;
    if (this.#unsure.size >= MAX_UNSURE) this.#unsure.clear();
    this.#unsure.add(key);
    await session.run(`DROP TABLE ${table}`);
    return false;
  }
}

const UNSURE = "__unsure";
const LIVE = "__live";
const ROWS = "__rows";

function isExtreme(partial: Partial): boolean {
  return partial.difference === "min" || partial.difference === "max";
}

function emptyPart(part: LakePart): string {
  return emptySql(part.columns.map((c) => c.spec));
}

function namesOf({ groups, partials }: Shape): string {
  return [...groups.map((g) => g.spec.name), ...partials.keys()].map(duckIdent).join(", ");
}

/** Manifests and deletes say how many rows there are: no file is opened. */
function countedSql({ shape, predicates }: AggregatePlan, part: LakePart): string | null {
  const partials = [...shape.partials.values()];
  const countsOnly = shape.groups.length === 0 && predicates.length === 0 && partials.every((p) => p.pg === COUNT_STAR);
  if (!countsOnly || part.lakeSql === null || part.lakeCountSql === null) return null;
  return `SELECT ${partials.map((p) => `(${part.lakeCountSql})::BIGINT AS ${duckIdent(p.name)}`).join(", ")}`;
}

/** The partials of the rows. `more`: further aggregates. */
function rowsSql({ shape, predicates }: AggregatePlan, rows: string, more: readonly string[] = []): string {
  const groups = shape.groups.map((g) => duckIdent(g.spec.name));
  const partials = [...shape.partials.values()].map((p) => `${p.duck} AS ${duckIdent(p.name)}`);
  const where = predicates.length === 0 ? "" : ` WHERE ${predicates.map(toDuckCondition).join(" AND ")}`;
  const group = groups.length === 0 ? "" : ` GROUP BY ${groups.join(", ")}`;
  return `SELECT ${[...groups, ...partials, ...more].join(", ")} FROM (${rows})${where}${group}`;
}

/** The partials of all rows less those of the deleted ones. A group without rows is none; a sum of nothing is NULL. */
export function differenceSql(plan: AggregatePlan, allSql: string, hiddenSql: string): string {
  const partials = [...plan.shape.partials.values()];
  const counts = partials.flatMap(({ difference }) =>
    difference !== null && typeof difference === "object"
      ? [`count(${duckIdent(difference.sumOf.spec.name)}) AS ${valuesName(difference.sumOf)}`]
      : [],
  );
  const more = [`count(*) AS ${ROWS}`, ...new Set(counts)];
  const groups = plan.shape.groups.map((g) => duckIdent(g.spec.name));
  const list = [...groups, ...partials.map(lessSql), `${unsureSql(partials)} AS ${UNSURE}`].join(", ");
  const tail = groups.length === 0 ? "" : ` GROUP BY ${groups.join(", ")} HAVING ${less(ROWS)} > 0`;
  return `SELECT ${list} FROM (SELECT true AS ${LIVE}, * FROM (${rowsSql(plan, allSql, more)})
    UNION ALL SELECT false AS ${LIVE}, * FROM (${rowsSql(plan, hiddenSql, more)}))${tail}`;
}

function less(name: string): string {
  return `sum(CASE WHEN ${LIVE} THEN ${name} ELSE -${name} END)`;
}

function valuesName(column: SeamColumn): string {
  return `__values${column.attnum}`;
}

function lessSql({ name, plan, difference }: Partial): string {
  const quoted = duckIdent(name);
  if (difference === "count") return `${less(quoted)}::BIGINT AS ${quoted}`;
  if (difference === "min" || difference === "max") return `${difference}(${quoted}) FILTER (${LIVE}) AS ${quoted}`;
  const scale = plan.spec.decimal?.scale ?? 0;
  const values = difference === null ? ROWS : valuesName(difference.sumOf);
  return `CASE WHEN ${less(values)} > 0 THEN ${less(quoted)}::DECIMAL(38, ${scale}) END AS ${quoted}`;
}

/** Whether a deleted row may be the one that gave a minimum or maximum. */
function unsureSql(partials: readonly Partial[]): string {
  const tests = partials.filter(isExtreme).map(({ name, difference }) => {
    const value = `${String(difference)}(${duckIdent(name)}) FILTER`;
    return `coalesce(${value} (NOT ${LIVE}) ${difference === "min" ? "<=" : ">="} ${value} (${LIVE}), false)`;
  });
  return tests.length === 0 ? "false" : tests.join(" OR ");
}
