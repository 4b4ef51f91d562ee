/** What the actions of the table do to the model of Postgres. */
import { parseLsn } from "@spillway/base/lsn";
import type { ActionName } from "../fsm/table.ts";
import type { Assignment } from "../protocol/messages.ts";
import { parseSsn, type PostgresModel } from "./postgres-model.ts";
import type { World } from "./world.ts";

/** A machine as an action on another one sees it. */
export interface Machine {
  readonly id: number;
  readonly pg: PostgresModel;
  readonly machineUp: boolean;
  isStalled(): boolean;
}

export interface ActionContext {
  readonly id: number;
  readonly pg: PostgresModel;
  readonly world: World;
  readonly nodes: ReadonlyMap<number, Machine>;
  /** Puts synchronous_standby_names in force; always true. */
  setSsn(text: string): boolean;
}

/** True when done; false to try again. */
export function performAction(ctx: ActionContext, action: ActionName, a: Assignment): boolean {
  const { pg } = ctx;
  const source = a.primary ? ctx.nodes.get(a.primary.nodeId) : undefined;
  switch (action) {
    case "init_primary":
      pg.startPrimary();
      return ctx.setSsn(a.ssn);
    case "clone_standby":
    case "rejoin_standby": {
      if (source === undefined || !canRead(ctx, source)) return false;
      pg.stop(false);
      pg.copyFrom(source.pg);
      pg.startStandby();
      pg.follow(source.id);
      return true;
    }
    case "follow_primary": {
      if (source === undefined || (pg.running && !pg.inRecovery) || !pg.isPrefixOf(source.pg)) return false;
      if (!pg.running) pg.startStandby();
      pg.follow(source.id);
      return true;
    }
    case "freeze_lsn":
      if (pg.running && !pg.inRecovery) {
        pg.stop(false);
        pg.forked = true;
      }
      if (pg.forked) return true;
      if (!pg.running) pg.startStandby();
      pg.disconnect();
      return true;
    case "fast_forward": {
      const from = a.source ? ctx.nodes.get(a.source.nodeId) : undefined;
      const length = pg.lsnLength(parseLsn(a.targetLsn ?? "0/0"));
      if (pg.wal.length >= length) return true;
      if (from === undefined || !from.pg.running || ctx.world.isCut(ctx.id, from.id)) return false;
      if (!pg.isPrefixOf(from.pg) || from.pg.wal.length < length || from.isStalled()) return false;
      pg.copyFrom(from.pg, length);
      return true;
    }
    case "stop_postgres":
    case "drain_for_maintenance":
      if (pg.running) pg.stop(!pg.inRecovery);
      return true;
    case "prepare_join":
    case "enter_maintenance":
    case "drop_node":
      if (pg.running) pg.stop(false);
      return true;
    case "promote_read_only":
      return promote(ctx, a, true);
    case "promote_and_open":
      return promote(ctx, a, false);
    case "open_writes":
      pg.readOnly = false;
      return ctx.setSsn(a.ssn);
    case "start_writable":
      pg.ssn = parseSsn(a.ssn);
      if (!pg.running) pg.startPrimary();
      return ctx.setSsn(a.ssn);
    case "set_ssn":
      if (!pg.running) pg.startPrimary();
      return ctx.setSsn(a.ssn);
    case "set_ssn_and_wait":
      pg.ssn = parseSsn(a.ssn);
      if (!pg.running) pg.startPrimary();
      ctx.setSsn(a.ssn);
      return pg.hasQuorum(pg.wal.length);
    case "none":
    case "stop_promising":
    case "wait_maintenance":
      return true;
    case "init_from_standby": {
      const from = a.source ? ctx.nodes.get(a.source.nodeId) : undefined;
      if (from === undefined || !from.pg.running || from.isStalled() || ctx.world.isCut(ctx.id, from.id)) return false;
      pg.copyFrom(from.pg);
      pg.startStandby();
      pg.disconnect();
      return true;
    }
  }
}

function canRead(ctx: ActionContext, source: Machine): boolean {
  const up = source.machineUp && !source.isStalled() && source.pg.running && !source.pg.inRecovery;
  return up && !ctx.world.isCut(ctx.id, source.id);
}

function promote(ctx: ActionContext, a: Assignment, readOnly: boolean): boolean {
  const { pg } = ctx;
  if (!pg.running) pg.startStandby();
  if (a.targetLsn !== null && pg.wal.length < pg.lsnLength(parseLsn(a.targetLsn))) return false;
  pg.readOnly = readOnly;
  if (pg.inRecovery) pg.promote();
  return ctx.setSsn(a.ssn);
}
