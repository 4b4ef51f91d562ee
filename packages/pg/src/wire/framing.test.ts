import fc from "fast-check";
import { expect, test } from "vitest";
import { MessageReader } from "./framing.ts";

function frame(type: number, body: Uint8Array): Buffer {
  const head = Buffer.alloc(5);
  head[0] = type;
  head.writeInt32BE(body.length + 4, 1);
  return Buffer.concat([head, body]);
}

test("messages come out whole, however the stream was cut", () => {
  const message = fc.tuple(fc.integer({ min: 1, max: 255 }), fc.uint8Array({ maxLength: 300 }));
  fc.assert(
    fc.property(fc.array(message), fc.array(fc.integer({ min: 1, max: 200 }), { minLength: 1 }), (messages, cuts) => {
      const bytes = Buffer.concat(messages.map(([type, body]) => frame(type, body)));
      const seen: [number, number[]][] = [];
      const reader = new MessageReader((type, buffer, start, end) =>
        seen.push([type, [...buffer.subarray(start, end)]]),
      );
      // One read buffer for all chunks, as the socket has, overwritten each time.
      const memory = Buffer.alloc(200);
      for (let at = 0, i = 0; at < bytes.length; i++) {
        const size = Math.min(cuts[i % cuts.length] ?? 1, bytes.length - at);
        memory.fill(0xee);
        bytes.copy(memory, 0, at, at + size);
        reader.push(memory, size);
        at += size;
      }
      expect(seen).toEqual(messages.map(([type, body]) => [type, [...body]]));
    }),
  );
});

test("an impossible length is refused at once", () => {
  const reader = new MessageReader(() => {});
  expect(() => reader.push(Buffer.from([0x44, 0, 0, 0, 3]), 5)).toThrow(/not possible/);
  expect(() => new MessageReader(() => {}).push(Buffer.from([0x44, 0x7f, 0xff, 0xff, 0xff]), 5)).toThrow(
    /not possible/,
  );
});
