/** The catalog's `Db` over a raw connection, for its few queries inside a read's snapshot: values are inlined, results are text. */
import { quoteLiteral } from "@spillway/pg/quote";
import type { RawConnection } from "@spillway/pg/wire/connection";
import type { Db } from "../catalog/catalog.ts";

const INT_TYPES = new Set([21, 23]);
const BOOL = 16;

export function rawDb(connection: RawConnection): Db {
  return {
    query: async <R extends object>(text: string, values: unknown[] = []) => {
      const sql = text.replace(/\$(\d+)/g, (_, n: string) => literal(values[Number(n) - 1]));
      const result = (await connection.query(sql)).at(-1);
      const rows = (result?.rows ?? []).map((row) =>
        Object.fromEntries((result?.fields ?? []).map((f, i) => [f.name, valueOf(f.typeOid, row[i] ?? null)])),
      );
      return { rows: rows as R[], rowCount: rows.length };
    },
  };
}

function literal(value: unknown): string {
  if (value === null || value === undefined) return "NULL";
  if (typeof value === "number" || typeof value === "bigint") return String(value);
  return quoteLiteral(String(value));
}

/** As node-postgres gives them: small integers as numbers, booleans, the rest as text. */
function valueOf(typeOid: number, text: string | null): unknown {
  if (text === null) return null;
  if (INT_TYPES.has(typeOid)) return Number(text);
  return typeOid === BOOL ? text === "t" : text;
}
