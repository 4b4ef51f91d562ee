/** Where the lake has the rows with given primary keys: files pruned by the tier key, rows found by a semi-join on the key. */
import { must } from "@spillway/base/assert";
import type { Column, ColumnBatch } from "@spillway/base/columns";
import { type RowHashes, RowHasher } from "@spillway/base/rowhash";
import type { TableMetadata } from "@spillway/lake/model";
import { and, type Expr, or, type ScanTask } from "@spillway/lake/scan/scan";
import { RESERVED_IDS } from "@spillway/lake/schema";
import {
  duckIdent,
  type LakeField,
  readDataFiles,
  type ScanField,
  type ScanFile,
  specOf,
  storedDuckType,
} from "../engine/engine.ts";
import type { MoverContext } from "./context.ts";
import type { HashedRows } from "./fold-bands.ts";
import { type KnownField, keysOf, lakeKey } from "./fold-fields.ts";
import { planTasks, withLocalFiles } from "./fold-scan.ts";
import type { TieredRelation } from "./tiered.ts";

export interface LookupRequest {
  readonly relation: TieredRelation;
  readonly metadata: TableMetadata;
  readonly fields: readonly KnownField[];
  /** The primary key's columns, in its order. */
  readonly pk: readonly LakeField[];
  /** Batches of exactly these columns. */
  readonly pkRows: ColumnBatch;
  readonly keys: BigInt64Array;
}

export interface FoundFile {
  readonly task: ScanTask;
  readonly positions: number[];
}

export interface Lookup {
  readonly snapshotId: bigint | undefined;
  readonly files: readonly FoundFile[];
  readonly rows: readonly HashedRows[];
  /** v3: the row id of each row found, by `pkHash` of its primary key. */
  readonly rowIds: ReadonlyMap<bigint, bigint>;
  readonly count: number;
}

/** Ranges of the tier key by which files are pruned. */
const MAX_RANGES = 100;
const ROW_ID: ScanField = { id: RESERVED_IDS.rowId, name: "_row_id", kind: "int64" };

export async function lookUp(ctx: MoverContext, request: LookupRequest): Promise<Lookup> {
  const { metadata } = request;
  const empty = { snapshotId: metadata.currentSnapshotId, files: [], rows: [], rowIds: new Map(), count: 0 };
  if (request.keys.length === 0 || metadata.currentSnapshotId === undefined) return empty;
  const tasks = await planTasks(ctx, metadata, filterOf(request));
  if (tasks.length === 0) return empty;
  const table = ctx.engine.freshName("lookup");
  try {
    await fillKeys(ctx, table, request);
    return await withLocalFiles(ctx, tasks, (files) => search(ctx, table, request, tasks, files));
  } finally {
    await ctx.engine.use((session) => session.run(`DROP TABLE IF EXISTS ${table}`));
  }
}

/** The tier keys as at most `MAX_RANGES` ranges: the largest gaps between them are left out. */
function filterOf({ relation, fields, keys }: LookupRequest): Expr {
  const key = keyField(relation, fields);
  const ranges = keyRanges(keys, MAX_RANGES).map(([low, high]): Expr =>
    and(
      { op: ">=", fieldId: key.scan.id, value: lakeKey(key.scan.kind, low) },
      { op: "<=", fieldId: key.scan.id, value: lakeKey(key.scan.kind, high) },
    ),
  );
  return or(...ranges);
}

export function keyField(relation: TieredRelation, fields: readonly KnownField[]): KnownField {
  return must(
    fields.find((f) => f.attnum === relation.keyAttnum),
    "field of the tier key",
  );
}

/** Pure: ranges that hold every key, closed, ascending, at most `max`. */
export function keyRanges(keys: BigInt64Array, max: number): (readonly [bigint, bigint])[] {
  const sorted = keys.toSorted();
  const gaps: { readonly at: number; readonly size: bigint }[] = [];
  for (let i = 1; i < sorted.length; i++) {
    const size = (sorted[i] ?? 0n) - (sorted[i - 1] ?? 0n);
    if (size > 1n) gaps.push({ at: i, size });
  }
  const cuts = gaps
    .toSorted((a, b) => (a.size > b.size ? -1 : a.size < b.size ? 1 : 0))
    .slice(0, max - 1)
    .map((g) => g.at)
    .toSorted((a, b) => a - b);
  const starts = sorted.length === 0 ? [] : [0, ...cuts];
  return starts.map((start, i) => [sorted[start] ?? 0n, sorted[(starts[i + 1] ?? sorted.length) - 1] ?? 0n]);
}

async function fillKeys(ctx: MoverContext, table: string, { pk, pkRows }: LookupRequest): Promise<void> {
  await ctx.engine.use(async (session) => {
    const columns = pk.map((f, i) => `__spillway_k${i} ${storedDuckType(f)}`).join(", ");
    await session.run(`CREATE TABLE ${table} (${columns})`);
    const appender = session.appender(table, pk.map(specOf));
    try {
      appender.append(pkRows);
    } finally {
      appender.close();
    }
  });
}

async function search(
  ctx: MoverContext,
  table: string,
  request: LookupRequest,
  tasks: readonly ScanTask[],
  files: readonly ScanFile[],
): Promise<Lookup> {
  const { fields, relation, metadata, pk } = request;
  const withIds = metadata.formatVersion >= 3;
  const same = pk.map((f, i) => `__spillway_keys.__spillway_k${i} = ${duckIdent(f.name)}`).join(" AND ");
  const found = new Map<number, FoundFile>();
  const rows: HashedRows[] = [];
  const rowIds = new Map<bigint, bigint>();
  const hasher = new RowHasher(fields.map((f) => f.hash));
  const keyAt = fields.indexOf(keyField(relation, fields));
  const pkAt = pk.map((p) => fields.findIndex((f) => f.scan.id === p.id));
  const pkHasher = pkHasherOf(pk);
  const batches = readDataFiles({
    engine: ctx.engine,
    files,
    fields: [...fields.map((f) => f.scan), ...(withIds ? [ROW_ID] : [])],
    withPosition: true,
    where: `EXISTS (SELECT 1 FROM ${table} AS __spillway_keys WHERE ${same})`,
    ...(ctx.signal ? { signal: ctx.signal } : {}),
  });
  let count = 0;
  for await (const batch of batches) {
    count += batch.length;
    const hashes = hasher.hashBatch({ length: batch.length, columns: batch.columns.slice(0, fields.length) });
    rows.push({ keys: keysOf(must(batch.columns[keyAt], "key"), batch.length).slice(), hashes });
    const pkColumns = pkAt.map((at) => must(batch.columns[at], "primary key"));
    notePositions(batch, tasks, found);
    if (withIds) noteRowIds(batch, tasks, pkHashes(pkHasher, pkColumns, batch.length), rowIds);
  }
  return { snapshotId: metadata.currentSnapshotId, files: [...found.values()], rows, rowIds, count };
}

function notePositions(batch: ColumnBatch, tasks: readonly ScanTask[], found: Map<number, FoundFile>): void {
  const [files, positions] = places(batch);
  for (let i = 0; i < batch.length; i++) {
    const file = Number(files[i]);
    let entry = found.get(file);
    if (!entry) found.set(file, (entry = { task: must(tasks[file], "task"), positions: [] }));
    entry.positions.push(Number(positions[i]));
  }
}

function noteRowIds(
  batch: ColumnBatch,
  tasks: readonly ScanTask[],
  hashes: readonly bigint[],
  rowIds: Map<bigint, bigint>,
): void {
  const [files, positions] = places(batch);
  const own = must(batch.columns.at(-3), "_row_id");
  const data = "data" in own ? (own.data as BigInt64Array) : null;
  for (let i = 0; i < batch.length; i++) {
    const has = data !== null && (own.validity === null || own.validity[i] === 1);
    const first = tasks[Number(files[i])]?.dataFile.firstRowId;
    const id = has ? data[i] : first === undefined ? undefined : first + (positions[i] ?? 0n);
    if (id !== undefined) rowIds.set(must(hashes[i], "hash"), id);
  }
}

/** `__file` and `__pos`. */
export function places(batch: ColumnBatch): [BigInt64Array, BigInt64Array] {
  const [file, position] = [must(batch.columns.at(-2), "__file"), must(batch.columns.at(-1), "__pos")];
  return [keysOf(file, batch.length), keysOf(position, batch.length)];
}

export function pkHasherOf(pk: readonly LakeField[]): RowHasher {
  return new RowHasher(pk.map((f) => ({ fieldId: f.id, kind: f.kind })));
}

/** One 64-bit number for each primary key. Good enough to match row ids, which name no data. */
export function pkHashes(hasher: RowHasher, columns: readonly Column[], length: number): bigint[] {
  const { lo, hi }: RowHashes = hasher.hashBatch({ length, columns });
  return Array.from({ length }, (_, i) => (BigInt(hi[i] ?? 0) << 32n) | BigInt(lo[i] ?? 0));
}
