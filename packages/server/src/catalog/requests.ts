/** Work that a command asks of the leader: filed as a row, announced, and answered in the row. */
import type { Clock } from "@spillway/base/clock";
import { SpillwayError } from "@spillway/base/errors";
import { quoteIdent } from "@spillway/pg/quote";
import type { Db } from "./db.ts";
import { WORKER_CHANNEL } from "./names.ts";
import { big, bigOrNull } from "./rows.ts";

export interface WorkRequest {
  readonly requestId: bigint;
  /** `pass`: a pass over the tables at once; others are the maintenance's own. */
  readonly kind: string;
  readonly relationId: bigint | null;
  readonly detail: Readonly<Record<string, unknown>>;
}

export interface RequestAnswer {
  readonly state: "open" | "claimed" | "done" | "failed";
  readonly result: Readonly<Record<string, unknown>> | null;
}

export async function fileRequest(
  db: Db,
  request: { readonly kind: string; readonly relationId?: bigint; readonly detail?: Readonly<Record<string, unknown>> },
): Promise<bigint> {
  const { rows } = await db.query<{ request_id: string }>(
    "insert into spillway.request (kind, relation_id, detail) values ($1, $2, $3) returning request_id",
    [request.kind, request.relationId?.toString() ?? null, JSON.stringify(request.detail ?? {})],
  );
  await db.query(`notify ${quoteIdent(WORKER_CHANNEL)}`);
  return big(rows[0]?.request_id);
}

/** The leader takes every open request of these kinds, and those that a former leader took and did not answer. */
export async function claimRequests(db: Db, kinds: readonly string[]): Promise<WorkRequest[]> {
  const { rows } = await db.query<{
    request_id: string;
    kind: string;
    relation_id: string | null;
    detail: Record<string, unknown>;
  }>(
    `update spillway.request set state = 'claimed', claimed_at = now()
     where state in ('open', 'claimed') and kind = any ($1::text[]) returning request_id, kind, relation_id, detail`,
    [[...kinds]],
  );
  return rows.map((row) => ({
    requestId: big(row.request_id),
    kind: row.kind,
    relationId: bigOrNull(row.relation_id),
    detail: row.detail,
  }));
}

export async function answerRequest(
  db: Db,
  requestId: bigint,
  state: "done" | "failed",
  result: Readonly<Record<string, unknown>>,
): Promise<void> {
  await db.query("update spillway.request set state = $2, result = $3, ended_at = now() where request_id = $1", [
    requestId.toString(),
    state,
    JSON.stringify(result, (_k, v: unknown) => (typeof v === "bigint" ? v.toString() : v)),
  ]);
}

export async function readRequest(db: Db, requestId: bigint): Promise<RequestAnswer | null> {
  const { rows } = await db.query<{ state: RequestAnswer["state"]; result: Record<string, unknown> | null }>(
    "select state, result from spillway.request where request_id = $1",
    [requestId.toString()],
  );
  return rows[0] ?? null;
}

/** Throws `deadline_exceeded` when no leader answered in time; the request stays filed. */
export async function awaitRequest(
  db: Db,
  requestId: bigint,
  options: { readonly clock: Clock; readonly timeoutMs: number; readonly signal?: AbortSignal },
): Promise<RequestAnswer> {
  const endMs = options.clock.monotonicMs() + options.timeoutMs;
  for (;;) {
    const answer = await readRequest(db, requestId);
    if (answer && (answer.state === "done" || answer.state === "failed")) return answer;
    if (options.clock.monotonicMs() >= endMs || options.signal?.aborted) {
      throw new SpillwayError(
        "deadline_exceeded",
        `no worker has answered request ${requestId} within ${options.timeoutMs} ms`,
        {
          remedy: "Look at `spillway status` for the worker; the request stays filed.",
        },
      );
    }
    await options.clock.sleep(100, options.signal);
  }
}

/** Requests that are long answered. */
export async function pruneRequests(db: Db): Promise<void> {
  await db.query("delete from spillway.request where ended_at < now() - interval '7 days'");
}
