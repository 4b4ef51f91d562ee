/** The function of every action of the state machine's table. */
import type { ActionName } from "../../fsm/table.ts";
import type { ActionContext } from "../node.ts";
import * as primary from "./primary.ts";
import * as standby from "./standby.ts";

export type Action = (context: ActionContext) => Promise<void>;

const nothing: Action = async () => {};

export const ACTIONS: Readonly<Record<ActionName, Action>> = {
  none: nothing,
  stop_promising: nothing,
  wait_maintenance: nothing,
  init_primary: primary.initPrimary,
  init_from_standby: standby.initFromStandby,
  clone_standby: standby.cloneStandby,
  rejoin_standby: standby.rejoinStandby,
  follow_primary: standby.followPrimary,
  freeze_lsn: standby.freezeLsn,
  fast_forward: standby.fastForward,
  promote_read_only: primary.promoteReadOnly,
  open_writes: primary.openWrites,
  promote_and_open: primary.promoteAndOpen,
  start_writable: primary.startWritable,
  set_ssn: primary.setSsn,
  set_ssn_and_wait: primary.setSsnAndWait,
  stop_postgres: primary.stopPostgres,
  drain_for_maintenance: primary.drainForMaintenance,
  prepare_join: standby.prepareJoin,
  enter_maintenance: primary.enterMaintenance,
  drop_node: primary.dropNode,
};
