/** Rows that Postgres gave as text, as one batch in the kinds of its types. */
import type { ColumnBatch } from "@spillway/base/columns";
import { NATIVE_TYPES } from "@spillway/base/pg-types";
import { columnBuilder, planColumn } from "@spillway/pg/columns/plan";
import type { TextField } from "@spillway/pg/wire/query";
import type { WireColumn } from "../session/session.ts";

const TEXT_OID = 25;
const OTHERS = new Set([17, 1700, 2950]);

/** The kind is the type's own where batches have one, else text; the oid is always the type's. */
export function textColumns(fields: readonly TextField[]): WireColumn[] {
  return fields.map((field) => {
    const { spec } = planOf(field);
    return { ...spec, nullable: true, typeOid: field.typeOid, typmod: field.typmod };
  });
}

export function textBatch(fields: readonly TextField[], rows: readonly (readonly (string | null)[])[]): ColumnBatch {
  const columns = fields.map((field, i) => {
    const builder = columnBuilder(planOf(field));
    for (const row of rows) {
      const text = row[i] ?? null;
      if (text === null) builder.appendNull();
      else {
        const bytes = Buffer.from(text, "utf8");
        builder.appendText(bytes, 0, bytes.length);
      }
    }
    return builder.finish();
  });
  return { length: rows.length, columns };
}

function planOf({ name, typeOid, typmod }: TextField): ReturnType<typeof planColumn> {
  const native = OTHERS.has(typeOid) || NATIVE_TYPES.some((t) => t.oid === typeOid);
  const facts = { name: "", typtype: "b", category: "", schema: "pg_catalog" };
  return planColumn(name, { ...facts, oid: native ? typeOid : TEXT_OID, typmod });
}
