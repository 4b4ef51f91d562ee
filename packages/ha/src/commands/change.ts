/** Commands that change something: perform, maintenance, set, drop. Each waits until it is so. */
import { SpillwayError } from "@spillway/base/errors";
import { eventsView, formationsView, settingsView, stateView, type StateView } from "../protocol/commands.ts";
import { MONITOR_PATHS } from "../protocol/http.ts";
import type { AdminClient } from "./client.ts";
import {
  FORMATION_OPTION,
  JSON_OPTION,
  MONITOR_OPTIONS,
  withMonitor,
  type Args,
  type Command,
  type Io,
} from "./command.ts";
import { eventLines } from "./show.ts";

const COMMON = { ...FORMATION_OPTION, ...MONITOR_OPTIONS, ...JSON_OPTION };
const WAIT = {
  "no-wait": { help: "Return as soon as the monitor has accepted it." },
  timeout: { value: "SECONDS", help: "How long to wait for the end (default: 60)." },
};
const POLL_MS = 100;

interface Waiting {
  readonly client: AdminClient;
  readonly formation: string;
  readonly args: Args;
  readonly io: Io;
}

/** Prints the events since the beginning, until `done` says so or the time is over. */
async function follow(
  w: Waiting,
  sinceSeq: number,
  done: (state: StateView) => boolean,
  what: string,
): Promise<StateView> {
  const { client, formation, args, io } = w;
  const endMs = io.clock.monotonicMs() + 1000 * (args.int("timeout", 1, 86_400) ?? 60);
  let seq = sinceSeq;
  for (;;) {
    const state = await client.get(MONITOR_PATHS.state, { formation }, stateView);
    const { events } = await client.get(MONITOR_PATHS.events, { formation, limit: "200" }, eventsView);
    const fresh = events.filter((e) => e.seq > seq);
    seq = events.at(-1)?.seq ?? seq;
    if (!args.has("json")) for (const line of eventLines(fresh)) io.out(line);
    if (done(state)) return state;
    if (io.signal.aborted) throw new SpillwayError("interrupted", `${what} goes on without this command`);
    if (io.clock.monotonicMs() >= endMs) {
      throw new SpillwayError("deadline_exceeded", `${what} is not over in time; it goes on`, {
        remedy: "`spillway-ha explain` says what it waits for.",
      });
    }
    await io.clock.sleep(POLL_MS, io.signal);
  }
}

async function lastSeq(client: AdminClient, formation: string): Promise<number> {
  const { events } = await client.get(MONITOR_PATHS.events, { formation, limit: "1" }, eventsView);
  return events.at(-1)?.seq ?? 0;
}

const OPEN = new Set(["single", "wait_primary", "apply_settings", "primary"]);

function perform(kind: "switchover" | "failover" | "promotion", summary: string): Command {
  const name = { name: { value: "NODE", help: "The node to promote." } };
  const lossy = {
    "allow-data-loss": { help: "Go on even if acknowledged commits may be lost." },
    "primary-is-down": {
      help: "You vouch that the old primary is off: do not wait for its lease. Two writable primaries if it is not.",
    },
  };
  return {
    words: `perform ${kind}`,
    summary,
    options: { ...COMMON, ...WAIT, ...(kind === "switchover" ? {} : lossy), ...(kind === "failover" ? {} : name) },
    examples: [`spillway-ha perform ${kind}${kind === "promotion" ? " --name node2" : ""} --dir /var/lib/spillway-ha`],
    run: (args, io) =>
      withMonitor(args, io, async (client, formation) => {
        const node = kind === "promotion" ? args.required("name") : (args.text("name") ?? null);
        const startMs = io.clock.monotonicMs();
        const before = await client.get(MONITOR_PATHS.state, { formation }, stateView);
        const seq = await lastSeq(client, formation);
        const old = before.nodes.find((n) => n.isPrimary)?.name;
        const flags = { allowDataLoss: args.has("allow-data-loss"), primaryIsDown: args.has("primary-is-down") };
        await client.post(MONITOR_PATHS.perform, { formation, kind, node, ...flags }, stateView);
        if (args.has("no-wait")) return 0;
        const over = (s: StateView): boolean =>
          s.failover === null && s.nodes.some((n) => n.isPrimary && OPEN.has(n.reported));
        const state = await follow({ client, formation, args, io }, seq, over, `the ${kind}`);
        const primary = state.nodes.find((n) => n.isPrimary)?.name;
        const ms = Math.round(io.clock.monotonicMs() - startMs);
        if (primary === old)
          throw new SpillwayError("ha_refused", `the ${kind} was called off: ${old} is the primary still`);
        io.out(
          args.has("json")
            ? JSON.stringify({ primary, was: old, ms })
            : `${primary} is the primary (was ${old}), after ${ms} ms.`,
        );
        return 0;
      }),
  };
}

function maintenance(on: boolean): Command {
  const verb = on ? "enable" : "disable";
  const failover = { "allow-failover": { help: "When the node is the primary: let a standby take over." } };
  return {
    words: `${verb} maintenance`,
    summary: on ? "Takes a node out: its Postgres may then be stopped by hand." : "Takes the node back in.",
    options: { ...COMMON, ...WAIT, name: { value: "NODE", help: "The node." }, ...(on ? failover : {}) },
    examples: [`spillway-ha ${verb} maintenance --name node2 --dir /var/lib/spillway-ha`],
    run: (args, io) =>
      withMonitor(args, io, async (client, formation) => {
        const node = args.required("name");
        const seq = await lastSeq(client, formation);
        const body = { formation, node, on, allowFailover: args.has("allow-failover") };
        await client.post(MONITOR_PATHS.maintenance, body, stateView);
        if (args.has("no-wait")) return 0;
        const there = (s: StateView): boolean =>
          s.nodes.some(
            (n) =>
              n.name === node &&
              (on ? n.reported === "maintenance" : n.reported === "secondary" && n.assigned === "secondary"),
          );
        const state = await follow({ client, formation, args, io }, seq, there, `${verb} maintenance`);
        if (args.has("json")) io.out(JSON.stringify(state));
        return 0;
      }),
  };
}

interface Rule {
  readonly words: string;
  readonly summary: string;
  readonly field: string;
  readonly perNode: boolean;
  readonly value: (args: Args) => number | boolean | undefined;
  readonly form: string;
}

const RULES: readonly Rule[] = [
  {
    words: "set candidate-priority",
    summary: "0 = never promoted; the highest is preferred (0 to 100, default 50).",
    field: "candidatePriority",
    perNode: true,
    value: (a) => a.int("value", 0, 100),
    form: "0-100",
  },
  {
    words: "set replication-quorum",
    summary: "Whether the node counts among the synchronous standbys.",
    field: "replicationQuorum",
    perNode: true,
    value: (a) => a.bool("value"),
    form: "on|off",
  },
  {
    words: "set number-sync-standbys",
    summary: "How many standbys must stay synchronous: 0 = go asynchronous when the last is lost; N = writes wait.",
    field: "numberSyncStandbys",
    perNode: false,
    value: (a) => a.int("value", 0, 16),
    form: "N",
  },
  {
    words: "set failover-when-async",
    summary: "Promote automatically also while asynchronous (commits may be lost).",
    field: "failoverWhenAsync",
    perNode: false,
    value: (a) => a.bool("value"),
    form: "on|off",
  },
  {
    words: "set require-slots",
    summary: "Promote only a node whose logical slots are ready.",
    field: "requireSlots",
    perNode: false,
    value: (a) => a.bool("value"),
    form: "on|off",
  },
];

function rule(r: Rule): Command {
  const name = { name: { value: "NODE", help: "The node." } };
  return {
    words: r.words,
    summary: r.summary,
    options: { ...COMMON, ...(r.perNode ? name : {}), value: { value: r.form, help: "The new value." } },
    examples: [
      `spillway-ha ${r.words}${r.perNode ? " --name node2" : ""} --value ${r.form.split(/[|-]/)[0]} --dir /var/lib/spillway-ha`,
    ],
    run: (args, io) =>
      withMonitor(args, io, async (client, formation) => {
        args.required("value");
        const nothing = {
          candidatePriority: null,
          replicationQuorum: null,
          numberSyncStandbys: null,
          failoverWhenAsync: null,
          requireSlots: null,
        };
        const node = r.perNode ? args.required("name") : null;
        const body = { formation, node, ...nothing, [r.field]: r.value(args) };
        const json = await client.post(MONITOR_PATHS.settings, body, settingsView);
        io.out(
          args.has("json")
            ? JSON.stringify(json)
            : `${r.words.slice(4)} is ${args.required("value")}${node ? ` for ${node}` : ""}.`,
        );
        return 0;
      }),
  };
}

const drop: Command = {
  words: "drop node",
  summary: "Takes a node out of the formation for good; a primary hands over first.",
  options: {
    ...COMMON,
    ...WAIT,
    name: { value: "NODE", help: "The node." },
    force: { help: "Without the node's word: only for a host that will never come back." },
  },
  examples: ["spillway-ha drop node --name node3 --dir /var/lib/spillway-ha"],
  run: (args, io) =>
    withMonitor(args, io, async (client, formation) => {
      const node = args.required("name");
      const seq = await lastSeq(client, formation);
      await client.post(MONITOR_PATHS.drop, { formation, node, force: args.has("force") }, stateView);
      if (args.has("no-wait")) return 0;
      const gone = (s: StateView): boolean => !s.nodes.some((n) => n.name === node);
      await follow({ client, formation, args, io }, seq, gone, "the drop");
      io.out(args.has("json") ? JSON.stringify({ dropped: node }) : `${node} is dropped.`);
      return 0;
    }),
};

const createFormation: Command = {
  words: "create formation",
  summary: "Makes a formation known before its first node, to set its rules.",
  options: { ...MONITOR_OPTIONS, ...JSON_OPTION, name: { value: "NAME", help: "Its name." } },
  examples: ["spillway-ha create formation --name orders --dir /var/lib/spillway-ha"],
  run: (args, io) =>
    withMonitor(args, io, async (client) => {
      const formation = args.required("name");
      await client.post(MONITOR_PATHS.formations, { formation }, settingsView);
      const { formations } = await client.get(MONITOR_PATHS.formations, {}, formationsView);
      io.out(args.has("json") ? JSON.stringify(formations) : `Formation ${formation} is ready.`);
      return 0;
    }),
};

export const CHANGE_COMMANDS: readonly Command[] = [
  createFormation,
  perform("switchover", "Hands over to a standby in order; nothing is lost."),
  perform("failover", "Promotes the best standby, also when the primary does not answer."),
  perform("promotion", "Promotes the named node."),
  maintenance(true),
  maintenance(false),
  ...RULES.map(rule),
  drop,
];
