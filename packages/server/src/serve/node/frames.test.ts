import fc from "fast-check";
import { expect, test } from "vitest";
import { type Frame, frameHeader, FrameReader, jsonFrame, parseSchemaPayload, schemaPayload } from "./frames.ts";

test("frames come out whole, however the bytes were cut", () => {
  const frame = fc.record({
    type: fc.integer({ min: 1, max: 10 }),
    stream: fc.nat(2 ** 32 - 1),
    payload: fc.uint8Array({ maxLength: 300 }),
  });
  fc.assert(
    fc.property(
      fc.array(frame, { maxLength: 20 }),
      fc.array(fc.integer({ min: 1, max: 90 }), { minLength: 1 }),
      (frames, cuts) => {
        const bytes = Buffer.concat(
          frames.flatMap((f) => [frameHeader(f.type, f.stream, f.payload.length), f.payload]),
        );
        const reader = new FrameReader();
        const found: Frame[] = [];
        for (let at = 0, i = 0; at < bytes.length; i++) {
          const size = cuts[i % cuts.length] ?? 1;
          found.push(...reader.push(bytes.subarray(at, at + size)));
          at += size;
        }
        expect(found.map((f) => ({ ...f, payload: [...f.payload] }))).toEqual(
          frames.map((f) => ({ ...f, payload: [...f.payload] })),
        );
      },
    ),
  );
});

test("a frame beyond the limit is refused before it is read", () => {
  expect(() => [...new FrameReader(100).push(jsonFrame(1, 0, "x".repeat(200)))]).toThrow(/frame of/);
  expect(() => [...new FrameReader().push(Buffer.from([1, 0, 0, 0, 1, 0, 0, 0, 0]))]).toThrow(/frame of/);
});

test("a schema's parts come back", () => {
  for (const schema of [null, Buffer.from("schema")]) {
    expect(parseSchemaPayload(schemaPayload({ a: "é" }, schema))).toEqual({ value: { a: "é" }, arrowSchema: schema });
  }
});
