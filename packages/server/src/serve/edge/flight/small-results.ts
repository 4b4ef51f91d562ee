/** Results that are made here, few rows of plain values, as Arrow messages: what the catalog commands of Flight SQL answer. */
import { type DataType, Field, Schema, Table, tableToIPC, vectorFromArray } from "apache-arrow";

/** Encapsulated messages: the schema, then the rows if there are any. */
export interface SmallResult {
  readonly schema: Buffer;
  readonly batches: readonly Buffer[];
}

/** A column of a result: its field and, row by row, its values. */
export interface SmallColumn {
  readonly name: string;
  readonly type: DataType;
  readonly nullable: boolean;
}

export function smallResult(columns: readonly SmallColumn[], rows: readonly (readonly unknown[])[]): SmallResult {
  const schema = new Schema(columns.map((c) => new Field(c.name, c.type, c.nullable)));
  const vectors = Object.fromEntries(
    columns.map((c, i) => [
      c.name,
      vectorFromArray(
        rows.map((row) => row[i] ?? null),
        c.type,
      ),
    ]),
  );
  const table = rows.length === 0 ? new Table(schema) : new Table(schema, vectors);
  return split(tableToIPC(table, "stream"));
}

/** The messages of an IPC stream (https://arrow.apache.org/docs/format/Columnar.html, "Encapsulated message format"). */
export function split(bytes: Uint8Array): SmallResult {
  const stream = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const messages: Buffer[] = [];
  for (let at = 0; at + 8 <= stream.length;) {
    const length = stream.readInt32LE(at + 4);
    if (length === 0) break;
    const end = at + 8 + length + bodyLength(stream.subarray(at + 8, at + 8 + length));
    messages.push(stream.subarray(at, end));
    at = end;
  }
  const [schema = Buffer.alloc(0), ...batches] = messages;
  return { schema, batches };
}

/** `Message.bodyLength`, the fourth field of the flatbuffer's root table. */
function bodyLength(metadata: Buffer): number {
  const root = metadata.readUInt32LE(0);
  const vtable = root - metadata.readInt32LE(root);
  const slot = 4 + 3 * 2;
  if (slot >= metadata.readUInt16LE(vtable)) return 0;
  const offset = metadata.readUInt16LE(vtable + slot);
  return offset === 0 ? 0 : Number(metadata.readBigInt64LE(root + offset));
}
