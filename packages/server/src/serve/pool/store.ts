/** What is kept of nodes, so that the next manager finds them: rows of the control database. */
import type { Control, HeldLease } from "../../control/control.ts";
import { nodeToken, takeLease } from "../../control/control.ts";
import type { NodeRole } from "../route/route.ts";

export interface NodeRow {
  readonly id: string;
  readonly role: NodeRole;
  readonly generation: string;
  readonly pid: number | null;
  readonly pidStart: string | null;
  readonly socket: string | null;
  readonly state: "starting" | "ready" | "draining" | "stopped" | "lost";
}

export interface NodeStore {
  /** The right to start and end nodes of this pool on this host; false while another manager has it. */
  lead(poolId: string): Promise<boolean>;
  list(poolId: string): Promise<readonly NodeRow[]>;
  /** A new id, and a generation higher than any before. */
  insert(poolId: string, role: NodeRole): Promise<NodeRow>;
  started(
    id: string,
    process: { readonly pid: number; readonly startedAt: string; readonly socket: string },
  ): Promise<void>;
  setState(id: string, state: NodeRow["state"], error?: string): Promise<void>;
  remove(id: string): Promise<void>;
  token(id: string, generation: string): Promise<string>;
  /** Managers of this host whose lease lapsed, forgotten with this call. */
  lapsedManagers(): Promise<readonly string[]>;
}

export interface ControlStoreOptions {
  readonly control: Control;
  readonly host: string;
  readonly managerId: string;
  readonly leaseMs?: number;
}

export function controlNodeStore({ control, host, managerId, leaseMs = 3000 }: ControlStoreOptions): NodeStore {
  const columns = `id::text, role, generation::text, pid, pid_start as "pidStart", socket, state`;
  return {
    lead: (poolId) =>
      control.change(async (tx) => {
        const held: HeldLease | null = await takeLease(tx, `pool ${poolId} ${host}`, managerId, leaseMs);
        return held !== null;
      }),
    list: (poolId) =>
      control.read(async (db) => {
        const sql = `SELECT ${columns} FROM spillway_control.node WHERE pool_id = $1 AND host = $2 AND state <> 'stopped'
          ORDER BY created_at`;
        return (await db.query<NodeRow>(sql, [poolId, host])).rows;
      }),
    insert: (poolId, role) =>
      control.change(async (tx) => {
        const sql = `INSERT INTO spillway_control.node (pool_id, role, host, manager_id, generation) VALUES ($1, $2, $3, $4,
          (SELECT coalesce(max(generation), 0) + 1 FROM spillway_control.node)) RETURNING ${columns}`;
        const { rows } = await tx.query<NodeRow>(sql, [poolId, role, host, managerId]);
        return rows[0] as NodeRow;
      }),
    started: (id, { pid, startedAt, socket }) =>
      control.change(async (tx) => {
        await tx.query(
          "UPDATE spillway_control.node SET pid = $2, pid_start = $3, socket = $4, updated_at = now() WHERE id = $1",
          [id, pid, startedAt, socket],
        );
      }),
    setState: (id, state, error) =>
      control.change(async (tx) => {
        await tx.query("UPDATE spillway_control.node SET state = $2, error = $3, updated_at = now() WHERE id = $1", [
          id,
          state,
          error ?? null,
        ]);
      }),
    remove: (id) =>
      control.change(async (tx) => void (await tx.query("DELETE FROM spillway_control.node WHERE id = $1", [id]))),
    token: async (id, generation) => nodeToken(await control.secret("node-token"), id, BigInt(generation)),
    lapsedManagers: () =>
      control.change(async (tx) => {
        const sql =
          "DELETE FROM spillway_control.manager WHERE host = $1 AND expires_at < clock_timestamp() RETURNING id::text";
        return (await tx.query<{ id: string }>(sql, [host])).rows.map((r) => r.id);
      }),
  };
}
