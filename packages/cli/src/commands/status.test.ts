import { expect, test } from "vitest";
import { mirrorLines } from "./status.ts";

const none = { copy: null, verified: null, lagBytes: null, lagMs: null, frontier: null };

test("a mirrored table in words", () => {
  expect(mirrorLines({ ...none, phase: "live", frontier: "0/1", lagBytes: 2048, lagMs: 1234 })).toEqual([
    "follows the stream, 2.0 KiB of WAL, 1.2 s behind",
    "never verified",
  ]);
  const copy = { parts: 40, done: 12, rows: 1_200_000, rowsPerSecond: 250_000, secondsLeft: 600 };
  expect(mirrorLines({ ...none, phase: "copying", copy })).toEqual([
    "is being copied",
    "copy: 12 of 40 parts, 1,200,000 rows, 250,000 rows/s, 10 min left",
    "never verified",
  ]);
  expect(mirrorLines({ ...none, phase: "copying", copy: { ...copy, rowsPerSecond: null, secondsLeft: null } })[1]).toBe(
    "copy: 12 of 40 parts, 1,200,000 rows",
  );
  const verified = { ageMs: 3 * 3_600_000, lsn: "0/AB", rows: 990, sum: "ff" };
  expect(mirrorLines({ ...none, phase: "needs_copy", verified })).toEqual([
    "is to be copied again",
    "verified 3 h ago at 0/AB, 990 rows",
  ]);
});
