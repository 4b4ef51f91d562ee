/**
 * A `replace` by an external engine: the one foreign write that a table may allow. The engine has written its files; here
 * it is decided whether its snapshot holds exactly the rows that the table has, and if so the pointer moves to it. The engine's word
 * is taken for nothing: rows, counts, bounds and partitions of the new files are read and compared, because a wrong
 * bound would make every later read skip rows. Replaced files stay until Spillway expires the old snapshot.
 */
import type { Clock } from "@spillway/base/clock";
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import { newUuid } from "@spillway/base/ids";
import type { Logger } from "@spillway/base/log";
import { applyUpdates, checkRequirements, type TableRequirement, type TableUpdate } from "@spillway/lake/commit";
import { requirementFromJson, updateFromJson } from "@spillway/lake/commit-json";
import { parseJson } from "@spillway/lake/json";
import { MAIN_BRANCH, readMetadata, writeMetadata } from "@spillway/lake/metadata";
import type { Snapshot, SnapshotRef, TableMetadata } from "@spillway/lake/model";
import type { LocalCache } from "@spillway/lake/store/cache";
import type { ObjectStore } from "@spillway/lake/store/store";
import { connect } from "@spillway/pg/connect";
import type { Conninfo } from "@spillway/pg/conninfo";
import type { Pool } from "@spillway/pg/pool";
import {
  abandonOp,
  appendFileLog,
  commitLake,
  type Db,
  type LakeTableRow,
  loadLakeTableByName,
  loadRelations,
  openOp,
  type Relation,
  requireOwnership,
  stageFiles,
} from "../../catalog/catalog.ts";
import type { Engine } from "../../engine/engine.ts";
import { fileChanges } from "./replace-files.ts";
import { compareRows } from "./replace-rows.ts";
import { refuse, requireWithin } from "./replace-rules.ts";

export interface ReplaceContext {
  readonly pool: Pool;
  /** To look up the outcome of a commit whose answer was lost. */
  readonly conninfo: Conninfo;
  readonly store: ObjectStore;
  readonly cache: LocalCache;
  /** Canonical location. */
  readonly warehouse: string;
  /** Opened when the first replace comes. */
  readonly engine: () => Promise<Engine>;
  readonly clock: Clock;
  readonly log: Logger;
}

const FUTURE_MS = 60_000;

/**
 * Checks and commits. Throws `foreign_commit_invalid`, `foreign_replace_refused`, `commit_conflict` or `lake_commit_conflict`
 * (the client plans again on the new state), and the store's errors.
 */
export async function applyReplace(ctx: ReplaceContext, namespace: string, name: string, body: string): Promise<void> {
  const { requirements, snapshot, ref } = parseBody(body);
  const { row, relation } = await ctx.pool.withClient(async (client) => {
    await requireOwnership(client, ctx.store, ctx.warehouse);
    const found = await loadLakeTableByName(client, namespace, name);
    if (found === null) throw new SpillwayError("table_unknown", `there is no lake table ${namespace}.${name}`);
    const relations = await loadRelations(client);
    return { row: found, relation: relations.find((r) => r.lakeId === found.lakeId) ?? null };
  });
  if (!row.allowForeignReplace) refuse(`${namespace}.${name} does not allow replace commits by others`);
  if (relation === null)
    throw new SpillwayError("foreign_replace_refused", `${namespace}.${name} is not registered any more`);
  const base = await readMetadata(ctx.store, row.metadataLocation);
  checkRequirements(base, requirements);
  checkSnapshot(base, snapshot, ctx.clock.wallMs());
  const updates: TableUpdate[] = [
    { action: "add-snapshot", snapshot },
    { action: "set-snapshot-ref", refName: MAIN_BRANCH, ref: mainRef(base, snapshot, ref) },
  ];
  const next = apply(base, updates, ctx.clock.wallMs(), row.metadataLocation);
  const changes = await fileChanges(ctx.store, base, next);
  await compareRows(ctx, { metadata: next, relation, changes });
  await commit(ctx, { row, relation, base, next, foreignFiles: changes.foreignFiles });
  ctx.log.info("foreign_replace.done", {
    table: `${namespace}.${name}`,
    removed: changes.removed.length,
    added: changes.added.length,
    snapshot: snapshot.snapshotId,
  });
}

interface ParsedReplace {
  readonly requirements: readonly TableRequirement[];
  readonly snapshot: Snapshot;
  readonly ref: SnapshotRef;
}

/** Parsed again from the text: the handler's own parse rounds 64-bit ids. */
function parseBody(body: string): ParsedReplace {
  let updates: TableUpdate[];
  let requirements: TableRequirement[];
  try {
    const json = parseJson(body) as { updates: unknown[]; requirements: unknown[] };
    updates = json.updates.map(updateFromJson);
    requirements = json.requirements.map(requirementFromJson);
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new SpillwayError("foreign_commit_invalid", `the commit cannot be read: ${why}`, { cause });
  }
  const [added, ...moreAdded] = updates.flatMap((u) => (u.action === "add-snapshot" ? [u.snapshot] : []));
  const [set, ...moreSet] = updates.flatMap((u) => (u.action === "set-snapshot-ref" ? [u] : []));
  const isWhole = updates.length === 2 && moreAdded.length === 0 && moreSet.length === 0;
  if (!added || !set || !isWhole || added.operation !== "replace") {
    return refuse("a replace is one snapshot of the operation `replace`, set as main, and nothing else");
  }
  if (set.refName !== MAIN_BRANCH || set.ref.type !== "branch" || set.ref.snapshotId !== added.snapshotId) {
    refuse("the replace must set the branch main to its snapshot");
  }
  return { requirements, snapshot: added, ref: set.ref };
}

function checkSnapshot(base: TableMetadata, snapshot: Snapshot, nowMs: number): void {
  if (base.currentSnapshotId === undefined) refuse("the table has no snapshot to replace");
  if (snapshot.parentSnapshotId !== base.currentSnapshotId) {
    throw new SpillwayError("commit_conflict", "the replace was planned on a snapshot that is not current any more");
  }
  if (snapshot.sequenceNumber !== base.lastSequenceNumber + 1n) {
    throw new SpillwayError("commit_conflict", `the next sequence number is ${base.lastSequenceNumber + 1n}`);
  }
  if (snapshot.schemaId !== undefined && snapshot.schemaId !== base.currentSchemaId) {
    refuse(`the snapshot has schema ${snapshot.schemaId}, the table ${base.currentSchemaId}`);
  }
  if (snapshot.timestampMs > nowMs + FUTURE_MS) refuse("the snapshot's time lies in the future");
  if (snapshot.timestampMs < base.lastUpdatedMs - FUTURE_MS)
    refuse("the snapshot's time lies before the table's last change");
  const reserved = Object.keys(snapshot.summary).find((key) => key.startsWith("spillway."));
  if (reserved !== undefined) refuse(`the summary property ${reserved} is Spillway's`);
  requireWithin(base, snapshot.manifestList);
}

/** The branch keeps its own retention: a commit must not change what expires when. */
function mainRef(base: TableMetadata, snapshot: Snapshot, given: SnapshotRef): SnapshotRef {
  const own = base.refs[MAIN_BRANCH];
  for (const key of ["minSnapshotsToKeep", "maxSnapshotAgeMs", "maxRefAgeMs"] as const) {
    if (given[key] !== undefined && given[key] !== own?.[key])
      refuse("the replace changes the retention of the branch main");
  }
  return { ...own, type: "branch", snapshotId: snapshot.snapshotId };
}

function apply(base: TableMetadata, updates: readonly TableUpdate[], nowMs: number, location: string): TableMetadata {
  try {
    return applyUpdates(base, updates, nowMs, { previousMetadataLocation: location });
  } catch (error) {
    if (!isSpillwayError(error, "lake_update_invalid")) throw error;
    throw new SpillwayError("foreign_replace_refused", error.message, { cause: error });
  }
}

interface Commit {
  readonly row: LakeTableRow;
  readonly relation: Relation;
  readonly base: TableMetadata;
  readonly next: TableMetadata;
  readonly foreignFiles: readonly string[];
}

/** One connection for the whole operation: the journal knows its owner by it. */
async function commit(ctx: ReplaceContext, { row, relation, base, next, foreignFiles }: Commit): Promise<void> {
  await ctx.pool.withClient(async (db) => {
    const { lakeId } = row;
    const { relationId } = relation;
    const opId = await openOp(db, { kind: "foreign_replace", relationId, lakeId, epoch: null });
    const files = { store: ctx.store, warehouse: ctx.warehouse, clock: ctx.clock };
    try {
      const version = row.metadataVersion + 1;
      const metadataLocation = await writeMetadata(ctx.store, next, { version, uuid: newUuid() }, (path) =>
        stageFiles(db, files, opId, [path]),
      );
      const doomed = droppedLogFiles(base, next).map((path) => ({ lakeId, path }));
      if (doomed.length > 0) await appendFileLog(files, { op: opId, doomed: doomed.map((d) => d.path) });
      const reconnect = async <T>(work: (fresh: Db) => Promise<T>): Promise<T> => {
        const fresh = await connect(ctx.conninfo, { applicationName: "spillway catalog" });
        return work(fresh).finally(() => fresh.end().catch(() => {}));
      };
      const result = await commitLake(
        { db, reconnect },
        {
          opId,
          epoch: null,
          pointers: [
            {
              lakeId,
              base: row.metadataLocation,
              metadataLocation,
              metadataVersion: version,
              currentSnapshotId: next.currentSnapshotId ?? null,
              sequenceNumber: next.lastSequenceNumber,
            },
          ],
          doomed,
          detail: { snapshot: next.currentSnapshotId?.toString() ?? "" },
          also: (tx) => requireAllowed(tx, lakeId, foreignFiles),
        },
      );
      if (result.kind === "unknown") throw result.cause;
      if (result.kind === "conflict")
        throw new SpillwayError("commit_conflict", "the table has got a new snapshot meanwhile");
    } catch (error) {
      const isOpen = !(error instanceof SpillwayError && error.kind === "unknown");
      if (isOpen) await abandonOp(db, opId, error instanceof SpillwayError ? error.code : "failed").catch(() => {});
      throw error;
    }
  });
}

/** In the commit: the table still allows it, and no file of it is one that Spillway is about to remove. */
async function requireAllowed(tx: Db, lakeId: bigint, foreignFiles: readonly string[]): Promise<void> {
  const { rows } = await tx.query<{ allowed: boolean; taken: string | null }>(
    `select t.allow_foreign_replace as allowed,
       (select f.path from (select path from spillway.doomed_file union all select path from spillway.staged_file) f
        where f.path = any ($2::text[]) limit 1) as taken
     from spillway.lake_table t where lake_id = $1`,
    [lakeId.toString(), [...foreignFiles]],
  );
  if (rows[0]?.allowed !== true) refuse("the table does not allow replace commits by others any more");
  if (rows[0]?.taken) refuse(`the file ${rows[0].taken} belongs to another operation`);
}

/** Old metadata files that fall out of the log: nothing names them any more. */
function droppedLogFiles(base: TableMetadata, next: TableMetadata): string[] {
  const kept = new Set(next.metadataLog.map((entry) => entry.metadataFile));
  return base.metadataLog.map((e) => e.metadataFile).filter((path) => !kept.has(path));
}
