import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Engine } from "./engine.ts";

let inside: string;
let outside: string;
let engine: Engine;

beforeAll(async () => {
  inside = mkdtempSync(join(tmpdir(), "spillway-inside-"));
  outside = mkdtempSync(join(tmpdir(), "spillway-outside-"));
  writeFileSync(join(inside, "a.csv"), "x\n1\n");
  writeFileSync(join(outside, "a.csv"), "x\n1\n");
  engine = await Engine.open({ memoryBytes: 128 << 20, threads: 1, lockdown: { directories: [inside] } });
});
afterAll(() => {
  engine.close();
  for (const dir of [inside, outside]) rmSync(dir, { recursive: true, force: true });
});

test("a locked instance still reads, stages and spills where it may", async () => {
  expect(await engine.use((s) => s.rows(`SELECT x FROM read_csv('${inside}/a.csv')`))).toEqual([[1n]]);
  await engine.use((s) => s.run(`COPY (SELECT 1 AS x) TO '${inside}/b.parquet'`));
  const [row] = await engine.use((s) =>
    s.rows("SELECT count(*) FROM (SELECT i, row_number() OVER (ORDER BY hash(i)) AS r FROM range(4000000) t(i))"),
  );
  expect(row?.[0]).toBe(4_000_000n);
});

test("times are UTC in every session", async () => {
  expect(await engine.use((s) => s.rows("SELECT current_setting('TimeZone')"))).toEqual([["UTC"]]);
});

test.each([
  (o: string) => `SELECT * FROM read_csv('${o}/a.csv')`,
  (o: string) => `SELECT * FROM '${o}/a.csv'`,
  (o: string, i: string) => `SELECT * FROM read_csv('${i}/../${o.split("/").at(-1)}/a.csv')`,
  (o: string) => `COPY (SELECT 1) TO '${o}/b.csv'`,
  (o: string) => `ATTACH '${o}/x.db' AS x`,
  (o: string) => `SELECT * FROM glob('${o}/*')`,
  () => "SET TimeZone = 'Europe/Paris'",
  () => "SET GLOBAL lock_configuration = false",
])("%# is refused", async (sql) => {
  await expect(engine.use((s) => s.run(sql(outside, inside)))).rejects.toThrow();
  expect(readdirSync(outside)).toEqual(["a.csv"]);
});
