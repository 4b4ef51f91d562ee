import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { decodeDeletionVector, deletionVectorBlob, encodeDeletionVector } from "./deletion-vector.ts";
import { PositionSet } from "./position-set.ts";
import { decodePuffinFooter, encodePuffin, type PuffinBlob } from "./puffin.ts";

const refused = expect.objectContaining({ code: "puffin_invalid" });
const blob: fc.Arbitrary<PuffinBlob> = fc.record({
  type: fc.string({ minLength: 1 }),
  fields: fc.array(fc.integer({ min: 1, max: 2 ** 31 - 1 })),
  snapshotId: fc.bigInt({ min: -1n, max: 2n ** 63n - 1n }),
  sequenceNumber: fc.bigInt({ min: -1n, max: 2n ** 63n - 1n }),
  properties: fc.dictionary(fc.string(), fc.string()),
  data: fc.uint8Array({ maxLength: 50 }),
});

describe("Puffin", () => {
  test("blobs and footer come back, 64-bit ids exact", () => {
    fc.assert(
      fc.property(fc.array(blob, { maxLength: 5 }), fc.dictionary(fc.string(), fc.string()), (blobs, properties) => {
        const { bytes, footer } = encodePuffin(blobs, properties);
        const read = decodePuffinFooter(bytes);
        expect(read).toEqual(footer);
        const data = read.blobs.map((place) => bytes.subarray(place.offset, place.offset + place.length));
        expect(data).toEqual(blobs.map((one) => one.data));
        expect(read.blobs.map((place) => place.snapshotId)).toEqual(blobs.map((one) => one.snapshotId));
      }),
    );
  });

  test("the layout is the specification's", () => {
    const { bytes, footerBytes } = encodePuffin([], {});
    const text = Buffer.from(bytes);
    expect(text.toString("latin1", 0, 8)).toBe("PFA1PFA1");
    expect(text.toString("latin1", text.length - 4)).toBe("PFA1");
    expect(text.readInt32LE(text.length - 12)).toBe(text.length - 12 - 8);
    expect(text.readUInt32LE(text.length - 8)).toBe(0);
    expect(footerBytes).toBe(bytes.length - 4);
  });

  test("cut, bent or compressed footers are refused", () => {
    const { bytes } = encodePuffin([deletionVectorBlob("file:///a", new PositionSet([1]))], {});
    for (let cut = 0; cut < bytes.length; cut++)
      expect(() => decodePuffinFooter(bytes.subarray(0, cut))).toThrow(refused);
    for (const [at, byte] of [
      [0, 0],
      [bytes.length - 1, 0],
      [bytes.length - 8, 1],
      [bytes.length - 9, 0x7f],
      [bytes.length - 20, 0xff],
    ] as const) {
      const bent = bytes.slice();
      bent[at] = byte;
      expect(() => decodePuffinFooter(bent)).toThrow(refused);
    }
  });
});

describe("deletion vectors", () => {
  test("come back; every flipped byte is found", () => {
    fc.assert(
      fc.property(
        fc.array(fc.nat({ max: 70_000 }), { maxLength: 20 }),
        fc.nat(),
        fc.integer({ min: 1, max: 255 }),
        (list, at, flip) => {
          const set = new PositionSet(list);
          const bytes = encodeDeletionVector(set);
          expect([...decodeDeletionVector(bytes, BigInt(set.cardinality))]).toEqual([...set]);
          const bent = bytes.slice();
          bent[at % bytes.length] = (bent[at % bytes.length] ?? 0) ^ flip;
          expect(() => decodeDeletionVector(bent)).toThrow(refused);
        },
      ),
    );
  });

  test("the bytes are the specification's", () => {
    // Length, magic, one 32-bit bitmap with the values 1 and 5, CRC-32 (computed with Python's zlib).
    const hex = "00000024d1d339640100000000000000000000003a30000001000000000001001000000001000500";
    const bytes = encodeDeletionVector(new PositionSet([1, 5]));
    expect(Buffer.from(bytes).toString("hex").slice(0, -8)).toBe(hex);
    expect(Buffer.from(bytes).toString("hex").slice(-8)).toBe("3e6e302f");
  });

  test("a count that differs from the manifest's is refused", () => {
    expect(() => decodeDeletionVector(encodeDeletionVector(new PositionSet([1, 5])), 3n)).toThrow(refused);
  });
});
