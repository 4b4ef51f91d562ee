/** The judges: is every acknowledged row there, and did two servers acknowledge on diverging timelines? */
import { connect, endClient } from "@spillway/pg/connect";
import { quoteIdent } from "@spillway/pg/quote";
import type { Ack, Writer } from "./writer.ts";
import { WRITES_TABLE } from "./writer.ts";

/** The ids that a writer has in the table, from the primary that the URI leads to. */
export async function readIds(uri: string, writer: number, table = WRITES_TABLE): Promise<Set<number>> {
  const client = await connect(uri, { connectTimeoutMs: 5_000, applicationName: "spillway-ha-checker" });
  try {
    const { rows } = await client.query<{ id: string | bigint }>(
      `SELECT id FROM ${quoteIdent(table)} WHERE writer = $1`,
      [writer],
    );
    return new Set(rows.map((r) => Number(r.id)));
  } finally {
    await endClient(client);
  }
}

export interface AckCheck {
  readonly acked: number;
  /** Acknowledged and not there: must be none. */
  readonly lost: readonly number[];
  readonly unknown: number;
  /** Of the unknown ones, those that are there. */
  readonly unknownKept: number;
}

export function checkAcks(acks: readonly Ack[], unknown: readonly number[], present: ReadonlySet<number>): AckCheck {
  return {
    acked: acks.length,
    lost: acks.filter((a) => !present.has(a.id)).map((a) => a.id),
    unknown: unknown.length,
    unknownKept: unknown.filter((id) => present.has(id)).length,
  };
}

export async function checkWriter(uri: string, writer: Writer, number: number): Promise<AckCheck> {
  return checkAcks(writer.acks, writer.unknown, await readIds(uri, number));
}

/**
 * Two writable: a server acknowledged a write on an older timeline after another one had acknowledged on a
 * newer one. Acks of all writers together, by the time at which the statement was *sent*: an answer that was
 * on its way while the new primary opened proves nothing, a statement sent afterwards does.
 */
export function twoWritable(acks: readonly Ack[]): readonly Ack[] {
  const byTime = acks.toSorted((a, b) => a.atMs - b.atMs);
  const firstAt = new Map<number, number>();
  for (const ack of byTime) if (!firstAt.has(ack.timeline)) firstAt.set(ack.timeline, ack.atMs);
  return byTime.filter((ack) => [...firstAt].some(([timeline, atMs]) => timeline > ack.timeline && ack.sentMs > atMs));
}
