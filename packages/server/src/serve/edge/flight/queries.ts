/** Statements of a connection: planned, run and sent as Arrow, in the session that is theirs. */
import { createHash } from "node:crypto";
import { SpillwayError } from "@spillway/base/errors";
import { splitMessage } from "../../../engine/engine.ts";
import type { Prepared, ServeSession, StatementKind, WireParam } from "../../session/session.ts";
import type { FlightConnection, Lent } from "./connections.ts";
import { encodeFlightData } from "./flight-data.ts";
import { EMPTY_SCHEMA } from "./schemas.ts";
import type { SmallResult } from "./small-results.ts";

/** What changes a session for the statements after it. */
const STICKY = new Set<StatementKind>([
  "begin",
  "commit",
  "rollback",
  "savepoint",
  "release",
  "rollback-to",
  "set",
  "reset",
  "discard",
]);
/** Parameters that further sessions of the connection begin with, once they were set. */
const CARRIED = ["search_path", "TimeZone"] as const;

export interface StatementRequest {
  readonly sql: string;
  readonly transaction: string | null;
  readonly params?: readonly WireParam[];
  /** Of the schema that was promised; null: none was. */
  readonly schema?: string | null;
}

/** Runs `work` with the statement prepared in the session where it belongs. */
export async function withStatement<T>(
  connection: FlightConnection,
  { sql, transaction }: Pick<StatementRequest, "sql" | "transaction">,
  signal: AbortSignal,
  work: (session: ServeSession, prepared: Prepared) => Promise<T>,
): Promise<T> {
  const lent = await prepareIn(connection, sql, transaction, signal);
  try {
    return await work(lent.session, lent.prepared);
  } finally {
    lent.release();
  }
}

async function prepareIn(
  connection: FlightConnection,
  sql: string,
  transaction: string | null,
  signal: AbortSignal,
): Promise<Lent & { prepared: Prepared }> {
  let lent = await connection.lend(transaction, false, signal);
  try {
    let prepared = await lent.session.prepare(sql);
    if (transaction === null && STICKY.has(prepared.kind)) {
      lent.release();
      lent = await connection.lend(null, true, signal);
      prepared = await lent.session.prepare(sql);
    }
    return { session: lent.session, release: lent.release, prepared };
  } catch (error) {
    lent.release();
    throw error;
  }
}

/** The messages of a DoGet: the schema, then what the node sent, undecoded. */
export async function* streamStatement(
  connection: FlightConnection,
  request: StatementRequest,
  signal: AbortSignal,
): AsyncIterable<Buffer> {
  const lent = await prepareIn(connection, request.sql, request.transaction, signal);
  try {
    const { session, prepared } = lent;
    const promised = request.schema ?? null;
    if (promised !== null && promised !== schemaDigest(prepared.arrowSchema)) {
      throw new SpillwayError(
        "flight_schema_changed",
        "The columns of the statement have changed since it was planned.",
      );
    }
    const result = await session.run(prepared, { signal, ...(request.params ? { params: request.params } : {}) });
    try {
      yield frame(result.arrowSchema ?? EMPTY_SCHEMA);
      if (result.columns !== null) for await (const message of result.messages()) yield frame(message);
      await result.rowCount;
    } finally {
      await result.close();
    }
    carry(connection, session, prepared);
  } finally {
    lent.release();
  }
}

/** A statement whose rows are not wanted, once for each row of parameters. Returns the rows that it changed. */
export async function runUpdate(
  connection: FlightConnection,
  request: StatementRequest,
  rows: readonly (readonly WireParam[])[],
  signal: AbortSignal,
): Promise<number> {
  return withStatement(connection, request, signal, async (session, prepared) => {
    // Many rows are one statement to the client: all or none.
    const wrap = rows.length > 1 && session.status === "idle";
    let total = 0;
    if (wrap) await simple(session, "BEGIN");
    try {
      for (const params of rows) total += await runOnce(session, prepared, params, signal);
      if (wrap) await simple(session, "COMMIT");
    } catch (error) {
      if (wrap) await simple(session, "ROLLBACK").catch(() => {});
      throw error;
    }
    carry(connection, session, prepared);
    return total;
  });
}

async function runOnce(
  session: ServeSession,
  prepared: Prepared,
  params: readonly WireParam[],
  signal: AbortSignal,
): Promise<number> {
  const result = await session.run(prepared, { params, signal });
  try {
    if (result.columns !== null) for await (const _ of result.messages());
    const count = await result.rowCount;
    // The count of rows that were read is no count of rows that were changed.
    return prepared.kind === "select" ? -1 : count;
  } finally {
    await result.close();
  }
}

async function simple(session: ServeSession, sql: string): Promise<void> {
  const result = await session.run(await session.prepare(sql));
  await result.rowCount;
  await result.close();
}

function carry(connection: FlightConnection, session: ServeSession, prepared: Prepared): void {
  if (prepared.kind !== "set" && prepared.kind !== "reset" && prepared.kind !== "discard") return;
  const values = CARRIED.flatMap((name) => {
    const value = session.parameter(name);
    return value === null ? [] : [[name, value] as const];
  });
  connection.remember(Object.fromEntries(values));
}

/** An encapsulated Arrow message as a FlightData. */
function frame(message: Buffer): Buffer {
  const { metadata, body } = splitMessage(message);
  return encodeFlightData(metadata, body);
}

export function* frames({ schema, batches }: SmallResult): Iterable<Buffer> {
  yield frame(schema);
  for (const batch of batches) yield frame(batch);
}

export function schemaDigest(schema: Buffer | null): string {
  return createHash("sha256")
    .update(schema ?? EMPTY_SCHEMA)
    .digest("base64");
}
