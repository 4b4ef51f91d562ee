/** Every test that docs/internals/peer-faults.md names exists under that name. */
import { existsSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { expect, test } from "vitest";

const ROOT = resolve(import.meta.dirname, "..");

const rows = readFileSync(join(ROOT, "docs/internals/peer-faults.md"), "utf8")
  .split("\n")
  .map((line) => /^\| ([CD]\d+) \|[^|]+\| `([^`]+)` \| (.+?) \|$/.exec(line))
  .filter((match) => match !== null);

test("the list is there", () => {
  expect(rows.length).toBeGreaterThan(25);
});

test.each(rows.map(([, number, file, name]) => [number, file, name] as const))("%s: %s", (_, file, name) => {
  const path = join(ROOT, file ?? "");
  expect(existsSync(path), path).toBe(true);
  expect(readFileSync(path, "utf8")).toContain(name);
});
