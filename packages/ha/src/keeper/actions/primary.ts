/** Actions of a node that takes writes, is about to, or ceases to. */
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { parseLsn } from "@spillway/base/lsn";
import { quoteIdent, quoteLiteral } from "@spillway/pg/quote";
import { configuredValue, dataDirectoryMajor, initCluster } from "../../postgres/provision.ts";
import { setStandbySignal } from "../../postgres/config-files.ts";
import { ensurePeerSlots } from "../slots.ts";
import type { ActionContext, PgNode } from "../node.ts";

const PROMOTE_TIMEOUT_MS = 60_000;
const REPLAY_TIMEOUT_MS = 60_000;
/** A planned stop writes its dirty pages before the sessions end, so that the outage is short. */
const PRE_STOP_CHECKPOINT_MS = 5_000;
const STOP_FAST_MS = 1_000;
const POLL_MS = 10;
const ARM_MS = 200;

/** First node: a new cluster, or an adopted one, writable. */
export async function initPrimary(context: ActionContext): Promise<void> {
  const { node } = context;
  node.refuseUnfinished();
  if (!node.hasCluster()) {
    const { superuser, superuserPassword } = node.config;
    await initCluster(node.binaries, node.pgdata, { superuser, superuserPassword, stateDir: node.files.dir });
  }
  if (dataDirectoryMajor(node.pgdata) !== node.binaries.major) {
    throw new SpillwayError("ha_version_mismatch", `${node.pgdata} is not of Postgres ${node.binaries.major}`);
  }
  if (node.postmaster.status() === "standby") await promote(node);
  else if (node.isStandbyDirectory()) {
    await node.startStandby({ upstream: null });
    await promote(node);
  }
  await node.startPrimary({ ssn: context.assignment.ssn, readOnly: false });
  await ensureRoles(node);
  await ensurePeerSlots(node);
}

/** The replication role, and what pg_rewind needs of it. Source: the Notes of pg_rewind's page. */
export async function ensureRoles(node: PgNode): Promise<void> {
  const role = quoteIdent(node.config.replicationUser);
  const password = quoteLiteral(node.config.replicationPassword);
  const functions = [
    "pg_catalog.pg_ls_dir(text, boolean, boolean)",
    "pg_catalog.pg_stat_file(text, boolean)",
    "pg_catalog.pg_read_binary_file(text)",
    "pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)",
  ];
  const exists = await node.sql(
    `SELECT 1 AS there FROM pg_roles WHERE rolname = ${quoteLiteral(node.config.replicationUser)}`,
  );
  // A role that is there is of an adopted cluster: its password may be that of another monitor's formation.
  const verb = exists.length > 0 ? "ALTER" : "CREATE";
  await node.sql(
    `BEGIN;
     SET LOCAL password_encryption = 'scram-sha-256';
     SET LOCAL log_statement = 'none';
     SET LOCAL log_min_error_statement = 'panic';
     ${verb} ROLE ${role} LOGIN REPLICATION PASSWORD ${password};
     ${functions.map((f) => `GRANT EXECUTE ON FUNCTION ${f} TO ${role};`).join("\n")}
     COMMIT`,
    10_000,
  );
}

/** ssn from the assignment; waits for nothing. */
export async function setSsn(context: ActionContext): Promise<void> {
  const { node, assignment } = context;
  await ensureStarted(node, assignment.ssn);
  node.configure({ ssn: assignment.ssn, readOnly: false });
  await settled(node, assignment.ssn);
  await ensurePeerSlots(node);
}

/** ssn from the assignment; then everything that was in the WAL is on a quorum of it. */
export async function setSsnAndWait(context: ActionContext): Promise<void> {
  const { node, assignment } = context;
  await setSsn(context);
  if (assignment.ssn === "") return;
  // The checkpointer, which arms the wait for all sessions, reads the file on its own; give it its turn.
  await node.clock.sleep(ARM_MS, context.signal);
  const now = (await node.sql("SELECT pg_current_wal_flush_lsn()::text AS lsn"))[0]?.["lsn"] ?? "0/0";
  const needed = quorumSize(assignment.ssn);
  for (;;) {
    context.signal.throwIfAborted();
    const rows = await node.sql(
      `SELECT count(*) AS n FROM pg_stat_replication
       WHERE sync_state IN ('sync', 'quorum') AND flush_lsn >= ${quoteLiteral(now)}::pg_lsn`,
    );
    if (Number(rows[0]?.["n"]) >= needed) return;
    await node.clock.sleep(50, context.signal);
  }
}

/** How many standbys must confirm: the number in `ANY n (…)` or `FIRST n (…)`, else 1. */
export function quorumSize(ssn: string): number {
  return Number(/^\s*(?:ANY|FIRST)\s+(\d+)\s*\(/i.exec(ssn)?.[1] ?? 1);
}

/** A reload has happened when the server shows the new value (the postmaster passes the signal on to each backend). */
async function settled(node: PgNode, ssn: string): Promise<void> {
  const deadline = node.clock.monotonicMs() + 3_000;
  for (;;) {
    const rows = await node.sql("SELECT current_setting('synchronous_standby_names') AS ssn");
    if (rows[0]?.["ssn"] === ssn) return;
    if (node.clock.monotonicMs() > deadline) {
      throw new SpillwayError("ha_action_waiting", "Postgres has not taken over synchronous_standby_names yet");
    }
    await node.clock.sleep(POLL_MS);
  }
}

async function ensureStarted(node: PgNode, ssn: string): Promise<void> {
  if (node.postmaster.status() === "ready") return;
  if (node.isStandbyDirectory()) throw new SpillwayError("ha_action_waiting", "Postgres is a standby here");
  await node.startPrimary({ ssn, readOnly: false });
}

/** A stopped primary goes on: nobody was promoted. */
export async function startWritable(context: ActionContext): Promise<void> {
  const { node, assignment } = context;
  if (node.isStandbyDirectory() && node.postmaster.status() !== "ready") {
    // Its directory was prepared for following somebody (maintenance, a frozen election) who never came.
    await promoteAs(context, false);
  } else {
    await node.startPrimary({ ssn: assignment.ssn, readOnly: false });
  }
  await settled(node, assignment.ssn);
  await ensurePeerSlots(node);
}

/** The elected standby becomes a primary, read-only by default until the old one is out for certain. */
export async function promoteReadOnly(context: ActionContext): Promise<void> {
  await promoteAs(context, true);
  await ensurePeerSlots(context.node);
  checkpointSoon(context.node);
}

async function promoteAs(context: ActionContext, readOnly: boolean): Promise<void> {
  const { node, assignment } = context;
  const { ssn } = assignment;
  if (node.postmaster.status() !== "ready") {
    if (!node.isRunning()) await node.startStandby({ upstream: null });
    await waitForReplay(context);
    // In place before the first write, so that not even one transaction is acknowledged by another rule.
    node.configure({ ssn, readOnly, upstream: null });
    context.signal.throwIfAborted();
    await promote(node);
  }
  node.configure({ ssn, readOnly, upstream: null });
  setStandbySignal(node.pgdata, false);
  await settled(node, ssn);
}

async function promote(node: PgNode): Promise<void> {
  await node.postmaster.promote(PROMOTE_TIMEOUT_MS);
  setStandbySignal(node.pgdata, false);
}

async function waitForReplay(context: ActionContext): Promise<void> {
  const { node, assignment } = context;
  if (assignment.targetLsn === null) return;
  const target = parseLsn(assignment.targetLsn);
  const deadline = node.clock.monotonicMs() + REPLAY_TIMEOUT_MS;
  for (;;) {
    context.signal.throwIfAborted();
    const rows = await node.sql(
      `SELECT pg_last_wal_replay_lsn()::text AS replayed,
              greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::text AS here`,
    );
    if (parseLsn(rows[0]?.["replayed"] ?? "0/0") >= target) return;
    if (parseLsn(rows[0]?.["here"] ?? "0/0") < target || node.clock.monotonicMs() > deadline) {
      throw new SpillwayError(
        "ha_action_waiting",
        `WAL up to ${assignment.targetLsn} is not here (${rows[0]?.["here"]})`,
      );
    }
    await node.clock.sleep(POLL_MS, context.signal);
  }
}

/** The others rewind against its result; nobody has to wait for it here. */
function checkpointSoon(node: PgNode): void {
  node.aside("CHECKPOINT", 300_000).catch((error: unknown) => {
    node.log.warn("the checkpoint after the promotion failed", { error: messageOf(error) });
  });
}

export async function openWrites(context: ActionContext): Promise<void> {
  const { node, assignment } = context;
  if (node.postmaster.status() !== "ready") await promoteAs(context, true);
  node.configure({ ssn: assignment.ssn, readOnly: false, upstream: null });
  await settled(node, assignment.ssn);
  await ensurePeerSlots(node);
}

export async function promoteAndOpen(context: ActionContext): Promise<void> {
  await promoteAs(context, true);
  await openWrites(context);
  checkpointSoon(context.node);
}

/** Clients end, standbys receive everything, Postgres stays down. */
export async function stopPostgres(context: ActionContext): Promise<void> {
  const { node } = context;
  if (node.postmaster.status() === "ready") await shortenStop(node, 1);
  await node.stop("fast", STOP_FAST_MS);
}

export async function drainForMaintenance(context: ActionContext): Promise<void> {
  const { node } = context;
  if (node.postmaster.status() === "ready") await shortenStop(node, 2);
  await node.stop("fast", STOP_FAST_MS);
}

/** Checkpoints ahead of the shutdown's own, and no waiting for standbys that do not answer. */
async function shortenStop(node: PgNode, checkpoints: number): Promise<void> {
  try {
    for (let i = 0; i < checkpoints; i++) await node.aside("CHECKPOINT", PRE_STOP_CHECKPOINT_MS);
    await node.sql(
      `SELECT pg_terminate_backend(pid) FROM pg_stat_replication
       WHERE reply_time < clock_timestamp() - interval '3 seconds'`,
    );
  } catch (error) {
    node.log.debug("no checkpoint before the stop", { error: messageOf(error) });
  }
}

/** Hands off: the operator may stop, move or look at Postgres. */
export async function enterMaintenance(context: ActionContext): Promise<void> {
  const { node } = context;
  if (node.isStandbyDirectory() || !node.hasCluster()) return;
  await node.stop("fast", STOP_FAST_MS);
}

export async function dropNode(context: ActionContext): Promise<void> {
  await context.node.stop("fast", 5_000);
}

/** What an adopted cluster is set to already: never lowered, since a standby must not have less. */
export async function capacityOf(
  node: Pick<PgNode, "binaries" | "pgdata">,
  name: string,
  least: number,
): Promise<number> {
  const value = Number(await configuredValue(node.binaries, node.pgdata, name).catch(() => "0"));
  return Math.max(least, Number.isInteger(value) ? value : 0);
}
