/**
 * A data file's metrics for its manifest entry, from what DuckDB said while writing it. DuckDB's text
 * of a bound is turned into a value by DuckDB itself, then into Iceberg's binary form by `lake`.
 * Bounds are always true, sometimes absent: where DuckDB gives none (very long text that is not ASCII),
 * or no short upper bound exists.
 */
import type { DataFile, PartitionTuple, PrimitiveValue } from "@spillway/lake/model";
import { encodeValue, truncateLower, truncateUpper } from "@spillway/lake/values";
import type { CopyFileStats } from "./copy-stats.ts";
import { duckLiteral } from "./quote.ts";
import type { EngineSession } from "./session.ts";
import { duckType, icebergType, type LakeField } from "./types.ts";

export interface FileFacts {
  readonly location: string;
  readonly specId: number;
  readonly partition: PartitionTuple;
  readonly stats: CopyFileStats;
  /** By field id; only of float columns that hold one. */
  readonly nanCounts: ReadonlyMap<number, bigint>;
  readonly sortOrderId?: number;
}

export async function dataFileOf(
  session: EngineSession,
  fields: readonly LakeField[],
  facts: FileFacts,
): Promise<DataFile> {
  const bounds = await readBounds(session, fields, facts.stats);
  const columnSizes = new Map<number, bigint>();
  const valueCounts = new Map<number, bigint>();
  const nullValueCounts = new Map<number, bigint>();
  const nanValueCounts = new Map<number, bigint>();
  const lowerBounds = new Map<number, Uint8Array>();
  const upperBounds = new Map<number, Uint8Array>();
  for (const field of fields) {
    const stats = facts.stats.columns.get(field.name);
    if (!stats) continue;
    columnSizes.set(field.id, stats.sizeBytes);
    valueCounts.set(field.id, facts.stats.rows);
    nullValueCounts.set(field.id, stats.nullCount);
    if (isFloat(field)) nanValueCounts.set(field.id, facts.nanCounts.get(field.id) ?? 0n);
    const [low, high] = bounds.get(field.id) ?? [];
    const type = icebergType(field);
    if (low !== undefined) lowerBounds.set(field.id, encodeValue(type, signedZero(truncateLower(type, low), -0)));
    const upper = high === undefined ? undefined : truncateUpper(type, high);
    if (upper !== undefined) upperBounds.set(field.id, encodeValue(type, signedZero(upper, 0)));
  }
  return {
    content: "data",
    path: facts.location,
    format: "parquet",
    specId: facts.specId,
    partition: facts.partition,
    recordCount: facts.stats.rows,
    fileSizeBytes: facts.stats.fileSizeBytes,
    columnSizes,
    valueCounts,
    nullValueCounts,
    nanValueCounts,
    lowerBounds,
    upperBounds,
    ...(facts.sortOrderId === undefined ? {} : { sortOrderId: facts.sortOrderId }),
  };
}

export function isFloat(field: LakeField): boolean {
  return field.kind === "float32" || field.kind === "float64";
}

type Bounds = Map<number, readonly [PrimitiveValue | undefined, PrimitiveValue | undefined]>;

async function readBounds(session: EngineSession, fields: readonly LakeField[], stats: CopyFileStats): Promise<Bounds> {
  const bounds: Bounds = new Map();
  const known = fields.filter((f) => {
    const column = stats.columns.get(f.name);
    return column?.min !== undefined && column.max !== undefined;
  });
  if (known.length === 0) return bounds;
  const casts = known.flatMap((f) => {
    const column = stats.columns.get(f.name);
    return [castOf(f, column?.min ?? ""), castOf(f, column?.max ?? "")];
  });
  const [row] = await session.rows(`SELECT ${casts.join(", ")}`);
  known.forEach((field, i) => {
    const [low, high] = [row?.[i * 2] as PrimitiveValue, row?.[i * 2 + 1] as PrimitiveValue];
    if (Number.isNaN(low) || Number.isNaN(high)) return;
    bounds.set(field.id, [low, high]);
  });
  return bounds;
}

function castOf(field: LakeField, text: string): string {
  if (field.kind === "text") return duckLiteral(text);
  if (field.kind === "bytes") return `unhex(${duckLiteral(text)})`;
  return `CAST(${duckLiteral(text)} AS ${duckType(field.kind === "int16" ? { kind: "int32" } : field)})`;
}

/** DuckDB does not tell -0 from 0, Iceberg does: a bound of zero takes the sign that keeps it true. */
function signedZero(value: PrimitiveValue, zero: number): PrimitiveValue {
  return value === 0 && typeof value === "number" ? zero : value;
}
