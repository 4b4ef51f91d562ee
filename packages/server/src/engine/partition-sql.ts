/** Partition transforms as DuckDB expressions over the columns of a staged table (Iceberg spec, partitioning). */
import { must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import type { PartitionSpec, Transform } from "@spillway/lake/model";
import { duckIdent, duckLiteral } from "./quote.ts";
import type { LakeField } from "./types.ts";

export interface PartitionSql {
  /** One for each field of the spec. */
  readonly expressions: readonly string[];
  /** The constant that equals a value which the i-th expression gave. */
  literal(index: number, value: unknown): string;
}

/** Null for a spec without fields. */
export function partitionSql(spec: PartitionSpec, fields: readonly LakeField[]): PartitionSql | null {
  if (spec.fields.length === 0) return null;
  const expressions = spec.fields.map((p) => {
    const source = must(
      fields.find((f) => f.id === p.sourceId),
      `source column ${p.sourceId} of the partition field ${p.name}`,
    );
    return expressionOf(p.transform, source);
  });
  return { expressions, literal: (_, value) => literalOf(value) };
}

const MICROS = { day: 86_400_000_000n, hour: 3_600_000_000n } as const;

function expressionOf(transform: Transform, source: LakeField): string {
  const column = duckIdent(source.name);
  switch (transform.kind) {
    case "identity":
      return column;
    case "void":
      return "NULL::INTEGER";
    case "truncate":
      if (!["int16", "int32", "int64"].includes(source.kind)) break;
      return `(${column} - ((${column} % ${transform.width}) + ${transform.width}) % ${transform.width})`;
    case "day":
      return source.kind === "date" ? daysOf(column) : perUnit(source, MICROS.day);
    case "hour":
      if (source.kind === "date") break;
      return perUnit(source, MICROS.hour);
    case "month":
      return `((${yearOf(source)} - 1970) * 12 + month(${asDate(source)}) - 1)::INTEGER`;
    case "year":
      return `(${yearOf(source)} - 1970)::INTEGER`;
    default:
  }
  throw new SpillwayError("engine_failed", `The engine does not write the partition transform ${transform.kind}.`);
}

function daysOf(date: string): string {
  return `(${date} - DATE '1970-01-01')::INTEGER`;
}

/** Floor division: DuckDB's own rounds towards zero. */
function perUnit(source: LakeField, unit: bigint): string {
  const micros = `epoch_us(${duckIdent(source.name)})`;
  return `((${micros} - ((${micros} % ${unit}) + ${unit}) % ${unit}) // ${unit})::INTEGER`;
}

function asDate(source: LakeField): string {
  const column = duckIdent(source.name);
  if (source.kind === "date") return column;
  return source.kind === "timestamptz" ? `CAST(${column} AT TIME ZONE 'UTC' AS DATE)` : `CAST(${column} AS DATE)`;
}

function yearOf(source: LakeField): string {
  return `year(${asDate(source)})`;
}

function literalOf(value: unknown): string {
  if (value === null || value === undefined) return "NULL";
  if (typeof value === "number" || typeof value === "bigint") return String(value);
  if (typeof value === "string") return duckLiteral(value);
  throw new SpillwayError("engine_failed", "The engine writes identity partitions of numbers and text only.");
}
