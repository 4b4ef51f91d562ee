/**
 * A reader of Iceberg tables for the chaos run that shares no code with the product: metadata as plain JSON, manifests by the reader
 * beside this, Parquet by hyparquet, deletion vectors by hand.
 * Source: https://iceberg.apache.org/spec/ (scan planning, deletion vectors), https://github.com/RoaringBitmap/RoaringFormatSpec
 */
import { readFileSync } from "node:fs";
import { decompress } from "fzstd";
import { parquetMetadata, parquetReadObjects } from "hyparquet";
import { type AvroRecord, readAvro } from "./mirror-avro.ts";

interface Field {
  readonly id: number;
  readonly name: string;
  readonly type: unknown;
  readonly "initial-default"?: unknown;
}

export interface ForeignSnapshot {
  readonly "snapshot-id": string;
  readonly "sequence-number": string;
  readonly "manifest-list": string;
  readonly "schema-id"?: string;
  readonly summary: Readonly<Record<string, string>>;
}

export interface ForeignMetadata {
  readonly snapshots: readonly ForeignSnapshot[];
  readonly schemas: readonly { readonly "schema-id": string; readonly fields: readonly Field[] }[];
  readonly "current-schema-id": string;
}

/** Rows as texts by column name. */
export type ForeignRow = Readonly<Record<string, string | null>>;

const [DATA, POSITION_DELETES] = [0n, 1n];
const DELETED = 2n;
/** Ids are longer than a double. */
const IDS = /"((?:[a-z]+-)*(?:snapshot-id|sequence-number|schema-id))"\s*:\s*(-?\d+)/g;

export function readForeignMetadata(location: string): ForeignMetadata {
  const text = readFileSync(pathOf(location), "utf8").replaceAll(IDS, '"$1":"$2"');
  return JSON.parse(text) as ForeignMetadata;
}

export class ForeignReader {
  readonly #files = new Map<string, Promise<readonly Readonly<Record<number, unknown>>[]>>();

  /** Every live row of the snapshot, under the schema that was current then. */
  async rows(metadata: ForeignMetadata, snapshot: ForeignSnapshot): Promise<ForeignRow[]> {
    const wanted = snapshot["schema-id"] ?? metadata["current-schema-id"];
    const schema = metadata.schemas.find((s) => s["schema-id"] === wanted);
    if (!schema) throw new Error(`no schema ${wanted}`);
    const { data, deletes } = entriesOf(snapshot);
    const rows: ForeignRow[] = [];
    for (const { file, sequence } of data) {
      const path = String(file["file_path"]);
      const dead = await this.#dead(path, sequence, deletes);
      const all = await this.#file(path);
      all.forEach((row, at) => {
        if (!dead.has(at)) rows.push(project(row, schema.fields));
      });
    }
    return rows;
  }

  async #dead(path: string, sequence: bigint, deletes: readonly Entry[]): Promise<Set<number>> {
    const dead = new Set<number>();
    for (const { file, sequence: since } of deletes) {
      if (since < sequence) continue;
      if (String(file["file_format"]).toLowerCase() === "puffin") {
        if (file["referenced_data_file"] !== path) continue;
        const from = Number(file["content_offset"]);
        const blob = readFileSync(pathOf(String(file["file_path"]))).subarray(
          from,
          from + Number(file["content_size_in_bytes"]),
        );
        for (const at of deletionVector(blob)) dead.add(at);
        continue;
      }
      // Positions: by their reserved field ids.
      for (const row of await this.#file(String(file["file_path"]))) {
        if (row[2_147_483_546] === path) dead.add(Number(row[2_147_483_545]));
      }
    }
    return dead;
  }

  /** Rows of a Parquet file, by field id. */
  #file(path: string): Promise<readonly Readonly<Record<number, unknown>>[]> {
    const found = this.#files.get(path) ?? readParquet(pathOf(path));
    this.#files.set(path, found);
    return found;
  }
}

async function readParquet(path: string): Promise<Readonly<Record<number, unknown>>[]> {
  const bytes = readFileSync(path);
  const file = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength) as ArrayBuffer;
  const ids = parquetMetadata(file).schema.flatMap((s) =>
    s.field_id === undefined ? [] : [[s.name, s.field_id] as const],
  );
  const rows = await parquetReadObjects({
    file,
    compressors: { ZSTD: (input, length) => decompress(input, new Uint8Array(length)) },
  });
  return rows.map((row) => Object.fromEntries(ids.map(([name, id]) => [id, (row as Record<string, unknown>)[name]])));
}

interface Entry {
  readonly file: AvroRecord;
  readonly sequence: bigint;
}

function entriesOf(snapshot: ForeignSnapshot): { data: Entry[]; deletes: Entry[] } {
  const data: Entry[] = [];
  const deletes: Entry[] = [];
  for (const manifest of readAvro(readFileSync(pathOf(snapshot["manifest-list"])))) {
    for (const entry of readAvro(readFileSync(pathOf(String(manifest["manifest_path"]))))) {
      if (entry["status"] === DELETED) continue;
      const file = entry["data_file"] as AvroRecord;
      const sequence = (entry["sequence_number"] ?? manifest["sequence_number"]) as bigint;
      const content = (file["content"] ?? DATA) as bigint;
      if (content === DATA) data.push({ file, sequence });
      else if (content === POSITION_DELETES) deletes.push({ file, sequence });
      else throw new Error("an equality delete");
    }
  }
  return { data, deletes };
}

function project(row: Readonly<Record<number, unknown>>, fields: readonly Field[]): ForeignRow {
  return Object.fromEntries(
    fields.map((field) => {
      const value = field.id in row ? row[field.id] : field["initial-default"];
      return [field.name, value === null || value === undefined ? null : String(value)];
    }),
  );
}

function deletionVector(blob: Buffer): number[] {
  if (blob.readUInt32BE(4) !== 0xd1d33964) throw new Error("no deletion vector");
  const positions: number[] = [];
  let at = 8;
  const count = Number(blob.readBigUInt64LE(at));
  at += 8;
  for (let i = 0; i < count; i++) {
    const high = blob.readUInt32LE(at) * 2 ** 32;
    at = roaring(blob, at + 4, (low) => positions.push(high + low));
  }
  return positions;
}

/** One 32-bit bitmap; returns where it ends. */
function roaring(blob: Buffer, start: number, each: (low: number) => void): number {
  let at = start;
  const cookie = blob.readUInt32LE(at);
  at += 4;
  const hasRuns = (cookie & 0xffff) === 12347;
  let size = (cookie >>> 16) + 1;
  let runs: Buffer = Buffer.alloc(0);
  if (hasRuns) {
    runs = blob.subarray(at, at + ((size + 7) >> 3));
    at += runs.length;
  } else {
    size = blob.readUInt32LE(at);
    at += 4;
  }
  const keys = Array.from({ length: size }, (_, i) => ({
    high: blob.readUInt16LE(at + i * 4) * 65_536,
    count: blob.readUInt16LE(at + i * 4 + 2) + 1,
  }));
  at += size * 4;
  if (!hasRuns || size >= 4) at += size * 4;
  keys.forEach(({ high, count }, i) => {
    if (hasRuns && ((runs[i >> 3] ?? 0) & (1 << (i & 7))) !== 0) {
      const n = blob.readUInt16LE(at);
      at += 2;
      for (let r = 0; r < n; r++, at += 4) {
        const first = blob.readUInt16LE(at);
        for (let k = 0; k <= blob.readUInt16LE(at + 2); k++) each(high + first + k);
      }
    } else if (count <= 4096) {
      for (let k = 0; k < count; k++, at += 2) each(high + blob.readUInt16LE(at));
    } else {
      for (let k = 0; k < 65_536; k++) if (((blob[at + (k >> 3)] ?? 0) & (1 << (k & 7))) !== 0) each(high + k);
      at += 8192;
    }
  });
  return at;
}

function pathOf(location: string): string {
  return location.startsWith("file://") ? location.slice("file://".length) : location;
}
