/** For tests of the engine and the seam: plain values into columns and back. */
import type { Column, ColumnBatch, ColumnKind, ColumnSpec, FixedData } from "@spillway/base/columns";
import { valueAt } from "./session.ts";

export type PlainValue = null | boolean | number | bigint | string | Uint8Array;

export function columnOf(spec: ColumnSpec, values: readonly PlainValue[]): Column {
  const nulls = values.some((v) => v === null);
  const validity = nulls ? Uint8Array.from(values, (v) => (v === null ? 0 : 1)) : null;
  if (spec.kind === "text" || spec.kind === "bytes") {
    const parts = values.map((v) =>
      typeof v === "string" ? Buffer.from(v) : ((v as Uint8Array | null) ?? new Uint8Array()),
    );
    const offsets = new Uint32Array(values.length + 1);
    parts.forEach((p, i) => (offsets[i + 1] = (offsets[i] ?? 0) + p.length));
    return { spec, validity, offsets, heap: new Uint8Array(Buffer.concat(parts)) };
  }
  return { spec, validity, data: fixedOf(spec.kind, values) };
}

export function batchOf(specs: readonly ColumnSpec[], rows: readonly (readonly PlainValue[])[]): ColumnBatch {
  return {
    length: rows.length,
    columns: specs.map((spec, c) =>
      columnOf(
        spec,
        rows.map((row) => row[c] ?? null),
      ),
    ),
  };
}

/** The rows of batches as plain values. */
export async function rowsOf(batches: AsyncIterable<ColumnBatch>): Promise<unknown[][]> {
  const rows: unknown[][] = [];
  for await (const batch of batches) {
    for (let i = 0; i < batch.length; i++) rows.push(batch.columns.map((c) => valueAt(c, i)));
  }
  return rows;
}

function fixedOf(kind: ColumnKind, values: readonly PlainValue[]): FixedData {
  const numbers = (v: PlainValue): number => (v as number | null) ?? 7;
  switch (kind) {
    case "bool":
      return Uint8Array.from(values, (v) => (v === true ? 1 : 0));
    case "int16":
      return Int16Array.from(values, numbers);
    case "int32":
    case "date":
      return Int32Array.from(values, numbers);
    case "float32":
      return Float32Array.from(values, numbers);
    case "float64":
      return Float64Array.from(values, numbers);
    case "decimal": {
      const out = new BigInt64Array(values.length * 2);
      values.forEach((v, i) => {
        if (v === null) return;
        out[i * 2] = BigInt.asIntN(64, v as bigint);
        out[i * 2 + 1] = (v as bigint) >> 64n;
      });
      return out;
    }
    case "uuid": {
      const out = new Uint8Array(values.length * 16);
      values.forEach((v, i) => v !== null && out.set(v as Uint8Array, i * 16));
      return out;
    }
    default:
      return BigInt64Array.from(values, (v) => (v === null ? 77n : (v as bigint)));
  }
}
