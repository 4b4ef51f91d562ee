import { expect, test } from "vitest";
import { FrontierTimes } from "./frontier-time.ts";

test("F is as old as the last look at the WAL's end that it has passed", () => {
  const times = new FrontierTimes();
  expect(times.of(50n)).toBe(null);
  times.looked(100n, 1);
  expect(times.of(99n)).toBe(null);
  expect(times.of(100n)).toBe(1);
  times.looked(200n, 2);
  times.looked(300n, 3);
  expect([times.of(199n), times.of(250n), times.of(300n), times.of(400n)]).toEqual([1, 2, 3, 3]);
});

test("a stream that stays far behind does not fill the memory, and F is then rather older than younger", () => {
  const times = new FrontierTimes();
  for (let i = 1; i <= 5000; i++) times.looked(BigInt(i * 10), i);
  const at = times.of(30_000n);
  expect(at).not.toBe(null);
  expect(Number(at)).toBeLessThanOrEqual(3000);
  expect(Number(at)).toBeGreaterThan(2900);
});
