/** The type table against the types that Postgres has: each has a fate that was decided, not one by accident. */
import { createTestDatabase } from "@spillway/testkit/database";
import { expect, test } from "vitest";
import { planNumeric, planPgType, REFUSED_TYPES, type PgTypeFacts } from "./pg-types.ts";

interface Row {
  readonly oid: string;
  readonly typname: string;
  readonly typtype: string;
  readonly typcategory: string;
  readonly elem: string;
}

test.each([15, 18] as const)(
  "every built-in type of Postgres %s is native, exact text, or refused for a reason",
  async (major) => {
    const db = await createTestDatabase({ major });
    const { rows } = await db.client.query<Row>(
      `select oid::text, typname, typtype, typcategory, typelem::text as elem from pg_type
     where typnamespace = 'pg_catalog'::regnamespace and typtype in ('b', 'r', 'm') and typname !~ '^_?pg_[a-z_]+_(data|toast)'`,
    );
    const byOid = new Map(rows.map((row) => [Number(row.oid), row]));
    const factsOf = (row: Row): PgTypeFacts => {
      const element = row.typcategory === "A" ? byOid.get(Number(row.elem)) : undefined;
      const facts = {
        oid: Number(row.oid),
        typmod: -1,
        name: row.typname,
        typtype: row.typtype,
        category: row.typcategory,
        schema: "pg_catalog",
      };
      return element ? { ...facts, base: factsOf(element) } : facts;
    };
    const unknown = rows
      .filter((row) => /does not know/.test(planPgType(factsOf(row)).reason ?? ""))
      .map((row) => row.typname);
    expect(unknown).toEqual([]);
    const int = planPgType({ oid: 23, typmod: -1, name: "int4", typtype: "b", category: "N", schema: "pg_catalog" });
    expect(int).toEqual({ fate: "native", kind: "int32" });
    expect(Object.keys(REFUSED_TYPES).length).toBeGreaterThan(0);
    await db.drop();
  },
);

test("numeric by its modifier: decimals of at most 38 digits, else exact text", () => {
  const typmod = (precision: number, scale: number): number => ((precision << 16) | (scale & 0x7ff)) + 4;
  expect(planNumeric(typmod(12, 2))).toMatchObject({ fate: "native", decimal: { precision: 12, scale: 2 } });
  expect(planNumeric(typmod(38, 38))).toMatchObject({ fate: "native", decimal: { precision: 38, scale: 38 } });
  for (const other of [-1, typmod(39, 0), typmod(1000, 500), typmod(5, -2), typmod(3, 5)]) {
    expect(planNumeric(other)).toEqual({ fate: "text", kind: "text" });
  }
});
