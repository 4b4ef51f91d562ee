/**
 * What we write, read by pyiceberg and by DuckDB's Iceberg extension, value by value. Where a reader
 * cannot do something, the test says so with the reader's own words, and fails once it can.
 */
import { describe, expect, test } from "vitest";
import type { Reader } from "@spillway/testkit/interop/foreign";
import { type CellValue, hexDouble, type Row } from "@spillway/testkit/interop/lake-table";
import {
  bytes,
  COMBINATIONS,
  DAY,
  field,
  interopBench,
  NS_SAMPLES,
  row,
  SAMPLES,
} from "@spillway/testkit/interop/bench";
import type { NestedField, PartitionSpec, PrimitiveType, Transform } from "./model.ts";

const bench = interopBench();

const print = (type: PrimitiveType): string => JSON.stringify(type).replace(/[{}"]|kind:/g, "");

describe.each(COMBINATIONS)("types, v%i, %s", (formatVersion, reader) => {
  const samples = formatVersion === 3 ? [...SAMPLES, ...NS_SAMPLES] : SAMPLES;
  test.each(samples.map(([type, values]) => [print(type), type, values] as const))("%s", async (_, type, values) => {
    const lake = bench.table({ formatVersion, fields: [field(1, "v", type), field(2, "id", { kind: "int" }, true)] });
    await lake.append([...values, null].map((value, i) => row(value, i)));
    const refused = reader === "duckdb" && type.kind === "timestamptz_ns";
    await bench.check(reader, lake, refused ? /Unrecognized primitive type: timestamptz_ns/ : undefined);
  });

  test("nested types", async () => {
    const fields: NestedField[] = [
      field(1, "id", { kind: "int" }, true),
      field(2, "s", { kind: "struct", fields: [field(5, "a", { kind: "int" }), field(6, "b", { kind: "string" })] }),
      field(3, "l", { kind: "list", elementId: 7, elementRequired: false, element: { kind: "long" } }),
      field(4, "m", {
        kind: "map",
        keyId: 8,
        key: { kind: "string" },
        valueId: 9,
        valueRequired: false,
        value: { kind: "list", elementId: 10, elementRequired: false, element: { kind: "double" } },
      }),
    ];
    const lake = bench.table({ formatVersion, fields });
    await lake.append([
      row(1, ["7", "x"], ["1", null, "9223372036854775807"], [["k", [hexDouble(1.5), null]]]),
      row(2, [null, null], [], []),
      row(3, null, null, null),
    ]);
    await bench.check(reader, lake);
  });
});

const SPECS: readonly (readonly [Transform, PrimitiveType, readonly CellValue[]])[] = [
  [{ kind: "identity" }, { kind: "int" }, [1, 2, -3]],
  [{ kind: "identity" }, { kind: "string" }, ["a/b=c%", "", "ü"]],
  [{ kind: "identity" }, { kind: "decimal", precision: 9, scale: 2 }, [1n, -150n]],
  [{ kind: "identity" }, { kind: "date" }, [0, -400, 20_000]],
  [{ kind: "identity" }, { kind: "boolean" }, [true, false]],
  [{ kind: "identity" }, { kind: "uuid" }, [new Uint8Array(16).fill(7), new Uint8Array(16).fill(200)]],
  [{ kind: "bucket", buckets: 4 }, { kind: "int" }, [0, 1, 2, -5, 34]],
  [{ kind: "bucket", buckets: 4 }, { kind: "long" }, [0n, 34n, -(2n ** 60n)]],
  [{ kind: "bucket", buckets: 4 }, { kind: "string" }, ["", "iceberg", "ü"]],
  [{ kind: "bucket", buckets: 4 }, { kind: "decimal", precision: 9, scale: 2 }, [1420n, -1n, 0n]],
  [{ kind: "bucket", buckets: 4 }, { kind: "date" }, [17_486, -1]],
  [{ kind: "bucket", buckets: 4 }, { kind: "timestamptz" }, [1_510_871_468_000_000n, -1n]],
  [{ kind: "bucket", buckets: 4 }, { kind: "uuid" }, [new Uint8Array(16).fill(7), new Uint8Array(16).fill(200)]],
  [{ kind: "bucket", buckets: 4 }, { kind: "binary" }, [bytes(0, 1, 2, 3), bytes()]],
  [{ kind: "truncate", width: 10 }, { kind: "int" }, [0, 9, 10, -1, -10, -11]],
  [{ kind: "truncate", width: 10 }, { kind: "long" }, [0n, 19n, -1n]],
  [{ kind: "truncate", width: 3 }, { kind: "string" }, ["abc", "abcd", "ab", "\u{1F600}\u{1F600}\u{1F600}x"]],
  [{ kind: "truncate", width: 50 }, { kind: "decimal", precision: 9, scale: 2 }, [1065n, -1065n]],
  [{ kind: "year" }, { kind: "date" }, [0, 364, 365, -1, 20_000]],
  [{ kind: "month" }, { kind: "date" }, [0, 30, 31, -1, 20_000]],
  [{ kind: "day" }, { kind: "date" }, [0, 1, -1]],
  [{ kind: "year" }, { kind: "timestamptz" }, [0n, -1n, 400n * DAY]],
  [{ kind: "month" }, { kind: "timestamp" }, [0n, -1n, 31n * DAY]],
  [{ kind: "day" }, { kind: "timestamptz" }, [0n, -1n, DAY - 1n, DAY]],
  [{ kind: "hour" }, { kind: "timestamp" }, [0n, -1n, 3_600_000_000n]],
  [{ kind: "void" }, { kind: "int" }, [1, 2]],
];

/** The value in each reader's SQL. */
function literal(reader: Reader, type: PrimitiveType, value: CellValue): string | null {
  const text = (): string => `'${String(value).replaceAll("'", "''")}'`;
  const stamp = (micros: bigint): string => new Date(Number(micros / 1000n)).toISOString().slice(0, 19);
  switch (type.kind) {
    case "int":
    case "long":
    case "boolean":
      return String(value);
    case "string":
      return text();
    case "date":
      return `${reader === "duckdb" ? "DATE " : ""}'${stamp(BigInt(value as number) * DAY).slice(0, 10)}'`;
    case "timestamp":
    case "timestamptz": {
      if ((value as bigint) % 1_000_000n !== 0n) return null;
      const zone = type.kind === "timestamptz" ? "+00:00" : "";
      return `${reader === "duckdb" ? `${type.kind.toUpperCase()} ` : ""}'${stamp(value as bigint)}${zone}'`;
    }
    default:
      return null;
  }
}

describe.each(COMBINATIONS)("transforms, v%i, %s", (formatVersion, reader) => {
  const named = SPECS.map(
    ([transform, type, values]) => [`${JSON.stringify(transform)} ${print(type)}`, transform, type, values] as const,
  );
  test.each(named)("%s", async (_, transform, type, values) => {
    const spec = { specId: 0, fields: [{ fieldId: 1000, sourceId: 1, name: "part", transform }] };
    const lake = bench.table({
      formatVersion,
      spec,
      fields: [field(1, "v", type), field(2, "id", { kind: "int" }, true)],
    });
    await lake.append([...values, null].map((value, i) => row(value, i)));
    await bench.check(reader, lake);
    const metadata = await lake.publish();
    for (const [i, value] of values.entries()) {
      // The readers prune by our partition values and bounds: a wrong one loses the row.
      const text = literal(reader, type, value);
      if (text === null) continue;
      const found = await bench.foreign.read(reader, metadata, { where: `v = ${text}` });
      expect(lake.received(found), `v = ${text}`).toEqual(lake.expected((r) => r.get(2) === i));
    }
    const nulls = await bench.foreign.read(reader, metadata, { where: "v IS NULL" });
    expect(lake.received(nulls)).toEqual(lake.expected((r) => r.get(1) === null));
  });

  test("several fields, and rows before and after the spec changed", async () => {
    const spec: PartitionSpec = {
      specId: 0,
      fields: [
        { fieldId: 1000, sourceId: 1, name: "a_bucket", transform: { kind: "bucket", buckets: 2 } },
        { fieldId: 1001, sourceId: 2, name: "b", transform: { kind: "identity" } },
      ],
    };
    const fields = [field(1, "a", { kind: "long" }), field(2, "b", { kind: "string" })];
    const lake = bench.table({ formatVersion, spec, fields });
    await lake.append([row(1n, "x"), row(2n, "y"), row(3n, "x")]);
    lake.apply(
      {
        action: "add-spec",
        spec: {
          specId: 1,
          fields: [{ fieldId: 1002, sourceId: 1, name: "a_trunc", transform: { kind: "truncate", width: 2 } }],
        },
      },
      { action: "set-default-spec", specId: -1 },
    );
    await lake.append([row(4n, "x"), row(5n, null)]);
    await bench.check(reader, lake);
    const some = await bench.foreign.read(reader, await lake.publish(), { where: "a >= 3 AND b = 'x'" });
    expect(lake.received(some)).toEqual(lake.expected((r) => (r.get(1) as bigint) >= 3n && r.get(2) === "x"));
  });
});

describe.each(COMBINATIONS)("deletes, v%i, %s", (formatVersion, reader) => {
  const fields = [field(1, "id", { kind: "int" }, true), field(2, "g", { kind: "string" })];
  const spec: PartitionSpec = {
    specId: 0,
    fields: [{ fieldId: 1000, sourceId: 2, name: "g", transform: { kind: "identity" } }],
  };

  test("deleted twice, appended between, in two partitions", async () => {
    const lake = bench.table({ formatVersion, fields, spec });
    const rows = (from: number, to: number): Row[] =>
      Array.from({ length: to - from }, (_, i) => row(from + i, (from + i) % 2 ? "x" : "y"));
    await lake.append(rows(0, 3000));
    await lake.delete((r) => (r.get(1) as number) % 5 === 0);
    await bench.check(reader, lake);
    await lake.append(rows(3000, 3100));
    await lake.delete((r) => (r.get(1) as number) > 2500 || r.get(1) === 3);
    await bench.check(reader, lake);
    await lake.delete(() => true);
    await bench.check(reader, lake);
  });

  test("a run of deletes, beyond 65536 rows", async () => {
    const lake = bench.table({ formatVersion, fields: fields.slice(0, 1) });
    await lake.append(Array.from({ length: 150_000 }, (_, i) => row(i)));
    await lake.delete((r) => (r.get(1) as number) >= 60_000 && (r.get(1) as number) < 149_000);
    await lake.delete((r) => (r.get(1) as number) % 7 === 0);
    await bench.check(reader, lake);
  });
});
