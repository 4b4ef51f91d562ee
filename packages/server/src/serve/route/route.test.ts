import fc from "fast-check";
import { expect, test } from "vitest";
import { accepts, type Candidate, nextEwma, pickNode } from "./route.ts";

const node = (id: string, more: Partial<Candidate> = {}): Candidate => ({
  id,
  role: "DUAL",
  isReady: true,
  inFlight: 0,
  limit: 4,
  ewmaMs: 10,
  ...more,
});

test("roles", () => {
  expect([accepts("READONLY", true), accepts("WRITEONLY", false), accepts("DUAL", true)]).toEqual([false, false, true]);
  expect(pickNode([node("r", { role: "READONLY" })], true)).toBeNull();
  expect(pickNode([node("d"), node("r", { role: "READONLY" })], false)?.id).toBe("r");
});

test("the least busy, then the fastest; never one that is not ready, full or to be avoided", () => {
  const nodes = [
    node("a", { inFlight: 2 }),
    node("b", { inFlight: 1, ewmaMs: 50 }),
    node("c", { inFlight: 1, ewmaMs: 5 }),
  ];
  expect(pickNode(nodes, false)?.id).toBe("c");
  expect(pickNode(nodes, false, new Set(["c"]))?.id).toBe("b");
  const candidate = fc.record({
    id: fc.uuid(),
    role: fc.constantFrom("READONLY", "WRITEONLY", "DUAL") as fc.Arbitrary<Candidate["role"]>,
    isReady: fc.boolean(),
    inFlight: fc.nat(5),
    limit: fc.constant(4),
    ewmaMs: fc.nat(100),
  });
  fc.assert(
    fc.property(fc.array(candidate), fc.boolean(), (all, writes) => {
      const usable = all.filter((c) => c.isReady && c.inFlight < 4 && accepts(c.role, writes));
      const picked = pickNode(all, writes);
      if (usable.length === 0) expect(picked).toBeNull();
      else expect(picked?.inFlight).toBe(Math.min(...usable.map((c) => c.inFlight)));
    }),
  );
});

test("one slow statement does not decide for long", () => {
  let ewma = 10;
  ewma = nextEwma(ewma, 1000);
  for (let i = 0; i < 20; i++) ewma = nextEwma(ewma, 10);
  expect(ewma).toBeLessThan(12);
});
