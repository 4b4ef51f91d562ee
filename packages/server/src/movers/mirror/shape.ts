/**
 * What the stream says of a table's columns against what the catalog follows: the same, to be followed, or ambiguous. And
 * rows that were sent under older columns, as rows of the newest ones.
 */
import { must } from "@spillway/base/assert";
import { takeRows } from "@spillway/base/batch";
import type { Column, ColumnBatch, FixedColumn } from "@spillway/base/columns";
import { SpillwayError } from "@spillway/base/errors";
import { columnBuilder } from "@spillway/pg/columns/plan";
import type { PgRelation } from "@spillway/pg/replication/pgoutput";
import { liveColumns, type Relation, type TableColumn } from "../../catalog/catalog.ts";
import { lakeField } from "../context.ts";
import type { TableShape } from "./change-log.ts";

/** Equal for relations of the stream that mean the same columns. */
export function signatureOf(relation: Pick<PgRelation, "columns" | "replicaIdentity">): string {
  const list = relation.columns.map((c) => `${c.name}:${c.typeOid}:${c.typmod}:${c.isKey ? 1 : 0}`);
  return `${relation.replicaIdentity};${list.join(",")}`;
}

/**
 * The shape of the stream's columns by the columns as the catalog follows them. Null when they are not the same ones.
 * Throws `mirror_identity_lost`.
 */
export function shapeOf(
  stream: Pick<PgRelation, "columns" | "replicaIdentity">,
  relation: Pick<Relation, "columns" | "pkAttnums">,
  now: readonly TableColumn[],
): TableShape | null {
  const followed = new Map(liveColumns(relation).map((c) => [c.name, c]));
  const byAttnum = new Map(now.map((c) => [c.attnum, c]));
  if (followed.size !== stream.columns.length) return null;
  const attnums: number[] = [];
  const plans: TableShape["plans"][number][] = [];
  const fields: TableShape["fields"][number][] = [];
  const keyAt: number[] = [];
  for (const [i, column] of stream.columns.entries()) {
    const known = followed.get(column.name);
    const table = known && byAttnum.get(known.attnum);
    if (!known || !table || known.typeOid !== column.typeOid || known.typmod !== column.typmod) return null;
    // The type as it was followed decides; what the table has by now comes with a later message.
    if (table.typeOid !== known.typeOid || table.typmod !== known.typmod) return null;
    attnums.push(known.attnum);
    plans.push({ ...table.copyPlan, name: known.name, spec: { ...table.copyPlan.spec, name: known.name } });
    fields.push({ ...lakeField(known.fieldId, table), name: known.name });
    const isKey = stream.replicaIdentity === "f" ? relation.pkAttnums.includes(known.attnum) : column.isKey;
    if (isKey) keyAt.push(i);
  }
  if (keyAt.length === 0) {
    throw new SpillwayError("mirror_identity_lost", "the table has no primary key or replica identity any more");
  }
  return { attnums, plans, fields, keyAt };
}

/** Rows under `from` as rows under `to`: matched by field id, added columns as the lake reads them in old files. */
export function convertRows(
  rows: ColumnBatch,
  from: TableShape,
  to: TableShape,
  initialText: (fieldId: number) => string | null,
): ColumnBatch {
  if (from === to) return rows;
  const columns = to.fields.map((field, i): Column => {
    const at = from.fields.findIndex((f) => f.id === field.id);
    if (at >= 0) return widened(must(rows.columns[at], "column"), must(to.plans[i], "plan").spec, rows.length);
    const builder = columnBuilder(must(to.plans[i], "plan"));
    const text = initialText(field.id);
    if (text === null) builder.appendNull();
    else {
      const bytes = Buffer.from(text, "utf8");
      builder.appendText(bytes, 0, bytes.length);
    }
    const one = { length: 1, columns: [builder.finish()] };
    return must(takeRows(one, new Uint32Array(rows.length)).columns[0], "column");
  });
  return { length: rows.length, columns };
}

function widened(column: Column, spec: Column["spec"], length: number): Column {
  const { kind } = column.spec;
  if (kind === spec.kind) return { ...column, spec };
  const { data, validity } = column as FixedColumn;
  if (spec.kind === "int64" && (kind === "int16" || kind === "int32")) {
    return { spec, validity, data: BigInt64Array.from({ length }, (_, i) => BigInt(data[i] ?? 0)) };
  }
  if (spec.kind === "int32" && kind === "int16") return { spec, validity, data: Int32Array.from(data as Int16Array) };
  if (spec.kind === "float64" && kind === "float32") {
    return { spec, validity, data: Float64Array.from(data as Float32Array) };
  }
  throw new SpillwayError("mirror_schema_ambiguous", `column ${spec.name} became ${spec.kind}, it was ${kind}`);
}
