/** COPY's binary format. Source: https://www.postgresql.org/docs/current/sql-copy.html (Binary Format) */
import type { WireColumn } from "../../session/session.ts";
import { parameterText } from "./parameters.ts";
import { pgError } from "./wire-errors.ts";

const SIGNATURE = Buffer.from("PGCOPY\n\xff\r\n\0", "latin1");
/** Signature, flags, length of the extension. */
export const BINARY_HEADER = Buffer.concat([SIGNATURE, Buffer.alloc(8)]);
export const BINARY_TRAILER = Buffer.from([0xff, 0xff]);

const MAX_FIELD_BYTES = 64 << 20;

/** Cuts the bytes of COPY FROM into rows of texts. Chunks may end anywhere. */
export class BinaryCopyParser {
  readonly #columns: readonly WireColumn[];
  #rest: Buffer = Buffer.alloc(0);
  #sawHeader = false;
  #over = false;

  constructor(columns: readonly WireColumn[]) {
    this.#columns = columns;
  }

  push(chunk: Buffer): (string | null)[][] {
    const all = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    let at = 0;
    if (!this.#sawHeader) {
      const size = headerSize(all);
      if (size === null) {
        this.#rest = all;
        return [];
      }
      at = size;
      this.#sawHeader = true;
    }
    const rows: (string | null)[][] = [];
    while (!this.#over) {
      const next = this.#row(all, at, rows);
      if (next === null) break;
      at = next;
    }
    this.#rest = all.subarray(at);
    return rows;
  }

  finish(): (string | null)[][] {
    if (!this.#over && (this.#rest.length > 0 || !this.#sawHeader)) throw malformed("unexpected EOF in COPY data");
    return [];
  }

  /** Null: it is not all there. */
  #row(bytes: Buffer, start: number, rows: (string | null)[][]): number | null {
    if (bytes.length < start + 2) return null;
    const count = bytes.readInt16BE(start);
    if (count === -1) {
      this.#over = true;
      return start + 2;
    }
    if (count !== this.#columns.length) {
      throw malformed(`row field count is ${count}, expected ${this.#columns.length}`);
    }
    const row: (string | null)[] = [];
    let at = start + 2;
    for (const column of this.#columns) {
      if (bytes.length < at + 4) return null;
      const size = bytes.readInt32BE(at);
      at += 4;
      if (size === -1) {
        row.push(null);
        continue;
      }
      if (size < 0 || size > MAX_FIELD_BYTES) throw malformed("invalid field size");
      if (bytes.length < at + size) return null;
      row.push(parameterText(bytes.subarray(at, at + size), column.typeOid));
      at += size;
    }
    rows.push(row);
    return at;
  }
}

function headerSize(bytes: Buffer): number | null {
  if (bytes.length < 19) return null;
  if (bytes.compare(SIGNATURE, 0, 11, 0, 11) !== 0) throw malformed("COPY file signature not recognized");
  if (bytes.readUInt32BE(11) >>> 16 !== 0) throw malformed("unrecognized critical flags in COPY file header");
  const size = 19 + bytes.readUInt32BE(15);
  return bytes.length < size ? null : size;
}

function malformed(message: string): Error {
  return pgError("22P04", message);
}
