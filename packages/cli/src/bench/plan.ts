/**
 * What planning a filtered read costs: a table of many files with column bounds, each with a deletion
 * vector, in one manifest and in a hundred; filters on the partition column, on a sorted key and on a
 * text. Cold: nothing parsed yet (the files are in the system's cache). Warm: manifests parsed.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { applyUpdates } from "@spillway/lake/commit";
import { writeDeletionVectors } from "@spillway/lake/deletes/deletes";
import { createTableMetadata } from "@spillway/lake/metadata";
import type { DataFile, NestedField, PrimitiveType, TableMetadata } from "@spillway/lake/model";
import { PositionSet } from "@spillway/lake/puffin/position-set";
import { type Expr, ManifestCache, planScan } from "@spillway/lake/scan/scan";
import { stageSnapshot } from "@spillway/lake/snapshot/stage";
import { FileStore } from "@spillway/lake/store/file";
import { encodeValue } from "@spillway/lake/values";
import { atMost, type BenchReport, type BenchRun, median, report } from "./report.ts";

const COLD_RUNS = 5;
const WARM_RUNS = 15;
const DAY = 86_400_000_000n;
const FIRST_DAY = 18_000;
const FILES_PER_DAY = 10;
const ROWS = 1000;

const KINDS = ["long", "timestamptz", "string", "double"] as const;
const FIELDS: NestedField[] = Array.from({ length: 12 }, (_, i) => {
  const kind = KINDS[i % KINDS.length] ?? "long";
  return { id: i + 1, name: `c${i}`, required: false, type: { kind } };
});

/** The first or last value of a column in the file with the number: everything ascends with it. */
function bound(type: PrimitiveType, file: number, last: 0 | 1): Uint8Array {
  const day = BigInt(FIRST_DAY + Math.floor(file / FILES_PER_DAY));
  const within = BigInt((file % FILES_PER_DAY) + last) * (DAY / BigInt(FILES_PER_DAY)) - BigInt(last);
  if (type.kind === "timestamptz") return encodeValue(type, day * DAY + within);
  if (type.kind === "string") return encodeValue(type, `customer-${String(file).padStart(7, "0")}-${last}`);
  return encodeValue(type, type.kind === "double" ? file + last / 2 : BigInt(file * ROWS + last * (ROWS - 1)));
}

function dataFile(location: string, file: number): DataFile {
  const map = <T>(make: (field: NestedField) => T): Map<number, T> => new Map(FIELDS.map((f) => [f.id, make(f)]));
  return {
    content: "data",
    path: `${location}/data/${crypto.randomUUID()}.parquet`,
    format: "parquet",
    specId: 0,
    partition: [FIRST_DAY + Math.floor(file / FILES_PER_DAY)],
    recordCount: BigInt(ROWS),
    fileSizeBytes: 100_000n,
    columnSizes: map(() => 8000n),
    valueCounts: map(() => BigInt(ROWS)),
    nullValueCounts: map(() => 0n),
    nanValueCounts: new Map(FIELDS.filter((f) => f.type.kind === "double").map((f) => [f.id, 0n])),
    lowerBounds: map((f) => bound(f.type as PrimitiveType, file, 0)),
    upperBounds: map((f) => bound(f.type as PrimitiveType, file, 1)),
    splitOffsets: [4n],
  };
}

async function buildTable(store: FileStore, name: string, files: number, commits: number): Promise<TableMetadata> {
  let metadata = createTableMetadata({
    tableUuid: crypto.randomUUID(),
    location: `${store.root}/${name}`,
    schema: { schemaId: 0, fields: FIELDS },
    spec: { specId: 0, fields: [{ fieldId: 1000, sourceId: 2, name: "day", transform: { kind: "day" } }] },
    properties: { "commit.manifest-merge.enabled": "false", "commit.manifest.target-size-bytes": String(1 << 30) },
    nowMs: 1,
  });
  const all: DataFile[] = [];
  for (let commit = 0; commit < commits; commit++) {
    const from = Math.floor((files * commit) / commits);
    const to = Math.floor((files * (commit + 1)) / commits);
    const addDataFiles = Array.from({ length: to - from }, (_, i) => dataFile(metadata.location, from + i));
    const snapshotId = BigInt(commit + 1);
    const staged = await stageSnapshot({ metadata, store, operation: "append", snapshotId, nowMs: 1, addDataFiles });
    metadata = applyUpdates(metadata, staged.updates, 1);
    all.push(...addDataFiles);
  }
  const positions = new PositionSet([1, 5]);
  const deletes = all.map((one) => ({ dataFile: one, positions }));
  const addDeleteFiles = await writeDeletionVectors(store, `${metadata.location}/data`, deletes);
  const staged = await stageSnapshot({
    metadata,
    store,
    operation: "overwrite",
    snapshotId: 10n ** 18n,
    nowMs: 1,
    addDeleteFiles,
  });
  return applyUpdates(metadata, staged.updates, 1);
}

function filtersOf(files: number): Readonly<Record<string, Expr>> {
  const middle = files >> 1;
  const day = BigInt(FIRST_DAY + Math.floor(middle / FILES_PER_DAY));
  return {
    "key =": { op: "=", fieldId: 1, value: BigInt(middle * ROWS + 5) },
    "10 days": {
      op: "and",
      args: [
        { op: ">=", fieldId: 2, value: day * DAY },
        { op: "<", fieldId: 2, value: (day + 10n) * DAY },
      ],
    },
    "text =": { op: "=", fieldId: 3, value: `customer-${String(middle).padStart(7, "0")}-0` },
  };
}

const round = (ms: number): number => Math.round(ms * 10) / 10;

async function measure(store: FileStore, metadata: TableMetadata, filter: Expr) {
  const cold: number[] = [];
  const warm: number[] = [];
  const cpu: number[] = [];
  let tasks = 0;
  const time = async (cache: ManifestCache, into: number[]): Promise<void> => {
    const start = performance.now();
    ({ length: tasks } = (await planScan({ store, metadata, filter, cache })).tasks);
    into.push(performance.now() - start);
  };
  let cacheBytes = 0;
  for (let run = 0; run < COLD_RUNS; run++) {
    const cache = new ManifestCache();
    const before = process.cpuUsage();
    await time(cache, cold);
    const { user, system } = process.cpuUsage(before);
    cpu.push((user + system) / 1000);
    for (let again = 0; again < WARM_RUNS / COLD_RUNS; again++) await time(cache, warm);
    cacheBytes = cache.stats.bytes;
  }
  return {
    cold_ms: round(median(cold)),
    cold_cpu_ms: round(median(cpu)),
    warm_ms: round(median(warm)),
    tasks,
    cache_mb: Math.round(cacheBytes / 1e5) / 10,
  };
}

export async function run(bench: BenchRun): Promise<BenchReport> {
  const files = bench.option("files", 10_000);
  const base = mkdtempSync(join(tmpdir(), "spillway-bench-plan-"));
  const store = new FileStore({ root: base, fsync: false });
  const runs: (Awaited<ReturnType<typeof measure>> & { manifests: number; filter: string })[] = [];
  try {
    for (const manifests of [1, 100]) {
      bench.say(`building a table of ${files} files in ${manifests} manifests`);
      const metadata = await buildTable(store, `t${manifests}`, files, manifests);
      for (const [filter, expr] of Object.entries(filtersOf(files))) {
        bench.signal.throwIfAborted();
        runs.push({ manifests, filter, ...(await measure(store, metadata, expr)) });
      }
    }
  } finally {
    rmSync(base, { recursive: true, force: true });
  }
  const worst = (key: "cold_ms" | "warm_ms"): number => Math.max(...runs.map((one) => one[key]));
  const bars = { cold_ms: atMost(worst("cold_ms"), 300), warm_ms: atMost(worst("warm_ms"), 30) };
  return report("plan", bars, { files, runs });
}
