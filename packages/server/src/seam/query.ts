/**
 * A SELECT over any number of registered and plain tables as one point in time (docs/internals/seam.md §1, §5): pin, lock,
 * snapshot, heap and delta out, Postgres let go, then DuckDB over views of the parts.
 */
import { must } from "@spillway/base/assert";
import type { Clock } from "@spillway/base/clock";
import type { ColumnBatch, ColumnSpec } from "@spillway/base/columns";
import { SpillwayError } from "@spillway/base/errors";
import {
  duckIdent,
  duckType,
  emptySql,
  type Engine,
  type EngineParam,
  type EngineSession,
  type ResultShape,
} from "../engine/engine.ts";
import { type AggregatePlan, planAggregate, planJoined } from "./aggregate.ts";
import {
  type AstNode,
  isNode,
  parseSelect,
  printSelect,
  tableRefs,
  type TableRef,
  textOf,
  textsOf,
  usedNames,
} from "./ast.ts";
import { asOfOf } from "./as-of.ts";
import type { DirectCommit } from "./corrections.ts";
import type { LakePartials, PartialReader } from "./partials.ts";
import type { Pin, PinKeeper } from "./pins.ts";
import { type Extracted, extractPredicates, type Predicate } from "./predicates.ts";
import type { ResolvedRelation, Resolver, SeamColumn } from "./resolve.ts";
import type { Source } from "./source.ts";
import type { TextCache } from "./text-cache.ts";
import {
  type AsOf,
  type OpenTable,
  type PartialsRequest,
  type TableReader,
  type TableRequest,
  type TableStats,
  unionSql,
} from "./table-read.ts";

export interface QueryOptions {
  readonly params?: readonly EngineParam[];
  /** Reads every registered table's lake alone, as it was. */
  readonly asOf?: AsOf;
  readonly signal?: AbortSignal;
}

export interface QueryStats {
  readonly tables: readonly TableStats[];
  /** Milliseconds until the rows of Postgres were here and its transaction over. */
  readonly fetchMs: number;
  readonly aggregatePushdown: boolean;
  /** Whether the lake's aggregates were computed over all rows, less the deleted ones. */
  readonly lakeDifference: boolean;
  /** The statement that DuckDB runs, over views of the tables' parts. */
  readonly sql: string;
}

export interface QueryResult {
  readonly columns: readonly ColumnSpec[];
  readonly stats: QueryStats;
  /**
   * Iterate once, or call `close`. Nothing is given before the whole answer fits into `HOLD_BYTES` or that much of it is
   * there; an error, `pin_lost` among them, can come as long as it has not ended.
   */
  batches(): AsyncIterable<ColumnBatch>;
  close(): Promise<void>;
}

export interface QueryParts {
  readonly engine: Engine;
  readonly source: Source;
  readonly pins: PinKeeper;
  readonly resolver: Resolver;
  readonly tables: TableReader;
  readonly clock: Clock;
  readonly texts: TextCache;
  readonly partials: PartialReader;
  /** For corrections of direct tables. */
  readonly direct?: DirectCommit;
}

/** The table of the statement whose rows are aggregated where they are. */
type TablePlan = AggregatePlan & { readonly table: number };

/** An answer up to this size is delivered whole or not at all. */
const HOLD_BYTES = 32 << 20;

export async function runQuery(parts: QueryParts, sql: string, options: QueryOptions): Promise<QueryResult> {
  const session = await parts.engine.session();
  const statement = new Statement(parts, session, options);
  try {
    return await statement.start(sql);
  } catch (error) {
    await statement.end();
    throw error;
  }
}

class Statement {
  readonly #parts: QueryParts;
  readonly #session: EngineSession;
  readonly #options: QueryOptions;
  readonly #open: OpenTable[] = [];
  readonly #temporary: string[] = [];
  readonly #stop = new AbortController();
  #lake: Promise<LakePartials | null> = Promise.resolve(null);
  #pin: Pin | null = null;
  #ended = false;
  #sound = false;

  constructor(parts: QueryParts, session: EngineSession, options: QueryOptions) {
    this.#parts = parts;
    this.#session = session;
    this.#options = options;
  }

  async start(sql: string): Promise<QueryResult> {
    const startMs = this.#parts.clock.monotonicMs();
    const { tree, node } = await parseSelect(this.#session, sql, this.#parts.texts);
    const refs = tableRefs(node);
    const plan = refs.length === 0 ? null : await this.#fetch(node, refs);
    const fetchMs = this.#parts.clock.monotonicMs() - startMs;
    const lake = await this.#lake;
    await this.#createViews((i) => (i === plan?.table ? lake : null));
    const final = await this.#parts.texts.get(this.#textKey(sql, plan), async () => {
      const text = refs.length === 0 ? sql : await this.#textOf(sql, tree, refs, plan);
      return this.#castable(text);
    });
    this.#pin?.check();
    const { signal } = this.#options;
    // A WHERE that was pushed down took its parameters with it.
    const params = plan && refs.length === 1 ? [] : (this.#options.params ?? []);
    const result = await this.#session.query(final, { params, ...(signal ? { signal } : {}) });
    return {
      columns: result.columns,
      stats: {
        tables: this.#open.map((t) => t.stats),
        fetchMs,
        aggregatePushdown: plan !== null,
        lakeDifference: lake?.isDifference ?? false,
        sql: final,
      },
      batches: () => this.#deliver(result.batches()),
      close: () => this.end(),
    };
  }

  /** Everything that needs Postgres. Returns the aggregation that was pushed down, if one was. */
  async #fetch(node: AstNode, refs: readonly TableRef[]): Promise<TablePlan | null> {
    const { pins, source, resolver, tables } = this.#parts;
    const { signal } = this.#options;
    this.#pin = await pins.take();
    const connection = await source.acquire();
    let ending: Promise<unknown> = Promise.resolve();
    try {
      const relations = await resolver.begin(connection, refs.map(nameOf), signal);
      const requests = await this.#requests(node, refs, relations);
      const plan = await this.#aggregate(node, refs, requests);
      for (const [i, request] of requests.entries()) {
        const partials = i === plan?.table ? this.#partialsOf(plan) : undefined;
        const open = await tables.open(
          connection,
          this.#session,
          partials ? { ...request, partials } : request,
          signal,
        );
        this.#open.push(open);
        this.#temporary.push(...open.temporary);
      }
      // Nothing was written: nobody has to wait for its end.
      ending = connection.query("COMMIT").catch(() => {});
      return plan;
    } finally {
      void ending.then(() => source.release(connection));
    }
  }

  /** The lake's partials are computed while Postgres computes the heap's. */
  #partialsOf(plan: AggregatePlan): PartialsRequest {
    const { signal } = this.#options;
    const stop = signal ? AbortSignal.any([signal, this.#stop.signal]) : this.#stop.signal;
    return {
      heapQuery: plan.heapQuery,
      onLake: (part) => {
        this.#lake = this.#parts.partials.read(plan, part, stop);
        this.#lake.catch(() => {});
      },
    };
  }

  async #requests(
    node: AstNode,
    refs: readonly TableRef[],
    relations: readonly ResolvedRelation[],
  ): Promise<(TableRequest & { complete: boolean })[]> {
    const used = usedNames(node);
    const requests: (TableRequest & { complete: boolean })[] = [];
    for (const [i, ref] of refs.entries()) {
      const relation = must(relations[i], "relation");
      const names = new Set(
        used(
          ref,
          relation.columns.map((c) => c.spec.name),
        ),
      );
      const columns = relation.columns.filter((c) => names.has(c.spec.name));
      const { predicates, complete } = await this.#predicates(ref, refs, relations, relation);
      const cheapest = relation.columns[0];
      requests.push({
        relation,
        columns: columns.length > 0 || !cheapest ? columns : [cheapest],
        predicates,
        complete,
        asOf: asOfOf(ref) ?? (relation.lake ? (this.#options.asOf ?? null) : null),
      });
    }
    return requests;
  }

  async #predicates(
    ref: TableRef,
    refs: readonly TableRef[],
    relations: readonly ResolvedRelation[],
    relation: ResolvedRelation,
  ): Promise<Extracted> {
    const { select } = ref;
    if (!select || !canFilterEarly(ref, select)) return { predicates: [], complete: false };
    const inner = joinsOf(select["from_table"]).every((j) => j["join_type"] === "INNER");
    const siblings = refs.flatMap((r, i) => (r.select === select && r !== ref ? [must(relations[i], "relation")] : []));
    const onlyTable = textOf((select["from_table"] as AstNode)["type"]) === "BASE_TABLE";
    const lookup = (names: readonly string[]): SeamColumn | null => {
      const name = names.at(-1) ?? "";
      const column = findColumn(relation, name);
      if (!column) return null;
      if (names.length === 1) {
        // Without a table's name it may belong to a subquery or another table beside this one.
        return onlyTable || (allTables(select) && !siblings.some((s) => findColumn(s, name))) ? column : null;
      }
      return names.at(-2)?.toLowerCase() === ref.alias.toLowerCase() && names.length === 2 ? column : null;
    };
    const found = await extractPredicates(this.#session, select["where_clause"], lookup, this.#options.params ?? []);
    // IS NULL is true of the row that an outer join makes up; all others are not.
    const strict = inner ? found.predicates : found.predicates.filter(isStrict);
    return { predicates: strict, complete: found.complete && strict.length === found.predicates.length };
  }

  async #aggregate(
    node: AstNode,
    refs: readonly TableRef[],
    requests: readonly (TableRequest & { complete: boolean })[],
  ): Promise<TablePlan | null> {
    if (requests.some((r) => r.asOf !== null)) return null;
    const [ref, request] = [refs[0], requests[0]];
    if (refs.length === 1 && ref && request) {
      const plan = request.complete ? planAggregate(node, ref, request) : null;
      return plan && { ...plan, table: 0 };
    }
    const registered = requests.flatMap((r, i) => (r.relation.lake ? [i] : []));
    const [table] = registered;
    if (registered.length !== 1 || table === undefined) return null;
    const plan = planJoined(node, refs, requests, table);
    if (!plan) return null;
    const { relation } = must(requests[table], "request");
    const few = await this.#parts.tables.hasFewGroups(this.#session, relation, plan.shape.groups);
    return few ? { ...plan, table } : null;
  }

  /** They stay in the session, which no other statement can see, until the next one replaces them. */
  async #createViews(lakeOf: (index: number) => LakePartials | null): Promise<void> {
    const views = this.#open.map((table, i) => {
      const lake = lakeOf(i);
      const body = unionSql(lake ? { ...table, lakeSql: lake.sql } : table);
      return `CREATE OR REPLACE TEMP VIEW ${duckIdent(viewName(i))} AS ${body}`;
    });
    if (views.length > 0) await this.#session.run(views.join("; "));
  }

  /** What the final text depends on: the statement, whether aggregates are combined, and the views' columns. */
  #textKey(sql: string, plan: TablePlan | null): string {
    const shapes = this.#open.map((t) => t.columns.map((c) => `${c.spec.name}:${duckType(c.spec)}`).join(","));
    const partials = plan ? [`partials ${plan.table}`, ...plan.shape.partials.keys()] : ["rows"];
    return ["final", ...partials, sql, ...shapes].join("\0");
  }

  /** The statement over the views. */
  async #textOf(sql: string, tree: AstNode, refs: readonly TableRef[], plan: TablePlan | null): Promise<string> {
    const original = plan ? await this.#outputOf(sql) : null;
    refs.forEach((ref, i) => redirect(ref, viewName(i)));
    if (!plan || !original) return printSelect(this.#session, tree);
    plan.rewrite();
    const text = await printSelect(this.#session, tree);
    const list = original.map((o, i) => `${duckIdent(`o${i}`)}::${o.type} AS ${duckIdent(o.name)}`).join(", ");
    return `SELECT ${list} FROM (${text}) AS r(${original.map((_, i) => duckIdent(`o${i}`)).join(", ")})`;
  }

  /** The names and types that the statement would have over rows: what the combined partials are cast to. */
  async #outputOf(sql: string): Promise<{ name: string; type: string }[]> {
    const { tree, node } = await parseSelect(this.#session, sql);
    const views = this.#open.map((table) => {
      const columns = table.columns.map((c) => c.spec);
      return { name: this.#parts.engine.freshName("shape"), sql: emptySql(columns) };
    });
    const creates = views.map((v) => `CREATE TEMP VIEW ${duckIdent(v.name)} AS ${v.sql}`);
    await this.#session.run(creates.join("; "));
    tableRefs(node).forEach((ref, i) => redirect(ref, must(views[i], "view").name));
    const shapes = await this.#session.describe(await printSelect(this.#session, tree));
    await this.#session.run(views.map((v) => `DROP VIEW ${duckIdent(v.name)}`).join("; "));
    return shapes.map(({ spec }) => ({ name: spec.name, type: duckType(spec) }));
  }

  /** The statement with casts to text of what no batch can hold. */
  async #castable(text: string): Promise<string> {
    const shapes = await this.#session.describe(text);
    if (shapes.every((s) => s.decode !== null)) return text;
    const names = shapes.map((_, i) => duckIdent(`o${i}`));
    const list = shapes.map((s: ResultShape, i) => {
      const value = s.decode === null ? `${names[i]}::VARCHAR` : names[i];
      return `${value} AS ${duckIdent(s.spec.name)}`;
    });
    return `SELECT ${list.join(", ")} FROM (${text}) AS r(${names.join(", ")})`;
  }

  async *#deliver(batches: AsyncIterable<ColumnBatch>): AsyncIterable<ColumnBatch> {
    let held: ColumnBatch[] | null = [];
    let bytes = 0;
    try {
      for await (const batch of batches) {
        this.#pin?.check();
        if (held === null) {
          yield batch;
          continue;
        }
        held.push(batch);
        bytes += sizeOf(batch);
        if (bytes < HOLD_BYTES) continue;
        const ready: ColumnBatch[] = held;
        held = null;
        yield* ready;
      }
      this.#pin?.check();
      this.#sound = true;
      if (held !== null) yield* held;
    } finally {
      await this.end();
    }
  }

  async end(): Promise<void> {
    if (this.#ended) return;
    this.#ended = true;
    const { engine } = this.#parts;
    let clean = false;
    try {
      if (this.#sound) {
        const drops = this.#temporary.map((name) => `DROP TABLE IF EXISTS ${duckIdent(name)}`);
        if (drops.length > 0) await this.#session.run(drops.join("; "));
        clean = true;
      }
    } finally {
      // A session that was left in the middle of something is closed, and its temporary tables with it.
      engine.release(this.#session, clean);
      if (!clean) this.#stop.abort();
      await this.#lake.then((lake) => lake?.drop()).catch(() => {});
      for (const table of this.#open) await table.release();
      this.#pin?.release();
    }
  }
}

function nameOf(ref: TableRef): { schema: string; name: string } {
  if (ref.catalog !== "") {
    throw new SpillwayError(
      "table_unknown",
      `A table is named by schema and name; ${JSON.stringify(`${ref.catalog}.${ref.schema}.${ref.name}`)} has a third part.`,
    );
  }
  return { schema: ref.schema, name: ref.name };
}

/** A name that no table and no common table expression has by accident. */
function viewName(index: number): string {
  return `spillway view ${index}`;
}

/** Points a reference at a view; the name by which the query knows the table stays. */
function redirect(ref: TableRef, view: string): void {
  ref.node["alias"] = ref.alias;
  ref.node["table_name"] = view;
  ref.node["schema_name"] = "";
  ref.node["catalog_name"] = "";
  ref.node["at_clause"] = null;
}

function findColumn(relation: ResolvedRelation, name: string): SeamColumn | null {
  const exact = relation.columns.find((c) => c.spec.name === name);
  if (exact) return exact;
  const folded = relation.columns.filter((c) => c.spec.name.toLowerCase() === name.toLowerCase());
  return folded.length === 1 ? (folded[0] ?? null) : null;
}

/** The joins of a FROM, not those inside its subqueries. */
function joinsOf(from: unknown): AstNode[] {
  if (!isNode(from as AstNode)) return [];
  const node = from as AstNode;
  return node["type"] === "JOIN" ? [node, ...joinsOf(node["left"]), ...joinsOf(node["right"])] : [];
}

const EARLY_JOINS = new Set(["INNER", "LEFT", "RIGHT", "OUTER", "FULL"]);
const EARLY_REFS = new Set(["REGULAR", "CROSS"]);

/** Whether a row that the WHERE refuses can be left out before the joins. */
function canFilterEarly(ref: TableRef, select: AstNode): boolean {
  if (isNode(ref.node["sample"]) || textsOf(ref.node["column_name_alias"]).length > 0) return false;
  const from = select["from_table"] as AstNode;
  if (isNode(from["sample"])) return false;
  return joinsOf(from).every(
    (j) => EARLY_JOINS.has(textOf(j["join_type"])) && EARLY_REFS.has(textOf(j["ref_type"])) && !isNode(j["sample"]),
  );
}

/** Whether the FROM is made of named tables only. */
function allTables(select: AstNode): boolean {
  const leaves = (node: AstNode): AstNode[] =>
    node["type"] === "JOIN" ? [node["left"], node["right"]].flatMap((n) => (isNode(n) ? leaves(n) : [])) : [node];
  return leaves(select["from_table"] as AstNode).every((n) => n["type"] === "BASE_TABLE");
}

function isStrict(predicate: Predicate): boolean {
  return "args" in predicate ? predicate.args.every(isStrict) : predicate.op !== "is-null";
}

function sizeOf(batch: ColumnBatch): number {
  return batch.columns.reduce(
    (sum, c) => sum + ("heap" in c ? c.heap.byteLength + c.offsets.byteLength : c.data.byteLength),
    0,
  );
}
