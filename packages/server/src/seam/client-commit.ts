/** The ids of clients' commits (`spillway.client_commit`): written by the transaction itself, looked up when its answer was lost. */
import { quoteLiteral } from "@spillway/pg/quote";
import type { RawConnection } from "@spillway/pg/wire/connection";

export type CommitOutcome = "committed" | "rolled back";

export interface FoundCommit {
  readonly outcome: CommitOutcome;
  /** Of a statement that was a transaction of its own. */
  readonly rows: number;
}

export function recordCommitSql(id: string, rows: number): string {
  return `INSERT INTO spillway.client_commit (commit_id, rows) VALUES (${quoteLiteral(id)}, ${rows})`;
}

/**
 * The true outcome of a commit whose answer was lost. Waits for one that is under way; one that has not written its id can
 * no longer do it afterwards.
 */
export async function lookUpCommit(connection: RawConnection, id: string): Promise<FoundCommit> {
  const literal = quoteLiteral(id);
  await connection.query(
    `INSERT INTO spillway.client_commit (commit_id, outcome) VALUES (${literal}, 'rolled back') ON CONFLICT DO NOTHING`,
  );
  const [found] = await connection.query(
    `SELECT outcome, rows FROM spillway.client_commit WHERE commit_id = ${literal}`,
  );
  const [outcome, rows] = found?.rows[0] ?? [];
  return { outcome: outcome === "committed" ? "committed" : "rolled back", rows: Number(rows ?? "0") };
}
