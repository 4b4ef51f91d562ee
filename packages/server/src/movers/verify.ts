/**
 * Verifying a table: full rows, not counts, at one point in time, while everything goes on. The lake's rows are summed by band
 * and compared with what was journaled when they were written (every fold, compaction and retention keeps that
 * up to date), each file is compared with its manifest, and with keep-heap every row with the heap's.
 */
import { must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import { readMetadata } from "@spillway/lake/metadata";
import type { TableMetadata } from "@spillway/lake/model";
import { quoteLiteral } from "@spillway/pg/quote";
import type { RawConnection } from "@spillway/pg/wire/connection";
import { connectRaw } from "@spillway/pg/wire/connect-raw";
import {
  type BandRow,
  keyText,
  loadBands,
  loadLakeTable,
  loadRelation,
  readTableColumns,
  type TableColumn,
} from "../catalog/catalog.ts";
import { PinKeeper, Source } from "../seam/seam.ts";
import { displayName, movedColumns, type MoverContext, withFreshClient } from "./context.ts";
import { knownFields } from "./fold-fields.ts";
import { raiseCounters } from "./maintain-counters.ts";
import { schemaDrift } from "./schema-drift.ts";
import { asTiered, type TieredRelation } from "./tiered.ts";
import { compareHeap } from "./verify-heap.ts";
import { auditLake, type Difference, type VerifyOptions } from "./verify-lake.ts";

export { type Difference, type VerifyOptions } from "./verify-lake.ts";

export interface VerifyReport {
  readonly table: string;
  readonly ok: boolean;
  readonly mode: string;
  /** As people read it. */
  readonly cutLine: string;
  readonly snapshotId: bigint | null;
  readonly bands: number;
  readonly files: number;
  readonly bytes: bigint;
  readonly lakeRows: bigint;
  /** Rows of the heap that were compared; null where the heap does not hold them. */
  readonly heapRows: number | null;
  readonly differences: readonly Difference[];
  /** There are more than were named. */
  readonly more: boolean;
  readonly ms: number;
}

interface State {
  readonly relation: TieredRelation;
  readonly bands: readonly BandRow[];
  readonly metadata: TableMetadata;
  readonly now: readonly TableColumn[];
  /** In the same snapshot; only for keep-heap. */
  readonly connection: RawConnection | null;
}

/** Throws what keeps it from looking (`table_unknown`, `pin_lost`, a store that does not answer); what it finds is in the report. */
export async function verifyTable(
  ctx: MoverContext,
  relationId: bigint,
  options: VerifyOptions = {},
): Promise<VerifyReport> {
  const source = new Source({ conninfo: ctx.conninfo, size: 1 });
  const pins = new PinKeeper({ source, clock: ctx.clock, log: ctx.log, holder: `${ctx.applicationName} verify` });
  try {
    const pin = await pins.take();
    const report = await verifyPinned(ctx, relationId, options);
    pin.check();
    pin.release();
    if (!report.ok) await countDifferences(ctx, relationId, report);
    return report;
  } finally {
    await pins.close();
    source.close();
  }
}

async function verifyPinned(ctx: MoverContext, relationId: bigint, options: VerifyOptions): Promise<VerifyReport> {
  const startMs = ctx.clock.monotonicMs();
  const state = await openState(ctx, relationId);
  const { relation, metadata } = state;
  try {
    const fields = knownFields(relation, metadata);
    const audit = await auditLake(ctx, relation, { metadata, bands: state.bands, fields }, options);
    const heap = state.connection ? await compareWithHeap(ctx, state, state.connection, options) : null;
    const differences = [...audit.differences, ...(heap?.differences ?? [])];
    const ms = Math.round(ctx.clock.monotonicMs() - startMs);
    const ok = differences.length === 0;
    const report = { table: displayName(relation), ok, rows: audit.rows, files: audit.files, ms };
    if (ok) ctx.log.info("verify.done", report);
    else ctx.log.error("verify.differs", { ...report, differences: differences.length });
    return {
      table: displayName(relation),
      ok,
      mode: relation.keepHeap ? `${relation.mode}, keep-heap` : relation.mode,
      cutLine: keyText(relation.keyKind, relation.seam.t),
      snapshotId: metadata.currentSnapshotId ?? null,
      bands: audit.bands,
      files: audit.files,
      bytes: audit.bytes,
      lakeRows: audit.rows,
      heapRows: heap?.heapRows ?? null,
      differences,
      more: heap?.more ?? false,
      ms,
    };
  } finally {
    await state.connection?.close();
  }
}

/** Everything of one snapshot, which a second connection shares for the rows. */
async function openState(ctx: MoverContext, relationId: bigint): Promise<State> {
  return withFreshClient(ctx, async (client) => {
    await client.query("begin isolation level repeatable read read only");
    const found = await loadRelation(client, relationId);
    const relation = found && asTiered(found);
    if (!relation) throw new SpillwayError("table_unknown", `relation ${relationId} has no tiers to verify`);
    const table = must(await loadLakeTable(client, relation.lakeId), "lake table");
    const bands = await loadBands(client, relationId);
    const now = await readTableColumns(client, relation.relid);
    const connection = relation.keepHeap ? await shareSnapshot(ctx, client) : null;
    try {
      const metadata = await readMetadata(ctx.store, table.metadataLocation);
      await client.query("commit");
      return { relation, bands, metadata, now, connection };
    } catch (error) {
      await connection?.close();
      throw error;
    }
  });
}

async function shareSnapshot(
  ctx: MoverContext,
  client: { query(sql: string): Promise<{ rows: unknown[] }> },
): Promise<RawConnection> {
  const { rows } = await client.query("select pg_export_snapshot() as id");
  const { id } = rows[0] as { id: string };
  const connection = await connectRaw(ctx.conninfo, {
    applicationName: ctx.applicationName,
    settings: { idle_in_transaction_session_timeout: 0 },
  });
  try {
    await connection.query(
      `begin isolation level repeatable read read only; set transaction snapshot ${quoteLiteral(id)}`,
    );
    return connection;
  } catch (error) {
    await connection.close();
    throw error;
  }
}

async function compareWithHeap(
  ctx: MoverContext,
  state: State,
  connection: RawConnection,
  options: VerifyOptions,
): Promise<Awaited<ReturnType<typeof compareHeap>>> {
  const { relation, metadata, now } = state;
  if (schemaDrift(relation, now) !== null) {
    throw new SpillwayError(
      "mover_busy",
      `${displayName(relation)} was altered, and the worker has not followed it yet`,
    );
  }
  const fields = knownFields(relation, metadata).filter((f) => f.live);
  return compareHeap(ctx, relation, { connection, metadata, columns: movedColumns(relation, now), fields }, options);
}

async function countDifferences(ctx: MoverContext, relationId: bigint, report: VerifyReport): Promise<void> {
  await ctx.pool
    .withClient((c) => raiseCounters(c, relationId, { verify_differences_total: report.differences.length }))
    .catch((error: unknown) => ctx.log.warn("verify.count_failed", { error }));
}
