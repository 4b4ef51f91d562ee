/** Every type, its extremes and NULL, by COPY binary and by text: against what Postgres itself prints. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Column, ColumnBatch } from "@spillway/base/columns";
import { isSpillwayError } from "@spillway/base/errors";
import { must } from "@spillway/base/assert";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { TYPE_SAMPLES, TYPE_SETUP } from "@spillway/testkit/type-samples";
import { copyIn } from "../copy/copy-in.ts";
import { copyOut } from "../copy/copy-out.ts";
import { connectRaw } from "../wire/connect-raw.ts";
import type { RawConnection } from "../wire/connection.ts";
import { columnBuilder, planColumn, selectList, type PgColumnPlan } from "./plan.ts";
import { textOf } from "./text-out.ts";
import { typeFactsOf, typeFactsSql } from "./type-facts.ts";

/** The column's text made comparable: floats as numbers, what Postgres prints differently though equal. */
function comparable(kind: string, text: string | null): string | null {
  if (text === null) return null;
  if (kind === "float32" || kind === "float64") {
    const value = kind === "float32" ? Math.fround(Number(text)) : Number(text);
    return Object.is(value, -0) ? "-0" : String(value);
  }
  return text;
}

/** All of a column's bytes, in a form that is quick to compare. */
function digest(column: Column): string {
  const arrays = "heap" in column ? [column.offsets, column.heap] : [column.data];
  const parts = [...arrays, column.validity ?? new Uint8Array(0)];
  return parts.map((a) => Buffer.from(a.buffer, a.byteOffset, a.byteLength).toString("base64")).join(" ");
}

function rowsOf(batch: ColumnBatch, column: number): (string | null)[] {
  const found = must(batch.columns[column], "a column");
  return Array.from({ length: batch.length }, (_, row) => textOf(found, row));
}

describe.each([15, 18] as const)("columns of Postgres %i", (major) => {
  let db: TestDatabase;
  let connection: RawConnection;
  const types = Object.keys(TYPE_SAMPLES);
  const names = types.map((_, i) => `C ${i}`);
  let plans: PgColumnPlan[] = [];

  beforeAll(async () => {
    db = await createTestDatabase({ major });
    connection = await connectRaw(db.url);
    await connection.query(TYPE_SETUP);
    const list = types.map((type, i) => `"${names[i]}" ${type}`).join(", ");
    await connection.query(`CREATE TABLE every_type (id int PRIMARY KEY, ${list})`);
    for (const [i, type] of types.entries()) {
      for (const [row, value] of [...(TYPE_SAMPLES[type] ?? []), null].entries()) {
        await db.client.query(
          `INSERT INTO every_type (id, "${names[i]}") VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET "${names[i]}" = EXCLUDED."${names[i]}"`,
          [row, value],
        );
      }
    }
    const [attributes] = await connection.query(
      "SELECT atttypid::text, atttypmod::text FROM pg_attribute WHERE attrelid = 'every_type'::regclass AND attnum > 1 ORDER BY attnum",
    );
    const refs = must(attributes, "attributes").rows.map(([oid, typmod]) => ({
      oid: Number(oid),
      typmod: Number(typmod),
    }));
    const [rows] = await connection.query(typeFactsSql(refs.map((r) => r.oid)));
    const facts = typeFactsOf(must(rows, "facts").rows);
    plans = refs.map((ref, i) => planColumn(must(names[i], "a name"), facts(ref)));
  });

  afterAll(async () => {
    await connection?.close();
    await db?.drop();
  });

  async function printed(table: string): Promise<readonly (readonly (string | null)[])[]> {
    // Not ::text, which strips the spaces of char(n), but the type's own output function, as COPY text uses it.
    const list = names
      .map((name) => `CASE WHEN "${name}" IS DISTINCT FROM NULL THEN format('%s', "${name}") END`)
      .join(", ");
    const [result] = await connection.query(`SELECT ${list} FROM ${table} ORDER BY id`);
    return must(result, "rows").rows;
  }

  function comparePrinted(rows: readonly (readonly (string | null)[])[], batch: ColumnBatch): void {
    expect(batch.length).toBe(rows.length);
    for (const [i, type] of types.entries()) {
      const { kind } = must(plans[i], "a plan").spec;
      const expected = rows.map((row) => {
        const text = row[i] ?? null;
        return comparable(kind, kind === "bool" && text !== null ? (text === "t" ? "true" : "false") : text);
      });
      expect({ type, values: rowsOf(batch, i).map((v) => comparable(kind, v)) }).toEqual({ type, values: expected });
    }
  }

  async function copied(table: string, batchRows = 1000): Promise<ColumnBatch[]> {
    const source = `(SELECT ${selectList(plans)} FROM ${table} ORDER BY id)`;
    const batches: ColumnBatch[] = [];
    for await (const batch of copyOut({ connection, source, columns: plans, batchRows })) batches.push(batch);
    return batches;
  }

  test("arrive exactly by COPY binary", async () => {
    const [batch] = await copied("every_type");
    comparePrinted(await printed("every_type"), must(batch, "a batch"));
  });

  test("arrive exactly from the text form", async () => {
    const rows = await printed("every_type");
    const builders = plans.map(columnBuilder);
    for (const row of rows) {
      for (const [i, builder] of builders.entries()) {
        const text = row[i];
        if (typeof text !== "string") builder.appendNull();
        else {
          const bytes = Buffer.from(`#${text}#`);
          builder.appendText(bytes, 1, bytes.length - 1);
        }
      }
    }
    const batch = { length: rows.length, columns: builders.map((builder) => builder.finish()) };
    comparePrinted(rows, batch);
    // The two forms make the same bytes, which checksums stand on.
    const [binary] = await copied("every_type");
    for (const [i, column] of must(binary, "a batch").columns.entries()) {
      expect([types[i], digest(must(batch.columns[i], "a column"))]).toEqual([types[i], digest(column)]);
    }
  });

  test("go back by COPY in to the same rows", async () => {
    await connection.query(
      "CREATE TABLE copied_back (LIKE every_type); ALTER TABLE copied_back DROP COLUMN id, ADD COLUMN id serial",
    );
    const list = names.map((name) => `"${name}"`).join(", ");
    const batches = await copied("every_type", 4);
    expect(await copyIn({ connection, into: `copied_back (${list})`, batches })).toBe(12 + 2);
    expect(await printed("copied_back")).toEqual(await printed("every_type"));
  });

  test("kinds and casts are as planned", () => {
    const of = (type: string): PgColumnPlan => must(plans[types.indexOf(type)], type);
    expect(of("amount").spec).toMatchObject({ kind: "decimal", decimal: { precision: 10, scale: 2 } });
    expect(of("short_text")).toMatchObject({ wire: "text", asText: false });
    expect(of("mood")).toMatchObject({ wire: "text", asText: false });
    expect(of("integer[]")).toMatchObject({ wire: null, asText: true, spec: { kind: "text" } });
    expect(of("numeric")).toMatchObject({ wire: "numeric-text", asText: false });
  });

  test("instants are µs since 1970, absolutely", async () => {
    const [facts] = await connection.query(typeFactsSql([1184]));
    const plan = planColumn("t", typeFactsOf(must(facts, "facts").rows)({ oid: 1184, typmod: -1 }));
    const source =
      "(SELECT t FROM (VALUES ('2024-06-30 12:00:00.123456+00'::timestamptz), ('infinity'), ('-infinity')) v(t))";
    for await (const batch of copyOut({ connection, source, columns: [plan] })) {
      const [column] = batch.columns;
      expect([...(column as { data: BigInt64Array }).data]).toEqual([
        1719748800123456n,
        9223372036854775807n,
        -9223372036854775807n,
      ]);
    }
  });

  test.each([
    ["numeric(5,2)", "'NaN'", "NaN"],
    ["timestamp", "'294276-12-31 23:59:59'", "out of range"],
    ["timestamptz", "'294276-12-31 23:59:59+00'", "out of range"],
  ])("%s %s is refused, naming the column", async (type, value, why) => {
    const [result] = await connection
      .query(`SELECT atttypid::text, atttypmod::text FROM pg_attribute WHERE FALSE;
      CREATE TEMP TABLE bad AS SELECT ${value}::${type} AS "the column";
      SELECT atttypid::text, atttypmod::text FROM pg_attribute WHERE attrelid = 'bad'::regclass AND attnum = 1`)
      .then((r) => r.slice(2));
    const [oid, typmod] = must(result?.rows[0], "an attribute");
    const [facts] = await connection.query(typeFactsSql([Number(oid)]));
    const plan = planColumn(
      "the column",
      typeFactsOf(must(facts, "facts").rows)({ oid: Number(oid), typmod: Number(typmod) }),
    );
    const run = async (): Promise<void> => {
      for await (const batch of copyOut({ connection, source: "bad", columns: [plan] })) expect(batch).toBeNull();
    };
    const error: unknown = await run().catch((e: unknown) => e);
    expect(isSpillwayError(error, "pg_value_unrepresentable")).toBe(true);
    expect(String(error)).toContain('"the column"');
    expect(String(error)).toContain(why);
    const builder = columnBuilder(plan);
    const bytes = Buffer.from(value.replaceAll("'", ""));
    expect(() => builder.appendText(bytes, 0, bytes.length)).toThrow(/the column/);
    await connection.query("DROP TABLE bad");
  });
});
