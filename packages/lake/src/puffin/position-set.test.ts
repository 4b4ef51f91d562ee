import { createHash } from "node:crypto";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { PositionSet } from "./position-set.ts";

function* range(from: number, to: number, step = 1): Generator<number> {
  for (let i = from; i < to; i += step) yield i;
}

/** What CRoaring 64 (pyroaring 1.2, run-optimized) serializes for the same sets. */
const GOLDEN: [string, number[], string][] = [
  ["empty", [], "0000000000000000"],
  ["one", [0], "0100000000000000000000003a3000000100000000000000100000000000"],
  [
    "few",
    [1, 5, 70000, 2 ** 32 + 7],
    "0200000000000000000000003a300000020000000000010001000000180000001c000000010005007011010000003a3000000100000000000000100000000700",
  ],
  ["run", [...range(10, 1000)], "0100000000000000000000003b300000010000dd0301000a00dd03"],
  ["full", [...range(0, 65536)], "0100000000000000000000003b300000010000ffff01000000ffff"],
  ["dense", [...range(0, 200_000, 3)], "df5e354ada8025257c50a25417a2223b9c80c57410a3b4720c8de671e83a699e"],
  [
    "mixed",
    [...range(0, 5000, 2), ...range(65536, 95536), ...range(131072, 171072, 7), 2 ** 33 + 1],
    "56eb13718b57015212be0f4cb213eae0d065c51fd82e287134511386bd69621a",
  ],
];

describe("PositionSet", () => {
  test.each(GOLDEN)("serializes as CRoaring does: %s", (_, positions, expected) => {
    const bytes = new PositionSet(positions).encode();
    const hex = Buffer.from(bytes).toString("hex");
    expect(expected.length === 64 ? createHash("sha256").update(bytes).digest("hex") : hex).toBe(expected);
    expect([...PositionSet.decode(bytes)]).toEqual(positions);
  });

  const position = fc.oneof(
    fc.nat({ max: 200 }),
    fc.nat({ max: 140_000 }),
    fc.integer({ min: 2 ** 32 - 3, max: 2 ** 32 + 3 }),
    fc.integer({ min: 0, max: 2 ** 48 - 1 }),
  );
  const span = fc
    .tuple(fc.nat({ max: 140_000 }), fc.nat({ max: 9_000 }))
    .map(([start, length]) => ({ start, end: start + length }));
  const step = fc.oneof(position, position, span);

  function build(steps: readonly (number | { start: number; end: number })[]): {
    set: PositionSet;
    model: Set<number>;
  } {
    const set = new PositionSet();
    const model = new Set<number>();
    for (const step of steps) {
      if (typeof step === "number") {
        set.add(step);
        model.add(step);
      } else {
        set.addRange(step.start, step.end);
        for (const at of range(step.start, step.end)) model.add(at);
      }
    }
    return { set, model };
  }
  const sorted = (model: Iterable<number>): number[] => [...model].toSorted((a, b) => a - b);

  test("is the set of what was added, and comes back from its bytes", () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 30 }), fc.array(position, { maxLength: 10 }), (steps, probes) => {
        const { set, model } = build(steps);
        const expected = sorted(model);
        expect(Array.from(set.toSorted())).toEqual(expected);
        expect(set.cardinality).toBe(model.size);
        expect(set.isEmpty).toBe(model.size === 0);
        expect(set.last).toBe(expected.at(-1) ?? -1);
        for (const probe of probes) expect(set.has(probe)).toBe(model.has(probe));
        expect(Array.from(PositionSet.decode(set.encode()).toSorted())).toEqual(expected);
        expect(set.toSortedBigInt().length).toBe(model.size);
      }),
      { numRuns: 60 },
    );
  });

  test("union is that of sets, and changes neither", () => {
    fc.assert(
      fc.property(
        fc.array(step, { maxLength: 12 }),
        fc.array(step, { maxLength: 12 }),
        position,
        (left, right, extra) => {
          const a = build(left);
          const b = build(right);
          const both = a.set.union(b.set);
          expect(Array.from(both.toSorted())).toEqual(sorted(new Set([...a.model, ...b.model])));
          both.add(extra);
          expect(a.set.has(extra)).toBe(a.model.has(extra));
          expect(b.set.has(extra)).toBe(b.model.has(extra));
        },
      ),
      { numRuns: 60 },
    );
  });

  test("garbage is refused by name, never an endless loop or a wrong set", () => {
    const refused = expect.objectContaining({ code: "puffin_invalid" });
    const good = new PositionSet([...range(0, 9000, 2), 2 ** 33]).encode();
    fc.assert(
      fc.property(
        fc.nat({ max: good.length - 1 }),
        fc.nat({ max: good.length - 1 }),
        fc.nat({ max: 255 }),
        (cut, at, byte) => {
          expect(() => PositionSet.decode(good.subarray(0, cut))).toThrow(refused);
          const bent = good.slice();
          bent[at] = byte;
          try {
            expect(Array.from(PositionSet.decode(PositionSet.decode(bent).encode()))).toEqual([
              ...PositionSet.decode(bent),
            ]);
          } catch (error) {
            expect(error).toEqual(refused);
          }
        },
      ),
      { numRuns: 300 },
    );
    expect(() => PositionSet.decode(Uint8Array.of(...good, 0))).toThrow(refused);
  });

  test("what is no row position is a bug", () => {
    for (const bad of [-1, 0.5, 2 ** 48, Number.NaN]) expect(() => new PositionSet([bad])).toThrow(/row position/);
    expect(() => new PositionSet([2 ** 32]).toSortedUint32()).toThrow(/32 bits/);
    expect(new PositionSet([2 ** 32 - 1]).toSortedUint32()[0]).toBe(4294967295);
  });
});
