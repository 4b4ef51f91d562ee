/**
 * Publishing a change of one lake table: stage on the current metadata, write the new metadata file, commit by the
 * catalog's transaction; on a conflict stage again on what is current then. Data files stay as they are.
 */
import { SpillwayError } from "@spillway/base/errors";
import { faultPoint, type FaultPoint } from "@spillway/base/fault";
import { newUuid } from "@spillway/base/ids";
import { retry } from "@spillway/base/retry";
import { applyUpdates, checkRequirements, type TableRequirement, type TableUpdate } from "@spillway/lake/commit";
import { readMetadata, writeMetadata } from "@spillway/lake/metadata";
import type { TableMetadata } from "@spillway/lake/model";
import { isSpillwayError } from "@spillway/base/errors";
import {
  appendFileLog,
  commitLake,
  type LakeCommit,
  type LakeTableRow,
  loadLakeTable,
  type PointerMove,
} from "../catalog/catalog.ts";
import { fileLog, type MoverContext, stager, withFreshClient } from "./context.ts";

/** What is staged on one state of a table. */
export interface StagedChange {
  readonly updates: readonly TableUpdate[];
  readonly requirements?: readonly TableRequirement[];
  /** Files that only this attempt wrote: garbage when it meets a conflict. */
  readonly attemptFiles?: readonly string[];
  /** What else moves in the commit. */
  readonly commit: Omit<LakeCommit, "opId" | "epoch" | "pointers">;
}

export interface Publication {
  readonly opId: bigint;
  readonly lakeId: bigint;
  /** Called for each attempt, with the current metadata. `onFile` journals each file before it is written. */
  readonly stage: (base: TableMetadata, onFile: (path: string) => Promise<void>) => Promise<StagedChange>;
  readonly points?: { readonly before: FaultPoint; readonly after: FaultPoint };
}

export interface Published {
  readonly metadata: TableMetadata;
  readonly metadataLocation: string;
}

const MAX_ATTEMPTS = 10;
/** Waiting for clients that hold the cut-line row: the movement is done, so it is worth some patience. */
const LOCK_RETRIES = { attempts: 60, totalMs: 60_000, firstDelayMs: 50, maxDelayMs: 1000 };

/** Commits. Throws `commit_conflict` after too many of them, `leader_lost`, `op_abandoned`, `pg_lock_timeout`, and a stage's errors. */
export async function publish(ctx: MoverContext, publication: Publication): Promise<Published> {
  const unused: string[] = [];
  for (let attempt = 1; attempt <= MAX_ATTEMPTS; attempt++) {
    const row = await ctx.pool.withClient((c) => loadLakeTable(c, publication.lakeId));
    if (row === null) throw new SpillwayError("table_unknown", `lake table ${publication.lakeId} is gone`);
    const outcome = await attemptOnce(ctx, publication, row, unused);
    if (outcome !== null) return outcome;
    ctx.log.info("publish.conflict", { lake_id: publication.lakeId, op: publication.opId, attempt });
  }
  throw new SpillwayError(
    "commit_conflict",
    `lake table ${publication.lakeId} changed ${MAX_ATTEMPTS} times meanwhile`,
  );
}

/** Null on a conflict. */
async function attemptOnce(
  ctx: MoverContext,
  { opId, lakeId, stage, points }: Publication,
  row: LakeTableRow,
  unused: string[],
): Promise<Published | null> {
  const onFile = stager(ctx, opId);
  const base = await readMetadata(ctx.store, row.metadataLocation);
  const change = await stage(base, onFile);
  checkRequirements(base, change.requirements ?? []);
  const next = applyUpdates(base, change.updates, ctx.clock.wallMs(), {
    previousMetadataLocation: row.metadataLocation,
  });
  const version = row.metadataVersion + 1;
  const metadataLocation = await writeMetadata(ctx.store, next, { version, uuid: newUuid() }, onFile);
  const doomed = [...(change.commit.doomed ?? []), ...droppedLogFiles(base, next, lakeId)];
  if (doomed.length > 0) await appendFileLog(fileLog(ctx), { op: opId, doomed: doomed.map((d) => d.path) });
  if (points) faultPoint(points.before);
  const committed = await commitPatiently(ctx, {
    ...change.commit,
    opId,
    epoch: ctx.epoch,
    pointers: [pointerMove(row, next, metadataLocation, version)],
    doomed,
    unused: [...(change.commit.unused ?? []), ...unused],
  });
  if (!committed) {
    unused.push(...(change.attemptFiles ?? []), metadataLocation);
    return null;
  }
  if (points) faultPoint(points.after);
  return { metadata: next, metadataLocation };
}

export function pointerMove(
  row: LakeTableRow,
  next: TableMetadata,
  metadataLocation: string,
  version: number,
): PointerMove {
  return {
    lakeId: row.lakeId,
    base: row.metadataLocation,
    metadataLocation,
    metadataVersion: version,
    currentSnapshotId: next.currentSnapshotId ?? null,
    sequenceNumber: next.lastSequenceNumber,
    formatVersion: next.formatVersion,
  };
}

/** Old metadata files that fall out of the log: nothing names them any more. */
export function droppedLogFiles(
  base: TableMetadata,
  next: TableMetadata,
  lakeId: bigint,
): { lakeId: bigint; path: string }[] {
  const kept = new Set(next.metadataLog.map((entry) => entry.metadataFile));
  return base.metadataLog.filter((e) => !kept.has(e.metadataFile)).map((e) => ({ lakeId, path: e.metadataFile }));
}

/** True: committed; false: a conflict. Waits, without staging again, for clients that hold the cut-line row. */
export async function commitPatiently(ctx: MoverContext, commit: LakeCommit): Promise<boolean> {
  const result = await retry(
    {
      ...LOCK_RETRIES,
      clock: ctx.clock,
      random: Math.random,
      retryable: (error) => isSpillwayError(error, "pg_lock_timeout", "pg_transient"),
      ...(ctx.signal ? { signal: ctx.signal } : {}),
    },
    () =>
      ctx.pool.withClient((db) =>
        commitLake({ db, reconnect: (work) => withFreshClient(ctx, work), lockTimeoutMs: 500 }, commit),
      ),
  );
  if (result.kind === "unknown") {
    throw new SpillwayError("pg_commit_unknown", `the outcome of operation ${commit.opId} is not known`, {
      cause: result.cause,
    });
  }
  return result.kind === "success";
}
