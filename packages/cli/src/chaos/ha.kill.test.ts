/** The chaos of high availability, short: three real nodes, random blows, nothing lost, never two writable. */
import { runCli } from "@spillway/testkit/processes";
import { expect, test } from "vitest";

interface Line {
  readonly ok: boolean;
  readonly bars: Readonly<Record<string, { readonly value: number }>>;
  readonly rounds: number;
  readonly acked: number;
}

test("nothing acknowledged is lost, never two writable, synchronous again within 30 s of each heal", async () => {
  const { code, stdout, stderr } = await runCli(["chaos", "ha", "--seconds", "20", "--seed", "5", "--mirror", "0"], {
    timeoutMs: 200_000,
  });
  const last = stdout.trim().split("\n").at(-1) ?? "";
  if (last === "") throw new Error(stderr);
  const line = JSON.parse(last) as Line;
  expect(line, stderr).toMatchObject({ ok: true, bars: { lost_acked: { value: 0 }, two_writable: { value: 0 } } });
  expect(line.bars["sync_again_s"]?.value).toBeLessThanOrEqual(30);
  expect(line.rounds).toBeGreaterThan(1);
  expect(line.acked).toBeGreaterThan(100);
  expect(code).toBe(0);
});
