import { estimateBytes } from "@spillway/base/batch";
import type { ColumnSpec } from "@spillway/base/columns";
import { Int, RecordBatchReader, tableFromIPC, type Table } from "apache-arrow";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ArrowBatcher } from "./arrow-encode.ts";
import { decodeArrowBatch, ownArrowFields } from "./arrow-decode.ts";
import { decodeArrowSchema, encodeArrowSchema, splitMessage } from "./arrow-schema.ts";
import { Engine, type EngineResult, valueAt } from "./engine.ts";

const EVERY_KIND = `SELECT
  i % 2 = 0 AS "bool", (i - 500)::SMALLINT AS "int16", (i * 7 - 1000)::INTEGER AS "int32", (i * 12345678901)::BIGINT AS "int64",
  (i / 4)::FLOAT AS "float32", (i / 3)::DOUBLE AS "float64", DATE '1969-12-01' + i::INT AS "date",
  TIME '00:00:00' + to_milliseconds(i::BIGINT) AS "time", TIMESTAMP '1969-12-31 23:00:00.000001' + to_minutes(i::INT) AS "timestamp",
  TIMESTAMPTZ '2024-02-29 12:00:00+00' + to_seconds(i) AS "timestamptz",
  (i * 1234567 - 99999999)::DECIMAL(38, 4) AS "decimal", (i % 90 - 10)::DECIMAL(4, 2) AS "small decimal",
  md5(i::VARCHAR)::UUID AS "uuid", repeat('é', (i % 20)::INT) || i AS "text", encode(repeat('x', (i % 5)::INT)) AS "bytes"`;

let engine: Engine;

beforeAll(async () => {
  engine = await Engine.open({ memoryBytes: 256 << 20, threads: 2 });
});
afterAll(() => engine.close());

async function stream(sql: string): Promise<{ bytes: Buffer; batches: Buffer[]; columns: readonly ColumnSpec[] }> {
  return engine.use(async (session) => {
    const result: EngineResult = await session.query(sql);
    const batcher = new ArrowBatcher();
    const batches: Buffer[] = [];
    for await (const batch of result.batches()) batches.push(...batcher.add(batch));
    batches.push(...batcher.flush());
    const bytes = Buffer.concat([encodeArrowSchema(result.columns), ...batches]);
    return { bytes, batches, columns: result.columns };
  });
}

function column(table: Table, name: string): unknown[] {
  return [...(table.getChild(name) ?? [])];
}

describe("Arrow's own reader finds in our messages what DuckDB says", () => {
  for (const [title, from] of [
    ["without NULLs", "range(5000) t(i)"],
    ["with NULLs", "(SELECT nullif(i, CASE WHEN i % 3 = 0 THEN i END) AS i FROM range(5000) t(i))"],
    ["nothing but NULL", "(SELECT NULL::BIGINT AS i FROM range(10))"],
    ["no rows", "(SELECT i FROM range(0) t(i))"],
  ] as const) {
    test(title, async () => {
      const { bytes } = await stream(`${EVERY_KIND} FROM ${from}`);
      const table = tableFromIPC(bytes);
      const texts = await engine.use((s) =>
        s.rows(`SELECT "bool"::VARCHAR, "int16"::VARCHAR, "int64"::VARCHAR, "float64"::VARCHAR, "text",
          epoch_us("timestamp")::VARCHAR, epoch_us("timestamptz")::VARCHAR, hex("bytes"), ("date" - DATE '1970-01-01')::VARCHAR,
          ("decimal" * 10000)::DECIMAL(38,0)::VARCHAR, ("small decimal" * 100)::DECIMAL(18, 0)::VARCHAR, replace("uuid"::VARCHAR, '-', ''),
          epoch_us("time")::VARCHAR
          FROM (${EVERY_KIND} FROM ${from})`),
      );
      expect(table.numRows).toBe(texts.length);
      const raw = (name: string): unknown[] => {
        const child = table.getChild(name);
        return [...(child ?? [])].map((v, i) => (v === null ? null : rawValue(child, i)));
      };
      const expected = (i: number): unknown[] => texts.map((r) => r[i]);
      expect(column(table, "bool").map(text)).toEqual(expected(0));
      expect(column(table, "int16").map(text)).toEqual(expected(1));
      expect(column(table, "int64").map(text)).toEqual(expected(2));
      expect(column(table, "float64").map((v) => (v === null ? null : Number(v)))).toEqual(
        expected(3).map((v) => (v === null ? null : Number(v))),
      );
      expect(column(table, "text")).toEqual(expected(4));
      expect(raw("timestamp")).toEqual(expected(5));
      expect(raw("timestamptz")).toEqual(expected(6));
      expect(column(table, "bytes").map(hex)).toEqual(expected(7));
      expect(raw("date")).toEqual(expected(8));
      expect(raw("decimal")).toEqual(expected(9));
      expect(raw("small decimal")).toEqual(expected(10));
      expect(column(table, "uuid").map((v) => hex(v)?.toLowerCase() ?? null)).toEqual(expected(11));
      expect(raw("time")).toEqual(expected(12));
    });
  }

  test("the schema says what the columns are", async () => {
    const { bytes } = await stream(`${EVERY_KIND} FROM range(1) t(i)`);
    const { schema } = tableFromIPC(bytes);
    expect(schema.fields.map((f) => `${f.name} ${String(f.type)}`)).toEqual([
      "bool Bool", "int16 Int16", "int32 Int32", "int64 Int64", "float32 Float32", "float64 Float64", "date Date32<DAY>",
      "time Time64<MICROSECOND>", "timestamp Timestamp<MICROSECOND>", "timestamptz Timestamp<MICROSECOND, UTC>",
      "decimal Decimal[38e+4]", "small decimal Decimal[4e+2]", "uuid FixedSizeBinary[16]", "text Utf8", "bytes Binary",
    ]); // prettier-ignore
    expect(schema.fields.every((f) => f.nullable)).toBe(true);
    expect(schema.fields[12]?.metadata.get("ARROW:extension:name")).toBe("arrow.uuid");
  });
});

/** The stored number, whatever the reader makes of it. */
function rawValue(child: ReturnType<Table["getChild"]>, row: number): string {
  let at = row;
  for (const data of child?.data ?? []) {
    if (at >= data.length) {
      at -= data.length;
      continue;
    }
    const values = data.values as Int32Array | BigInt64Array | Uint32Array;
    if (values.length === data.length) return String(values[at]);
    const perRow = values.length / data.length;
    const bytes = Buffer.from(
      values.buffer,
      values.byteOffset + at * perRow * values.BYTES_PER_ELEMENT,
      perRow * values.BYTES_PER_ELEMENT,
    );
    if (bytes.length === 8) return String(bytes.readBigInt64LE(0));
    return String((bytes.readBigInt64LE(8) << 64n) | bytes.readBigUInt64LE(0));
  }
  throw new Error("no such row");
}

const text = (v: unknown): string | null => (v === null ? null : String(v));
const hex = (v: unknown): string | null =>
  v === null
    ? null
    : Buffer.from(v as Uint8Array)
        .toString("hex")
        .toUpperCase();

describe("batches", () => {
  test("come back as they went", async () => {
    const { bytes, batches, columns } = await stream(
      `${EVERY_KIND} FROM (SELECT nullif(i, CASE WHEN i % 7 = 0 THEN i END) AS i FROM range(9000) t(i))`,
    );
    const fields = decodeArrowSchema(bytes);
    expect(fields.map((f) => f.spec)).toEqual(columns);
    let row = 0;
    const whole = await engine.use((s) =>
      s.rows(`${EVERY_KIND} FROM (SELECT nullif(i, CASE WHEN i % 7 = 0 THEN i END) AS i FROM range(9000) t(i))`),
    );
    for (const message of batches) {
      const [foreign, own] = [decodeArrowBatch(fields, message), decodeArrowBatch(ownArrowFields(columns), message)];
      for (let i = 0; i < foreign.length; i++, row++) {
        expect(foreign.columns.map((c) => valueAt(c, i))).toEqual(whole[row]);
        if (i % 100 === 0) expect(own.columns.map((c) => valueAt(c, i))).toEqual(whole[row]);
      }
    }
    expect(row).toBe(9000);
  });

  test("messages are between 256 KiB and a little over 1 MiB, also of long texts", async () => {
    for (const sql of [
      "SELECT i, i * 2 AS j FROM range(500000) t(i)",
      "SELECT repeat('x', 9000) || i AS t FROM range(3000) t(i)",
    ]) {
      const { batches } = await stream(sql);
      for (const message of batches.slice(0, -1)) {
        expect(message.length).toBeGreaterThan(200 << 10);
        expect(message.length).toBeLessThan((1 << 20) + (64 << 10));
      }
    }
  });

  test("a message that is cut off or damaged is refused, never read beyond its end", async () => {
    const { batches, columns } = await stream("SELECT i, 'text ' || i AS t FROM range(100) t(i)");
    const [message] = batches;
    if (!message) throw new Error("no batch");
    const fields = ownArrowFields(columns);
    const { metadata } = splitMessage(message);
    for (let cut = 0; cut < message.length - 8; cut += 7) {
      expect(() => decodeArrowBatch(fields, message.subarray(0, cut))).toThrow(/Arrow/);
    }
    let refused = 0;
    for (let at = 8; at < 8 + metadata.length; at++) {
      const damaged = Buffer.from(message);
      damaged[at] = (damaged[at] ?? 0) ^ 0x55;
      try {
        expect(estimateBytes(decodeArrowBatch(fields, damaged))).toBeLessThan(1 << 20);
      } catch (error) {
        expect(String(error)).toMatch(/Arrow/);
        refused += 1;
      }
    }
    expect(refused).toBeGreaterThan(10);
  });
});

test("a reader of streams takes schema and batches one by one", async () => {
  const { bytes } = await stream("SELECT i FROM range(200000) t(i)");
  const reader = RecordBatchReader.from(bytes);
  let rows = 0;
  for (const batch of reader) {
    expect(batch.schema.fields[0]?.type).toBeInstanceOf(Int);
    rows += batch.numRows;
  }
  expect(rows).toBe(200_000);
});
