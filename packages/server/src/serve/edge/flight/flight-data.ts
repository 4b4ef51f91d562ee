/**
 * `FlightData`, the frame of every stream (Flight.proto): descriptor 1, data_header 2, app_metadata 3, data_body 1000. Written and
 * read by hand, so that a body is copied once, into the frame that leaves.
 */
import { SpillwayError } from "@spillway/base/errors";

export interface FlightData {
  /** Bytes of a `FlightDescriptor`; in the first message of a DoPut. */
  readonly descriptor: Buffer | null;
  /** The flatbuffer of an Arrow message, without its prefix. */
  readonly header: Buffer;
  readonly metadata: Buffer;
  readonly body: Buffer;
}

const EMPTY = Buffer.alloc(0);
const TAG_HEADER = 0x12;
const TAG_METADATA = 0x1a;
/** Field 1000, length-delimited: (1000 << 3) | 2 as a varint. */
const TAG_BODY = [0xc2, 0x3e] as const;

export function encodeFlightData(header: Buffer, body: Buffer, metadata: Buffer = EMPTY): Buffer {
  const size =
    1 +
    varintSize(header.length) +
    header.length +
    (metadata.length > 0 ? 1 + varintSize(metadata.length) + metadata.length : 0) +
    2 +
    varintSize(body.length) +
    body.length;
  const out = Buffer.allocUnsafe(size);
  let at = 0;
  out[at++] = TAG_HEADER;
  at = writeVarint(out, at, header.length);
  at += header.copy(out, at);
  if (metadata.length > 0) {
    out[at++] = TAG_METADATA;
    at = writeVarint(out, at, metadata.length);
    at += metadata.copy(out, at);
  }
  // C++ readers want the body of a record batch to be there, also when it is empty.
  out[at++] = TAG_BODY[0];
  out[at++] = TAG_BODY[1];
  at = writeVarint(out, at, body.length);
  body.copy(out, at);
  return out;
}

/** The parts are views of `bytes`. Unknown fields are skipped. Throws `flight_request_invalid`. */
export function decodeFlightData(bytes: Buffer): FlightData {
  let descriptor: Buffer | null = null;
  let header: Buffer = EMPTY;
  let metadata: Buffer = EMPTY;
  let body: Buffer = EMPTY;
  const cursor = { at: 0 };
  while (cursor.at < bytes.length) {
    const tag = readVarint(bytes, cursor);
    const wire = tag & 7;
    if (wire !== 2) {
      skip(bytes, cursor, wire);
      continue;
    }
    const length = readVarint(bytes, cursor);
    if (cursor.at + length > bytes.length) throw invalid();
    const part = bytes.subarray(cursor.at, cursor.at + length);
    cursor.at += length;
    switch (tag >>> 3) {
      case 1:
        descriptor = part;
        break;
      case 2:
        header = part;
        break;
      case 3:
        metadata = part;
        break;
      case 1000:
        body = part;
        break;
    }
  }
  return { descriptor, header, metadata, body };
}

function skip(bytes: Buffer, cursor: { at: number }, wire: number): void {
  if (wire === 0) readVarint(bytes, cursor);
  else if (wire === 1) cursor.at += 8;
  else if (wire === 5) cursor.at += 4;
  else throw invalid();
  if (cursor.at > bytes.length) throw invalid();
}

function readVarint(bytes: Buffer, cursor: { at: number }): number {
  let value = 0;
  for (let shift = 0; shift < 35; shift += 7) {
    const byte = bytes[cursor.at++];
    if (byte === undefined) throw invalid();
    value += (byte & 0x7f) * 2 ** shift;
    if (byte < 0x80) return value;
  }
  throw invalid();
}

function varintSize(value: number): number {
  let size = 1;
  for (let v = value; v >= 0x80; v = Math.floor(v / 128)) size++;
  return size;
}

function writeVarint(out: Buffer, start: number, value: number): number {
  let at = start;
  let v = value;
  while (v >= 0x80) {
    out[at++] = (v % 128) | 0x80;
    v = Math.floor(v / 128);
  }
  out[at++] = v;
  return at;
}

function invalid(): SpillwayError {
  return new SpillwayError("flight_request_invalid", "The bytes of a stream are no FlightData.");
}
