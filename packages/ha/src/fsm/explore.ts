/**
 * Walks the configurations that a small formation can reach, over the real rules and the real keeper
 * core, with time reduced to three ages (just now, a pause ago, long ago) and actions to their effect: one step is one
 * node reporting, one node arriving, one node dying, being cut off or coming back, a command, or a pause
 * longer than every timeout. Systematic where the simulator is random; used by tests.
 */
import type { NodeReport } from "../protocol/messages.ts";
import { absorb } from "./absorb.ts";
import { decide, grantsLease, openDraft } from "./decide.ts";
import { accept, complete, decideStep, fence, NEW_NODE, type KeeperCore } from "./keeper-core.ts";
import {
  DEFAULT_LIMITS,
  DEFAULT_TIMINGS,
  newObservations,
  nodeOf,
  type Draft,
  type Formation,
  type Observations,
} from "./model.ts";
import { dropNode, perform, register, setMaintenance } from "./operator.ts";
import { newFormation } from "./rows.ts";
import { isStopped, isWritable, needsLease, type State } from "./states.ts";
import { isSpillwayError } from "@spillway/base/errors";

/** Longer than silence and the takeover wait, shorter than what makes a candidate count as stuck. */
const PAUSE_MS = 5_000;
const OLD_MS = 2 * PAUSE_MS;

type Life = "up" | "cut" | "down";

interface Node {
  readonly core: KeeperCore;
  readonly life: Life;
  /** The lease is in force since the last pause. */
  readonly leased: boolean;
  /** Promoted to the primary of its timeline at some time and not rejoined since. */
  readonly tli: number;
}

export interface Config {
  readonly f: Formation;
  readonly obs: Observations;
  readonly nowMs: number;
  readonly nodes: readonly Node[];
}

export interface Step {
  readonly name: string;
  readonly next: Config;
}

export function start(count: number): Config {
  let config: Config = {
    f: newFormation("f", DEFAULT_TIMINGS, { peerToken: "", replicationUser: "", replicationPassword: "" }),
    obs: newObservations(0),
    nowMs: 0,
    nodes: Array.from({ length: count }, () => ({ core: NEW_NODE, life: "up" as const, leased: false, tli: 1 })),
  };
  for (let id = 1; id <= count; id++) {
    config = change(config, (d) => void register(d, requestOf(id), ""));
  }
  return config;
}

function requestOf(id: number): Parameters<typeof register>[1] {
  const fixed = { protocol: 1, formation: "f", pgPort: 5432, keeperUrl: "", keeperFingerprint: null } as const;
  const rest = { systemIdentifier: null, pgVersion: 150000, candidatePriority: 50, replicationQuorum: true };
  return { ...fixed, ...rest, follows: false, secrets: null, name: `n${id}`, host: `h${id}` };
}

function copyObs(o: Observations): Observations {
  return {
    startedAtMs: o.startedAtMs,
    seen: new Map(o.seen),
    foreign: new Map(o.foreign),
    sequences: new Map(o.sequences),
    grantedAtMs: new Map(o.grantedAtMs),
    promisedUntil: new Map(o.promisedUntil),
    attachedAtMs: new Map(o.attachedAtMs),
    pgDownAtMs: new Map(o.pgDownAtMs),
    goalSinceMs: new Map(o.goalSinceMs),
  };
}

/** A decision after a change of the draft. */
function change(c: Config, apply: (d: Draft) => void): Config {
  const obs = copyObs(c.obs);
  const d = openDraft(c.f, obs, DEFAULT_LIMITS, c.nowMs);
  apply(d);
  return { ...c, obs, f: decide(d).formation };
}

function withNode(c: Config, i: number, node: Partial<Node>): Config {
  return { ...c, nodes: c.nodes.map((n, j) => (j === i ? { ...n, ...node } : n)) };
}

/** Every step that is possible now. Throws what a rule's invariant throws. */
export function steps(c: Config): Step[] {
  const all: Step[] = [];
  c.nodes.forEach((node, i) => {
    const name = `n${i + 1}`;
    if (nodeOf(c.f, i + 1) === null && node.core.state !== "dropped") return;
    if (node.life === "up") {
      all.push({ name: `${name} reports`, next: report(c, i) });
      all.push({ name: `${name} arrives`, next: report(act(c, i), i) });
      all.push({ name: `${name} arrives unheard`, next: act(c, i) });
      all.push({ name: `${name} dies`, next: withNode(c, i, { life: "down", leased: false }) });
      all.push({ name: `${name} is cut off`, next: withNode(c, i, { life: "cut" }) });
    } else {
      all.push({ name: `${name} is back`, next: withNode(c, i, { life: "up" }) });
    }
  });
  all.push({ name: "pause", next: pause(c) });
  for (const [name, command] of commands(c)) {
    const next = attempt(c, command);
    if (next !== null) all.push({ name, next });
  }
  return all;
}

function commands(c: Config): [string, (d: Draft) => void][] {
  const switchover = { kind: "switchover", node: null, allowDataLoss: false, primaryIsDown: false } as const;
  return [
    ["switchover", (d) => perform(d, switchover)],
    ["failover", (d) => perform(d, { ...switchover, kind: "failover" })],
    ...c.f.nodes.flatMap((n): [string, (d: Draft) => void][] => [
      [`maintenance ${n.name}`, (d) => setMaintenance(d, n.name, !n.maintenance, true)],
      ...(c.f.nodes.length > 2
        ? [[`drop ${n.name}`, (d: Draft) => dropNode(d, n.name, false)] as [string, (d: Draft) => void]]
        : []),
    ]),
  ];
}

function attempt(c: Config, command: (d: Draft) => void): Config | null {
  try {
    return change(c, command);
  } catch (error) {
    if (isSpillwayError(error)) return null;
    throw error;
  }
}

/** The node talks to the monitor: report, decision, assignment, lease. */
function report(c: Config, i: number): Config {
  return c.nodes[i]?.life === "up" ? converse(c, [i]) : c;
}

/** Reports that arrive together, one decision, and the answers. */
function converse(c: Config, who: readonly number[]): Config {
  let next = change(c, (d) => {
    for (const i of who) {
      const [row, node] = [nodeOf(d.f, i + 1), c.nodes[i]];
      if (row !== null && node !== undefined) absorb(d, row, reportOf(c, i, node));
    }
  });
  for (const i of who) next = answer(next, i);
  return next;
}

function answer(c: Config, i: number): Config {
  const node = c.nodes[i];
  const assignment = nodeOf(c.f, i + 1)?.assignment;
  if (!assignment || node === undefined) return c;
  const granted = grantsLease(c.f, i + 1);
  if (granted) c.obs.grantedAtMs.set(i + 1, c.nowMs);
  const leased = granted || (node.leased && needsLease(assignment.goalState));
  return withNode(c, i, { core: accept(node.core, assignment), leased });
}

/** It does what it was told, at once. */
function act(c: Config, i: number): Config {
  const node = c.nodes[i];
  if (node === undefined) return c;
  const held = node.leased || node.core.assignment?.lease.required === false;
  const mayWrite = writes(node);
  const step = decideStep(node.core, { leaseHeld: held, promiseBinds: false, mayWrite });
  if (step.kind === "no_edge") throw new Error(`no edge from ${step.current} to ${step.assigned}`);
  if (step.kind === "fence") return withNode(c, i, { core: fence(node.core), leased: false });
  if (step.kind !== "act") return c;
  const promotes = step.edge.action === "promote_read_only" || step.edge.action === "promote_and_open";
  const already = node.core.state === "demote_timeout" || node.core.state === "stop_replication";
  const rejoins = step.edge.action === "rejoin_standby" || step.edge.action === "clone_standby";
  const followed = c.nodes[(step.assignment.primary?.nodeId ?? 0) - 1]?.tli ?? node.tli;
  const follows = rejoins || step.edge.action === "follow_primary";
  const tli = promotes && !already ? node.tli + 1 : follows ? followed : node.tli;
  return withNode(c, i, { core: complete(node.core, step.assignment), tli });
}

/** Long enough for every time-out; who is cut off fences itself, who is up reports again. */
function pause(c: Config): Config {
  let next: Config = { ...c, nowMs: c.nowMs + PAUSE_MS };
  next = {
    ...next,
    nodes: next.nodes.map((n) => {
      const limited = n.core.assignment?.lease.required !== false;
      if (n.life !== "cut" || !limited) return n;
      return { ...n, core: fence(n.core), leased: false };
    }),
  };
  const up = next.nodes.flatMap((n, i) => (n.life === "up" ? [i] : []));
  next = converse(next, up);
  const ended = (n: Node): boolean =>
    n.life === "up" && writes(n) && !n.leased && n.core.assignment?.lease.required !== false;
  return { ...next, nodes: next.nodes.map((n) => (ended(n) ? { ...n, core: fence(n.core) } : n)) };
}

function writes(node: Node): boolean {
  return node.life !== "down" && needsLease(node.core.state);
}

/** Nodes whose Postgres accepts writes: one that came back does not run before it has a lease. */
export function writers(c: Config): number {
  const mayRun = (n: Node): boolean => n.leased || n.core.assignment?.lease.required === false;
  return c.nodes.filter((n) => n.life !== "down" && isWritable(n.core.state) && mayRun(n)).length;
}

function reportOf(c: Config, i: number, node: Node): NodeReport {
  const { core } = node;
  const down = isStopped(core.state) || core.state === "init" || core.state === "wait_standby";
  const primary = needsLease(core.state);
  const upstream = c.nodes[(core.assignment?.primary?.nodeId ?? 0) - 1];
  const streams =
    ["secondary", "catchingup"].includes(core.state) && upstream !== undefined && upstream.tli >= node.tli;
  const rows = c.nodes.flatMap((n, j) => {
    const follows = n.life === "up" && ["secondary", "catchingup", "prepare_promotion"].includes(n.core.state);
    const row = {
      nodeId: j + 1,
      state: "streaming",
      syncState: "quorum",
      flushLsn: null,
      replayLsn: null,
      replyAgeMs: 0,
    };
    return follows && n.core.assignment?.primary?.nodeId === i + 1 ? [row] : [];
  });
  return {
    protocol: 1,
    formation: "f",
    nodeId: i + 1,
    boot: "b",
    seq: (c.obs.seen.get(i + 1)?.report.seq ?? 0) + 1,
    sentAtMs: 0,
    reportedState: core.state,
    seenVersion: core.assignment?.version ?? 0,
    appliedVersion: core.appliedVersion,
    pg: {
      isRunning: !down,
      restarting: down,
      restartsLeft: 3,
      inRecovery: down ? null : !primary,
      tli: streams ? upstream.tli : node.tli,
      lsn: "0/100",
      systemIdentifier: "1",
      version: 150000,
      ssn: null,
      diverged: false,
    },
    replication: primary ? rows : [],
    upstream: null,
    slots: { ready: true, logical: [], lost: [] },
    promise: { to: null, askedAgeMs: null, remainingMs: 0 },
    lease: null,
    action: null,
  };
}

/** Configurations with the same key behave the same: versions by rank, times by age. */
export function keyOf(c: Config): string {
  const versions = new Set<number>();
  const note = (v: number): number => (versions.add(v), v);
  for (const n of c.f.nodes)
    [n.goalVersion, n.assignment?.version ?? 0, n.reported.seenVersion, n.reported.appliedVersion].forEach(note);
  for (const n of c.nodes) [n.core.assignment?.version ?? 0, n.core.appliedVersion].forEach(note);
  for (const r of [...(c.f.reign?.ssn ?? []), ...(c.f.reign?.terms ?? [])]) note(r.version);
  const order = [...versions].toSorted((a, b) => a - b);
  const rank = (v: number): number => order.indexOf(v);
  const age = (ms: number | undefined): string =>
    ms === undefined ? "-" : c.nowMs - ms >= OLD_MS ? "o" : c.nowMs - ms >= PAUSE_MS ? "p" : "n";
  const { reign, failover } = c.f;
  return JSON.stringify([
    c.f.nodes.map((n) => [
      n.nodeId,
      n.goal,
      n.maintenance,
      rank(n.goalVersion),
      rank(n.assignment?.version ?? 0),
      n.reported.state,
      rank(n.reported.seenVersion),
      rank(n.reported.appliedVersion),
      n.frozen !== null,
      n.stoppedAt !== null,
      age(c.obs.seen.get(n.nodeId)?.atMs),
      c.obs.seen.get(n.nodeId)?.report.reportedState,
      c.obs.seen.get(n.nodeId)?.report.replication.map((r) => r.nodeId),
      age(c.obs.grantedAtMs.get(n.nodeId)),
      age(c.obs.promisedUntil.get(n.nodeId)?.ms),
      c.obs.promisedUntil.get(n.nodeId)?.last,
      age(c.obs.attachedAtMs.get(n.nodeId)),
      age(c.obs.pgDownAtMs.get(n.nodeId)),
      age(c.obs.goalSinceMs.get(n.nodeId)),
    ]),
    c.nodes.map((n) => [
      n.core.state,
      rank(n.core.assignment?.version ?? 0),
      rank(n.core.appliedVersion),
      n.life,
      n.leased,
      n.tli - (reign?.timeline ?? 1),
    ]),
    reign && [
      reign.nodeId,
      reign.opened,
      reign.ssn.map((s) => [rank(s.version), s.k, s.members, s.waits]),
      reign.terms.map((t) => [rank(t.version), t.required, t.voters]),
    ],
    failover && [
      failover.kind,
      failover.from,
      failover.oldPrimary,
      failover.candidate,
      failover.source,
      failover.targetLsn,
    ],
    c.f.ssn,
  ]);
}

/** One round in which nothing breaks: everybody is up, arrives, and time passes. */
export function healthyRound(c: Config): Config {
  let next = c;
  for (let i = 0; i < next.nodes.length; i++) {
    next = withNode(next, i, { life: "up" });
    const row = nodeOf(next.f, i + 1);
    if (row?.maintenance) next = attempt(next, (d) => setMaintenance(d, row.name, false, false)) ?? next;
  }
  for (let i = 0; i < next.nodes.length; i++) next = report(act(report(next, i), i), i);
  return pause(next);
}

export function isSettled(c: Config): boolean {
  if (c.f.nodes.length === 0) return true;
  const goals = c.f.nodes.map((n) => (n.reported.state === n.goal ? n.goal : ("moving" as const)));
  const heads = goals.filter((g): g is State => g === "primary" || g === "single").length;
  return c.f.failover === null && heads === 1 && goals.filter((g) => g === "secondary").length === goals.length - 1;
}
