/** What operators' commands and the monitor say to each other (admin token). Same version as `messages.ts`. */
import { STATES } from "../fsm/states.ts";
import {
  bool,
  hostText,
  int,
  list,
  nameText,
  nullable,
  number,
  object,
  oneOf,
  optional,
  text,
  type Infer,
} from "./validate.ts";

const state = oneOf(STATES);

export const nodeView = object({
  nodeId: int(1),
  name: nameText,
  host: hostText,
  pgPort: int(1, 65535),
  reported: state,
  assigned: state,
  reason: text(),
  isPrimary: bool,
  /** null: not heard from of late. */
  running: nullable(bool),
  /** As the primary sees it: async, potential, sync, quorum; '' = not attached. */
  syncState: text(),
  tli: nullable(int()),
  lsn: nullable(text()),
  /** Behind the primary, bytes; null when either position is unknown. */
  lagBytes: nullable(number()),
  lastContactMs: nullable(number()),
  slotsReady: nullable(bool),
  healthy: bool,
  candidatePriority: int(0, 100),
  replicationQuorum: bool,
  maintenance: bool,
  action: nullable(text()),
});
export type NodeView = Infer<typeof nodeView>;

export const stateView = object({
  formation: nameText,
  /** synchronous_standby_names that the primary is meant to have; '' = asynchronous. */
  ssn: text(16_384),
  synchronous: bool,
  /** Commits wait for standbys that are not there. */
  writesBlocked: bool,
  failover: nullable(text()),
  nodes: list(nodeView, 64),
});
export type StateView = Infer<typeof stateView>;

export const eventView = object({
  seq: int(),
  atMs: number(),
  nodeId: nullable(int()),
  node: nullable(text()),
  kind: oneOf(["assigned", "reported", "note"]),
  from: text(),
  to: text(),
  reason: text(),
});
export type EventView = Infer<typeof eventView>;
export const eventsView = object({ events: list(eventView, 10_000) });

export const uriView = object({ formation: nameText, uri: text(16_384), monitors: list(text()) });
export type UriView = Infer<typeof uriView>;

export const settingsView = object({
  formation: nameText,
  numberSyncStandbys: int(),
  failoverWhenAsync: bool,
  requireSlots: bool,
  heartbeatMs: number(),
  leaseTtlMs: number(),
  takeoverWaitMs: number(),
  nodes: list(object({ name: nameText, candidatePriority: int(), replicationQuorum: bool })),
});
export type SettingsView = Infer<typeof settingsView>;

export const explainView = object({ formation: nameText, lines: list(text(), 500) });
export type ExplainView = Infer<typeof explainView>;

export const formationsView = object({ formations: list(object({ name: nameText, nodes: int() })) });

export const formationRequest = object({ formation: nameText });

export const performRequest = object({
  formation: nameText,
  kind: oneOf(["switchover", "failover", "promotion"]),
  node: nullable(nameText),
  allowDataLoss: optional(bool, false),
  /** The operator vouches that the old primary is off: its lease is not waited for. */
  primaryIsDown: optional(bool, false),
});

export const maintenanceRequest = object({
  formation: nameText,
  node: nameText,
  on: bool,
  allowFailover: optional(bool, false),
});

export const settingsRequest = object({
  formation: nameText,
  node: nullable(nameText),
  candidatePriority: nullable(int(0, 100)),
  replicationQuorum: nullable(bool),
  numberSyncStandbys: nullable(int(0, 16)),
  failoverWhenAsync: nullable(bool),
  requireSlots: nullable(bool),
});
export type SettingsRequest = Infer<typeof settingsRequest>;

export const dropRequest = object({ formation: nameText, node: nameText, force: optional(bool, false) });
