/** The chaos run of the mirror, short: every published snapshot is what Postgres held; and where a change was hidden, it says so. */
import { runCli } from "@spillway/testkit/processes";
import { expect, test } from "vitest";

async function chaos(seed: number, env: Record<string, string> = {}) {
  const { code, stdout, stderr } = await runCli(["chaos", "mirror", "--seconds", "20", "--seed", String(seed)], {
    env,
    timeoutMs: 280_000,
  });
  const last = stdout.trim().split("\n").at(-1) ?? "";
  if (last === "") throw new Error(stderr);
  return { code, line: JSON.parse(last) as { ok: boolean; first: string[]; bars: Record<string, { value: number }> } };
}

test("every snapshot is what Postgres held at its position", async () => {
  const { code, line } = await chaos(11);
  expect(line.first).toEqual([]);
  expect(line).toMatchObject({ ok: true, bars: { differences: { value: 0 } } });
  expect(code).toBe(0);
});

test("it finds a change that was hidden from it", async () => {
  const { code, line } = await chaos(4, { SPILLWAY_CHAOS_PLANT: "1" });
  expect(code).toBe(1);
  expect(line.bars["differences"]?.value).toBeGreaterThan(0);
});
