/** COPY TO STDOUT, received and thrown away: the ceiling of everything that reads a table. */
import type { SpillwayError } from "@spillway/base/errors";
import type { Operation, RawConnection } from "@spillway/pg/wire/connection";
import { queryMessage } from "@spillway/pg/wire/frontend";
import { quoteIdent } from "@spillway/pg/quote";

const READY = 0x5a;

/** Seconds. */
export async function copyOutRaw(connection: RawConnection, table: string, format: "text" | "binary"): Promise<number> {
  const startMs = performance.now();
  await new Promise<void>((resolve, reject) => {
    let failure: SpillwayError | null = null;
    const drain: Operation = {
      message: (type) => {
        if (type !== READY) return;
        if (failure) reject(failure);
        else resolve();
      },
      error: (error) => (failure = error),
      fail: reject,
    };
    connection.begin(drain);
    connection.send(queryMessage(`COPY ${quoteIdent(table)} TO STDOUT (FORMAT ${format})`));
  });
  return (performance.now() - startMs) / 1000;
}
