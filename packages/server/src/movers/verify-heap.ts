/**
 * keep-heap: the heap's rows below the cut-line against the lake as the delta corrects it, in one snapshot. Both sides are
 * summed in buckets of the primary key's hash; only buckets that differ are read again, to name the keys.
 */
import { must } from "@spillway/base/assert";
import { takeRows } from "@spillway/base/batch";
import type { Column, ColumnBatch } from "@spillway/base/columns";
import { RowHasher, type RowHashes } from "@spillway/base/rowhash";
import type { TableMetadata } from "@spillway/lake/model";
import { TRUE } from "@spillway/lake/scan/scan";
import { copyOut } from "@spillway/pg/copy/copy-out";
import { type PgColumnPlan, selectList } from "@spillway/pg/columns/plan";
import { textOf } from "@spillway/pg/columns/text-out";
import { quoteIdent, quoteQualified } from "@spillway/pg/quote";
import type { RawConnection } from "@spillway/pg/wire/connection";
import { deltaTable, keyLiteral } from "../catalog/catalog.ts";
import { duckIdent, readDataFiles, specOf, storedDuckType } from "../engine/engine.ts";
import type { MovedColumn, MoverContext } from "./context.ts";
import { deltaColumns, type DeltaColumn } from "./fold-chunk.ts";
import type { KnownField } from "./fold-fields.ts";
import { planTasks, withLocalFiles } from "./fold-scan.ts";
import type { TieredRelation } from "./tiered.ts";
import type { Difference, VerifyOptions } from "./verify-lake.ts";

const BUCKETS = 4096;
/** Rows that may be held to name differing keys. */
const HELD_ROWS = 200_000;
export const NAMED_KEYS = 100;

export interface HeapCompare {
  readonly heapRows: number;
  readonly differences: readonly Difference[];
  /** Rows that differ are in more buckets than were looked at. */
  readonly more: boolean;
}

interface Side {
  readonly lo: Uint32Array;
  readonly hi: Uint32Array;
  readonly counts: Float64Array;
  /** Rows of the buckets under examination: hash by primary key. */
  readonly held: Map<string, string>;
}

export interface HeapSnapshot {
  /** In the one snapshot. */
  readonly connection: RawConnection;
  readonly metadata: TableMetadata;
  readonly columns: readonly MovedColumn[];
  /** The live ones, in the order of `columns`. */
  readonly fields: readonly KnownField[];
}

export async function compareHeap(
  ctx: MoverContext,
  relation: TieredRelation,
  snapshot: HeapSnapshot,
  options: VerifyOptions,
): Promise<HeapCompare> {
  const compare = new Compare(ctx, relation, snapshot, await deltaColumns(ctx, relation), options);
  return compare.run();
}

class Compare {
  readonly #ctx: MoverContext;
  readonly #relation: TieredRelation;
  readonly #snapshot: HeapSnapshot;
  readonly #delta: readonly DeltaColumn[];
  readonly #options: VerifyOptions;
  readonly #pkAt: readonly number[];
  readonly #rowHasher: RowHasher;
  readonly #pkHasher: RowHasher;
  #examined: ReadonlySet<number> = new Set();

  constructor(
    ctx: MoverContext,
    relation: TieredRelation,
    snapshot: HeapSnapshot,
    delta: readonly DeltaColumn[],
    options: VerifyOptions,
  ) {
    this.#ctx = ctx;
    this.#relation = relation;
    this.#snapshot = snapshot;
    this.#delta = delta;
    this.#options = options;
    this.#pkAt = relation.pkAttnums.map((n) => snapshot.fields.findIndex((f) => f.attnum === n));
    this.#rowHasher = new RowHasher(snapshot.fields.map((f) => f.hash));
    this.#pkHasher = new RowHasher(this.#pkAt.map((i) => must(snapshot.fields[i], "primary key").hash));
  }

  async run(): Promise<HeapCompare> {
    const [heap, lake] = [newSide(), newSide()];
    await this.#readHeap(heap);
    await this.#readLake(lake);
    const differing: number[] = [];
    for (let b = 0; b < BUCKETS; b++) {
      if (heap.lo[b] !== lake.lo[b] || heap.hi[b] !== lake.hi[b] || heap.counts[b] !== lake.counts[b])
        differing.push(b);
    }
    const heapRows = heap.counts.reduce((sum, n) => sum + n, 0);
    if (differing.length === 0) return { heapRows, differences: [], more: false };
    const perBucket = Math.max(1, heapRows / BUCKETS);
    const chosen = differing.slice(0, Math.max(1, Math.floor(HELD_ROWS / perBucket)));
    this.#examined = new Set(chosen);
    const [heapAgain, lakeAgain] = [newSide(), newSide()];
    await this.#readHeap(heapAgain);
    await this.#readLake(lakeAgain);
    const all = differencesOf(heapAgain.held, lakeAgain.held);
    const more = chosen.length < differing.length || all.length > NAMED_KEYS;
    return { heapRows, differences: all.slice(0, NAMED_KEYS), more };
  }

  async #readHeap(side: Side): Promise<void> {
    const { schemaName, tableName, keyKind, keyName, seam } = this.#relation;
    const plans = this.#snapshot.columns.map((c) => c.column.copyPlan);
    const key = quoteIdent(keyName);
    const above = seam.r === null ? "" : ` and ${key} >= ${keyLiteral(keyKind, seam.r)}`;
    const source = `(select ${selectList(plans)} from ${quoteQualified(schemaName, tableName)}
      where ${key} < ${keyLiteral(keyKind, seam.t)}${above})`;
    for await (const batch of this.#copy(source, plans)) this.#add(side, batch);
  }

  /** The lake's rows that no correction hides, and the corrections that are rows. */
  async #readLake(side: Side): Promise<void> {
    const { engine } = this.#ctx;
    const table = engine.freshName("corrected");
    const pk = this.#pkAt.map((i) => must(this.#delta[i], "primary key").field);
    try {
      const columns = pk.map((f, i) => `__spillway_k${i} ${storedDuckType(f)}`).join(", ");
      await engine.use((s) => s.run(`CREATE TABLE ${table} (${columns})`));
      await this.#readDelta(side, table, pk.map(specOf));
      const tasks = await planTasks(this.#ctx, this.#snapshot.metadata, TRUE);
      const same = pk.map((f, i) => `__spillway_keys.__spillway_k${i} = ${duckIdent(f.name)}`).join(" AND ");
      for (const task of tasks) {
        await withLocalFiles(this.#ctx, [task], async (files) => {
          const batches = readDataFiles({
            engine,
            files,
            fields: this.#snapshot.fields.map((f) => f.scan),
            where: `NOT EXISTS (SELECT 1 FROM ${table} AS __spillway_keys WHERE ${same})`,
            ...(this.#options.signal ? { signal: this.#options.signal } : {}),
          });
          for await (const batch of batches) this.#add(side, batch);
        });
      }
    } finally {
      await engine.use((s) => s.run(`DROP TABLE IF EXISTS ${table}`));
    }
  }

  async #readDelta(side: Side, table: string, specs: readonly Column["spec"][]): Promise<void> {
    const plans = this.#delta.map((c) => c.plan);
    const upsert: PgColumnPlan = {
      name: "upsert",
      typeOid: 16,
      typmod: -1,
      spec: { name: "upsert", kind: "bool" },
      wire: "bool",
      asText: false,
    };
    const source = `(select op = 'U', ${selectList(plans)} from ${deltaTable(this.#relation.relationId)}
      where key < ${this.#relation.seam.t}::bigint)`;
    const session = await this.#ctx.engine.session();
    try {
      const appender = session.appender(table, specs);
      try {
        for await (const batch of this.#copy(source, [upsert, ...plans])) {
          const columns = batch.columns.slice(1);
          appender.append({ length: batch.length, columns: this.#pkAt.map((i) => must(columns[i], "primary key")) });
          const isUpsert = must(batch.columns[0], "op");
          const live = Array.from({ length: batch.length }, (_, i) => i).filter(
            (i) => "data" in isUpsert && isUpsert.data[i] === 1,
          );
          if (live.length > 0) this.#add(side, takeRows({ length: batch.length, columns }, live));
        }
      } finally {
        appender.close();
      }
    } finally {
      this.#ctx.engine.release(session, true);
    }
  }

  #copy(source: string, columns: readonly PgColumnPlan[]): AsyncIterable<ColumnBatch> {
    const { connection } = this.#snapshot;
    return copyOut({ connection, source, columns, batchRows: 8192, signal: this.#options.signal });
  }

  #add(side: Side, batch: ColumnBatch): void {
    const rows = this.#rowHasher.hashBatch(batch);
    const pk = this.#pkAt.map((i) => must(batch.columns[i], "primary key"));
    const keys = this.#pkHasher.hashBatch({ length: batch.length, columns: pk });
    for (let i = 0; i < batch.length; i++) {
      const bucket = (keys.lo[i] ?? 0) % BUCKETS;
      addTo(side, bucket, rows, i);
      if (this.#examined.has(bucket)) side.held.set(pkText(pk, i), `${rows.hi[i]}:${rows.lo[i]}`);
    }
  }
}

function newSide(): Side {
  return {
    lo: new Uint32Array(BUCKETS),
    hi: new Uint32Array(BUCKETS),
    counts: new Float64Array(BUCKETS),
    held: new Map(),
  };
}

function addTo(side: Side, bucket: number, rows: RowHashes, i: number): void {
  const before = side.lo[bucket] ?? 0;
  const sum = (before + (rows.lo[i] ?? 0)) >>> 0;
  side.lo[bucket] = sum;
  side.hi[bucket] = (side.hi[bucket] ?? 0) + (rows.hi[i] ?? 0) + (sum < before ? 1 : 0);
  side.counts[bucket] = (side.counts[bucket] ?? 0) + 1;
}

function pkText(columns: readonly Column[], row: number): string {
  const values = columns.map((c) => textOf(c, row) ?? "NULL");
  return values.length === 1 ? (values[0] ?? "") : `(${values.join(", ")})`;
}

function differencesOf(heap: ReadonlyMap<string, string>, lake: ReadonlyMap<string, string>): Difference[] {
  const differences: Difference[] = [];
  for (const [key, hash] of heap) {
    const other = lake.get(key);
    if (other === undefined) differences.push({ kind: "row", key, fault: "not in the lake" });
    else if (other !== hash) differences.push({ kind: "row", key, fault: "differs" });
  }
  for (const key of lake.keys()) if (!heap.has(key)) differences.push({ kind: "row", key, fault: "not in the heap" });
  return differences;
}
