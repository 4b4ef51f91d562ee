/** The chaos run itself, short: nothing is lost, doubled or torn; and where the captures are emptied behind the worker's back, it says so. */
import { runCli } from "@spillway/testkit/processes";
import { expect, test } from "vitest";

interface Line {
  readonly ok: boolean;
  readonly bars: Readonly<Record<string, { readonly value: number }>>;
  readonly reads: Readonly<Record<string, number>>;
  readonly moved: Readonly<Record<string, number>>;
  readonly faults: readonly unknown[];
}

async function chaos(seed: number, env: Record<string, string> = {}): Promise<{ code: number | null; line: Line }> {
  const { code, stdout, stderr } = await runCli(["chaos", "--seconds", "20", "--seed", String(seed)], {
    env,
    timeoutMs: 280_000,
  });
  const last = stdout.trim().split("\n").at(-1) ?? "";
  if (last === "") throw new Error(stderr);
  return { code, line: JSON.parse(last) as Line };
}

test("nothing is lost, doubled or torn, and nothing is left", async () => {
  const { code, line } = await chaos(11);
  expect(line.faults).toEqual([]);
  expect(line).toMatchObject({ ok: true, bars: { lost: { value: 0 }, doubled: { value: 0 }, torn: { value: 0 } } });
  expect(line.moved["tier committed"]).toBeGreaterThan(4);
  expect(code).toBe(0);
});

test("it finds captures that record nothing", async () => {
  const { code, line } = await chaos(4, { SPILLWAY_CHAOS_PLANT: "1" });
  expect(code).toBe(1);
  expect((line.bars["lost"]?.value ?? 0) + (line.bars["doubled"]?.value ?? 0)).toBeGreaterThan(0);
});
