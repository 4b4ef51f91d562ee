/** Every type, its extremes and NULL, in text and binary format: byte for byte what Postgres's own COPY sends. */
import { execFileSync } from "node:child_process";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { must } from "@spillway/base/assert";
import type { ColumnBatch } from "@spillway/base/columns";
import { systemClock } from "@spillway/base/clock";
import { planColumn, type PgColumnPlan, selectList } from "@spillway/pg/columns/plan";
import { typeFactsOf, typeFactsSql } from "@spillway/pg/columns/type-facts";
import { copyOut } from "@spillway/pg/copy/copy-out";
import { connectRaw } from "@spillway/pg/wire/connect-raw";
import type { RawConnection } from "@spillway/pg/wire/connection";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { TYPE_SAMPLES, TYPE_SETUP } from "@spillway/testkit/type-samples";
import type { Socket } from "node:net";
import type { WireColumn } from "../../session/session.ts";
import { cellWriter, type Format } from "./cell-writers.ts";
import { BINARY_HEADER, BINARY_TRAILER } from "./copy-binary.ts";
import { copyLine } from "./copy-format.ts";
import { copyOptions } from "./copy-options.ts";
import { OutBuffer } from "./out-buffer.ts";
import { parameterText } from "./parameters.ts";

let db: TestDatabase;
let connection: RawConnection;
const types = Object.keys(TYPE_SAMPLES);
const names = types.map((_, i) => `c${i}`);
let plans: PgColumnPlan[] = [];
let batch: ColumnBatch;
let columns: WireColumn[] = [];

beforeAll(async () => {
  db = await createTestDatabase({});
  connection = await connectRaw(db.url);
  await connection.query(TYPE_SETUP);
  await connection.query(`CREATE TABLE t (id int PRIMARY KEY, ${types.map((type, i) => `c${i} ${type}`).join(", ")})`);
  for (const [i, type] of types.entries()) {
    for (const [row, value] of [...(TYPE_SAMPLES[type] ?? []), null].entries()) {
      await db.client.query(
        `INSERT INTO t (id, c${i}) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET c${i} = EXCLUDED.c${i}`,
        [row, value],
      );
    }
  }
  const [attributes] = await connection.query(
    "SELECT atttypid::text, atttypmod::text FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 1 ORDER BY attnum",
  );
  const refs = must(attributes, "attributes").rows.map(([oid, typmod]) => ({
    oid: Number(oid),
    typmod: Number(typmod),
  }));
  const [facts] = await connection.query(typeFactsSql(refs.map((r) => r.oid)));
  const factsOf = typeFactsOf(must(facts, "facts").rows);
  plans = refs.map((ref, i) => planColumn(must(names[i], "a name"), factsOf(ref)));
  const source = `(SELECT ${selectList(plans)} FROM t ORDER BY id)`;
  for await (const part of copyOut({ connection, source, columns: plans })) batch = part;
  columns = plans.map(({ spec, typeOid, typmod }) => ({ ...spec, nullable: true, typeOid, typmod }));
});
afterAll(async () => {
  await connection.close();
  await db.drop();
});

function postgres(column: string, options: string, zone: string): Buffer {
  const sql = `SET TimeZone = '${zone}'; SET lc_monetary = 'C'; COPY (SELECT ${column} FROM t ORDER BY id) TO STDOUT (${options})`;
  return execFileSync("psql", [db.url, "-XqAt", "-c", sql], {
    maxBuffer: 64 << 20,
    env: { ...process.env, PGOPTIONS: "-c intervalstyle=postgres" },
  });
}

function scratch(): OutBuffer {
  return new OutBuffer(null as unknown as Socket, systemClock, 0);
}

function field(index: number, row: number, format: Format, zone: string): Buffer {
  const out = scratch();
  const column = must(batch.columns[index], "a column");
  cellWriter(column, must(columns[index], "a column"), format, { timeZone: zone })(row, out);
  return out.buffer.subarray(0, out.at);
}

function textField(index: number, row: number, zone: string): string | null {
  const bytes = field(index, row, 0, zone);
  return bytes.readInt32BE(0) < 0 ? null : bytes.toString("utf8", 4);
}

describe.each(["UTC", "Europe/Berlin", "America/St_Johns"])("text in %s", (zone) => {
  // Of the types with a zone in them, all but one are held as the text that they have in UTC.
  const held = (type: string): boolean => zone === "UTC" || type === "timestamp with time zone" || type === "date";
  test.each(types.map((type, i) => [type, i] as const).filter(([type]) => held(type)))("%s", (_, i) => {
    for (const [options, list] of [
      ["FORMAT text", []],
      ["FORMAT csv", [{ DefElem: { defname: "format", arg: { String: { sval: "csv" } } } }]],
    ] as const) {
      const parsed = copyOptions(list);
      let ours = "";
      for (let row = 0; row < batch.length; row++) ours += copyLine([textField(i, row, zone)], [`c${i}`], parsed);
      expect(ours).toBe(postgres(`c${i}`, options, zone).toString("utf8"));
    }
  });
});

/** Types that the session holds as text are described as text but for these. */
const BINARY =
  /^(boolean|smallint|integer|bigint|oid$|real|double precision|date$|time without|timestamp|numeric|uuid|bytea|text$|character|name|"char"|json|amount$|short_text|mood$)/;

describe("binary", () => {
  test.each(
    types
      .map((type, i) => [type, i] as const)
      .filter(([type]) => BINARY.test(type) && !type.endsWith("]") && type !== "jsonpath"),
  )("%s", (type, i) => {
    // A domain is sent as its base type is.
    const base =
      type === "amount" ? 1700 : type === "short_text" || type === "mood" ? 25 : must(columns[i], "a column").typeOid;
    columns[i] = { ...must(columns[i], "a column"), typeOid: base };
    const parts: Buffer[] = [BINARY_HEADER];
    const texts: (string | null)[] = [];
    for (let row = 0; row < batch.length; row++) {
      const bytes = field(i, row, 1, "UTC");
      parts.push(Buffer.from([0, 1]), Buffer.from(bytes));
      texts.push(bytes.readInt32BE(0) < 0 ? null : parameterText(bytes.subarray(4), base));
    }
    parts.push(BINARY_TRAILER);
    expect(Buffer.concat(parts).equals(postgres(`c${i}`, "FORMAT binary", "UTC"))).toBe(true);
    // What a client sends in binary is read back as the same text.
    expect(texts).toEqual(Array.from({ length: batch.length }, (_, row) => textField(i, row, "UTC")));
  });
});
