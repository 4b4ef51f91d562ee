/**
 * Puffin files: blobs, and a footer in JSON that says where each one is.
 * Source: https://iceberg.apache.org/puffin-spec/
 */
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { parseJson, printJson } from "../json.ts";
import type { ObjectStore } from "../store/store.ts";

const MAGIC = [0x50, 0x46, 0x41, 0x31] as const; // PFA1
/** Payload length, flags, magic. */
const TRAILER_BYTES = 12;
const COMPRESSED_FLAG = 1;
const MAX_FOOTER_BYTES = 256 << 20;

export interface PuffinBlob {
  readonly type: string;
  /** Field ids that the blob was computed for. */
  readonly fields: readonly number[];
  /** -1 where the blob's type says so. */
  readonly snapshotId: bigint;
  readonly sequenceNumber: bigint;
  readonly properties: Readonly<Record<string, string>>;
  readonly data: Uint8Array;
}

export interface PuffinBlobPlace extends Omit<PuffinBlob, "data"> {
  readonly offset: number;
  readonly length: number;
  readonly compressionCodec: string | null;
}

export interface PuffinFooter {
  readonly blobs: readonly PuffinBlobPlace[];
  readonly properties: Readonly<Record<string, string>>;
}

/** A whole Puffin file, blobs and footer uncompressed, and where its blobs are. */
export function encodePuffin(
  blobs: readonly PuffinBlob[],
  properties: Readonly<Record<string, string>>,
): { bytes: Uint8Array; footer: PuffinFooter; footerBytes: number } {
  let offset = MAGIC.length;
  const places = blobs.map((blob): PuffinBlobPlace => {
    const { data, ...rest } = blob;
    const place = { ...rest, offset, length: data.length, compressionCodec: null };
    offset += data.length;
    return place;
  });
  const payload = new TextEncoder().encode(printJson(footerJson(places, properties)));
  const footerBytes = MAGIC.length + payload.length + TRAILER_BYTES;
  const bytes = new Uint8Array(offset + footerBytes);
  const view = new DataView(bytes.buffer);
  bytes.set(MAGIC, 0);
  blobs.forEach((blob, i) => bytes.set(blob.data, places[i]?.offset ?? 0));
  bytes.set(MAGIC, offset);
  bytes.set(payload, offset + MAGIC.length);
  view.setInt32(bytes.length - TRAILER_BYTES, payload.length, true);
  bytes.set(MAGIC, bytes.length - MAGIC.length);
  return { bytes, footer: { blobs: places, properties }, footerBytes };
}

function footerJson(places: readonly PuffinBlobPlace[], properties: Readonly<Record<string, string>>): unknown {
  const blobs = places.map((place) => ({
    type: place.type,
    fields: [...place.fields],
    "snapshot-id": place.snapshotId,
    "sequence-number": place.sequenceNumber,
    offset: place.offset,
    length: place.length,
    ...(Object.keys(place.properties).length > 0 ? { properties: { ...place.properties } } : {}),
  }));
  return { blobs, properties: { ...properties } };
}

/** The footer of a Puffin file in the store. Throws `puffin_invalid`. */
export async function readPuffinFooter(store: ObjectStore, path: string, sizeBytes: number): Promise<PuffinFooter> {
  if (sizeBytes < MAGIC.length * 2 + TRAILER_BYTES) throw broken(path, "is too short");
  const trailer = await store.getRange(path, sizeBytes - TRAILER_BYTES, TRAILER_BYTES);
  const length = payloadLength(path, trailer, sizeBytes);
  const start = sizeBytes - TRAILER_BYTES - length - MAGIC.length;
  return parseFooter(path, await store.getRange(path, start, length + MAGIC.length), start);
}

/** The footer of a Puffin file in memory. Throws `puffin_invalid`. */
export function decodePuffinFooter(bytes: Uint8Array, path = "in memory"): PuffinFooter {
  if (bytes.length < MAGIC.length * 2 + TRAILER_BYTES) throw broken(path, "is too short");
  if (!hasMagic(bytes, 0)) throw broken(path, "does not begin with its magic");
  const end = bytes.length - TRAILER_BYTES;
  const start = end - payloadLength(path, bytes.subarray(end), bytes.length) - MAGIC.length;
  return parseFooter(path, bytes.subarray(start, end), start);
}

function payloadLength(path: string, trailer: Uint8Array, sizeBytes: number): number {
  const view = new DataView(trailer.buffer, trailer.byteOffset, trailer.byteLength);
  if (!hasMagic(trailer, TRAILER_BYTES - MAGIC.length)) throw broken(path, "does not end with its magic");
  const length = view.getInt32(0, true);
  if (length < 0 || length > MAX_FOOTER_BYTES || length > sizeBytes - TRAILER_BYTES - MAGIC.length * 2) {
    throw broken(path, `has a footer of ${length} bytes`);
  }
  if ((view.getUint32(4, true) & COMPRESSED_FLAG) !== 0)
    throw broken(path, "has a compressed footer, which is not supported");
  return length;
}

function parseFooter(path: string, bytes: Uint8Array, start: number): PuffinFooter {
  if (!hasMagic(bytes, 0)) throw broken(path, "has no magic before its footer");
  try {
    const json = asRecord(parseJson(new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(MAGIC.length))));
    const blobs = Array.isArray(json["blobs"]) ? json["blobs"].map((blob) => parsePlace(asRecord(blob), start)) : [];
    return { blobs, properties: asStrings(json["properties"]) };
  } catch (error) {
    if (error instanceof SpillwayError) throw error;
    throw broken(path, `has a footer that cannot be parsed: ${messageOf(error)}`);
  }
}

function parsePlace(json: Record<string, unknown>, end: number): PuffinBlobPlace {
  const offset = asInteger(json["offset"]);
  const length = asInteger(json["length"]);
  if (offset < MAGIC.length || length < 0 || offset + length > end) throw new RangeError("a blob outside the file");
  if (typeof json["type"] !== "string") throw new TypeError("a blob without a type");
  const codec = json["compression-codec"];
  return {
    type: json["type"],
    fields: Array.isArray(json["fields"]) ? json["fields"].map(asInteger) : [],
    snapshotId: BigInt(asNumeric(json["snapshot-id"] ?? -1)),
    sequenceNumber: BigInt(asNumeric(json["sequence-number"] ?? -1)),
    properties: asStrings(json["properties"]),
    offset,
    length,
    compressionCodec: typeof codec === "string" ? codec : null,
  };
}

function asRecord(value: unknown): Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw new TypeError("not an object");
  return value as Record<string, unknown>;
}

function asStrings(value: unknown): Record<string, string> {
  if (value === undefined || value === null) return {};
  return Object.fromEntries(Object.entries(asRecord(value)).map(([key, text]) => [key, String(text)]));
}

function asNumeric(value: unknown): number | bigint {
  if (typeof value !== "number" && typeof value !== "bigint") throw new TypeError("not a number");
  return value;
}

function asInteger(value: unknown): number {
  const number = Number(asNumeric(value));
  if (!Number.isSafeInteger(number)) throw new TypeError("not an integer");
  return number;
}

function hasMagic(bytes: Uint8Array, at: number): boolean {
  return MAGIC.every((byte, i) => bytes[at + i] === byte);
}

function broken(path: string, what: string): SpillwayError {
  return new SpillwayError("puffin_invalid", `The Puffin file ${path} ${what}.`, { details: { path } });
}
