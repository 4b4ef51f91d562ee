/**
 * The type table between batches, Iceberg and DuckDB. A column's kind decides the rest, except that
 * Iceberg has no 16-bit integer, so an `int16` lies in Parquet as an `int` and is narrowed on the way back.
 */
import type { ColumnKind, ColumnSpec, DecimalShape } from "@spillway/base/columns";
import { unreachable } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import type { IcebergType, PrimitiveType } from "@spillway/lake/model";
import duckdb, { type LogicalType } from "./bindings.ts";

/** A column of a lake table as the engine needs it. */
export interface LakeField {
  /** The Iceberg field id. */
  readonly id: number;
  readonly name: string;
  readonly kind: ColumnKind;
  readonly decimal?: DecimalShape;
}

export function specOf(field: LakeField): ColumnSpec {
  return field.decimal
    ? { name: field.name, kind: field.kind, decimal: field.decimal }
    : { name: field.name, kind: field.kind };
}

type Shape = Pick<ColumnSpec, "kind" | "decimal">;

/** The DuckDB type that holds a batch column of this kind as it is. */
export function duckType(shape: Shape): string {
  switch (shape.kind) {
    case "bool":
      return "BOOLEAN";
    case "int16":
      return "SMALLINT";
    case "int32":
      return "INTEGER";
    case "int64":
      return "BIGINT";
    case "float32":
      return "FLOAT";
    case "float64":
      return "DOUBLE";
    case "date":
      return "DATE";
    case "time":
      return "TIME";
    case "timestamp":
      return "TIMESTAMP";
    case "timestamptz":
      return "TIMESTAMP WITH TIME ZONE";
    case "decimal":
      return `DECIMAL(${shape.decimal?.precision ?? 38}, ${shape.decimal?.scale ?? 0})`;
    case "uuid":
      return "UUID";
    case "text":
      return "VARCHAR";
    case "bytes":
      return "BLOB";
    default:
      return unreachable(shape.kind);
  }
}

/** The type in which Parquet, and so the staging table of a writer, holds it. */
export function storedDuckType(shape: Shape): string {
  return shape.kind === "int16" ? "INTEGER" : duckType(shape);
}

/** The Iceberg type of a kind. */
export function icebergType(shape: Shape): PrimitiveType {
  switch (shape.kind) {
    case "bool":
      return { kind: "boolean" };
    case "int16":
    case "int32":
      return { kind: "int" };
    case "int64":
      return { kind: "long" };
    case "float32":
      return { kind: "float" };
    case "float64":
      return { kind: "double" };
    case "decimal":
      return { kind: "decimal", precision: shape.decimal?.precision ?? 38, scale: shape.decimal?.scale ?? 0 };
    case "date":
    case "time":
    case "timestamp":
    case "timestamptz":
    case "uuid":
      return { kind: shape.kind };
    case "text":
      return { kind: "string" };
    case "bytes":
      return { kind: "binary" };
    default:
      return unreachable(shape.kind);
  }
}

/** The kind in which a lake column of this Iceberg type is read. Throws for what Spillway never writes. */
export function kindOfIceberg(type: IcebergType): Shape {
  switch (type.kind) {
    case "boolean":
      return { kind: "bool" };
    case "int":
      return { kind: "int32" };
    case "long":
      return { kind: "int64" };
    case "float":
      return { kind: "float32" };
    case "double":
      return { kind: "float64" };
    case "decimal":
      return { kind: "decimal", decimal: { precision: type.precision, scale: type.scale } };
    case "date":
    case "time":
    case "timestamp":
    case "timestamptz":
    case "uuid":
      return { kind: type.kind };
    case "string":
      return { kind: "text" };
    case "binary":
    case "fixed":
      return { kind: "bytes" };
    default:
      throw new SpillwayError(
        "engine_failed",
        `A lake column has the type ${type.kind}, which Spillway does not read.`,
      );
  }
}

const { Type } = duckdb;

const TYPE_OF_KIND: Record<Exclude<ColumnKind, "decimal">, number> = {
  bool: Type.BOOLEAN,
  int16: Type.SMALLINT,
  int32: Type.INTEGER,
  int64: Type.BIGINT,
  float32: Type.FLOAT,
  float64: Type.DOUBLE,
  date: Type.DATE,
  time: Type.TIME,
  timestamp: Type.TIMESTAMP,
  timestamptz: Type.TIMESTAMP_TZ,
  uuid: Type.UUID,
  text: Type.VARCHAR,
  bytes: Type.BLOB,
};

/** The native handle of `duckType`. */
export function logicalType(shape: Shape): LogicalType {
  if (shape.kind !== "decimal") return duckdb.create_logical_type(TYPE_OF_KIND[shape.kind]);
  return duckdb.create_decimal_type(shape.decimal?.precision ?? 38, shape.decimal?.scale ?? 0);
}

/** How wide DuckDB holds a decimal of this precision: 2, 4, 8 or 16 bytes. */
export function decimalBytes(precision: number): 2 | 4 | 8 | 16 {
  return precision <= 4 ? 2 : precision <= 9 ? 4 : precision <= 18 ? 8 : 16;
}
