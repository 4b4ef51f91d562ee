import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { expectedWaitMs, heapMs, isLakeCheaper, lakeMs, LEAST_LAKE_MS } from "./mirror-cost.ts";

/** Five million rows of 100 bytes, as Postgres's planner and the lake see them. */
const scan = { cost: 120_000, rows: 5_000_000, width: 100 };
const counted = { cost: 132_000, rows: 1, width: 8 };
const point = { cost: 8.5, rows: 1, width: 100 };
const whole = { files: 10, bytes: 250_000_000, rows: 5_000_000, remoteBytes: 0 };
const oneColumn = { files: 10, bytes: 20_000_000, rows: 5_000_000, remoteBytes: 0 };

const isLake = (heap: typeof scan, lake: typeof whole, waitMs = 0): boolean =>
  isLakeCheaper(heapMs(heap), lakeMs(lake), waitMs);

describe("heap or lake", () => {
  test("a row by an indexed column comes from the heap, and the lake is not even looked at", () => {
    expect(heapMs(point)).toBeLessThan(LEAST_LAKE_MS);
    expect(isLake(point, { files: 1, bytes: 1000, rows: 10_000, remoteBytes: 0 })).toBe(false);
  });

  test("large scans and aggregates come from the lake", () => {
    expect(isLake(scan, whole)).toBe(true);
    expect(isLake(counted, oneColumn)).toBe(true);
  });

  test("also when it has to be waited for, if that pays", () => {
    expect(isLake(scan, whole, expectedWaitMs(1 << 20))).toBe(true);
    expect(isLake(counted, oneColumn, expectedWaitMs(1 << 20))).toBe(false);
    expect(isLake(scan, whole, expectedWaitMs(2 ** 38))).toBe(false);
  });

  test("a lake that must be fetched first has its price", () => {
    expect(isLake(counted, { ...oneColumn, remoteBytes: 250_000_000 })).toBe(false);
    expect(isLake(scan, { ...whole, remoteBytes: 250_000_000 })).toBe(true);
  });

  test("small tables stay in the heap", () => {
    expect(isLake({ cost: 200, rows: 5000, width: 60 }, { files: 1, bytes: 100_000, rows: 5000, remoteBytes: 0 })).toBe(
      false,
    );
  });

  test("more of anything never makes its side cheaper", () => {
    const amount = fc.double({ min: 0, max: 1e12, noNaN: true });
    fc.assert(
      fc.property(amount, amount, amount, amount, amount, (a, b, c, d, more) => {
        expect(heapMs({ cost: a + more, rows: b + more, width: c })).toBeGreaterThanOrEqual(
          heapMs({ cost: a, rows: b, width: c }),
        );
        const lake = { files: a, bytes: b, rows: c, remoteBytes: d };
        expect(lakeMs({ files: a + more, bytes: b + more, rows: c, remoteBytes: d + more })).toBeGreaterThanOrEqual(
          lakeMs(lake),
        );
        expect(expectedWaitMs(a + more)).toBeGreaterThanOrEqual(expectedWaitMs(a));
        if (!isLakeCheaper(a, b, c)) expect(isLakeCheaper(a, b + more, c)).toBe(false);
      }),
    );
  });
});
