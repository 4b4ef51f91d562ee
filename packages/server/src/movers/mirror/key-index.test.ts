import fc from "fast-check";
import { expect, test } from "vitest";
import { KeyIndex } from "./key-index.ts";

test("a multimap as a plain one is, with few hashes and many keys", () => {
  const step = fc.record({
    tag: fc.integer({ min: 0, max: 5 }),
    low: fc.integer({ min: 0, max: 1 }),
    act: fc.integer({ min: 0, max: 3 }),
  });
  fc.assert(
    fc.property(fc.array(step, { maxLength: 4000 }), fc.boolean(), (steps, high) => {
      const index = new KeyIndex();
      const model = new Map<string, number[]>();
      let ordinal = 1;
      for (const { tag: small, low, act } of steps) {
        const tag = high ? 0xffffffff - small : small;
        const key = `${tag}/${low}`;
        const held = model.get(key) ?? [];
        model.set(key, held);
        if (act <= 1) {
          index.add(tag, low, ordinal);
          held.push(ordinal++);
        } else if (held.length > 0) {
          const victim = held.shift() ?? 0;
          const slot = index.slotOf(tag, low, victim);
          expect(slot).toBeGreaterThanOrEqual(0);
          if (act === 2) index.removeAt(slot);
          else {
            index.replaceAt(slot, ordinal);
            held.push(ordinal++);
          }
        }
      }
      for (const [key, held] of model) {
        const [tag = 0, low = 0] = key.split("/").map(Number);
        const found: number[] = [];
        for (let slot = index.find(tag, low); slot >= 0; slot = index.find(tag, low, slot))
          found.push(index.ordinalAt(slot));
        expect(found.toSorted((a, b) => a - b)).toEqual(held.toSorted((a, b) => a - b));
      }
      expect(index.size).toBe([...model.values()].reduce((sum, list) => sum + list.length, 0));
    }),
    { numRuns: 100 },
  );
});

test("grows and drops what was removed, within its bound", () => {
  const index = new KeyIndex(0, 9 * 4096);
  for (let round = 0; round < 20; round++) {
    for (let i = 1; i <= 2000; i++) index.add((i * 0x9e3779b1) >>> 0, i & 255, i);
    for (let i = 1; i <= 2000; i++) index.removeAt(index.slotOf((i * 0x9e3779b1) >>> 0, i & 255, i));
  }
  expect(index.size).toBe(0);
  expect(index.memoryBytes).toBeLessThanOrEqual(9 * 4096);
  expect(() => {
    for (let i = 1; i <= 4000; i++) index.add((i * 0x9e3779b1) >>> 0, i & 255, i);
  }).toThrow(/bytes/);
});
