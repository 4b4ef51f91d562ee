/** The Iceberg form of a table: its schema and its partition spec. */
import type { NestedField, PartitionSpec, Schema, Transform } from "@spillway/lake/model";
import type { RelationColumn, TableColumn } from "../catalog/catalog.ts";
import { icebergType } from "../engine/engine.ts";
import type { LakePartition, RegisterPlan } from "./register-checks.ts";
import type { TableFacts } from "./table-facts.ts";

/** Field ids are given in the table's order, from 1. */
export function firstColumns(columns: readonly TableColumn[]): RelationColumn[] {
  return columns.map((c, i) => ({
    attnum: c.attnum,
    fieldId: i + 1,
    name: c.name,
    typeOid: c.typeOid,
    typmod: c.typmod,
    typeName: c.typeName,
    notNull: c.notNull,
    // Old rows were all read from the table, with the values that they have.
    initialDefault: null,
    dropped: false,
  }));
}

export function lakeSchema(facts: TableFacts, columns: readonly RelationColumn[]): Schema {
  const byAttnum = new Map(facts.columns.map((c) => [c.attnum, c]));
  const fields = columns.flatMap((c): NestedField[] => {
    const column = byAttnum.get(c.attnum);
    return column ? [{ id: c.fieldId, name: c.name, required: c.notNull, type: icebergType(column.plan) }] : [];
  });
  const pk = facts.primaryKey?.attnums ?? [];
  const identifierFieldIds = columns.filter((c) => pk.includes(c.attnum)).map((c) => c.fieldId);
  return { schemaId: 0, fields, identifierFieldIds };
}

export function lakeSpec(plan: RegisterPlan, columns: readonly RelationColumn[]): PartitionSpec | undefined {
  const transform = transformOf(plan.lakePartition);
  const key = columns.find((c) => c.attnum === plan.keyAttnum);
  if (transform === null || key === undefined) return undefined;
  const taken = new Set(columns.map((c) => c.name));
  let name = `${key.name}_${plan.lakePartition}`;
  while (taken.has(name)) name += "_";
  return { specId: 0, fields: [{ fieldId: 0, sourceId: key.fieldId, name, transform }] };
}

function transformOf(partition: LakePartition): Transform | null {
  return partition === "none" ? null : { kind: partition };
}
