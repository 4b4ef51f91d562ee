/** Small results of a session as texts: for the catalog commands, never for a user's rows. */
import { textOf } from "@spillway/pg/columns/text-out";
import { SpillwayError } from "@spillway/base/errors";
import type { ServeSession } from "../../session/session.ts";

const MAX_ROWS = 200_000;

export async function rowsOf(session: ServeSession, sql: string): Promise<(string | null)[][]> {
  const result = await session.run(await session.prepare(sql));
  const rows: (string | null)[][] = [];
  try {
    for await (const batch of result.batches()) {
      if (rows.length + batch.length > MAX_ROWS) {
        throw new SpillwayError("limit_exceeded", `The catalog has more than ${MAX_ROWS} entries.`);
      }
      for (let i = 0; i < batch.length; i++) rows.push(batch.columns.map((column) => textOf(column, i)));
    }
  } finally {
    await result.close();
  }
  return rows;
}
