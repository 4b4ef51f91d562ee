/** Small answers of the edge's own as rows of text: SHOW, EXPLAIN and the like. */
import type { Column } from "@spillway/base/columns";
import type { WireColumn } from "../../session/session.ts";
import { RowCursor } from "./row-cursor.ts";
import { OID } from "./types.ts";

export function textColumn(name: string): WireColumn {
  return { name, kind: "text", nullable: true, typeOid: OID.text, typmod: -1 };
}

/** Rows of text; all have as many values as there are names. */
export function textRows(names: readonly string[], rows: readonly (readonly (string | null)[])[]): RowCursor {
  const columns = names.map((name, i): Column => {
    const values = rows.map((row) => (row[i] === null || row[i] === undefined ? null : Buffer.from(row[i], "utf8")));
    const offsets = new Uint32Array(rows.length + 1);
    for (const [k, value] of values.entries()) offsets[k + 1] = (offsets[k] ?? 0) + (value?.length ?? 0);
    const validity = Uint8Array.from(values, (value) => (value === null ? 0 : 1));
    const heap = Buffer.concat(values.map((value) => value ?? Buffer.alloc(0)));
    return { spec: { name, kind: "text" }, validity, offsets, heap };
  });
  return RowCursor.of(names.map(textColumn), { length: rows.length, columns });
}
