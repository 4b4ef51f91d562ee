/** One transaction on a connection: isolation, bounded repetition, and the truth about its COMMIT. */
import type pg from "pg";
import type { Clock } from "@spillway/base/clock";
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import { retry, type RetryBudget } from "@spillway/base/retry";
import { fromPgError, isConnectionError, isSerializationError } from "./pg-error.ts";

export type Isolation = "read committed" | "repeatable read" | "serializable";

export interface TransactionOptions {
  readonly isolation?: Isolation;
  readonly readOnly?: boolean;
  /** For serialization failures and deadlocks; default: 5 attempts within 10 s. `null`: never again. */
  readonly retries?: RetryBudget | null;
  readonly random?: () => number;
  readonly signal?: AbortSignal;
}

const RETRIES: RetryBudget = { attempts: 5, totalMs: 10_000, firstDelayMs: 10, maxDelayMs: 500 };
const NEVER: RetryBudget = { attempts: 1, totalMs: 0, firstDelayMs: 0, maxDelayMs: 0 };

/** Runs `work` in transactions on clients that `lend` gives, one for each attempt. */
export async function runTransaction<T>(
  options: TransactionOptions,
  clock: Clock,
  lend: (attempt: (client: pg.Client) => Promise<T>) => Promise<T>,
  work: (client: pg.Client) => Promise<T>,
): Promise<T> {
  const budget = options.retries === null ? NEVER : (options.retries ?? RETRIES);
  return retry(
    {
      ...budget,
      clock,
      random: options.random ?? Math.random,
      retryable: (error) => isSerializationError(error),
      ...(options.signal ? { signal: options.signal } : {}),
    },
    () => lend((client) => inTransaction(client, options, work)),
  );
}

/** BEGIN, `work`, COMMIT; ROLLBACK on any error, which comes out unchanged. Never repeated. */
export async function inTransaction<T>(
  client: pg.Client,
  options: Pick<TransactionOptions, "isolation" | "readOnly">,
  work: (client: pg.Client) => Promise<T>,
): Promise<T> {
  const mode = options.readOnly ? " READ ONLY" : "";
  await client.query(`BEGIN ISOLATION LEVEL ${(options.isolation ?? "read committed").toUpperCase()}${mode}`);
  let result: T;
  try {
    result = await work(client);
  } catch (error) {
    await client.query("ROLLBACK").catch(() => {});
    throw error;
  }
  await commit(client);
  return result;
}

/**
 * COMMIT, believed only when the server says so: a transaction that had failed answers ROLLBACK; a connection that ends on the
 * way leaves the outcome unknown; and a synchronous commit whose wait was canceled is not safe yet.
 */
export async function commit(client: pg.Client): Promise<void> {
  let waitCanceled = false;
  const onNotice = (notice: { routine?: string | undefined }): void => {
    waitCanceled ||= notice.routine === "SyncRepWaitForLSN";
  };
  client.on("notice", onNotice);
  try {
    const { command } = await client.query("COMMIT");
    if (command !== "COMMIT") {
      throw new SpillwayError("pg_error", "the transaction had failed before its COMMIT and was rolled back");
    }
  } catch (error) {
    if (isSpillwayError(error) || !isConnectionError(error)) throw error;
    const typed = fromPgError(error, "the connection ended during COMMIT");
    throw new SpillwayError("pg_commit_unknown", typed.message, { cause: error, details: typed.details });
  } finally {
    client.off("notice", onNotice);
  }
  if (waitCanceled) {
    throw new SpillwayError(
      "pg_commit_unknown",
      "the commit is durable here, but its wait for the standby was canceled",
    );
  }
}
