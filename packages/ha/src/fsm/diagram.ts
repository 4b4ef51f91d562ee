/** The state machine's table as a page with diagrams: docs/reference/ha-states.md. */
import { LEASED, STATES, STOPPED, WRITABLE, type State } from "./states.ts";
import { ACTIONS, TABLE, type Edge } from "./table.ts";

const GROUPS: readonly { readonly title: string; readonly states: readonly State[] }[] = [
  { title: "A primary's life", states: ["init", "single", "wait_primary", "primary", "apply_settings"] },
  { title: "A standby's life", states: ["init", "wait_standby", "catchingup", "secondary", "demoted", "report_lsn"] },
  {
    title: "A standby becomes the primary",
    states: [
      "secondary",
      "report_lsn",
      "fast_forward",
      "prepare_promotion",
      "stop_replication",
      "wait_primary",
      "join_secondary",
    ],
  },
  {
    title: "A primary stands down",
    states: ["primary", "wait_primary", "draining", "demote_timeout", "demoted", "catchingup"],
  },
  {
    title: "Maintenance",
    states: ["primary", "prepare_maintenance", "secondary", "wait_maintenance", "maintenance", "catchingup"],
  },
];

const MEANING: Record<State, string> = {
  init: "registered, nothing done yet",
  single: "the only node: writable",
  wait_primary: "writable; asynchronous (or, with number-sync-standbys, waiting for standbys)",
  primary: "writable; synchronous, and proven to be",
  apply_settings: "writable; its synchronous standbys change",
  join_primary: "writable; kept for old state files, never assigned",
  wait_standby: "waits for the primary to let it in",
  catchingup: "follows the primary, not to be promoted yet",
  secondary: "follows the primary, may be promoted",
  report_lsn: "frozen: an election is counting positions",
  fast_forward: "elected; fetches what another standby has and it lacks",
  prepare_promotion: "elected; waits for the proof that the old primary is out",
  stop_replication: "promoted, not yet open for writes",
  join_secondary: "stopped; another standby was elected",
  draining: "former primary: stopped, everything sent",
  demote_timeout: "former primary, or one that lost its lease: stopped",
  demoted: "stopped; will rejoin as a standby",
  prepare_maintenance: "the primary is stopped for maintenance, a standby takes over",
  wait_maintenance: "the primary is told to do without it",
  maintenance: "left to the operator",
  dropped: "taken out of the formation",
};

export function renderStates(): string {
  return [
    "# States of a node",
    "",
    "Generated from `packages/ha/src/fsm/table.ts` by `node scripts/gen-ha-states.mjs`; do not edit.",
    "",
    "A node has a reported state (what is) and an assigned one (what shall be). The keeper looks the pair up in the table",
    "below, carries out the action, and then reports the assigned state.",
    "",
    "| state | meaning | Postgres | lease |",
    "|---|---|---|---|",
    ...STATES.map(
      (s) =>
        `| \`${s}\` | ${MEANING[s]} | ${serverOf(s)} | ${(LEASED as readonly State[]).includes(s) ? "needed" : ""} |`,
    ),
    "",
    ...GROUPS.flatMap(({ title, states }) => [`## ${title}`, "", ...diagram(states), ""]),
    "## Actions",
    "",
    "| action | what the keeper does |",
    "|---|---|",
    ...Object.entries(ACTIONS).map(([name, text]) => `| \`${name}\` | ${text} |`),
    "",
    "## All edges",
    "",
    "| reported | assigned | action | why |",
    "|---|---|---|---|",
    ...TABLE.filter((e) => e.current !== e.assigned).map(row),
    "",
  ].join("\n");
}

function serverOf(state: State): string {
  if ((WRITABLE as readonly State[]).includes(state)) return "writable";
  if ((STOPPED as readonly State[]).includes(state)) return "stopped";
  if (state === "stop_replication") return "promoted, read-only by default";
  if (state === "init" || state === "wait_standby") return "none yet";
  return state === "maintenance" ? "the operator's" : "standby";
}

function diagram(states: readonly State[]): string[] {
  const shown = TABLE.filter(
    (e) => e.current !== e.assigned && states.includes(e.current) && states.includes(e.assigned),
  );
  return ["```mermaid", "stateDiagram-v2", ...shown.map((e) => `  ${e.current} --> ${e.assigned}: ${e.action}`), "```"];
}

function row(e: Edge): string {
  return `| \`${e.current}\` | \`${e.assigned}\` | \`${e.action}\` | ${e.comment} |`;
}
