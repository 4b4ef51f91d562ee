/**
 * Verifying a mirrored table while it is written: the pump cuts a flush exactly where a snapshot of the heap lies, and then every
 * column of every row is compared, by hashed key ranges; rows of ranges that differ are named.
 */
import { must } from "@spillway/base/assert";
import type { ColumnBatch } from "@spillway/base/columns";
import { SpillwayError } from "@spillway/base/errors";
import { randomHex } from "@spillway/base/ids";
import { formatLsn, type Lsn } from "@spillway/base/lsn";
import { Checksum, RowHasher } from "@spillway/base/rowhash";
import { readMetadata } from "@spillway/lake/metadata";
import { TRUE } from "@spillway/lake/scan/scan";
import { copyOut } from "@spillway/pg/copy/copy-out";
import { selectList } from "@spillway/pg/columns/plan";
import { textOf } from "@spillway/pg/columns/text-out";
import { quoteLiteral, quoteQualified } from "@spillway/pg/quote";
import { createSlot } from "@spillway/pg/replication/session";
import { connectRaw } from "@spillway/pg/wire/connect-raw";
import type { RawConnection } from "@spillway/pg/wire/connection";
import {
  awaitRequest,
  fileRequest,
  loadRelation,
  readRequest,
  readTableColumns,
  type Relation,
} from "../../catalog/catalog.ts";
import { readDataFiles } from "../../engine/engine.ts";
import { displayName, hashField, type MovedColumn, movedColumns, type MoverContext, scanField } from "../context.ts";
import { planTasks, withLocalFiles } from "../fold-scan.ts";
import { schemaDrift } from "../schema-drift.ts";
import { CUT_REQUEST } from "./cut.ts";

export interface MirrorDifference {
  readonly key: string;
  readonly fault: "missing in the lake" | "not in the heap" | "differs";
}

export interface MirrorReport {
  readonly table: string;
  readonly ok: boolean;
  readonly lsn: Lsn;
  readonly rows: bigint;
  readonly lakeRows: bigint;
  readonly checksum: string;
  readonly differences: readonly MirrorDifference[];
  readonly more: boolean;
  readonly ms: number;
}

const RANGES = 4096;
const MAX_NAMED = 100;
const CLAIM_TIMEOUT_MS = 15_000;
const SLOT_TIMEOUT_MS = 10_000;
const CUT_TIMEOUT_MS = 120_000;

/** Throws `mirror_no_pump` without a worker, `deadline_exceeded` naming the transactions that the snapshot waited for. */
export async function verifyMirrored(ctx: MoverContext, relationId: bigint): Promise<MirrorReport> {
  const startMs = ctx.clock.monotonicMs();
  const relation = must(await ctx.pool.withClient((c) => loadRelation(c, relationId)), "relation");
  const now = await ctx.pool.withClient((c) => readTableColumns(c, relation.relid));
  if (relation.state !== "active" || schemaDrift(relation, now) !== null) {
    throw new SpillwayError(
      "mirror_no_pump",
      `${displayName(relation)} is not live: ${relation.stopReason ?? relation.state}`,
    );
  }
  const columns = movedColumns(relation, now);
  const exporter = await connectRaw(ctx.conninfo, { applicationName: ctx.applicationName, replication: "database" });
  const reader = await connectRaw(ctx.conninfo, { applicationName: ctx.applicationName });
  try {
    const { lsn, location } = await cut(ctx, relation, exporter, reader);
    const heap = new Ranges(relation, columns);
    for await (const batch of heapRows(reader, relation, columns)) heap.add(batch);
    const lake = new Ranges(relation, columns);
    for await (const batch of lakeRows(ctx, location, columns)) lake.add(batch);
    const differing = heap.differingFrom(lake);
    const found = differing.size === 0 ? [] : await name(ctx, relation, columns, reader, location, differing);
    const report: MirrorReport = {
      table: displayName(relation),
      ok: differing.size === 0,
      lsn,
      rows: heap.total.rows,
      lakeRows: lake.total.rows,
      checksum: heap.total.toString(),
      differences: found.slice(0, MAX_NAMED),
      more: found.length > MAX_NAMED,
      ms: Math.round(ctx.clock.monotonicMs() - startMs),
    };
    if (report.ok) await certify(ctx, relationId, report);
    return report;
  } finally {
    await reader.close();
    await exporter.close();
  }
}

/** The pump's flush at the position of a new snapshot, which `reader` is left in. */
async function cut(
  ctx: MoverContext,
  relation: Relation,
  exporter: RawConnection,
  reader: RawConnection,
): Promise<{ lsn: Lsn; location: string }> {
  const id = await ctx.pool.withClient((c) => fileRequest(c, { kind: CUT_REQUEST, relationId: relation.relationId }));
  const endMs = ctx.clock.monotonicMs() + CLAIM_TIMEOUT_MS;
  for (;;) {
    const request = await ctx.pool.withClient((c) => readRequest(c, id));
    if (request?.state === "claimed") break;
    if (ctx.clock.monotonicMs() > endMs || request?.state === "failed") {
      await ctx.pool.withClient((c) => c.query("delete from spillway.request where request_id = $1", [id.toString()]));
      throw new SpillwayError("mirror_no_pump", "no pump has answered: the comparison needs a flush of its own");
    }
    await ctx.clock.sleep(20, ctx.signal);
  }
  const slot = await createSlot(exporter, {
    name: `spillway_verify_${randomHex(12)}`,
    temporary: true,
    snapshot: "export",
    timeoutMs: SLOT_TIMEOUT_MS,
  });
  await reader.query(
    `begin isolation level repeatable read read only; set transaction snapshot ${quoteLiteral(must(slot.snapshotName, "snapshot"))}`,
  );
  const lsn = formatLsn(slot.consistentPoint);
  await ctx.pool.withClient((c) =>
    c.query("update spillway.request set detail = jsonb_build_object('lsn', $2::text) where request_id = $1", [
      id.toString(),
      lsn,
    ]),
  );
  // An idle server says nothing behind the position by itself.
  await ctx.pool.withClient((c) => c.query("select pg_logical_emit_message(false, 'spillway.flush', '')"));
  const answer = await ctx.pool.withClient((c) =>
    awaitRequest(c, id, { clock: ctx.clock, timeoutMs: CUT_TIMEOUT_MS, ...(ctx.signal ? { signal: ctx.signal } : {}) }),
  );
  const tables = (answer.result?.["tables"] ?? {}) as Record<string, string>;
  const location = tables[relation.relationId.toString()];
  if (answer.state !== "done" || location === undefined) {
    throw new SpillwayError("mirror_no_pump", `the pump could not cut at ${lsn}: ${JSON.stringify(answer.result)}`);
  }
  return { lsn: slot.consistentPoint, location };
}

function heapRows(reader: RawConnection, relation: Relation, columns: readonly MovedColumn[]) {
  const plans = columns.map((c) => c.column.copyPlan);
  const source = `(select ${selectList(plans)} from ${quoteQualified(relation.schemaName, relation.tableName)})`;
  return copyOut({ connection: reader, source, columns: plans });
}

async function* lakeRows(
  ctx: MoverContext,
  location: string,
  columns: readonly MovedColumn[],
): AsyncIterable<ColumnBatch> {
  const tasks = await planTasks(ctx, await readMetadata(ctx.store, location), TRUE);
  const batches: ColumnBatch[] = [];
  for (const task of tasks) {
    await withLocalFiles(ctx, [task], async (files) => {
      for await (const batch of readDataFiles({ engine: ctx.engine, files, fields: columns.map(scanField) })) {
        batches.push(batch);
      }
    });
    yield* batches.splice(0);
  }
}

/** Checksums of the rows by the range that the hash of their key falls into. */
class Ranges {
  readonly total = new Checksum();
  readonly #ranges: Checksum[] = Array.from({ length: RANGES }, () => new Checksum());
  readonly #rows: RowHasher;
  readonly #keys: KeyRange;

  constructor(relation: Relation, columns: readonly MovedColumn[]) {
    this.#rows = new RowHasher(columns.map(plainHash));
    this.#keys = new KeyRange(relation, columns);
  }

  add(batch: ColumnBatch): void {
    const rows = this.#rows.hashBatch(batch);
    const ranges = this.#keys.of(batch);
    for (let i = 0; i < batch.length; i++) this.#ranges[ranges[i] ?? 0]?.add(rows, i, i + 1);
    this.total.add(rows);
  }

  differingFrom(other: Ranges): Set<number> {
    const differing = new Set<number>();
    this.#ranges.forEach((range, i) => {
      if (!range.equals(must(other.#ranges[i], "range"))) differing.add(i);
    });
    return differing;
  }
}

class KeyRange {
  readonly at: readonly number[];
  readonly #hasher: RowHasher;

  constructor(relation: Relation, columns: readonly MovedColumn[]) {
    this.at = relation.pkAttnums.map((n) => columns.findIndex((c) => c.column.attnum === n));
    this.#hasher = new RowHasher(this.at.map((i) => plainHash(must(columns[i], "key column"))));
  }

  of(batch: ColumnBatch): Uint32Array {
    const columns = this.at.map((i) => must(batch.columns[i], "key column"));
    return this.#hasher.hashBatch({ length: batch.length, columns }).hi.map((word) => word % RANGES);
  }
}

/** Every value counts as itself: what was filled in for old rows is compared like any other. */
function plainHash(column: MovedColumn): { fieldId: number; kind: ReturnType<typeof hashField>["kind"] } {
  const { fieldId, kind } = hashField(column);
  return { fieldId, kind };
}

/** The rows of the differing ranges, by key. */
async function name(
  ctx: MoverContext,
  relation: Relation,
  columns: readonly MovedColumn[],
  reader: RawConnection,
  location: string,
  differing: ReadonlySet<number>,
): Promise<MirrorDifference[]> {
  const collect = async (rows: AsyncIterable<ColumnBatch>): Promise<Map<string, string[]>> => {
    const keys = new KeyRange(relation, columns);
    const hasher = new RowHasher(columns.map(plainHash));
    const found = new Map<string, string[]>();
    for await (const batch of rows) {
      const ranges = keys.of(batch);
      const { lo, hi } = hasher.hashBatch(batch);
      for (let i = 0; i < batch.length; i++) {
        if (!differing.has(ranges[i] ?? 0)) continue;
        const key = keys.at.map((at) => textOf(must(batch.columns[at], "key"), i)).join(", ");
        const held = found.get(key) ?? [];
        found.set(key, held);
        held.push(`${hi[i]}.${lo[i]}`);
      }
    }
    return found;
  };
  const heap = await collect(heapRows(reader, relation, columns));
  const lake = await collect(lakeRows(ctx, location, columns));
  const out: MirrorDifference[] = [];
  for (const [key, rows] of heap) {
    const others = lake.get(key);
    if (!others) out.push({ key, fault: "missing in the lake" });
    else if (others.join() !== rows.join()) out.push({ key, fault: "differs" });
  }
  for (const key of lake.keys()) if (!heap.has(key)) out.push({ key, fault: "not in the heap" });
  return out;
}

async function certify(ctx: MoverContext, relationId: bigint, report: MirrorReport): Promise<void> {
  await ctx.pool.withClient((c) =>
    c.query(
      `update spillway.mirror_table set verified_at = now(), verified_lsn = $2, verified_rows = $3, verified_sum = $4
       where relation_id = $1`,
      [relationId.toString(), formatLsn(report.lsn), report.rows.toString(), report.checksum],
    ),
  );
}
