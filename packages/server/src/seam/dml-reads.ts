/**
 * What a correction reads besides its target: the queries of its WITH, and registered tables in its subqueries, its FROM or
 * USING, the target itself among them. Postgres evaluates the statement, and would see only their heaps. So the rows below the
 * cut-line are put into temporary tables, and a WITH before the statement gives the tables' names another meaning: the heap's
 * rows at or above T, and those. The queries of the statement's own WITH are evaluated once, before it is run on either tier.
 *
 * All of it in the snapshot of the statement's transaction. Their cut-lines are held FOR SHARE, like the target's: one that moved
 * after the snapshot makes Postgres refuse with 40001, since a partition could be gone by then whose rows the snapshot's T has in the heap.
 */
import { must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import { copyIn } from "@spillway/pg/copy/copy-in";
import { quoteIdent } from "@spillway/pg/quote";
import type { RawConnection } from "@spillway/pg/wire/connection";
import type { TextResult } from "@spillway/pg/wire/query";
import { KEY_MIN, keyLiteral } from "../catalog/catalog.ts";
import type { EngineSession } from "../engine/engine.ts";
import { parseSelect, tableRefs, textOf } from "./ast.ts";
import { bounded, readCold } from "./cold-rows.ts";
import { extractPredicates, type Predicate, toPgCondition } from "./predicates.ts";
import type { QueryParts } from "./query-types.ts";
import { canFilterEarly, findColumn, isStrict, joinsOf } from "./query-shape.ts";
import type { LakeState, ResolvedRelation, SeamColumn } from "./resolve.ts";
import { countName, type Dml, innerQueries, unqualified } from "./sql-lex.ts";

export interface ReadsRequest {
  readonly parts: QueryParts;
  readonly connection: RawConnection;
  readonly session: EngineSession;
  readonly dml: Dml;
  readonly target: ResolvedRelation;
  /** The statements that Postgres will run, without the WITH; where the target is split, aimed at an empty table. */
  readonly texts: readonly string[];
  readonly query: (sql: string) => Promise<TextResult>;
  /** Whether the caller may read every table that the statement names. */
  readonly allowed: boolean;
  readonly maxRows: number;
  readonly signal?: AbortSignal | undefined;
}

/** How the parts of the statement are to be run. */
export interface DmlReads {
  of(text: string): string;
  /** Temporary tables, to be dropped where the transaction goes on. */
  readonly temporary: readonly string[];
}

const PLAIN: DmlReads = { of: (text) => text, temporary: [] };

/** Throws `sql_unsupported` for what cannot be read so, `limit_exceeded`, and Postgres's errors. */
export async function prepareReads(request: ReadsRequest): Promise<DmlReads> {
  const { dml } = request;
  if (!dml.mayRead) return PLAIN;
  const given = withOf(
    dml.recursive,
    dml.ctes.map((c) => c.definition),
  );
  const found = await registeredIn(
    request,
    request.texts.map((text) => given + text),
  );
  if (found.length === 0 && dml.ctes.length === 0) return PLAIN;
  if (found.length > 0 && !request.allowed) throw refusal(found[0]?.text ?? "", "which cannot be read here");
  const reads = new Reads(request);
  await reads.load(found);
  await reads.requireAllCovered();
  await reads.evaluateWith();
  return reads.result();
}

interface Found {
  readonly oid: number;
  readonly schema: string;
  readonly name: string;
  readonly text: string;
}

/** Registered tables of which the heap does not have all rows, and that Postgres would read. */
async function registeredIn({ query }: ReadsRequest, texts: readonly string[]): Promise<Found[]> {
  // Without pruning: that no partition can hold a row says nothing of the lake.
  const names = ["enable_partition_pruning", "constraint_exclusion"];
  const was = await query(`SELECT ${names.map((n) => `current_setting('${n}')`).join(", ")}`);
  const set = (values: readonly string[]): Promise<TextResult> =>
    query(`SELECT ${names.map((n, i) => `set_config('${n}', '${values[i]}', true)`).join(", ")}`);
  await set(["off", "off"]);
  const seen = new Set<string>();
  for (const text of texts) {
    const plan = await query(`EXPLAIN (FORMAT JSON, VERBOSE, COSTS OFF) ${text}`);
    collectRelations(JSON.parse(plan.rows.map((row) => row[0]).join("\n")) as unknown, seen);
  }
  await set((was.rows[0] ?? []).map(String));
  if (seen.size === 0) return [];
  const list = [...seen].map((name) => `'${name.replaceAll("'", "''")}'`).join(", ");
  const found = await query(`SELECT DISTINCT c.oid, n.nspname, c.relname FROM unnest(ARRAY[${list}]) s (name)
    JOIN spillway.relation x ON x.relid IN (to_regclass(s.name), pg_partition_root(to_regclass(s.name)))
    JOIN spillway.seam m USING (relation_id) JOIN pg_class c ON c.oid = x.relid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE x.state <> 'registering' AND NOT x.keep_heap
      AND (x.mode <> 'mirrored' OR x.heap_retention IS NOT NULL) AND m.t > ${KEY_MIN} ORDER BY c.oid`);
  return found.rows.map((row) => {
    const [schema, name] = [String(row[1]), String(row[2])];
    return { oid: Number(row[0]), schema, name, text: `${schema}.${name}` };
  });
}

/** Every relation that a plan of EXPLAIN (FORMAT JSON, VERBOSE) scans. */
function collectRelations(value: unknown, seen: Set<string>): void {
  if (Array.isArray(value)) for (const item of value) collectRelations(item, seen);
  else if (typeof value === "object" && value !== null) {
    const node = value as Record<string, unknown>;
    const [schema, name] = [node["Schema"], node["Relation Name"]];
    if (typeof schema === "string" && typeof name === "string" && !schema.startsWith("pg_temp")) {
      seen.add(`${quoteIdent(schema)}.${quoteIdent(name)}`);
    }
    for (const key of Object.keys(node)) collectRelations(node[key], seen);
  }
}

function refusal(table: string, why: string): SpillwayError {
  return new SpillwayError("sql_unsupported", `The statement reads the registered table ${table}, ${why}.`, {
    remedy: "Read it by `spillway sql` first, and write the values into the statement.",
  });
}

function withOf(recursive: boolean, definitions: readonly string[]): string {
  return definitions.length === 0 ? "" : `WITH ${recursive ? "RECURSIVE " : ""}${definitions.join(", ")} `;
}

interface Redirect {
  readonly relation: ResolvedRelation;
  /** The rows below the cut-line alone: to see what else is read. */
  readonly stub: string;
  readonly whole: string;
}

class Reads {
  readonly #request: ReadsRequest;
  readonly #redirects: Redirect[] = [];
  readonly #evaluated: string[] = [];
  readonly #temporary: string[] = [];

  constructor(request: ReadsRequest) {
    this.#request = request;
  }

  async load(found: readonly Found[]): Promise<void> {
    const { dml, target, parts, connection, signal, query } = this.#request;
    if (found.some((f) => f.oid === target.oid) && dml.verb === "insert" && innerQueries(dml.tail).length > 0) {
      throw refusal(target.sql, "its target, after ON CONFLICT or RETURNING");
    }
    const others = found.filter((f) => f.oid !== target.oid);
    if (target.lake?.mode === "direct" && others.length > 0) {
      // Each statement of such a transaction has its own snapshot: nothing may fold in between.
      await query(`SELECT 1 FROM spillway.lake_table WHERE lake_id IN (SELECT lake_id FROM spillway.relation
        WHERE relid IN (${others.map((f) => f.oid).join(", ")})) ORDER BY lake_id FOR UPDATE`);
    }
    const names = others.map(({ schema, name }) => ({ schema, name }));
    const resolved = names.length === 0 ? [] : await parts.resolver.within(connection, names, signal);
    const self = found.some((f) => f.oid === target.oid) ? [target] : [];
    for (const relation of [...self, ...resolved]) await this.#redirect(relation);
  }

  async #redirect(relation: ResolvedRelation): Promise<void> {
    const { parts, connection, session, query, maxRows, signal, dml } = this.#request;
    const lake = must(relation.lake, "lake");
    const text = `${relation.schema}.${relation.name}`;
    if (lake.mode === "mirrored") throw refusal(text, "whose older rows are in its mirror");
    const taken = [...dml.ctes.map((c) => c.name), ...this.#redirects.map((r) => r.relation.name)];
    if (taken.includes(relation.name)) throw refusal(text, "and something else of that name");
    const t = await heldCutLine(query, relation, lake);
    const table = `spw_read_${this.#redirects.length}`;
    await query(`CREATE TEMP TABLE ${table} (LIKE ${relation.sql} INCLUDING GENERATED) ON COMMIT DROP`);
    this.#temporary.push(table);
    const columns = relation.columns.filter((c) => c.table.generated === "");
    const into = `pg_temp.${table} (${columns.map((c) => quoteIdent(c.spec.name)).join(", ")})`;
    const predicates = await this.#predicates(relation);
    await readCold({ tables: parts.tables, connection, session, relation, columns, predicates, signal }, (batches) =>
      copyIn({ connection, into, batches: bounded(batches, maxRows) }),
    );
    await query(`ANALYZE pg_temp.${table}`);
    const list = relation.columns.map((c) => quoteIdent(c.spec.name)).join(", ");
    const key = quoteIdent(
      must(
        relation.columns.find((c) => c.attnum === lake.keyAttnum),
        "tier key",
      ).spec.name,
    );
    const cold = `SELECT ${list} FROM pg_temp.${table}`;
    const hot = `SELECT ${list} FROM ${relation.sql} WHERE ${key} >= ${keyLiteral(must(lake.keyKind, "key kind"), t)}`;
    const name = quoteIdent(relation.name);
    this.#redirects.push({
      relation,
      stub: `${name} AS NOT MATERIALIZED (${cold})`,
      whole: `${name} AS NOT MATERIALIZED (${hot} UNION ALL ${cold})`,
    });
  }

  /** What a table's one place in the statement says of its rows; nothing when it has several. */
  async #predicates(relation: ResolvedRelation): Promise<readonly Predicate[]> {
    const { dml, target, session } = this.#request;
    const texts = [...dml.ctes.map((c) => c.body), dml.sql];
    const places = texts.reduce((sum, text) => sum + countName(text, relation.name), 0);
    if (places !== (relation.oid === target.oid || relation.name === dml.name ? 2 : 1)) return [];
    const select = dml.verb === "insert" ? /\bselect\b[\s\S]*/i.exec(dml.body)?.[0] : undefined;
    const queries = [...(select ? [select] : []), ...dml.ctes.map((c) => c.body), ...texts.flatMap(innerQueries)];
    for (const sql of queries) {
      const parsed = await parseSelect(session, sql).catch(() => null);
      const refs = parsed
        ? tableRefs(parsed.node).filter((r) => r.name.toLowerCase() === relation.name.toLowerCase())
        : [];
      const [ref] = refs;
      if (refs.length !== 1 || !ref?.select || !canFilterEarly(ref, ref.select)) continue;
      const from = ref.select["from_table"];
      const isOnly = textOf((from as { type?: string }).type) === "BASE_TABLE";
      const lookup = (names: readonly string[]): SeamColumn | null => {
        const isOwn = names.length === 1 ? isOnly : names.at(-2)?.toLowerCase() === ref.alias.toLowerCase();
        return isOwn && names.length <= 2 ? findColumn(relation, names.at(-1) ?? "") : null;
      };
      const inner = joinsOf(from).every((j) => j["join_type"] === "INNER");
      const found = await extractPredicates(session, ref.select["where_clause"], lookup, []);
      return meantAlike(found.predicates).filter((p) => inner || isStrict(p));
    }
    return [];
  }

  /** A view, a function or another name of a table would see its heap alone. */
  async requireAllCovered(): Promise<void> {
    const { dml, texts } = this.#request;
    const definitions = [...this.#redirects.map((r) => r.stub), ...dml.ctes.map((c) => this.#rewrite(c.definition))];
    const prefix = withOf(dml.recursive, definitions);
    const left = await registeredIn(
      this.#request,
      texts.map((text) => prefix + this.#rewrite(text)),
    );
    const [first] = left;
    if (first) throw refusal(first.text, "in a way that cannot be followed into the lake, such as by a view");
  }

  /** The queries of the WITH, each once, in their order. */
  async evaluateWith(): Promise<void> {
    const { dml, query } = this.#request;
    for (const cte of dml.ctes) {
      const table = `spw_with_${this.#evaluated.length}`;
      const before = [...this.#redirects.map((r) => r.whole), ...this.#evaluated];
      const definition = this.#rewrite(cte.definition);
      const name = quoteIdent(cte.name);
      await query(
        `CREATE TEMP TABLE ${table} ON COMMIT DROP AS ${withOf(dml.recursive, [...before, definition])}SELECT * FROM ${name}`,
      );
      this.#temporary.push(table);
      await query(`ANALYZE pg_temp.${table}`);
      this.#evaluated.push(`${name} AS NOT MATERIALIZED (SELECT * FROM pg_temp.${table})`);
    }
  }

  result(): DmlReads {
    const prefix = withOf(false, [...this.#redirects.map((r) => r.whole), ...this.#evaluated]);
    return { of: (text) => prefix + this.#rewrite(text), temporary: this.#temporary };
  }

  #rewrite(text: string): string {
    return this.#redirects.reduce((sql, { relation }) => unqualified(sql, relation.schema, relation.name), text);
  }
}

/** Predicates that leave out only what Postgres leaves out as well: an order of texts, for one, is its collation's. */
export function meantAlike(predicates: readonly Predicate[]): readonly Predicate[] {
  return predicates.filter((p) => toPgCondition(p, undefined, "own") !== null);
}

/** T, which stays where it is until the transaction ends. Postgres refuses with 40001 when it moved after the snapshot. */
async function heldCutLine(query: ReadsRequest["query"], relation: ResolvedRelation, lake: LakeState): Promise<bigint> {
  const result = await query(`SELECT t FROM spillway.seam_guard WHERE relation_id = ${lake.relationId} FOR SHARE`);
  const t = BigInt(must(result.rows[0]?.[0], "T"));
  if (t === lake.t) return t;
  throw new SpillwayError("commit_conflict", `the cut-line of ${relation.sql} moved while the statement began`);
}
