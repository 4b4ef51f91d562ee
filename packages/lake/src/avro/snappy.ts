/** Unpacks raw Snappy blocks, which some writers use in their Avro files. */

export function unsnappy(input: Uint8Array, maxLength: number): Uint8Array {
  let at = 0;
  const byte = (): number => {
    const value = input[at];
    if (value === undefined) throw new RangeError("snappy data ends early");
    at += 1;
    return value;
  };
  const little = (bytes: number): number => {
    let value = 0;
    for (let i = 0; i < bytes; i += 1) value += byte() * 2 ** (8 * i);
    return value;
  };
  const length = varint(byte);
  if (length > maxLength) throw new RangeError("snappy data is too long");
  const out = new Uint8Array(length);
  let end = 0;
  while (at < input.length) {
    const tag = byte();
    const kind = tag & 3;
    if (kind === 0) {
      const inline = tag >> 2;
      const size = (inline < 60 ? inline : little(inline - 59)) + 1;
      if (at + size > input.length || end + size > length) throw new RangeError("snappy literal out of range");
      out.set(input.subarray(at, at + size), end);
      at += size;
      end += size;
    } else {
      const size = kind === 1 ? ((tag >> 2) & 7) + 4 : (tag >> 2) + 1;
      const offset = kind === 1 ? ((tag >> 5) << 8) | byte() : little(kind === 2 ? 2 : 4);
      if (offset === 0 || offset > end || end + size > length) throw new RangeError("snappy copy out of range");
      // Byte by byte: a copy may overlap what it writes.
      for (let i = 0; i < size; i += 1) out[end + i] = out[end + i - offset] ?? 0;
      end += size;
    }
  }
  if (end !== length) throw new RangeError("snappy data is too short");
  return out;
}

function varint(byte: () => number): number {
  let value = 0;
  for (let shift = 0; shift < 35; shift += 7) {
    const next = byte();
    value += (next & 0x7f) * 2 ** shift;
    if (next < 0x80) return value;
  }
  throw new RangeError("snappy length without an end");
}
