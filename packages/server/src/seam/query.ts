/**
 * A SELECT over any number of registered and plain tables as one point in time (docs/internals/seam.md §1, §5): pin, lock,
 * snapshot, heap and delta out, Postgres let go, then DuckDB over views of the parts.
 */
import { must } from "@spillway/base/assert";
import type { ColumnBatch, ColumnSpec } from "@spillway/base/columns";
import { duckIdent, duckType, emptySql, type EngineSession, type ResultShape } from "../engine/engine.ts";
import { type AggregatePlan, planAggregate, planJoined } from "./aggregate.ts";
import { type AstNode, parseSelect, printSelect, tableRefs, type TableRef, textOf, usedNames } from "./ast.ts";
import { asOfFor, asOfOf } from "./as-of.ts";
import { atFrontier, type MirrorChoice, type MirrorStats, type MirrorWait } from "./mirror-read.ts";
import { heapLimit } from "./heap-limit.ts";
import type { LakePartials } from "./partials.ts";
import type { Pin } from "./pins.ts";
import { canRaise, guard, type GuardedTable, isMasked, policyColumns, policyKey, policyView } from "./policy.ts";
import { type Extracted, extractPredicates } from "./predicates.ts";
import {
  allTables,
  canFilterEarly,
  findColumn,
  isStrict,
  joinsOf,
  nameOf,
  redirect,
  sizeOf,
  viewName,
} from "./query-shape.ts";
import { openScope, type ReadScope } from "./read-scope.ts";
import type { QueryOptions, QueryParts, QueryResult } from "./query-types.ts";
import type { ResolvedRelation, SeamColumn } from "./resolve.ts";
import { type OpenTable, type PartialsRequest, type TableRequest, unionSql } from "./table-read.ts";

export type { QueryOptions, QueryParts, QueryResult, QueryStats } from "./query-types.ts";

/** The table of the statement whose rows are aggregated where they are. */
type TablePlan = AggregatePlan & { readonly table: number };

interface Waited {
  readonly choice: MirrorWait;
  readonly ms: number;
}

/** An answer up to this size is delivered whole or not at all. */
const HOLD_BYTES = 32 << 20;

export async function runQuery(
  parts: QueryParts,
  sql: string,
  options: QueryOptions,
  scope?: ReadScope,
): Promise<QueryResult> {
  const session = await parts.engine.session();
  const statement = new Statement(parts, session, options, scope);
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
  readonly #scope: ReadScope | undefined;
  #guarded: readonly GuardedTable[] = [];
  /** The columns of each table as the statement uses them. */
  readonly #shown: ColumnSpec[][] = [];
  #barrier = false;
  #lake: Promise<LakePartials | null> = Promise.resolve(null);
  #mirror: MirrorStats | null = null;
  #pin: Pin | null = null;
  #ended = false;
  #sound = false;

  constructor(parts: QueryParts, session: EngineSession, options: QueryOptions, scope?: ReadScope) {
    this.#parts = parts;
    this.#session = session;
    this.#options = options;
    this.#scope = scope;
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
        mirror: this.#mirror,
        sql: final,
      },
      batches: () => this.#deliver(result.batches()),
      close: () => this.end(),
    };
  }

  /** Everything that needs Postgres. Returns the aggregation that was pushed down, if one was. */
  async #fetch(node: AstNode, refs: readonly TableRef[]): Promise<TablePlan | null> {
    const { signal } = this.#options;
    for (let waited: Waited | null = null; ;) {
      const scope = this.#scope ?? (await openScope(this.#parts));
      if (!this.#scope) {
        this.#pin?.release();
        this.#pin = scope.pin;
      }
      let read: TablePlan | MirrorWait | null;
      try {
        read = await this.#read(scope, node, refs, waited);
      } finally {
        scope.end();
      }
      if (read === null || !("wait" in read)) return read;
      const startMs = this.#parts.clock.monotonicMs();
      await this.#parts.frontier.until(read.wait, read.timeoutMs, signal);
      waited = { choice: read, ms: this.#parts.clock.monotonicMs() - startMs };
    }
  }

  /** Or what must be waited for first, and then everything is looked up again. */
  async #read(
    scope: ReadScope,
    node: AstNode,
    refs: readonly TableRef[],
    waited: Waited | null,
  ): Promise<TablePlan | MirrorWait | null> {
    const { signal, searchPath, access } = this.#options;
    const relations = await scope.relations(
      refs.map((ref) => nameOf(ref, searchPath)),
      signal,
    );
    this.#guarded = relations.map((r) => guard(r, access?.(r) ?? null));
    this.#barrier = this.#guarded.some((g) => g.policy !== null) && canRaise(node);
    const visible = this.#guarded.map((g) => g.relation);
    const all = await this.#requests(node, refs, visible, relations);
    const plan = await this.#aggregate(node, refs, all);
    const choice = await this.#choose(scope, all, plan, waited);
    if (choice !== null && "wait" in choice) return choice;
    this.#mirror = choice;
    const requests = choice?.tier === "lake" ? atFrontier(all) : all;
    const [only, first] = [refs[0], all[0]];
    const isOne = refs.length === 1 && plan === null && this.#guarded[0]?.policy === null;
    const limit = isOne && only && first ? heapLimit(node, only, first, this.#options.params ?? []) : null;
    for (const [i, each] of requests.entries()) {
      const request = limit === null ? each : { ...each, heapLimit: limit };
      const partials = i === plan?.table ? this.#partialsOf(plan) : undefined;
      const open = await this.#parts.tables.open(
        scope.connection,
        this.#session,
        partials ? { ...request, partials } : request,
        signal,
      );
      this.#open.push(open);
      this.#temporary.push(...open.temporary);
    }
    return plan;
  }

  async #choose(
    scope: ReadScope,
    requests: readonly TableRequest[],
    plan: TablePlan | null,
    waited: Waited | null,
  ): Promise<MirrorChoice | null> {
    const { mirrors } = this.#parts;
    if (waited !== null) return mirrors.afterWait(requests, waited.choice, waited.ms);
    return mirrors.choose({
      connection: scope.connection,
      requests,
      freshness: this.#options.freshness ?? null,
      isFixed: this.#scope !== undefined,
      aggregated: (i) => (i === plan?.table ? plan.heapQuery : undefined),
    });
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
    whole: readonly ResolvedRelation[],
  ): Promise<(TableRequest & { complete: boolean })[]> {
    const namesOf = usedNames(node);
    const requests: (TableRequest & { complete: boolean })[] = [];
    for (const [i, ref] of refs.entries()) {
      const relation = must(relations[i], "relation");
      const names = new Set(
        namesOf(
          ref,
          relation.columns.map((c) => c.spec.name),
        ),
      );
      const named = relation.columns.filter((c) => names.has(c.spec.name));
      const { predicates, complete } = await this.#predicates(ref, refs, relations, i);
      const cheapest = relation.columns[0];
      const used = named.length > 0 || !cheapest ? named : [cheapest];
      this.#shown[i] = used.map((c) => c.spec);
      const own = must(whole[i], "relation");
      const policy = this.#guarded[i]?.policy ?? null;
      requests.push({
        relation: own,
        columns: policy ? await policyColumns(this.#session, policy, used, own.columns, this.#parts.texts) : used,
        predicates,
        complete,
        asOf: asOfOf(ref) ?? asOfFor(relation, this.#options.asOf),
      });
    }
    return requests;
  }

  async #predicates(
    ref: TableRef,
    refs: readonly TableRef[],
    relations: readonly ResolvedRelation[],
    index: number,
  ): Promise<Extracted> {
    const { select } = ref;
    const relation = must(relations[index], "relation");
    const policy = this.#guarded[index]?.policy ?? null;
    if (!select || !canFilterEarly(ref, select)) return { predicates: [], complete: false };
    const inner = joinsOf(select["from_table"]).every((j) => j["join_type"] === "INNER");
    const siblings = refs.flatMap((r, i) => (r.select === select && r !== ref ? [must(relations[i], "relation")] : []));
    const onlyTable = textOf((select["from_table"] as AstNode)["type"]) === "BASE_TABLE";
    const lookup = (names: readonly string[]): SeamColumn | null => {
      const name = names.at(-1) ?? "";
      const column = findColumn(relation, name);
      if (!column || isMasked(policy, column)) return null;
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
    if (requests.some((r) => r.asOf !== null) || this.#guarded.some((g) => g.policy !== null)) return null;
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
      const body = this.#guard(i, unionSql(lake ? { ...table, lakeSql: lake.sql } : table));
      return `CREATE OR REPLACE TEMP VIEW ${duckIdent(viewName(i))} AS ${body}`;
    });
    if (views.length > 0) await this.#session.run(views.join("; "));
  }

  #guard(index: number, body: string): string {
    const policy = this.#guarded[index]?.policy;
    return policy ? policyView(policy, body, this.#shown[index] ?? [], this.#barrier) : body;
  }

  /** What the final text depends on: the statement, whether aggregates are combined, and the views' columns. */
  #textKey(sql: string, plan: TablePlan | null): string {
    const shapes = this.#open.map((t) => t.columns.map((c) => `${c.spec.name}:${duckType(c.spec)}`).join(","));
    const partials = plan ? [`partials ${plan.table}`, ...plan.shape.partials.keys()] : ["rows"];
    const policies = this.#guarded.map((g) => policyKey(g.policy));
    return ["final", ...partials, sql, ...shapes, ...policies].join("\0");
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
