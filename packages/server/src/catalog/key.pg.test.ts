/** Canonical keys against Postgres: what we print, it reads back as the same key, from 4713 BC to the end of its time. */
import fc from "fast-check";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { afterAll, beforeAll, expect, test } from "vitest";
import {
  durationInKeyUnits,
  KEY_INFINITY,
  KEY_MIN,
  KEY_NEG_INFINITY,
  keyExpression,
  type KeyKind,
  keyLiteral,
  keyText,
} from "./catalog.ts";

let db: TestDatabase;
beforeAll(async () => {
  db = await createTestDatabase();
  await db.client.query("set timezone = 'Asia/Kathmandu'; create schema spillway");
});
afterAll(() => db.drop());

const RANGES: Record<KeyKind, [bigint, bigint]> = {
  int: [KEY_MIN, KEY_INFINITY],
  date: [-2440588n, 2145031948n],
  timestamp: [-210866803200000000n, 9223371331199999999n - 946684800000000n],
  timestamptz: [-210866803200000000n, 9223371331199999999n - 946684800000000n],
};

for (const kind of Object.keys(RANGES) as KeyKind[]) {
  test(`${kind}: texts, literals and expressions agree`, async () => {
    const [min, max] = RANGES[kind];
    const near = fc.bigInt({
      min: kind === "date" ? -800000n : -62200000000000000n,
      max: kind === "date" ? 3000000n : 62200000000000000n,
    });
    const keys = [...fc.sample(fc.oneof(fc.bigInt({ min, max }), near), 600), min, max, 0n, -1n, 1n];
    const type = kind === "int" ? "bigint" : kind;
    const list = keys.map(
      (k) =>
        `(${keyLiteral(kind, k)}, '${keyText(kind, k).replace("-infinity", String(KEY_MIN))}'::${type}, ${k === KEY_MIN ? "'-9223372036854775808'" : k}::bigint)`,
    );
    const { rows } = await db.client.query(
      `select (${keyExpression(kind, "l")})::text as l, (${keyExpression(kind, "t")})::text as t, k::text from (values ${list.join(", ")}) v (l, t, k)
       where ${keyExpression(kind, "l")} <> k or ${keyExpression(kind, "t")} <> k`,
    );
    expect(rows).toEqual([]);
    if (kind === "int") return;
    const { rows: ends } = await db.client.query(
      `select (${keyExpression(kind, `${keyLiteral(kind, KEY_INFINITY)}`)})::text as hi, (${keyExpression(kind, `${keyLiteral(kind, KEY_NEG_INFINITY)}`)})::text as lo`,
    );
    expect(ends).toEqual([{ hi: String(KEY_INFINITY), lo: String(KEY_NEG_INFINITY) }]);
  });
}

test("durations in the units of the key", () => {
  expect(durationInKeyUnits("date", 86_400_000 * 90)).toBe(90n);
  expect(durationInKeyUnits("date", 3_600_000)).toBeNull();
  expect(durationInKeyUnits("timestamptz", 1500)).toBe(1_500_000n);
  expect(durationInKeyUnits("int", 1)).toBeNull();
});
