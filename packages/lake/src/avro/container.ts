/** Avro object container files: header with metadata, blocks with sync markers, codecs. */
import { createHash } from "node:crypto";
import { deflateRawSync, inflateRawSync } from "node:zlib";
import { decompress as unzstd } from "fzstd";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { compileDecoder, compileEncoder, type Shape } from "./codec.ts";
import { Cursor, Sink } from "./cursor.ts";
import { type AvroSchema, resolveSchema } from "./schema.ts";
import { unsnappy } from "./snappy.ts";

const MAGIC = new Uint8Array([0x4f, 0x62, 0x6a, 0x01]);
/** A block is closed when its plain bytes reach this. */
const BLOCK_BYTES = 64 * 1024;
/** A corrupt block must not make the reader allocate without bound. */
const MAX_BLOCK_BYTES = 1024 * 1024 * 1024;
const HEADER_META: AvroSchema = { type: "map", values: "bytes" };
const decodeMeta = compileDecoder(HEADER_META);
const encodeMeta = compileEncoder(HEADER_META);

export type AvroCodec = "null" | "deflate";

export interface AvroHeader {
  readonly schema: AvroSchema;
  /** The file's own metadata as text, without the `avro.` keys. */
  readonly metadata: ReadonlyMap<string, string>;
  readonly codec: string;
}

export interface AvroFile extends AvroHeader {
  /** Decoded records, as `compileDecoder` gives them. */
  readonly records: unknown[][];
}

/** Reads a whole file. `shapeOf` may choose the shape once the header is known. */
export function readAvro(bytes: Uint8Array, shapeOf?: (header: AvroHeader) => Shape | undefined): AvroFile {
  const cursor = new Cursor(bytes);
  const { header, sync } = readHeader(cursor);
  const decode = compileDecoder(header.schema, shapeOf?.(header));
  const records: unknown[][] = [];
  while (!cursor.done) {
    const count = cursor.int();
    const size = cursor.int();
    if (count < 0 || size < 0) cursor.corrupt("a negative block size");
    const block = new Cursor(decompress(header.codec, cursor.take(size)));
    if (count > block.bytes.length * 8 + 1024) cursor.corrupt("a record count beyond its data");
    for (let i = 0; i < count; i += 1) records.push(decode(block) as unknown[]);
    if (!block.done) cursor.corrupt("a block with data left over");
    if (!sameBytes(cursor.take(16), sync)) cursor.corrupt("a wrong sync marker");
  }
  return { ...header, records };
}

/** The header alone: enough to know what a file is. */
export function readAvroHeader(bytes: Uint8Array): AvroHeader {
  return readHeader(new Cursor(bytes)).header;
}

function readHeader(cursor: Cursor): { header: AvroHeader; sync: Uint8Array } {
  if (cursor.bytes.length < 4 || !sameBytes(cursor.take(4), MAGIC)) cursor.corrupt("no Avro magic");
  const raw = decodeMeta(cursor) as Map<string, Uint8Array>;
  const text = new Map([...raw].map(([key, value]) => [key, Buffer.from(value).toString("utf8")]));
  const schema = parseHeaderSchema(text.get("avro.schema"));
  const codec = text.get("avro.codec") ?? "null";
  for (const key of ["avro.schema", "avro.codec"]) text.delete(key);
  return { header: { schema, metadata: text, codec }, sync: cursor.take(16) };
}

function parseHeaderSchema(text: string | undefined): AvroSchema {
  let json: unknown;
  try {
    json = JSON.parse(text ?? "");
  } catch (cause) {
    throw new SpillwayError("lake_file_corrupt", "an Avro file without a readable schema", { cause });
  }
  return resolveSchema(json);
}

function decompress(codec: string, bytes: Uint8Array): Uint8Array {
  try {
    switch (codec) {
      case "null":
        return bytes;
      case "deflate":
        return inflateRawSync(bytes, { maxOutputLength: MAX_BLOCK_BYTES });
      case "zstandard":
        return unzstd(bytes);
      case "snappy":
        // The last four bytes are a CRC of the plain data.
        return unsnappy(bytes.subarray(0, bytes.length - 4), MAX_BLOCK_BYTES);
    }
  } catch (cause) {
    throw new SpillwayError("lake_file_corrupt", `an Avro block that does not unpack: ${messageOf(cause)}`, { cause });
  }
  throw new SpillwayError("lake_format_unsupported", `the Avro codec ${JSON.stringify(codec)} is not supported`);
}

function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}

export interface AvroWriteOptions {
  readonly metadata?: Readonly<Record<string, string>>;
  readonly codec?: AvroCodec;
}

/** Writes records, given as arrays of values in field order. The same input gives the same bytes. */
export class AvroWriter {
  readonly #encode;
  readonly #codec: AvroCodec;
  readonly #sync: Uint8Array;
  readonly #out = new Sink();
  readonly #block = new Sink();
  #count = 0;

  constructor(schema: AvroSchema, options: AvroWriteOptions = {}) {
    this.#encode = compileEncoder(schema);
    this.#codec = options.codec ?? "deflate";
    const schemaText = JSON.stringify(schema);
    const meta = { "avro.schema": schemaText, "avro.codec": this.#codec, ...options.metadata };
    this.#out.raw(MAGIC);
    encodeMeta(this.#out, new Map(Object.entries(meta).map(([key, text]) => [key, Buffer.from(text, "utf8")])));
    this.#sync = createHash("sha256").update(this.#out.view()).digest().subarray(0, 16);
    this.#out.raw(this.#sync);
  }

  append(record: readonly unknown[]): void {
    this.#encode(this.#block, record);
    this.#count += 1;
    if (this.#block.length >= BLOCK_BYTES) this.#flush();
  }

  /** Bytes written and buffered, before compression of the open block. */
  get size(): number {
    return this.#out.length + this.#block.length;
  }

  /** The whole file. The writer must not be used afterwards. */
  finish(): Uint8Array {
    this.#flush();
    return this.#out.view();
  }

  #flush(): void {
    if (this.#count === 0) return;
    const plain = this.#block.view();
    this.#out.int(this.#count);
    this.#out.blob(this.#codec === "deflate" ? deflateRawSync(plain) : plain);
    this.#out.raw(this.#sync);
    this.#block.clear();
    this.#count = 0;
  }
}

export function writeAvro(
  schema: AvroSchema,
  records: Iterable<readonly unknown[]>,
  options: AvroWriteOptions = {},
): Uint8Array {
  const writer = new AvroWriter(schema, options);
  for (const record of records) writer.append(record);
  return writer.finish();
}
