import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { gridRange, planPremake, type PremakeInput, stepOf } from "./premake-plan.ts";

const DAY = 86_400_000_000n;
const day = (text: string): bigint => BigInt(Date.parse(`${text}T00:00:00Z`)) * 1000n;
const leaf = (name: string, lo: bigint, hi: bigint) => ({ name, lo, hi, unbounded: false });
const base = { wanted: 2, emptyAtTop: 0, landed: [], t: -(1n << 63n), tableName: "t" } as const;
const none = { width: null, months: null };

describe("the step", () => {
  test("months, also of different lengths; years; days; what has none", () => {
    const months = [leaf("a", day("2024-01-01"), day("2024-02-01")), leaf("b", day("2024-02-01"), day("2024-03-01"))];
    expect(stepOf("timestamptz", none, months)).toEqual({ kind: "months", months: 1 });
    const year = [leaf("a", day("2024-01-01"), day("2025-01-01"))];
    expect(stepOf("timestamp", none, year)).toEqual({ kind: "months", months: 12 });
    const days = [leaf("a", day("2024-01-31"), day("2024-02-01")), leaf("b", day("2024-02-01"), day("2024-02-02"))];
    expect(stepOf("timestamptz", none, days)).toEqual({ kind: "fixed", width: DAY });
    const mixed = [leaf("a", 0n, 10n), leaf("b", 10n, 30n)];
    expect(stepOf("int", none, mixed)).toBeNull();
    expect(stepOf("int", { width: 5n, months: null }, mixed)).toEqual({ kind: "fixed", width: 5n });
  });
});

describe("the plan", () => {
  const ints = [leaf("t_0", 0n, 10n), leaf("t_10", 10n, 20n)];
  const input: PremakeInput = { ...base, kind: "int", step: { kind: "fixed", width: 10n }, leaves: ints };

  test("keeps so many empty ones at the top, named like the others", () => {
    expect(planPremake(input)).toEqual([
      { lo: 20n, hi: 30n, name: "t_20" },
      { lo: 30n, hi: 40n, name: "t_30" },
    ]);
    expect(planPremake({ ...input, emptyAtTop: 2 })).toEqual([]);
  });

  test("gives landed rows a partition, far ones without those between", () => {
    const plan = planPremake({ ...input, landed: [25n, 26n, 95n], emptyAtTop: 2 });
    expect(plan.map((p) => p.lo)).toEqual([20n, 90n, 100n, 110n]);
  });

  test("fills a gap that does not follow the grid, and never goes below the cut-line", () => {
    const gaps = [leaf("t_0", 0n, 13n), leaf("t_1", 17n, 30n)];
    const plan = planPremake({ ...input, leaves: gaps, landed: [15n], wanted: 0 });
    expect(plan).toEqual([expect.objectContaining({ lo: 13n, hi: 17n })]);
    expect(planPremake({ ...input, leaves: [leaf("t_40", 40n, 50n)], landed: [35n], t: 33n, wanted: 0 })).toEqual([
      { lo: 33n, hi: 40n, name: "t_33" },
    ]);
  });

  test("names in the style of dates", () => {
    const months = [
      leaf("m_2024_11_x", day("2024-11-01"), day("2024-12-01")),
      leaf("m_2024_12_x", day("2024-12-01"), day("2025-01-01")),
    ];
    const plan = planPremake({ ...input, kind: "timestamptz", step: { kind: "months", months: 1 }, leaves: months });
    expect(plan.map((p) => p.name)).toEqual(["m_2025_01_x", "m_2025_02_x"]);
    const odd = [leaf("alpha", 0n, 10n), leaf("beta", 10n, 20n)];
    expect(planPremake({ ...input, leaves: odd })[0]?.name).toBe("t_p20");
  });

  test("a range of the grid holds its key, and neighbors meet", () => {
    const key = fc.bigInt({ min: -60_000_000_000_000_000n, max: 200_000_000_000_000_000n });
    const step = fc.oneof(
      fc.record({ kind: fc.constant("fixed" as const), width: fc.bigInt({ min: 1n, max: 400n * DAY }) }),
      fc.record({ kind: fc.constant("months" as const), months: fc.integer({ min: 1, max: 24 }) }),
    );
    fc.assert(
      fc.property(key, step, (k, s) => {
        const anchor = day("2024-01-01");
        const range = gridRange("timestamptz", s, anchor, k);
        if (!range) return false;
        const next = gridRange("timestamptz", s, anchor, range.hi);
        return range.lo <= k && k < range.hi && next?.lo === range.hi;
      }),
    );
  });
});
