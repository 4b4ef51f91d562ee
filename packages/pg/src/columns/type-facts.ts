/** The facts of types, read from the system catalogs: what `planColumn` decides from. */
import { must } from "@spillway/base/assert";
import type { PgTypeFacts } from "@spillway/base/pg-types";

/** A type and the modifier of the column that has it (-1: none). */
export interface TypeRef {
  readonly oid: number;
  readonly typmod: number;
}

/** One row of `typeFactsSql`, as text. */
type TypeRow = readonly (string | null)[];

/**
 * The types with these oids and all that they are made of (base types of domains, elements of arrays).
 * Columns: oid, typname, nspname, typtype, typcategory, the base or element type or null, typtypmod of a domain.
 */
export function typeFactsSql(oids: readonly number[]): string {
  const list = [...new Set(oids)].map((oid) => String(oid >>> 0)).join(", ");
  const inner = (t: string): string =>
    `CASE WHEN ${t}.typtype = 'd' THEN ${t}.typbasetype WHEN ${t}.typcategory = 'A' THEN ${t}.typelem END`;
  return `WITH RECURSIVE wanted AS (
      SELECT t.oid, ${inner("t")} AS made_of FROM pg_catalog.pg_type t WHERE t.oid IN (${list === "" ? "0" : list})
      UNION SELECT t.oid, ${inner("t")} FROM wanted w JOIN pg_catalog.pg_type t ON t.oid = w.made_of)
    SELECT t.oid::text, t.typname::text, n.nspname::text, t.typtype::text, t.typcategory::text, w.made_of::text,
      t.typtypmod::text
    FROM wanted w JOIN pg_catalog.pg_type t ON t.oid = w.oid JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace`;
}

/** The facts of a column's type, from the rows of `typeFactsSql`. */
export function typeFactsOf(rows: readonly TypeRow[]): (type: TypeRef) => PgTypeFacts {
  const byOid = new Map(rows.map((row) => [Number(row[0]), row]));
  const facts = ({ oid, typmod }: TypeRef): PgTypeFacts => {
    const row = must(byOid.get(oid), `the type ${oid}`);
    const typtype = row[3] ?? "";
    const inner = typeof row[5] === "string" && Number(row[5]) !== 0 ? Number(row[5]) : null;
    // A domain's modifier stands in the domain; an array column's belongs to its elements.
    const innerTypmod = typtype === "d" ? Number(row[6]) : typmod;
    return {
      oid,
      typmod,
      name: row[1] ?? "",
      typtype,
      category: row[4] ?? "",
      schema: row[2] ?? "",
      ...(inner !== null && byOid.has(inner) ? { base: facts({ oid: inner, typmod: innerTypmod }) } : {}),
    };
  };
  return facts;
}
