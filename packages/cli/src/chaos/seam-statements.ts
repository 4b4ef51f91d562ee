/** Corrections by the library's own statements: each is one transaction over both rows of a pair, wherever they are. */
import { sharedClock as clock } from "@spillway/ha/client/shared-clock";
import type { Seam } from "@spillway/server/seam/seam";
import { allRows } from "./seam-open.ts";
import type { PairState } from "./seam-model.ts";
import { type ChaosTable, keyOfValue, keySql, rowValues } from "./seam-tables.ts";

export interface Statement {
  readonly table: ChaosTable;
  readonly pair: number;
  readonly before: PairState;
  readonly after: PairState;
}

export function statementSql({ table, pair, before, after }: Statement): string {
  const [a, b] = [2 * pair, 2 * pair + 1];
  const where = `where id in (${a}, ${b})`;
  if (after === null) return `delete from ${table.name} ${where}`;
  const [first, second] = [
    rowValues(table, a, after.keys[0], after.stamp),
    rowValues(table, b, after.keys[1], after.stamp),
  ];
  if (before === null) return `insert into ${table.name} (id, k, s, d, v) values ${first}, ${second}`;
  const { stamp } = after;
  const moved = before.keys[1] !== after.keys[1];
  const key = moved ? `k = case when id = ${a} then k else ${keySql(table, after.keys[1])} end, ` : "";
  return `update ${table.name} set ${key}s = ${stamp}, d = case when id % 2 = 0 then ${stamp} else -${stamp} end,
    v = 'v${stamp}${"x".repeat(stamp % 23)}' ${where}`;
}

/** What is surely over by now, when its answer was lost: sessions end within this. */
const SETTLE_MS = 1500;

/** Whether a statement without an answer was committed: asks the table. */
export async function statementOutcome(seam: Seam, { table, pair, after }: Statement): Promise<boolean> {
  await clock.sleep(SETTLE_MS);
  for (;;) {
    try {
      const found = await allRows(
        seam,
        `SELECT id, k, s FROM ${table.name} WHERE id IN (${2 * pair}, ${2 * pair + 1}) ORDER BY id`,
      );
      if (after === null) return found.length === 0;
      return (
        found.length === 2 &&
        found.every(([, k, s], i) => Number(s) === after.stamp && keyOfValue(table, k) === after.keys[i])
      );
    } catch {
      await clock.sleep(200);
    }
  }
}
