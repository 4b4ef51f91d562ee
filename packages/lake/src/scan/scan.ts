/**
 * Scan planning: from a snapshot and a filter to the data files that may hold matching rows, each
 * with its deletes and with what of the filter is left to check.
 */
import { must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import { limiter } from "../limiter.ts";
import type { ManifestContext } from "../manifest.ts";
import type { DataFile, ManifestFile, Schema, Snapshot, TableMetadata } from "../model.ts";
import { partitionTypesOf, specById } from "../partition.ts";
import type { ObjectStore } from "../store/store.ts";
import { DeleteIndex } from "./delete-index.ts";
import { type Facts, type FactsOf, reduce, withHashes } from "./evaluate.ts";
import { bind, type BoundExpr, type Expr, TRUE } from "./expression.ts";
import { factsOfSummary, factsOfValue, type PartitionColumn, partitionColumns } from "./facts.ts";
import { ManifestCache } from "./manifest-cache.ts";
import type { ManifestTable, MetricColumn } from "./manifest-table.ts";

export { ManifestCache } from "./manifest-cache.ts";
export { and, type Expr, FALSE, or, TRUE, withoutNot } from "./expression.ts";

const DEFAULT_PARALLEL = 16;

export interface ScanRequest {
  readonly store: ObjectStore;
  readonly metadata: TableMetadata;
  /** Default: the current snapshot. */
  readonly snapshotId?: bigint;
  /** Default: every row. */
  readonly filter?: Expr;
  /** Shared between scans; default: none kept. */
  readonly cache?: ManifestCache;
  /** How many manifests are fetched at once. Default 16. */
  readonly parallel?: number;
}

export interface ScanTask {
  /** Without column metrics. */
  readonly dataFile: DataFile;
  readonly sequenceNumber: bigint;
  /** One deletion vector, or any number of position delete files. */
  readonly deletes: readonly DataFile[];
  /** What of the filter the file's rows must still be checked for; `TRUE` if every row matches. */
  readonly residual: Expr;
}

/** Files, rows: of the whole snapshot. Bytes: of the files in manifests that were not skipped. */
export interface ScanStats {
  readonly manifestsConsidered: number;
  readonly manifestsSkipped: number;
  readonly filesConsidered: number;
  readonly filesSkipped: number;
  readonly rowsConsidered: number;
  readonly rowsSkipped: number;
  readonly bytesConsidered: number;
  readonly bytesSkipped: number;
  readonly deleteManifests: number;
  readonly deleteFiles: number;
}

export interface ScanPlan {
  /** Undefined for a table that has no snapshot yet: then there are no tasks. */
  readonly snapshot: Snapshot | undefined;
  readonly tasks: readonly ScanTask[];
  readonly stats: ScanStats;
}

/**
 * Errors: `lake_snapshot_unknown`, `lake_expression_invalid`, `equality_deletes_unsupported`, and
 * those of the store and of corrupt manifests.
 */
export async function planScan(request: ScanRequest): Promise<ScanPlan> {
  const { store, metadata } = request;
  const cache = request.cache ?? new ManifestCache();
  const snapshot = snapshotOf(metadata, request.snapshotId);
  const planner = new Planner(metadata, request.filter ?? TRUE);
  if (snapshot === undefined) return { snapshot, tasks: [], stats: planner.stats(0) };
  const lines = await cache.list(store, snapshot.manifestList);
  const live = lines.filter((line) => line.addedFilesCount + line.existingFilesCount > 0);
  const kept = live.filter((line) => planner.keepsManifest(line));
  const limit = limiter(request.parallel ?? DEFAULT_PARALLEL);
  const deletes = kept.filter((line) => line.content === "deletes");
  const data = kept.filter((line) => line.content === "data");
  const [entries, tables] = await Promise.all([
    Promise.all(deletes.map((line) => limit(() => cache.deletes(store, line, () => planner.context(line))))),
    Promise.all(data.map((line) => limit(() => cache.data(store, line, () => planner.context(line))))),
  ]);
  const index = new DeleteIndex(entries.flat(), metadata.partitionSpecs);
  const tasks: ScanTask[] = [];
  tables.forEach((table, i) => planner.planTable(table, must(data[i], "manifest"), index, tasks));
  return { snapshot, tasks, stats: planner.stats(deletes.length) };
}

/** The snapshot of a branch or tag. Throws `lake_snapshot_unknown`. */
export function snapshotIdOfRef(metadata: TableMetadata, name: string): bigint {
  const ref = metadata.refs[name];
  if (ref) return ref.snapshotId;
  throw new SpillwayError("lake_snapshot_unknown", `The table has no branch or tag ${JSON.stringify(name)}.`);
}

function snapshotOf(metadata: TableMetadata, wanted: bigint | undefined): Snapshot | undefined {
  const id = wanted ?? metadata.currentSnapshotId;
  if (id === undefined) return undefined;
  const found = metadata.snapshots.find((snapshot) => snapshot.snapshotId === id);
  if (found) return found;
  throw new SpillwayError("lake_snapshot_unknown", `The table has no snapshot ${id}.`);
}

class Planner {
  readonly #metadata: TableMetadata;
  readonly #schemas: readonly Schema[];
  readonly #filter: BoundExpr;
  readonly #columns = new Map<number, Map<number, PartitionColumn[]>>();
  readonly #stats = {
    manifestsConsidered: 0,
    manifestsSkipped: 0,
    filesConsidered: 0,
    filesSkipped: 0,
    rowsConsidered: 0,
    rowsSkipped: 0,
    bytesConsidered: 0,
    bytesSkipped: 0,
  };
  readonly #deleteFiles = new Set<string>();

  constructor(metadata: TableMetadata, filter: Expr) {
    this.#metadata = metadata;
    const newestFirst = metadata.schemas.toSorted((a, b) => b.schemaId - a.schemaId);
    const current = newestFirst.filter((schema) => schema.schemaId === metadata.currentSchemaId);
    this.#schemas = [...current, ...newestFirst.filter((schema) => schema.schemaId !== metadata.currentSchemaId)];
    this.#filter = withHashes(bind(filter, this.#schemas));
  }

  stats(deleteManifests: number): ScanStats {
    return { ...this.#stats, deleteManifests, deleteFiles: this.#deleteFiles.size };
  }

  context(line: ManifestFile): ManifestContext {
    const spec = specById(this.#metadata, line.partitionSpecId);
    return { spec, partitionTypes: partitionTypesOf(this.#metadata, line.partitionSpecId) };
  }

  /** Whether the manifest can name a file with matching rows, by the summaries of its partitions. */
  keepsManifest(line: ManifestFile): boolean {
    const columns = this.#columnsOf(line.partitionSpecId);
    const keep =
      reduce(this.#filter, (fieldId) => {
        const facts: Facts[] = [];
        for (const column of columns.get(fieldId) ?? []) {
          const summary = line.partitions?.[column.index];
          if (summary) facts.push(factsOfSummary(column, summary));
        }
        return facts;
      }).op !== "false";
    if (line.content === "data") this.#countManifest(line, keep);
    return keep;
  }

  #countManifest(line: ManifestFile, keep: boolean): void {
    this.#stats.manifestsConsidered++;
    if (keep) return;
    this.#stats.manifestsSkipped++;
    const files = line.addedFilesCount + line.existingFilesCount;
    const rows = Number(line.addedRowsCount + line.existingRowsCount);
    this.#stats.filesConsidered += files;
    this.#stats.filesSkipped += files;
    this.#stats.rowsConsidered += rows;
    this.#stats.rowsSkipped += rows;
  }

  /** Adds the tasks of one manifest. */
  planTable(table: ManifestTable, line: ManifestFile, index: DeleteIndex, tasks: ScanTask[]): void {
    const before = tasks.length;
    const factsAt = this.#factsOfTable(table, line);
    let [rows, bytes] = [0, 0];
    table.entries.forEach((entry, i) => {
      const residual = factsAt === null ? this.#filter.source : reduce(this.#filter, factsAt(i));
      if (residual.op === "false") return;
      const { dataFile, sequenceNumber } = entry;
      const deletes = index.deletesOf(dataFile, sequenceNumber, entry.partition);
      for (const file of deletes) this.#deleteFiles.add(`${file.path}#${file.contentOffset ?? ""}`);
      tasks.push({ dataFile, sequenceNumber, deletes, residual });
      rows += entry.recordCount;
      bytes += entry.fileSizeBytes;
    });
    const kept = tasks.length - before;
    this.#stats.filesConsidered += table.entries.length;
    this.#stats.filesSkipped += table.entries.length - kept;
    this.#stats.rowsConsidered += table.rows;
    this.#stats.rowsSkipped += table.rows - rows;
    this.#stats.bytesConsidered += table.bytes;
    this.#stats.bytesSkipped += table.bytes - bytes;
  }

  /** What is known of the columns in each file of a manifest; null when the filter asks for none. */
  #factsOfTable(table: ManifestTable, line: ManifestFile): ((i: number) => FactsOf) | null {
    if (this.#filter.kind === "constant") return null;
    const byPartition = this.#columnsOf(line.partitionSpecId);
    const partitionFacts = new Map<string, Map<number, Facts[]>>();
    const metrics = new Map<number, MetricColumn>();
    for (const [fieldId, type] of fieldsOf(this.#filter)) metrics.set(fieldId, table.column(fieldId, type));
    const isFloat = floatFields(this.#filter);
    let at = 0;
    let known: Map<number, Facts[]> = new Map();
    const factsOf: FactsOf = (fieldId) => {
      const column = metrics.get(fieldId);
      const own = column ? factsOfMetrics(column, at, isFloat.has(fieldId)) : null;
      const others = known.get(fieldId);
      if (own === null) return others ?? [];
      return others ? [...others, own] : [own];
    };
    return (i) => {
      at = i;
      const entry = must(table.entries[i], "entry");
      if (byPartition.size > 0) {
        const found = partitionFacts.get(entry.partition) ?? factsOfTuple(byPartition, entry.dataFile);
        partitionFacts.set(entry.partition, found);
        known = found;
      }
      return factsOf;
    };
  }

  #columnsOf(specId: number): Map<number, PartitionColumn[]> {
    let columns = this.#columns.get(specId);
    if (!columns) {
      columns = partitionColumns(specById(this.#metadata, specId), this.#schemas);
      this.#columns.set(specId, columns);
    }
    return columns;
  }
}

function factsOfTuple(columns: ReadonlyMap<number, readonly PartitionColumn[]>, file: DataFile): Map<number, Facts[]> {
  const facts = new Map<number, Facts[]>();
  for (const [fieldId, list] of columns) {
    facts.set(
      fieldId,
      list.map((column) => factsOfValue(column, file.partition[column.index] ?? null)),
    );
  }
  return facts;
}

/** What a file's metrics say of a column. Unknown counts leave everything possible. */
function factsOfMetrics(column: MetricColumn, at: number, isFloat: boolean): Facts {
  // A count of 0 is a writer's way of not knowing: an empty file costs nothing to read.
  const values = column.values[at] || -1;
  const nulls = column.nulls[at] ?? -1;
  const nans = isFloat ? (column.nans[at] ?? -1) : 0;
  const others = values < 0 || nulls < 0 ? -1 : values - nulls - Math.max(nans, 0);
  return {
    mayNull: nulls !== 0,
    mayNan: nans !== 0 && !(values >= 0 && nulls >= 0 && values === nulls),
    mayValue: others !== 0,
    lower: column.lower[at],
    upper: column.upper[at],
  };
}

function* predicatesOf(expr: BoundExpr): Generator<BoundExpr & { kind: "predicate" }> {
  if (expr.kind === "predicate") yield expr;
  else if (expr.kind !== "constant") for (const arg of expr.args) yield* predicatesOf(arg);
}

function fieldsOf(expr: BoundExpr) {
  return new Map([...predicatesOf(expr)].map(({ predicate }) => [predicate.fieldId, predicate.type]));
}

function floatFields(expr: BoundExpr): Set<number> {
  const floats = [...fieldsOf(expr)].filter(([, type]) => type.kind === "float" || type.kind === "double");
  return new Set(floats.map(([fieldId]) => fieldId));
}
