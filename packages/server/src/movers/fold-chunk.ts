/** A bounded part of the delta, oldest corrections first, read in one snapshot. */
import { must } from "@spillway/base/assert";
import { concatBatches, estimateBytes, takeRows } from "@spillway/base/batch";
import { type ColumnBatch, isVarColumn } from "@spillway/base/columns";
import { SpillwayError } from "@spillway/base/errors";
import { quoteIdent } from "@spillway/pg/quote";
import { copyOut } from "@spillway/pg/copy/copy-out";
import { type PgColumnPlan, selectList } from "@spillway/pg/columns/plan";
import { connectRaw } from "@spillway/pg/wire/connect-raw";
import type { RawConnection } from "@spillway/pg/wire/connection";
import { deltaName, deltaTable, liveColumns, readTableColumns, type RelationColumn } from "../catalog/catalog.ts";
import type { LakeField } from "../engine/engine.ts";
import { displayName, type MoverContext } from "./context.ts";
import { keysOf } from "./fold-fields.ts";
import type { TieredRelation } from "./tiered.ts";

/** One column of the delta with the lake's field of it. */
export interface DeltaColumn {
  readonly attnum: number;
  readonly plan: PgColumnPlan;
  readonly field: LakeField;
}

export interface DeltaChunk {
  readonly columns: readonly DeltaColumn[];
  readonly versions: readonly bigint[];
  /** All rows: `key` and the primary key's columns are set, of upserts the others too. */
  readonly keys: BigInt64Array;
  readonly rows: ColumnBatch;
  /** Rows that are upserts, in key order. */
  readonly upserts: readonly number[];
  /** More rows were due than fit. */
  readonly more: boolean;
}

export interface ChunkLimits {
  readonly rows: number;
  readonly bytes: number;
  /** The latest version that is due. Default: every one. */
  readonly upTo?: bigint;
}

const FIRST = 3;

/** The delta's columns as they are now. Throws `mover_busy` when they are not those that the catalog follows. */
export async function deltaColumns(ctx: MoverContext, relation: TieredRelation): Promise<readonly DeltaColumn[]> {
  const now = await ctx.pool.withClient(async (c) => {
    const { rows } = await c.query<{ oid: string | null }>("select to_regclass($1)::oid::text as oid", [
      `spillway.${quoteIdent(deltaName(relation.relationId))}`,
    ]);
    const oid = rows[0]?.oid;
    return oid ? readTableColumns(c, Number(oid)) : [];
  });
  const byName = new Map(now.map((c) => [c.name, c]));
  return liveColumns(relation).map((column) => deltaColumn(relation, column, byName));
}

function deltaColumn(
  relation: TieredRelation,
  column: RelationColumn,
  byName: ReadonlyMap<string, { readonly copyPlan: PgColumnPlan }>,
): DeltaColumn {
  const found = byName.get(`c${column.attnum}`);
  if (!found) throw new SpillwayError("mover_busy", `the delta of ${displayName(relation)} is being altered`);
  const { kind, decimal } = found.copyPlan.spec;
  const base = { id: column.fieldId, name: column.name, kind };
  return { attnum: column.attnum, plan: found.copyPlan, field: decimal ? { ...base, decimal } : base };
}

/** Null when nothing is due. `inside`: a connection in whose transaction to read, instead of one of its own. */
export async function readChunk(
  ctx: MoverContext,
  relation: TieredRelation,
  limits: ChunkLimits,
  inside?: RawConnection,
): Promise<DeltaChunk | null> {
  const columns = await deltaColumns(ctx, relation);
  const plans = columns.map((c) => c.plan);
  const id = relation.relationId;
  // Rows with extras wait until the column that they belong to is followed.
  const source = `(select op::text, version, key, ${selectList(plans)} from ${deltaTable(id)} d
    where key < (select t from spillway.seam where relation_id = ${id})
      and key >= coalesce((select r from spillway.seam where relation_id = ${id}), key) and x is null${limits.upTo === undefined ? "" : ` and version <= ${limits.upTo}`}
    order by version limit ${limits.rows + 1})`;
  const head: PgColumnPlan[] = [
    plan("op", 25, "text", "text"),
    plan("version", 20, "int64", "int8"),
    plan("key", 20, "int64", "int8"),
  ];
  const connection =
    inside ??
    (await connectRaw(ctx.conninfo, {
      applicationName: ctx.applicationName,
      ...(ctx.signal ? { signal: ctx.signal } : {}),
    }));
  const batches: ColumnBatch[] = [];
  let bytes = 0;
  let cut = false;
  try {
    for await (const batch of copyOut({ connection, source, columns: [...head, ...plans], batchRows: 4096 })) {
      batches.push(batch);
      bytes += estimateBytes(batch);
      // A COPY that is not read to its end fails its transaction; in one of a client's, the rows were bounded before.
      if (bytes < limits.bytes || inside) continue;
      cut = true;
      break;
    }
  } finally {
    if (!inside) await connection.close();
  }
  return batches.length === 0 ? null : chunkOf(columns, concatBatches(batches), limits, cut);
}

function plan(name: string, typeOid: number, kind: "text" | "int64", wire: "text" | "int8"): PgColumnPlan {
  return { name, typeOid, typmod: -1, spec: { name, kind }, wire, asText: false };
}

function chunkOf(columns: readonly DeltaColumn[], all: ColumnBatch, limits: ChunkLimits, cut: boolean): DeltaChunk {
  const more = cut || all.length > limits.rows;
  const length = Math.min(all.length, limits.rows);
  const batch =
    length === all.length
      ? all
      : takeRows(
          all,
          Uint32Array.from({ length }, (_, i) => i),
        );
  const [op, version, key] = batch.columns;
  const keys = keysOf(must(key, "key"), length);
  const versions = [...keysOf(must(version, "version"), length)];
  const upserts: number[] = [];
  for (let i = 0; i < length; i++) if (isUpsert(must(op, "op"), i)) upserts.push(i);
  upserts.sort((a, b) => compare(keys[a] ?? 0n, keys[b] ?? 0n) || a - b);
  return { columns, versions, keys, rows: { length, columns: batch.columns.slice(FIRST) }, upserts, more };
}

function isUpsert(op: ColumnBatch["columns"][number], row: number): boolean {
  return isVarColumn(op) && op.heap[op.offsets[row] ?? 0] === 0x55;
}

function compare(a: bigint, b: bigint): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
