import { randomBytes, randomUUID } from "node:crypto";

/** A random UUID in canonical form. */
export function newUuid(): string {
  return randomUUID();
}

/** A positive random 63-bit id, as Iceberg snapshot ids are: exact beyond 2^53, hence a bigint. */
export function newInt63(): bigint {
  return (randomBytes(8).readBigUInt64BE() & 0x7fffffffffffffffn) | 1n;
}

/** `count` random hexadecimal characters. */
export function randomHex(count: number): string {
  return randomBytes(Math.ceil(count / 2))
    .toString("hex")
    .slice(0, count);
}
