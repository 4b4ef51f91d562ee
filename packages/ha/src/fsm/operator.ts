/**
 * What operators (and new nodes) ask of the monitor: pure changes of the draft, or a refusal that names
 * the rule and leaves the draft as it was. The decision that follows carries them out.
 */
import { SpillwayError } from "@spillway/base/errors";
import type { RegisterRequest } from "../protocol/messages.ts";
import { setGoal } from "./assign.ts";
import { eligible, mayLead, newcomerOf, whyNoCandidate } from "./election.ts";
import { isHealthy, isServing, isStable } from "./health.ts";
import { ASYNC, primaryOf, type Draft, type Failover, type NodeRow } from "./model.ts";
import { couldProveData } from "./proof.ts";
import { forget, newFailover } from "./rows.ts";
import { isWritable, needsLease } from "./states.ts";

export const MAX_NODES = 16;

export function findNode(d: Draft, name: string): NodeRow {
  const node = d.f.nodes.find((n) => n.name === name);
  if (node) return node;
  const known = d.f.nodes.map((n) => n.name).join(", ") || "none";
  throw new SpillwayError(
    "ha_not_found",
    `formation ${d.f.name} has no node ${JSON.stringify(name)} (it has: ${known})`,
  );
}

/** Adds a node, or finds the one whose registration answer was lost. */
export function register(d: Draft, request: RegisterRequest, tokenHash: string): NodeRow {
  const { f } = d;
  checkFits(d, request);
  const known = f.nodes.find((n) => n.name === request.name);
  const same = known && known.host === request.host && known.pgPort === request.pgPort;
  if (known && same && known.reported.seenVersion === 0) {
    known.tokenHash = tokenHash;
    return known;
  }
  if (known || f.nodes.some((n) => n.host === request.host && n.pgPort === request.pgPort)) {
    throw new SpillwayError(
      "ha_node_exists",
      `formation ${f.name} already has ${request.name} or ${request.host}:${request.pgPort}`,
    );
  }
  if (f.nodes.length >= MAX_NODES)
    throw new SpillwayError("limit_exceeded", `a formation has at most ${MAX_NODES} nodes`);
  const first = f.nodes.length === 0;
  if (first && request.follows) refuse(`${request.name} is a standby: the primary has to be registered first`);
  if (first && request.secrets !== null) f.secrets = { ...request.secrets };
  const node = newRow(request, f.nextNodeId++, tokenHash);
  f.nodes.push(node);
  f.systemIdentifier ??= request.systemIdentifier;
  f.pgMajor ??= Math.floor(request.pgVersion / 10_000);
  if (first) {
    f.ssn = ASYNC;
    f.reign = { nodeId: node.nodeId, opened: true, timeline: null, ssn: [], terms: [] };
    setGoal(d, node, "single", "First node of the formation");
  } else {
    setGoal(d, node, "wait_standby", "A primary exists: it is told first");
  }
  return node;
}

function checkFits(d: Draft, request: RegisterRequest): void {
  const { f } = d;
  const major = Math.floor(request.pgVersion / 10_000);
  if (f.pgMajor !== null && f.nodes.length > 0 && f.pgMajor !== major) {
    throw new SpillwayError("ha_major_mismatch", `the formation runs Postgres ${f.pgMajor}, this node has ${major}`);
  }
  const { systemIdentifier } = request;
  if (systemIdentifier !== null && f.systemIdentifier !== null && systemIdentifier !== f.systemIdentifier) {
    throw new SpillwayError(
      "ha_identifier_mismatch",
      `the data directory's system identifier is ${systemIdentifier}, the formation's is ${f.systemIdentifier}`,
    );
  }
}

function newRow(request: RegisterRequest, nodeId: number, tokenHash: string): NodeRow {
  return {
    nodeId,
    tokenHash,
    name: request.name,
    host: request.host,
    pgPort: request.pgPort,
    keeperUrl: request.keeperUrl,
    keeperFingerprint: request.keeperFingerprint,
    candidatePriority: request.candidatePriority,
    replicationQuorum: request.replicationQuorum,
    pgVersion: request.pgVersion,
    goal: "init",
    reason: "",
    goalVersion: 0,
    assignment: null,
    reported: { state: "init", seenVersion: 0, appliedVersion: 0 },
    maintenance: false,
    frozen: null,
    stoppedAt: null,
  };
}

export interface PerformOptions {
  readonly kind: "switchover" | "failover" | "promotion";
  readonly node: string | null;
  readonly allowDataLoss: boolean;
  readonly primaryIsDown: boolean;
}

export function perform(d: Draft, options: PerformOptions): void {
  if (d.f.failover !== null && !options.allowDataLoss) refuse(`a ${d.f.failover.kind} is in progress already`);
  const primary = primaryOf(d.f) ?? refuse("the formation has no primary yet");
  const wanted = options.node === null ? null : findNode(d, options.node);
  if (wanted === primary && d.f.failover === null) refuse(`${primary.name} is the primary already`);
  const failover = newFailover(options.kind, reasonOf(options), primary.nodeId);
  failover.wanted = wanted?.nodeId ?? null;
  failover.allowDataLoss = options.allowDataLoss;
  failover.primaryIsDown = options.primaryIsDown;
  checkCandidates(d, failover, primary, options);
  d.f.failover = d.f.failover === null ? failover : { ...d.f.failover, ...pick(failover) };
}

function pick(failover: Failover): Partial<Failover> {
  const { wanted, allowDataLoss, primaryIsDown } = failover;
  return { wanted, allowDataLoss, primaryIsDown, candidate: null, source: null, targetLsn: null };
}

function reasonOf(options: PerformOptions): string {
  const lossy = options.allowDataLoss ? ", accepting data loss" : "";
  return options.node === null
    ? `The operator asked for a ${options.kind}${lossy}`
    : `The operator asked to promote ${options.node}${lossy}`;
}

function checkCandidates(d: Draft, failover: Failover, primary: NodeRow, options: PerformOptions): void {
  const lack = whyNoCandidate(d, failover);
  if (lack !== null) refuse(`nobody could be promoted: ${lack}`);
  const made = newcomerOf(d, failover) !== null;
  const here = d.f.nodes.filter((n) => eligible(d, failover, n) && (made || mayLead(d, failover, n)));
  const ready = here.filter((n) => n.goal === "secondary" && isStable(n));
  if (options.allowDataLoss) return;
  const { name } = primary;
  const serving = isServing(d, primary);
  if (options.kind === "switchover" && !serving) refuse(`${name} does not answer: use perform failover`);
  if (ready.length === 0) refuse("no standby has caught up with the primary (needs one in state secondary)");
  if (serving) return;
  const unproven = couldProveData(
    d,
    d.f.nodes.filter((n) => eligible(d, failover, n)),
  );
  if (unproven !== null) refuse(`commits could be lost: ${unproven}`);
}

export function setMaintenance(d: Draft, name: string, on: boolean, allowFailover: boolean): void {
  const node = findNode(d, name);
  if (node.maintenance === on) refuse(`${name} is ${on ? "" : "not "}in maintenance already`);
  if (!on) {
    if (d.f.failover?.from === node.nodeId) refuse("its failover is in progress");
    node.maintenance = false;
    return;
  }
  if (d.f.failover !== null) refuse(`a ${d.f.failover.kind} is in progress`);
  if (d.f.reign?.nodeId === node.nodeId) {
    if (!allowFailover) refuse(`${name} is the primary: --allow-failover lets a standby take over`);
    if (!isWritable(node.reported.state))
      refuse(`${name} is ${node.reported.state}: it must be open as the primary first`);
    const failover = newFailover("maintenance", `Maintenance of the primary ${name}`, node.nodeId);
    checkCandidates(d, failover, node, { kind: "switchover", node: null, allowDataLoss: false, primaryIsDown: false });
    node.maintenance = true;
    d.f.failover = failover;
    return;
  }
  const rest = d.f.nodes.filter((n) => n !== node && n.replicationQuorum && n.goal === "secondary" && isHealthy(d, n));
  if (node.replicationQuorum && d.f.settings.numberSync > rest.length) {
    refuse(
      `number-sync-standbys is ${d.f.settings.numberSync} and only ${rest.length} others follow: writes would block`,
    );
  }
  node.maintenance = true;
}

export function setNode(
  d: Draft,
  name: string,
  change: { readonly candidatePriority?: number; readonly replicationQuorum?: boolean },
): void {
  const node = findNode(d, name);
  if (change.replicationQuorum === false) {
    const left = d.f.nodes.filter((n) => n !== node && n.replicationQuorum).length;
    if (d.f.settings.numberSync > 0 && left < d.f.settings.numberSync + 2) {
      refuse(`number-sync-standbys is ${d.f.settings.numberSync} and needs the nodes that take part`);
    }
  }
  node.candidatePriority = change.candidatePriority ?? node.candidatePriority;
  node.replicationQuorum = change.replicationQuorum ?? node.replicationQuorum;
}

export function setFormation(
  d: Draft,
  change: { readonly numberSync?: number; readonly failoverWhenAsync?: boolean; readonly requireSlots?: boolean },
): void {
  const { settings } = d.f;
  const numberSync = change.numberSync ?? settings.numberSync;
  const standbys = d.f.nodes.filter((n) => n.replicationQuorum && n.nodeId !== d.f.reign?.nodeId).length;
  if (numberSync > 0 && standbys < numberSync + 1) {
    refuse(
      `number-sync-standbys ${numberSync} needs ${numberSync + 1} standbys in the replication quorum, there are ${standbys}`,
    );
  }
  settings.numberSync = numberSync;
  settings.failoverWhenAsync = change.failoverWhenAsync ?? settings.failoverWhenAsync;
  settings.requireSlots = change.requireSlots ?? settings.requireSlots;
}

/** `force` deletes the row at once, without the node's word: only for a host that will not come back. */
export function dropNode(d: Draft, name: string, force: boolean): void {
  const node = findNode(d, name);
  const reigning = d.f.reign?.nodeId === node.nodeId;
  const others = d.f.nodes.filter((n) => n !== node && n.goal !== "dropped");
  if (reigning && needsLease(node.goal) && others.length > 0) {
    if (d.f.failover !== null) refuse(`a ${d.f.failover.kind} is in progress`);
    const failover = newFailover("drop", `The primary ${name} is dropped`, node.nodeId);
    const kind = "failover" as const;
    checkCandidates(d, failover, node, { kind, node: null, allowDataLoss: false, primaryIsDown: false });
    failover.forget = force;
    d.f.failover = failover;
    return;
  }
  if (force) forget(d, node.nodeId);
  else setGoal(d, node, "dropped", "The operator dropped it");
}

function refuse(message: string): never {
  throw new SpillwayError("ha_refused", message);
}
