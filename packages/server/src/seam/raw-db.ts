/** The catalog's `Db` over a raw connection, for its queries inside a read's or a correction's transaction: values are inlined, results are text. */
import { quoteLiteral } from "@spillway/pg/quote";
import type { RawConnection } from "@spillway/pg/wire/connection";
import type { Db } from "../catalog/catalog.ts";
import { countOf } from "./delta-write.ts";

const [BOOL, JSON_OID, JSONB] = [16, 114, 3802];
const INTS = new Set([21, 23]);
const INT_ARRAYS = new Set([1005, 1007]);

export function rawDb(connection: RawConnection): Db {
  return {
    query: async <R extends object>(text: string, values: unknown[] = []) => {
      const sql = text.replace(/\$(\d+)/g, (_, n: string) => literal(values[Number(n) - 1]));
      const result = (await connection.query(sql)).at(-1);
      const rows = (result?.rows ?? []).map((row) =>
        Object.fromEntries((result?.fields ?? []).map((f, i) => [f.name, valueOf(f.typeOid, row[i] ?? null)])),
      );
      return { rows: rows as R[], rowCount: result ? countOf(result) : null };
    },
  };
}

function literal(value: unknown): string {
  if (value === null || value === undefined) return "NULL";
  if (Array.isArray(value)) return quoteLiteral(`{${value.map(element).join(",")}}`);
  return quoteLiteral(String(value));
}

function element(value: unknown): string {
  if (value === null || value === undefined) return "NULL";
  return `"${String(value).replace(/["\\]/g, "\\$&")}"`;
}

/** As node-postgres gives them: small integers and their arrays as numbers, booleans, json parsed, the rest as text. */
function valueOf(typeOid: number, text: string | null): unknown {
  if (text === null) return null;
  if (INTS.has(typeOid)) return Number(text);
  if (INT_ARRAYS.has(typeOid)) return text.slice(1, -1).split(",").filter(Boolean).map(Number);
  if (typeOid === JSON_OID || typeOid === JSONB) return JSON.parse(text);
  return typeOid === BOOL ? text === "t" : text;
}
