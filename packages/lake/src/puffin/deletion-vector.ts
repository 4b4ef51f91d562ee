/**
 * The blob `deletion-vector-v1`: the deleted positions of one data file. Length (big endian, of what
 * follows without the checksum), magic, 64-bit roaring bitmap, CRC-32 (big endian) of magic and bitmap.
 * Source: https://iceberg.apache.org/puffin-spec/#deletion-vector-v1-blob-type
 */
import { crc32 } from "node:zlib";
import { SpillwayError } from "@spillway/base/errors";
import { PositionSet } from "./position-set.ts";
import type { PuffinBlob } from "./puffin.ts";

export const DELETION_VECTOR = "deletion-vector-v1";
/** The reserved id of the row position, `_pos`, which the blob is about. */
const ROW_POSITION_ID = 2147483645;
const MAGIC = [0xd1, 0xd3, 0x39, 0x64] as const;

/** The blob of a data file's deleted positions. */
export function deletionVectorBlob(dataFile: string, positions: PositionSet): PuffinBlob {
  return {
    type: DELETION_VECTOR,
    fields: [ROW_POSITION_ID],
    // The spec: both -1, as the snapshot is not known when the file is written.
    snapshotId: -1n,
    sequenceNumber: -1n,
    properties: { "referenced-data-file": dataFile, cardinality: String(positions.cardinality) },
    data: encodeDeletionVector(positions),
  };
}

export function encodeDeletionVector(positions: PositionSet): Uint8Array {
  const bitmap = positions.encode();
  const bytes = new Uint8Array(4 + MAGIC.length + bitmap.length + 4);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, MAGIC.length + bitmap.length, false);
  bytes.set(MAGIC, 4);
  bytes.set(bitmap, 8);
  view.setUint32(bytes.length - 4, crc32(bytes.subarray(4, bytes.length - 4)), false);
  return bytes;
}

/** `expected`: the cardinality that the manifest promises. Throws `puffin_invalid`. */
export function decodeDeletionVector(bytes: Uint8Array, expected?: bigint): PositionSet {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < 20 || view.getUint32(0, false) !== bytes.length - 8) throw broken("a wrong length");
  if (!MAGIC.every((byte, i) => bytes[4 + i] === byte)) throw broken("a wrong magic");
  const sum = view.getUint32(bytes.length - 4, false);
  if (crc32(bytes.subarray(4, bytes.length - 4)) !== sum) throw broken("a wrong checksum");
  const positions = PositionSet.decode(bytes.subarray(8, bytes.length - 4));
  if (expected !== undefined && BigInt(positions.cardinality) !== expected) {
    throw broken(`${positions.cardinality} positions where its manifest says ${expected}`);
  }
  return positions;
}

function broken(what: string): SpillwayError {
  return new SpillwayError("puffin_invalid", `The deletion vector has ${what}.`);
}
