/**
 * Every column that a table ever had, as the lake knows it. Row hashes are taken over all of them, dropped ones too: a row whose
 * file lacks a column reads that column's initial default, which adds nothing to its hash. So the checksum of
 * a band means the same before and after columns come and go, and whichever files its rows lie in.
 */
import { must } from "@spillway/base/assert";
import type { Column, ColumnKind } from "@spillway/base/columns";
import { OID_OF_KIND, type PgTypeFacts, typmodOfDecimal } from "@spillway/base/pg-types";
import type { HashDefault, HashField } from "@spillway/base/rowhash";
import { schemaById } from "@spillway/lake/metadata";
import type { IcebergType, PrimitiveValue, TableMetadata } from "@spillway/lake/model";
import { planColumn } from "@spillway/pg/columns/plan";
import type { Relation, RelationColumn } from "../catalog/catalog.ts";
import { duckDefault, kindOfIceberg, type LakeField, type ScanField } from "../engine/engine.ts";
import { valueOfText } from "./defaults.ts";

export interface KnownField {
  readonly attnum: number;
  readonly live: boolean;
  readonly scan: ScanField;
  readonly hash: HashField;
}

/** Live columns in the table's order, then dropped ones under names that nobody has. */
export function knownFields(relation: Pick<Relation, "columns">, metadata: TableMetadata): KnownField[] {
  const types = typesById(metadata);
  const known = relation.columns.map((column) => knownField(column, types));
  return [...known.filter((f) => f.live), ...known.filter((f) => !f.live)];
}

function typesById(metadata: TableMetadata): Map<number, IcebergType> {
  const types = new Map<number, IcebergType>();
  const current = schemaById(metadata, metadata.currentSchemaId);
  const newest = metadata.schemas.toSorted((a, b) => a.schemaId - b.schemaId);
  for (const schema of [...newest, current]) for (const f of schema.fields) types.set(f.id, f.type);
  return types;
}

function knownField(column: RelationColumn, types: ReadonlyMap<number, IcebergType>): KnownField {
  const shape = kindOfIceberg(must(types.get(column.fieldId), `lake type of column ${column.name}`));
  const name = column.dropped ? `__dropped_${column.fieldId}` : column.name;
  const base = { id: column.fieldId, name, kind: shape.kind };
  const field: LakeField = shape.decimal ? { ...base, decimal: shape.decimal } : base;
  const hash = { fieldId: column.fieldId, kind: shape.kind };
  const text = column.initialDefault;
  return {
    attnum: column.attnum,
    live: !column.dropped,
    scan: { ...field, initialDefault: duckDefault(field.kind, text) },
    hash: text === null ? hash : { ...hash, default: defaultOf(field, text) },
  };
}

/** The default's value from its canonical text, by the lake's type alone: the Postgres type may be gone. */
function defaultOf(field: LakeField, text: string): HashDefault {
  const facts: PgTypeFacts = {
    oid: OID_OF_KIND[field.kind],
    typmod: typmodOfDecimal(field.decimal),
    name: field.kind === "decimal" ? "numeric" : field.kind,
    typtype: "b",
    category: "U",
    schema: "pg_catalog",
  };
  return valueOfText(planColumn(field.name, facts), text);
}

/** The canonical tier keys of a column of a batch. */
export function keysOf(column: Column, length: number): BigInt64Array {
  const data = "data" in column ? column.data : null;
  if (data instanceof BigInt64Array) return data.subarray(0, length);
  return BigInt64Array.from({ length }, (_, i) => BigInt(must(data, "tier key")[i] ?? 0));
}

/** A canonical tier key as a value of the lake's column. */
export function lakeKey(kind: ColumnKind, key: bigint): PrimitiveValue {
  return kind === "int16" || kind === "int32" || kind === "date" ? Number(key) : key;
}
