/** What pyiceberg writes, read by us: metadata, manifests, planning; and tables that both write in turn. */
import { describe, expect, test } from "vitest";
import type { Canonical, CanonicalRow, ForeignRows } from "@spillway/testkit/interop/foreign";
import { interopBench, READERS } from "@spillway/testkit/interop/bench";
import { applyUpdates } from "./commit.ts";
import { DeleteLoader, writePositionDeletes } from "./deletes/deletes.ts";
import { currentSchema, readMetadata, writeMetadata } from "./metadata.ts";
import { metadataToJson } from "./metadata-json.ts";
import type { Schema, TableMetadata } from "./model.ts";
import { PositionSet } from "./puffin/position-set.ts";
import type { Expr } from "./scan/expression.ts";
import { planScan, type ScanPlan, snapshotIdOfRef } from "./scan/scan.ts";
import { stageSnapshot } from "./snapshot/stage.ts";

const bench = interopBench();
let roots = 0;

interface State extends ForeignRows {
  readonly name: string;
  readonly metadata: string;
  readonly snapshot: string;
  readonly filtered: readonly (ForeignRows & { readonly filter: string; readonly files: number })[];
}

const states = (name: string): Promise<State[]> => {
  const root = `${bench.store.root}/foreign${roots++}`.replace("file://", "");
  return bench.foreign.ask<State[]>({ op: "scenario", name, root });
};

interface ParquetRows extends ForeignRows {
  readonly ids: readonly number[];
}

/** The rows of each task, columns by field id, deleted ones left out. */
async function rowsOf({ tasks }: Pick<ScanPlan, "tasks">, schema: Schema): Promise<string[][]> {
  const deletes = await new DeleteLoader(bench.store).load(tasks.flatMap((task) => task.deletes));
  const groups: string[][] = [];
  for (const { dataFile } of tasks) {
    const path = dataFile.path.replace("file://", "");
    const { ids, rows } = await bench.foreign.ask<ParquetRows>({ op: "read-parquet", path });
    expect(BigInt(rows.length)).toBe(dataFile.recordCount);
    const order = schema.fields.map((field) => ids.indexOf(field.id));
    const pick = (row: CanonicalRow): Canonical[] => order.map((at) => row[at] ?? null);
    const live = rows.filter((_, i) => deletes.get(dataFile.path)?.has(i) !== true);
    groups.push(live.map((row) => JSON.stringify(pick(row))));
  }
  return groups;
}

const sorted = (rows: ForeignRows): string[] => rows.rows.map((row) => JSON.stringify(row)).toSorted();
const DAY = 86_400_000_000n;
const v = (op: "=" | "<" | ">" | ">=", value: string | number | bigint): Expr => ({ op, fieldId: 1, value });

/** The filters of the scenarios, in our form. */
const FILTERS: Readonly<Record<string, Readonly<Record<string, Expr>>>> = {
  "all types": {},
  nested: {},
  rewritten: {
    "id = 150": v("=", 150),
    "id < 10": v("<", 10),
    "id < 60": v("<", 60),
    "v = 'v205'": { op: "=", fieldId: 2, value: "v205" },
  },
  evolved: { "id > 2": v(">", 2), "id = 1": v("=", 1), "id = 7": v("=", 7) },
  "partitioned identity": {
    "v = 'a'": v("=", "a"),
    "v > 'a'": v(">", "a"),
    "v is null": { op: "is-null", fieldId: 1 },
  },
  "partitioned bucket[4]": {
    "v = 34": v("=", 34n),
    "v in (0, -5)": { op: "in", fieldId: 1, values: [0n, -5n] },
    "v is null": { op: "is-null", fieldId: 1 },
  },
  "partitioned truncate[10]": {
    "v = 9": v("=", 9),
    "v < 0": v("<", 0),
    "v >= 10": v(">=", 10),
    "v is not null": { op: "not-null", fieldId: 1 },
  },
  "partitioned truncate[2]": { "v = 'abc'": v("=", "abc"), "v < 'b'": v("<", "b") },
  "partitioned year": { "v = '1970-01-01'": v("=", 0), "v < '1970-01-01'": v("<", 0) },
  "partitioned month": { "v >= '1970-02-01T00:00:00'": v(">=", 31n * DAY) },
  "partitioned day": { "v < '1970-01-02T00:00:00+00:00'": v("<", DAY) },
  "partitioned hour": { "v = '1970-01-01T01:00:00'": v("=", DAY / 24n) },
};

describe("tables of pyiceberg", () => {
  test.each(Object.entries(FILTERS))("%s", async (name, filters) => {
    const { store } = bench;
    const seen = new Set<string>();
    for (const state of await states(name)) {
      const metadata = await readMetadata(store, state.metadata);
      const schema = currentSchema(metadata);
      expect(schema.fields.map((field) => field.name)).toEqual(state.names);
      expect(String(metadata.currentSnapshotId ?? "None")).toBe(state.snapshot);
      const everything = await rowsOf(await planScan({ store, metadata }), schema);
      expect(everything.flat().toSorted(), state.name).toEqual(sorted(state));
      for (const wanted of state.filtered) {
        seen.add(wanted.filter);
        const filter = filters[wanted.filter];
        if (!filter) throw new Error(`no filter for ${wanted.filter}`);
        const plan = await planScan({ store, metadata, filter });
        const matching = new Set(sorted(wanted));
        const groups = await rowsOf(plan, schema);
        const found = new Set(groups.flat());
        expect(
          [...matching].filter((row) => !found.has(row)),
          `${wanted.filter} lost rows`,
        ).toEqual([]);
        // No worse than pyiceberg at skipping; and what needs no check has only matching rows.
        expect(plan.tasks.length, wanted.filter).toBeLessThanOrEqual(wanted.files);
        plan.tasks.forEach((task, i) => {
          if (task.residual.op === "true") expect(groups[i]?.filter((row) => !matching.has(row))).toEqual([]);
        });
      }
    }
    expect([...seen].toSorted()).toEqual(Object.keys(filters).toSorted());
  });

  test("refs, and every older snapshot, as pyiceberg read them then", async () => {
    const { store } = bench;
    const all = await states("rewritten");
    const last = all.at(-1);
    if (!last) throw new Error("states");
    const metadata = await readMetadata(store, last.metadata);
    for (const state of all) {
      const plan = await planScan({ store, metadata, snapshotId: BigInt(state.snapshot) });
      expect((await rowsOf(plan, currentSchema(metadata))).flat().toSorted(), state.name).toEqual(sorted(state));
    }
    expect(snapshotIdOfRef(metadata, "first")).toBe(BigInt(all[0]?.snapshot ?? 0));
    expect(snapshotIdOfRef(metadata, "audit")).toBe(BigInt(all[1]?.snapshot ?? 0));
    expect(metadata.refs["first"]?.type).toBe("tag");
    expect(metadata.refs["audit"]?.type).toBe("branch");
  });

  test("metadata is not changed by reading and printing it", async () => {
    const { store } = bench;
    const [, last] = await states("evolved");
    const { parseMetadata, printMetadata } = await import("./metadata-json.ts");
    const metadata = await readMetadata(store, last?.metadata ?? "");
    expect(metadataToJson(parseMetadata(printMetadata(metadata)))).toEqual(metadataToJson(metadata));
  });
});

describe.each(READERS)("a table of pyiceberg that we go on writing, %s", (reader) => {
  test("position deletes, an append, files removed", async () => {
    const { store, foreign } = bench;
    const [first] = await states("rewritten");
    if (!first) throw new Error("a state");
    let metadata: TableMetadata = await readMetadata(store, first.metadata);
    const { tasks } = await planScan({ store, metadata });
    const expected = new Set(sorted(first));
    const [a, b] = tasks.map((task) => task.dataFile);
    if (!a || !b) throw new Error("three files");

    const positions = new PositionSet([0, 50, 99]);
    const deletes = await writePositionDeletes(store, `${metadata.location}/data`, [{ dataFile: a, positions }]);
    const [inA, inB] = await rowsOf({ tasks }, currentSchema(metadata));
    for (const position of positions) expected.delete(inA?.[position] ?? "");
    for (const row of inB ?? []) expected.delete(row);

    const path = `${metadata.location}/data/ours.parquet`;
    const rows: CanonicalRow[] = [
      ["1000", "ours"],
      [null, null],
    ];
    const size = await foreign.writeParquet(path, currentSchema(metadata), rows);
    for (const row of rows) expected.add(JSON.stringify(row));
    const ours = {
      content: "data",
      path,
      format: "parquet",
      specId: 0,
      partition: [],
      recordCount: 2n,
      fileSizeBytes: size,
    } as const;
    const staged = await stageSnapshot({
      metadata,
      store,
      operation: "overwrite",
      snapshotId: 2n ** 62n + 7n,
      nowMs: metadata.lastUpdatedMs + 1,
      addDataFiles: [ours],
      addDeleteFiles: deletes,
      removeDataFiles: [b],
    });
    metadata = applyUpdates(metadata, staged.updates, metadata.lastUpdatedMs + 1, {
      previousMetadataLocation: first.metadata,
    });
    const location = await writeMetadata(store, metadata, { version: 9, uuid: crypto.randomUUID() });
    expect(sorted(await foreign.read(reader, location))).toEqual([...expected].toSorted());
    expect(sorted(await foreign.read(reader, location, { snapshot: BigInt(first.snapshot) }))).toEqual(sorted(first));
  });
});
