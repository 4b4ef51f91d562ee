/** `show …` and `explain`. */
import { eventsView, explainView, formationsView, settingsView, stateView, uriView } from "../protocol/commands.ts";
import type { EventView, StateView } from "../protocol/commands.ts";
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

const SHOW_OPTIONS = {
  ...FORMATION_OPTION,
  ...MONITOR_OPTIONS,
  ...JSON_OPTION,
  watch: { help: "Show it again every second, until interrupted." },
};
const WATCH_MS = 1000;

type Look = (
  client: AdminClient,
  formation: string,
  args: Args,
) => Promise<{ json: unknown; lines: readonly string[] }>;

function show(words: string, summary: string, look: Look, more: Command["options"] = {}, example = ""): Command {
  return {
    words,
    summary,
    options: { ...SHOW_OPTIONS, ...more },
    examples: [`spillway-ha ${words} --dir /var/lib/spillway-ha${example}`],
    run: (args, io) =>
      withMonitor(args, io, (client, formation) => showLoop(args, io, () => look(client, formation, args))),
  };
}

async function showLoop(args: Args, io: Io, look: () => ReturnType<Look>): Promise<number> {
  for (;;) {
    const { json, lines } = await look();
    if (args.has("watch") && !args.has("json")) io.out("\u001b[2J\u001b[H".trimEnd());
    if (args.has("json")) io.out(JSON.stringify(json));
    else for (const line of lines) io.out(line);
    if (!args.has("watch") || io.signal.aborted) return 0;
    await io.clock.sleep(WATCH_MS, io.signal);
    if (io.signal.aborted) return 0;
  }
}

/** Columns as wide as their widest cell. */
export function table(rows: readonly (readonly string[])[]): string[] {
  const widths: number[] = [];
  for (const row of rows) row.forEach((cell, i) => (widths[i] = Math.max(widths[i] ?? 0, cell.length)));
  return rows.map((row) =>
    row
      .map((cell, i) => cell.padEnd(widths[i] ?? 0))
      .join("  ")
      .trimEnd(),
  );
}

function yesNo(value: boolean | null): string {
  return value === null ? "?" : value ? "yes" : "no";
}

export function stateLines(state: StateView): string[] {
  const head = ["Node", "Host:Port", "Reported", "Assigned", "Running", "Sync", "TLI: LSN", "Lag", "Contact", "Slots"];
  const rows = state.nodes.map((n) => [
    n.name,
    `${n.host}:${n.pgPort}`,
    n.reported,
    n.assigned,
    yesNo(n.running),
    n.isPrimary ? "-" : n.syncState || "-",
    n.lsn === null ? "?" : `${n.tli ?? "?"}: ${n.lsn}`,
    n.lagBytes === null ? "-" : `${n.lagBytes} B`,
    n.lastContactMs === null ? "never" : `${(n.lastContactMs / 1000).toFixed(1)} s`,
    n.slotsReady === null ? "?" : n.slotsReady ? "ready" : "no",
  ]);
  const lines = state.nodes.length === 0 ? [`Formation ${state.formation} has no nodes.`] : table([head, ...rows]);
  if (state.nodes.length > 1)
    lines.push("", state.synchronous ? `Synchronous: ${state.ssn}` : "Asynchronous: commits wait for no standby.");
  if (state.writesBlocked) lines.push("WRITES WAIT: too few synchronous standbys are attached (see explain).");
  if (state.failover !== null) lines.push(`In progress: ${state.failover}`);
  return lines;
}

export function eventLines(events: readonly EventView[]): string[] {
  return table(
    events.map((e) => {
      const time = new Date(e.atMs).toISOString();
      if (e.kind === "note") return [time, e.node ?? "", "note", e.reason];
      return [time, e.node ?? "", e.kind, `${e.from} -> ${e.to}: ${e.reason}`];
    }),
  );
}

export const SHOW_COMMANDS: readonly Command[] = [
  show(
    "show state",
    "Reported and assigned state, timeline, position, lag and slots of every node.",
    async (client, formation) => {
      const json = await client.get(MONITOR_PATHS.state, { formation }, stateView);
      return { json, lines: stateLines(json) };
    },
  ),
  show(
    "show events",
    "The last transitions: from, to, and why.",
    async (client, formation, args) => {
      const limit = String(args.int("limit", 1, 2000) ?? 10);
      const json = await client.get(MONITOR_PATHS.events, { formation, limit }, eventsView);
      return { json: json.events, lines: eventLines(json.events) };
    },
    { limit: { value: "N", help: "How many (default: 10)." } },
    " --limit 50",
  ),
  show("show uri", "One URI that always reaches the primary.", async (client, formation) => {
    const json = await client.get(MONITOR_PATHS.uri, { formation }, uriView);
    return { json, lines: [json.uri] };
  }),
  show("show settings", "The rules of the formation and of its nodes.", async (client, formation) => {
    const json = await client.get(MONITOR_PATHS.settings, { formation }, settingsView);
    const { nodes, ...rest } = json;
    const head = ["Node", "candidate-priority", "replication-quorum"];
    const rows = nodes.map((n) => [n.name, String(n.candidatePriority), n.replicationQuorum ? "on" : "off"]);
    const names: Record<string, string> = {
      formation: "formation",
      numberSyncStandbys: "number-sync-standbys",
      failoverWhenAsync: "failover-when-async",
      requireSlots: "require-slots",
      heartbeatMs: "heartbeat (ms)",
      leaseTtlMs: "lease ttl (ms)",
      takeoverWaitMs: "takeover wait (ms)",
    };
    const facts = table(
      Object.entries(rest).map(([k, v]) => [names[k] ?? k, typeof v === "boolean" ? (v ? "on" : "off") : String(v)]),
    );
    return { json, lines: [...facts, "", ...table([head, ...rows])] };
  }),
  show("show formations", "The formations that the monitor keeps.", async (client) => {
    const json = await client.get(MONITOR_PATHS.formations, {}, formationsView);
    return {
      json: json.formations,
      lines: table([["Formation", "Nodes"], ...json.formations.map((f) => [f.name, String(f.nodes)])]),
    };
  }),
  show("explain", "Why nothing is moving, in words.", async (client, formation) => {
    const json = await client.get(MONITOR_PATHS.explain, { formation }, explainView);
    return { json, lines: json.lines };
  }),
];
