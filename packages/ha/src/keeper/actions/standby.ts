/** Actions of a node that follows, or is about to follow, another one. */
import { isSpillwayError, messageOf, SpillwayError } from "@spillway/base/errors";
import { formatLsn, parseLsn } from "@spillway/base/lsn";
import { setStandbySignal } from "../../postgres/config-files.ts";
import { readControlData } from "../../postgres/control-file.ts";
import { baseBackup, clearRebuildMarker, rebuildMarker, rewind, type RebuildOptions } from "../../postgres/rejoin.ts";
import { identifySystem, probeStream, queryUpstream, type SystemFacts } from "../../postgres/remote.ts";
import { streamBaseBackup } from "../../postgres/stream-backup.ts";
import { lineage, type Lineage } from "../../postgres/timeline.ts";
import type { Peer } from "../../protocol/messages.ts";
import { dropForeignLogicalSlots } from "../slots.ts";
import { PgNode, type ActionContext } from "../node.ts";

/** How long a standby may take to begin to stream before its WAL is asked for by hand. */
const STREAM_WAIT_MS = 4_000;
const POLL_MS = 50;

function primaryOf(context: ActionContext): Peer {
  const { primary } = context.assignment;
  if (primary === null) throw new SpillwayError("ha_action_waiting", "the assignment names no primary yet");
  return primary;
}

function secretOf(node: PgNode): { password: string } {
  return { password: node.config.replicationPassword };
}

async function identify(node: PgNode, peer: Peer): Promise<SystemFacts> {
  return identifySystem(node.upstreamOf(peer, false), secretOf(node));
}

/** Base backup from the primary, unless the directory is a usable standby of it already. */
export async function cloneStandby(context: ActionContext): Promise<void> {
  await rejoin(context, primaryOf(context));
}

/** Stop, rewind or base backup, start streaming. */
export async function rejoinStandby(context: ActionContext): Promise<void> {
  await rejoin(context, primaryOf(context));
}

/** A standby without any primary: a copy of the most advanced standby, frozen. */
export async function initFromStandby(context: ActionContext): Promise<void> {
  const { source } = context.assignment;
  if (source === null) throw new SpillwayError("ha_action_waiting", "the assignment names no node to copy");
  const { node } = context;
  if (!node.hasCluster() || rebuildMarker(node.files.dir) !== null) {
    await copyFrom(context, source, false, null);
  } else {
    await checkSystem(node, await identify(node, source));
    if (!node.isStandbyDirectory()) await node.stop("fast");
  }
  await node.startStandby({ upstream: null });
  context.setDiverged(false);
}

async function rejoin(context: ActionContext, primary: Peer): Promise<void> {
  const { node } = context;
  const upstream = PgNode.upstreamConf(primary);
  const facts = await identify(node, primary);
  if (!node.hasCluster() || rebuildMarker(node.files.dir) !== null) {
    await copyFrom(context, primary, true, upstream);
  } else {
    await checkSystem(node, facts);
    await bringBehind(context, primary, facts);
  }
  await node.startStandby({ upstream });
  await waitForStream(context, primary);
  context.setDiverged(false);
}

/** Makes an existing directory one that can follow the primary, in the cheapest way that is safe. */
async function bringBehind(context: ActionContext, primary: Peer, facts: SystemFacts): Promise<void> {
  const { node } = context;
  if (node.isStandbyDirectory()) {
    // Its own WAL tells how far it is, but only a running server knows its end.
    const position = await standbyPosition(node);
    const kind = lineage(position.tli, position.lsn, facts.timeline, facts.history);
    if (follows(kind)) return;
    node.log.warn("own WAL forked off from the primary's", { ...describe(kind), primary: primary.name });
  } else {
    await node.stop("fast");
    const control = await readControlData(node.pgdata);
    const kind = lineage(control.timeline, control.checkpointLsn + 1n, facts.timeline, facts.history);
    if (control.state === "shut down" && follows(kind)) {
      dropForeignLogicalSlots(node);
      return;
    }
    node.log.info("rejoining the primary", { state: control.state, ...describe(kind), primary: primary.name });
  }
  await node.stop("fast");
  await rewindOrCopy(context, primary, facts);
}

function follows(kind: Lineage): boolean {
  return kind.kind === "ancestor";
}

function describe(kind: Lineage): Record<string, unknown> {
  return { lineage: kind.kind, ...(kind.kind === "forked" ? { at: formatLsn(kind.atLsn) } : {}) };
}

async function standbyPosition(node: PgNode): Promise<{ tli: number; lsn: bigint }> {
  if (!node.isRunning()) await node.startStandby({ upstream: null });
  const row = (
    await node.sql(`SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::text AS lsn,
      greatest((SELECT timeline_id FROM pg_control_checkpoint()),
        coalesce((SELECT min_recovery_end_timeline FROM pg_control_recovery()), 0),
        coalesce((SELECT received_tli FROM pg_stat_wal_receiver LIMIT 1), 0)) AS tli`)
  )[0];
  const lsn = row?.["lsn"];
  if (!lsn) throw new SpillwayError("ha_action_waiting", "the standby has not replayed any WAL yet");
  return { lsn: parseLsn(lsn), tli: Number(row["tli"]) };
}

async function checkSystem(node: PgNode, facts: SystemFacts): Promise<void> {
  const own = await readControlData(node.pgdata);
  if (own.systemId === facts.systemId) return;
  throw new SpillwayError(
    "ha_system_identifier_mismatch",
    `${node.pgdata} is of cluster ${own.systemId}, the primary's is ${facts.systemId}`,
  );
}

async function rewindOrCopy(context: ActionContext, primary: Peer, facts: SystemFacts): Promise<void> {
  const { node } = context;
  try {
    await requireCheckpoint(node, primary, facts);
    await rewind(rebuildOptions(context, primary, false));
    context.signal.throwIfAborted();
    finishRebuild(node, PgNode.upstreamConf(primary));
    node.log.info("rewound", { primary: primary.name });
  } catch (error) {
    if (context.signal.aborted) throw error;
    if (!isSpillwayError(error, "ha_rewind_failed", "ha_rewind_missing")) throw error;
    node.log.warn("pg_rewind was not possible: a base backup follows", { error: messageOf(error) });
    await copyFrom(context, primary, true, PgNode.upstreamConf(primary));
  }
}

/** Until its first checkpoint a promoted server's control file names the old timeline, which would mislead pg_rewind. */
async function requireCheckpoint(node: PgNode, primary: Peer, facts: SystemFacts): Promise<void> {
  const sql = "SELECT timeline_id FROM pg_control_checkpoint()";
  const rows = await queryUpstream(node.upstreamOf(primary, false), secretOf(node), sql);
  if (Number(rows[0]?.["timeline_id"]) === facts.timeline) return;
  throw new SpillwayError("ha_action_waiting", `${primary.name} has not made a checkpoint since its promotion`);
}

function rebuildOptions(context: ActionContext, from: Peer, useSlot: boolean): RebuildOptions {
  const { node } = context;
  return {
    binaries: node.binaries,
    pgdata: node.pgdata,
    stateDir: node.files.dir,
    upstream: node.upstreamOf(from, useSlot),
    signal: context.signal,
    streamBackup: (upstream, pgdata, signal) => streamBaseBackup(upstream, secretOf(node), pgdata, signal),
  };
}

async function copyFrom(
  context: ActionContext,
  from: Peer,
  useSlot: boolean,
  upstream: ReturnType<typeof PgNode.upstreamConf> | null,
): Promise<void> {
  const { node } = context;
  node.configure({});
  const facts = await identify(node, from);
  if (node.hasCluster() && rebuildMarker(node.files.dir) === null) await checkSystem(node, facts);
  await node.stop("immediate");
  node.log.info("base backup begins", { from: from.name });
  await baseBackup(rebuildOptions(context, from, useSlot));
  context.signal.throwIfAborted();
  finishRebuild(node, upstream);
  node.log.info("base backup done", { from: from.name });
}

/** The directory is whole: it becomes this node's own, and only then the marker goes. */
function finishRebuild(node: PgNode, upstream: ReturnType<typeof PgNode.upstreamConf> | null): void {
  setStandbySignal(node.pgdata, true);
  node.configure({ ssn: "", readOnly: false, syncSlots: [], upstream });
  dropForeignLogicalSlots(node);
  clearRebuildMarker(node.files.dir);
}

/** Succeeds when the walreceiver streams; finds out why when it does not, and copies anew when nothing else helps. */
async function waitForStream(context: ActionContext, primary: Peer): Promise<void> {
  const { node } = context;
  const deadline = node.clock.monotonicMs() + STREAM_WAIT_MS;
  while (node.clock.monotonicMs() < deadline) {
    context.signal.throwIfAborted();
    if (await streams(node)) return;
    await node.clock.sleep(POLL_MS, context.signal);
  }
  const position = await standbyPosition(node);
  const probe = await probeStream(node.upstreamOf(primary, false), secretOf(node), position.lsn, position.tli);
  if (probe === "wal_removed" || probe === "forked") {
    node.log.warn("the primary cannot send the WAL that is needed here: a base backup follows", { probe });
    await copyFrom(context, primary, true, PgNode.upstreamConf(primary));
    await node.startStandby({ upstream: PgNode.upstreamConf(primary) });
  }
  throw new SpillwayError("ha_not_recovered", `no stream from ${primary.name} yet`);
}

async function streams(node: PgNode): Promise<boolean> {
  const rows = await node.sql("SELECT status FROM pg_stat_wal_receiver").catch(() => []);
  return rows[0]?.["status"] === "streaming";
}

/** Repoints to the primary; the own timeline must be part of its history. */
export async function followPrimary(context: ActionContext): Promise<void> {
  const { node } = context;
  const primary = primaryOf(context);
  const upstream = PgNode.upstreamConf(primary);
  // A copy or rewind was cut short: whatever the state says, there is no standby here yet.
  if (!node.hasCluster() || rebuildMarker(node.files.dir) !== null) return rejoin(context, primary);
  const same = JSON.stringify(node.conf.upstream) === JSON.stringify(upstream);
  if (same && node.postmaster.status() === "standby" && (await streams(node))) {
    node.configure({});
    context.setDiverged(false);
    return;
  }
  const facts = await identify(node, primary);
  await checkSystem(node, facts);
  await node.startStandby({});
  const position = await standbyPosition(node);
  const kind = lineage(position.tli, position.lsn, facts.timeline, facts.history);
  if (!follows(kind)) {
    context.setDiverged(kind.kind === "forked");
    throw new SpillwayError(
      "ha_timeline_forked",
      `timeline ${position.tli} here, ${facts.timeline} at ${primary.name}`,
    );
  }
  context.setDiverged(false);
  await node.startStandby({ upstream });
}

/** The received LSN stands still: no walreceiver. A promoted server cannot take part and is stopped. */
export async function freezeLsn(context: ActionContext): Promise<void> {
  const { node } = context;
  node.requireDirectory();
  if (node.postmaster.status() === "ready") {
    await node.stop("fast");
    context.setDiverged(true);
    throw new SpillwayError("ha_timeline_forked", "this server was promoted already and takes no part in the election");
  }
  if (!node.isStandbyDirectory()) {
    // A stopped former primary: everything that it has is in its WAL, which recovery as a standby reads to the end.
    await node.stop("fast");
  }
  await node.startStandby({ upstream: null });
  const deadline = node.clock.monotonicMs() + STREAM_WAIT_MS;
  for (;;) {
    context.signal.throwIfAborted();
    const rows = await node.sql("SELECT count(*) AS n FROM pg_stat_wal_receiver WHERE status <> 'stopping'");
    if (rows[0]?.["n"] === "0") return;
    if (node.clock.monotonicMs() > deadline)
      throw new SpillwayError("ha_action_waiting", "the walreceiver does not end");
    await node.clock.sleep(POLL_MS, context.signal);
  }
}

/** Streams from the most advanced standby up to the target, then stands still again. */
export async function fastForward(context: ActionContext): Promise<void> {
  const { node, assignment } = context;
  const { source, targetLsn } = assignment;
  if (source === null || targetLsn === null) {
    throw new SpillwayError("ha_action_waiting", "the assignment names no source or no target");
  }
  const target = parseLsn(targetLsn);
  await checkSystem(node, await identify(node, source));
  await node.startStandby({ upstream: PgNode.upstreamConf(source, false) });
  const deadline = node.clock.monotonicMs() + 30_000;
  while ((await standbyPosition(node)).lsn < target) {
    context.signal.throwIfAborted();
    if (node.clock.monotonicMs() > deadline) {
      throw new SpillwayError("ha_not_recovered", `${targetLsn} did not come from ${source.name}`);
    }
    await node.clock.sleep(POLL_MS, context.signal);
  }
  await freezeLsn(context);
}

/** Another standby was promoted: a restartpoint and a stop, so that following it starts quickly. */
export async function prepareJoin(context: ActionContext): Promise<void> {
  const { node } = context;
  if (node.isRunning()) await node.aside("CHECKPOINT", 10_000).catch(() => {});
  await node.stop("fast", 5_000);
}
