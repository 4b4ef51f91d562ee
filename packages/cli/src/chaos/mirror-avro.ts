/**
 * Avro object container files, read for the chaos run's foreign reader: on its own, so that nothing of the product judges itself.
 * Source: https://avro.apache.org/docs/1.11.1/specification/ (object container files, binary encoding)
 */
import { inflateRawSync } from "node:zlib";

type Schema =
  | string
  | readonly Schema[]
  | {
      readonly type: Schema;
      readonly fields?: readonly { readonly name: string; readonly type: Schema }[];
      readonly items?: Schema;
      readonly values?: Schema;
      readonly size?: number;
      readonly name?: string;
    };

export type AvroRecord = Readonly<Record<string, unknown>>;

class Bytes {
  #at = 0;
  readonly buffer: Buffer;

  constructor(buffer: Buffer) {
    this.buffer = buffer;
  }

  get isOver(): boolean {
    return this.#at >= this.buffer.length;
  }

  take(length: number): Buffer {
    const part = this.buffer.subarray(this.#at, this.#at + length);
    this.#at += length;
    return part;
  }

  long(): bigint {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = this.take(1)[0] ?? 0;
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return (value >> 1n) ^ -(value & 1n);
    }
  }

  int(): number {
    return Number(this.long());
  }

  string(): string {
    return this.take(this.int()).toString("utf8");
  }
}

export function readAvro(file: Buffer): AvroRecord[] {
  const bytes = new Bytes(file);
  if (bytes.take(4).toString("latin1") !== "Obj\u0001") throw new Error("no Avro file");
  const header = decode(bytes, { type: "map", values: "bytes" }, new Map()) as Record<string, Buffer>;
  bytes.take(16);
  const schema = JSON.parse(String(header["avro.schema"])) as Schema;
  const codec = header["avro.codec"]?.toString() ?? "null";
  const records: AvroRecord[] = [];
  while (!bytes.isOver) {
    const count = bytes.int();
    const block = bytes.take(bytes.int());
    bytes.take(16);
    const body = new Bytes(codec === "deflate" ? inflateRawSync(block) : block);
    for (let i = 0; i < count; i++) records.push(decode(body, schema, new Map()) as AvroRecord);
  }
  return records;
}

function decode(bytes: Bytes, schema: Schema, named: Map<string, Schema>): unknown {
  if (typeof schema === "string") {
    const known = named.get(schema);
    return known === undefined ? primitive(bytes, schema) : decode(bytes, known, named);
  }
  if (Array.isArray(schema)) return decode(bytes, (schema as readonly Schema[])[bytes.int()] ?? "null", named);
  const complex = schema as Exclude<Schema, string | readonly Schema[]>;
  if (complex.name !== undefined) named.set(complex.name, complex);
  switch (complex.type) {
    case "record":
      return Object.fromEntries((complex.fields ?? []).map((f) => [f.name, decode(bytes, f.type, named)]));
    case "array":
      return blocks(bytes, () => decode(bytes, complex.items ?? "null", named));
    case "map":
      return Object.fromEntries(
        blocks(bytes, () => [bytes.string(), decode(bytes, complex.values ?? "null", named)] as const),
      );
    case "fixed":
      return bytes.take(complex.size ?? 0);
    default:
      return decode(bytes, complex.type, named);
  }
}

function blocks<T>(bytes: Bytes, item: () => T): T[] {
  const items: T[] = [];
  for (let count = bytes.int(); count !== 0; count = bytes.int()) {
    if (count < 0) bytes.long();
    for (let i = 0; i < Math.abs(count); i++) items.push(item());
  }
  return items;
}

function primitive(bytes: Bytes, type: string): unknown {
  switch (type) {
    case "null":
      return null;
    case "boolean":
      return bytes.take(1)[0] === 1;
    case "int":
    case "long":
      return bytes.long();
    case "float":
      return bytes.take(4).readFloatLE();
    case "double":
      return bytes.take(8).readDoubleLE();
    case "bytes":
      return bytes.take(bytes.int());
    case "string":
      return bytes.string();
    default:
      throw new Error(`Avro type ${type}`);
  }
}
