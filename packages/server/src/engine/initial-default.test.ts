import type { ColumnKind } from "@spillway/base/columns";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Engine } from "./instance.ts";
import { duckDefault } from "./initial-default.ts";
import { duckLiteral } from "./quote.ts";
import { duckType } from "./types.ts";

let engine: Engine;
beforeAll(async () => {
  engine = await Engine.open({ memoryBytes: 64 << 20, threads: 1 });
});
afterAll(() => engine.close());

/** Postgres's canonical text, and the same value by other means. */
const CASES: readonly [ColumnKind, string, string][] = [
  ["date", "2024-02-29", "make_date(2024, 2, 29)"],
  ["date", "0044-03-15 BC", "make_date(-43, 3, 15)"],
  ["date", "infinity", "'infinity'::DATE"],
  ["timestamp", "2024-02-29 12:34:56.789", "make_timestamp(2024, 2, 29, 12, 34, 56.789)"],
  ["timestamp", "0044-03-15 12:34:56 BC", "make_timestamp(-43, 3, 15, 12, 34, 56)"],
  ["timestamptz", "0044-03-15 12:34:56.5+00 BC", "make_timestamp(-43, 3, 15, 12, 34, 56.5)::TIMESTAMPTZ"],
  ["timestamptz", "-infinity", "'-infinity'::TIMESTAMPTZ"],
  ["bytes", "\\x00ff5c41", "from_hex('00FF5C41')"],
  ["bytes", "\\x", "''::BLOB"],
  ["text", "44 BC", "'44 BC'"],
  ["text", "\\x00", "'\\x00'"],
  ["bool", "t", "true"],
  ["time", "24:00:00", "'24:00:00'::TIME"],
];

test.each(CASES)("%s %s", async (kind, text, same) => {
  const cast = `${duckLiteral(duckDefault(kind, text) ?? "")}::${duckType({ kind })}`;
  const [row] = await engine.use((s) => s.rows(`SELECT ${cast} IS NOT DISTINCT FROM (${same})`));
  expect(row?.[0]).toBe(true);
});
