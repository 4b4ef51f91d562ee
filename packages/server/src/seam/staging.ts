/** Rows from Postgres in temporary tables of an engine session, by binary COPY. */
import type { ColumnSpec } from "@spillway/base/columns";
import { copyOut } from "@spillway/pg/copy/copy-out";
import type { PgColumnPlan } from "@spillway/pg/columns/plan";
import type { RawConnection } from "@spillway/pg/wire/connection";
import { duckIdent, type EngineSession, storedDuckType } from "../engine/engine.ts";

export interface Staged {
  /** The table's name in DuckDB. */
  readonly table: string;
  readonly rows: number;
}

export interface StageRequest {
  readonly connection: RawConnection;
  readonly session: EngineSession;
  /** The table to make, without quotes. */
  readonly table: string;
  readonly temporary: boolean;
  /** `SELECT …`, run inside the connection's transaction. */
  readonly select: string;
  /** What the query returns, in its order; the spec's names become the columns' names. */
  readonly columns: readonly PgColumnPlan[];
  readonly signal?: AbortSignal;
}

export async function stageCopy(request: StageRequest): Promise<Staged> {
  const { connection, session, table, columns, signal } = request;
  const batches = copyOut({ connection, source: `(${request.select})`, columns, signal });
  // Postgres works while the table is made.
  let next = batches.next();
  next.catch(() => {});
  const specs = columns.map((c) => c.spec);
  try {
    await createTable(session, table, specs, request.temporary);
  } catch (error) {
    await batches.return();
    throw error;
  }
  const appender = session.appender(table, specs);
  let rows = 0;
  try {
    for (let step = await next; !step.done; step = await next) {
      next = batches.next();
      next.catch(() => {});
      appender.append(step.value);
      rows += step.value.length;
    }
    appender.close();
    return { table, rows };
  } catch (error) {
    await batches.return();
    // What the appender still holds may be what failed.
    try {
      appender.close();
    } finally {
      await session.run(`DROP TABLE IF EXISTS ${duckIdent(table)}`).catch(() => {});
    }
    throw error;
  }
}

export function createTable(
  session: EngineSession,
  table: string,
  specs: readonly ColumnSpec[],
  temporary: boolean,
): Promise<void> {
  const columns = specs.map((s) => `${duckIdent(s.name)} ${storedDuckType(s)}`).join(", ");
  return session.run(`CREATE ${temporary ? "TEMP " : ""}TABLE ${duckIdent(table)} (${columns})`);
}
