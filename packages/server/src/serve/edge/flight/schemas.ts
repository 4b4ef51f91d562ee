/** Arrow schemas of statements and tables, with the column metadata of Flight SQL (FlightSql.proto, "ARROW:FLIGHT:SQL:*"). */
import { encodeArrowSchema } from "../../../engine/engine.ts";
import type { WireColumn } from "../../session/session.ts";

export interface TableName {
  readonly catalog: string;
  readonly schema: string;
  readonly table: string;
}

/** No columns: what a statement without rows promises. */
export const EMPTY_SCHEMA = encodeArrowSchema([]);

export function arrowSchemaOf(columns: readonly WireColumn[], table?: TableName): Buffer {
  return encodeArrowSchema(
    columns.map((column) => ({
      name: column.name,
      kind: column.kind,
      ...(column.decimal ? { decimal: column.decimal } : {}),
      nullable: column.nullable,
      ...(table ? { metadata: metadataOf(column, table) } : {}),
    })),
  );
}

function metadataOf(column: WireColumn, table: TableName): Record<string, string> {
  const P = "ARROW:FLIGHT:SQL:";
  return {
    [`${P}CATALOG_NAME`]: table.catalog,
    [`${P}SCHEMA_NAME`]: table.schema,
    [`${P}TABLE_NAME`]: table.table,
    [`${P}TYPE_NAME`]: typeName(column),
    ...(column.decimal
      ? { [`${P}PRECISION`]: String(column.decimal.precision), [`${P}SCALE`]: String(column.decimal.scale) }
      : {}),
    [`${P}IS_AUTO_INCREMENT`]: "0",
    [`${P}IS_CASE_SENSITIVE`]: column.kind === "text" ? "1" : "0",
    [`${P}IS_READ_ONLY`]: "0",
    [`${P}IS_SEARCHABLE`]: "1",
  };
}

const NAMES: Readonly<Record<WireColumn["kind"], string>> = {
  bool: "boolean",
  int16: "smallint",
  int32: "integer",
  int64: "bigint",
  float32: "real",
  float64: "double precision",
  date: "date",
  time: "time without time zone",
  timestamp: "timestamp without time zone",
  timestamptz: "timestamp with time zone",
  decimal: "numeric",
  uuid: "uuid",
  text: "text",
  bytes: "bytea",
};

/** As Postgres writes it. */
export function typeName({ kind, decimal }: Pick<WireColumn, "kind" | "decimal">): string {
  return decimal ? `numeric(${decimal.precision},${decimal.scale})` : NAMES[kind];
}
