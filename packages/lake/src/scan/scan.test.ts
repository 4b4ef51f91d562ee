/** Pruning against brute force: random tables, random filters, every row evaluated one by one. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, test } from "vitest";
import { applyUpdates } from "../commit.ts";
import { createTableMetadata } from "../metadata.ts";
import type {
  DataFile,
  NestedField,
  PartitionSpec,
  PrimitiveType,
  PrimitiveValue,
  TableMetadata,
  Transform,
} from "../model.ts";
import { stageSnapshot } from "../snapshot/stage.ts";
import { FileStore } from "../store/file.ts";
import { applyTransform, canTransform } from "../transforms.ts";
import { compareBytes, encodeValue, truncateLower, truncateUpper } from "../values.ts";
import type { Expr } from "./expression.ts";
import { ManifestCache, planScan } from "./scan.ts";

const base = mkdtempSync(join(tmpdir(), "spillway-scan-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));
let tables = 0;

type Value = PrimitiveValue | null;
type Row = ReadonlyMap<number, Value>;

const TYPES: PrimitiveType[] = [
  { kind: "int" },
  { kind: "long" },
  { kind: "double" },
  { kind: "float" },
  { kind: "string" },
  { kind: "timestamptz" },
  { kind: "date" },
  { kind: "decimal", precision: 9, scale: 2 },
  { kind: "uuid" },
  { kind: "boolean" },
  { kind: "binary" },
  { kind: "timestamp_ns" },
];
const FIELDS: NestedField[] = TYPES.map((type, i) => ({ id: i + 1, name: `c${i + 1}`, required: false, type }));
const DAY = 86_400_000_000n;

function valueOf(type: PrimitiveType): fc.Arbitrary<PrimitiveValue> {
  const text = fc.constantFrom(
    "",
    "a",
    "ab",
    "abc",
    "abcd",
    "abd",
    "b",
    "é",
    "\u{1F600}",
    "\uFFFF",
    "x".repeat(20),
    `${"x".repeat(20)}y`,
  );
  const time = fc.oneof(
    fc.bigInt({ min: -40n, max: 40n }).map((days) => days * DAY),
    fc.bigInt({ min: -800n * DAY, max: 800n * DAY }),
    fc.constantFrom(-1n, 0n, 1n, DAY - 1n),
  );
  switch (type.kind) {
    case "int":
    case "date":
      return fc.oneof(fc.integer({ min: -12, max: 12 }), fc.integer({ min: -900, max: 900 }));
    case "long":
      return fc.oneof(fc.bigInt({ min: -12n, max: 12n }), fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }));
    case "double":
      return fc.constantFrom(-Infinity, -1.5, -0, 0, 0.1, 1, 2.5, Infinity, Number.NaN);
    case "float":
      return fc.constantFrom(-Infinity, -1.5, -0, 0, Math.fround(0.1), 1, Infinity, Number.NaN);
    case "string":
      return text;
    case "decimal":
      return fc.bigInt({ min: -30n, max: 30n });
    case "uuid":
      return fc.constantFrom(0, 1, 127, 128, 255).map((byte) => new Uint8Array(16).fill(byte));
    case "boolean":
      return fc.boolean();
    case "binary":
      return fc.constantFrom([], [0], [1, 2], [1, 2, 3], [255], [255, 255], [128]).map((list) => Uint8Array.from(list));
    case "timestamp_ns":
      return time.map((micros) => micros * 1000n);
    default:
      return time;
  }
}

const literalOf = (type: PrimitiveType): fc.Arbitrary<PrimitiveValue> =>
  type.kind === "float" ? fc.oneof(valueOf(type), fc.constant(0.1)) : valueOf(type);

const rowOf: fc.Arbitrary<Row> = fc
  .tuple(...FIELDS.map((field) => fc.option(valueOf(field.type as PrimitiveType), { freq: 6 })))
  .map((values) => new Map(values.map((value, i) => [i + 1, value as Value])));

const predicateOn = (fields: readonly NestedField[]): fc.Arbitrary<Expr> =>
  fc.constantFrom(...fields).chain(({ id: fieldId, type: columnType }) => {
    const type = columnType as PrimitiveType;
    const literal = literalOf(type);
    const compare = fc.tuple(fc.constantFrom("=", "!=", "<", "<=", ">", ">=") as fc.Arbitrary<"=">, literal);
    const choices: fc.Arbitrary<Expr>[] = [
      compare.map(([op, value]) => ({ op, fieldId, value })),
      compare.map(([op, value]) => ({ op, fieldId, value })),
      fc.array(literal, { maxLength: 3 }).map((values) => ({ op: "in", fieldId, values })),
      fc.constantFrom("is-null", "is-nan").map((op) => ({ op, fieldId }) as Expr),
    ];
    if (type.kind === "string")
      choices.push(
        fc.constantFrom("", "a", "ab", "abcd", "x", "é").map((value) => ({ op: "starts-with", fieldId, value })),
      );
    return fc.oneof(...choices);
  });
const filterOn = (fields: readonly NestedField[]): fc.Arbitrary<Expr> =>
  fc.letrec<{ expr: Expr }>((tie) => ({
    expr: fc.oneof(
      { depthSize: "small", withCrossShrink: true },
      predicateOn(fields),
      fc.array(tie("expr"), { maxLength: 3 }).map((args) => ({ op: "and", args }) as Expr),
      fc.array(tie("expr"), { maxLength: 3 }).map((args) => ({ op: "or", args }) as Expr),
      tie("expr").map((arg) => ({ op: "not", arg }) as Expr),
    ),
  })).expr;

const TRANSFORMS: Transform[] = [
  ...(["identity", "year", "month", "day", "hour", "void"] as const).map((kind) => ({ kind })),
  { kind: "bucket", buckets: 3 },
  { kind: "truncate", width: 3 },
];
const specOf: fc.Arbitrary<PartitionSpec> = fc
  .uniqueArray(fc.tuple(fc.constantFrom(...FIELDS), fc.constantFrom(...TRANSFORMS)), {
    maxLength: 2,
    selector: ([field, transform]) => `${field.id} ${transform.kind}`,
  })
  .map((pairs) => pairs.filter(([field, transform]) => canTransform(transform, field.type as PrimitiveType)))
  .map((pairs) => ({
    specId: 0,
    fields: pairs.map(([field, transform], i) => ({ fieldId: 1000 + i, sourceId: field.id, name: `p${i}`, transform })),
  }));

/** The oracle's order, written apart from the code under test. `ieee`: NaN is unordered; else the greatest. */
function order(type: PrimitiveType, a: PrimitiveValue, b: PrimitiveValue): number {
  if (type.kind === "string") return Buffer.compare(Buffer.from(a as string), Buffer.from(b as string));
  if (a instanceof Uint8Array) return compareBytes(a, b as Uint8Array);
  if (Number.isNaN(a) || Number.isNaN(b)) return Number(Number.isNaN(a)) - Number(Number.isNaN(b));
  return a < b ? -1 : a > b ? 1 : 0;
}

/** True, false or null (unknown), row by row. `rounded`: a float's literal is rounded to a float first. */
function holds(expr: Expr, row: Row, rounded: boolean): boolean | null {
  switch (expr.op) {
    case "true":
      return true;
    case "false":
      return false;
    case "and":
    case "or": {
      const ends = expr.op === "or";
      const results = new Set(expr.args.map((arg) => holds(arg, row, rounded)));
      return results.has(ends) ? ends : results.has(null) ? null : !ends;
    }
    case "not": {
      const result = holds(expr.arg, row, rounded);
      return result === null ? null : !result;
    }
    default:
      return holdsFor(expr, row.get(expr.fieldId) ?? null, FIELDS[expr.fieldId - 1]?.type as PrimitiveType, rounded);
  }
}

function holdsFor(
  expr: Exclude<Expr, { op: "true" | "false" | "and" | "or" | "not" }>,
  value: Value,
  type: PrimitiveType,
  rounded: boolean,
): boolean | null {
  if (expr.op === "is-null") return value === null;
  if (expr.op === "not-null") return value !== null;
  if (value === null) return null;
  if (expr.op === "is-nan") return Number.isNaN(value);
  if (expr.op === "not-nan") return !Number.isNaN(value);
  const fit = (literal: PrimitiveValue): PrimitiveValue =>
    rounded && type.kind === "float" ? Math.fround(literal as number) : literal;
  const is = (literal: PrimitiveValue): number => order(type, value, fit(literal));
  if (expr.op === "in" || expr.op === "not-in") return expr.values.some((one) => is(one) === 0) === (expr.op === "in");
  if (expr.op === "starts-with") return (value as string).startsWith(expr.value);
  if (expr.op === "not-starts-with") return !(value as string).startsWith(expr.value);
  const by = "value" in expr ? is(expr.value) : 0;
  return { "=": by === 0, "!=": by !== 0, "<": by < 0, "<=": by <= 0, ">": by > 0, ">=": by >= 0 }[expr.op];
}

interface TestFile {
  readonly rows: readonly Row[];
  readonly file: DataFile;
}

/** A file's metrics from its rows; `known` says which kinds of metrics its writer gave. */
function fileOf(path: string, partition: Value[], rows: readonly Row[], known: number, bound: number): TestFile {
  const of = (id: number): PrimitiveValue[] => rows.flatMap((row) => row.get(id) ?? []);
  const perField = <T>(bit: number, make: (field: NestedField) => T | undefined): Map<number, T> | undefined =>
    (known & bit) === 0
      ? undefined
      : new Map(
          FIELDS.flatMap((field) => [[field.id, make(field)] as const]).filter(
            (e): e is [number, T] => e[1] !== undefined,
          ),
        );
  const boundOf = (field: NestedField, last: boolean): Uint8Array | undefined => {
    const type = field.type as PrimitiveType;
    const values = of(field.id).filter((value) => !Number.isNaN(value));
    const sorted = values.toSorted((a, b) => order(type, a, b));
    const end = last ? sorted.at(-1) : sorted[0];
    if (end === undefined) return undefined;
    const cut = last ? truncateUpper(type, end, bound) : truncateLower(type, end, bound);
    return cut === undefined ? undefined : encodeValue(type, cut);
  };
  const isFloat = (field: NestedField): boolean => field.type.kind === "float" || field.type.kind === "double";
  return {
    rows,
    file: {
      content: "data",
      path,
      format: "parquet",
      specId: 0,
      partition,
      recordCount: BigInt(rows.length),
      fileSizeBytes: BigInt(rows.length * 100),
      valueCounts: perField(1, () => BigInt(rows.length)),
      nullValueCounts: perField(2, ({ id }) => BigInt(rows.length - of(id).length)),
      nanValueCounts: perField(4, (field) =>
        isFloat(field) ? BigInt(of(field.id).filter(Number.isNaN).length) : undefined,
      ),
      lowerBounds: perField(8, (field) => boundOf(field, false)),
      upperBounds: perField(16, (field) => boundOf(field, true)),
    },
  };
}

async function buildTable(
  spec: PartitionSpec,
  batches: readonly { rows: readonly Row[]; known: number; bound: number }[],
): Promise<{ store: FileStore; metadata: TableMetadata; files: Map<string, TestFile> }> {
  const store = new FileStore({ root: join(base, String(tables++)), fsync: false });
  const location = `${store.root}/t`;
  let metadata = createTableMetadata({
    tableUuid: crypto.randomUUID(),
    location,
    schema: { schemaId: 0, fields: FIELDS },
    spec,
    nowMs: 1,
  });
  const files = new Map<string, TestFile>();
  for (const [b, batch] of batches.entries()) {
    const groups = new Map<string, { tuple: Value[]; rows: Row[] }>();
    for (const row of batch.rows) {
      const tuple = spec.fields.map(({ sourceId, transform }) =>
        applyTransform(transform, FIELDS[sourceId - 1]?.type as PrimitiveType, row.get(sourceId) ?? null),
      );
      const key = tuple
        .map((v) => (v instanceof Uint8Array ? Buffer.from(v).toString("hex") : Object.is(v, -0) ? "-0" : String(v)))
        .join("|");
      const group = groups.get(key) ?? { tuple, rows: [] };
      group.rows.push(row);
      groups.set(key, group);
    }
    const added = [...groups.values()].map(({ tuple, rows }, g) =>
      fileOf(`${location}/data/${b}-${g}.parquet`, tuple, rows, batch.known, batch.bound),
    );
    for (const one of added) files.set(one.file.path, one);
    const staged = await stageSnapshot({
      metadata,
      store,
      operation: "append",
      snapshotId: BigInt(b + 1),
      nowMs: 1,
      addDataFiles: added.map((one) => one.file),
    });
    metadata = applyUpdates(metadata, staged.updates, 2);
  }
  return { store, metadata, files };
}

describe("planScan", () => {
  const batch = fc.record({
    rows: fc.array(rowOf, { minLength: 1, maxLength: 5 }),
    known: fc.oneof({ weight: 3, arbitrary: fc.constant(31) }, { weight: 1, arbitrary: fc.nat({ max: 31 }) }),
    bound: fc.constantFrom(2, 16),
  });
  /** Filters mostly on what the table is partitioned by: there the interesting decisions are. */
  const scenario = specOf.chain((spec) => {
    const sources = FIELDS.filter(({ id }) => spec.fields.some((field) => field.sourceId === id));
    const filter = fc.oneof(
      filterOn(FIELDS),
      predicateOn(FIELDS),
      ...(sources.length > 0 ? [predicateOn(sources), filterOn(sources)] : []),
    );
    return fc.record({
      spec: fc.constant(spec),
      batches: fc.array(batch, { minLength: 1, maxLength: 4 }),
      filters: fc.array(filter, { minLength: 30, maxLength: 30 }),
    });
  });

  test("never drops a row that matches; residuals keep the filter's meaning", async () => {
    let skipped = 0;
    let trueResiduals = 0;
    await fc.assert(
      fc.asyncProperty(scenario, async ({ spec, batches, filters }) => {
        const { store, metadata, files } = await buildTable(spec, batches);
        const cache = new ManifestCache();
        for (const filter of filters) {
          const { tasks, stats } = await planScan({ store, metadata, filter, cache });
          const residuals = new Map(tasks.map((task) => [task.dataFile.path, task.residual]));
          for (const rounded of [false, true]) {
            for (const [path, { rows }] of files) {
              const residual = residuals.get(path) ?? { op: "false" };
              const got = rows.filter((row) => holds(residual as Expr, row, rounded) === true);
              const wanted = rows.filter((row) => holds(filter, row, rounded) === true);
              expect(got, `${path} ${JSON.stringify(residual, bigint)}`).toEqual(wanted);
            }
          }
          expect(stats.filesConsidered).toBe(files.size);
          expect(stats.filesSkipped).toBe(files.size - tasks.length);
          expect(stats.rowsConsidered).toBe([...files.values()].reduce((sum, { rows }) => sum + rows.length, 0));
          skipped += stats.filesSkipped;
          trueResiduals += tasks.filter((task) => task.residual.op === "true").length;
        }
      }),
      { numRuns: 200 },
    );
    expect(skipped).toBeGreaterThan(500);
    expect(trueResiduals).toBeGreaterThan(100);
  }, 120_000);

  const bigint = (_: string, value: unknown): unknown => (typeof value === "bigint" ? `${value}n` : value);
});
