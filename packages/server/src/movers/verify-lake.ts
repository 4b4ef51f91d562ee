/** The lake against the journal: every file read whole, its live rows hashed and summed by band. */
import { must } from "@spillway/base/assert";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { Checksum, RowHasher } from "@spillway/base/rowhash";
import { checkDeletionVector } from "@spillway/lake/deletes/deletes";
import type { TableMetadata } from "@spillway/lake/model";
import { type ScanTask, TRUE } from "@spillway/lake/scan/scan";
import { type BandRow, keyText } from "../catalog/catalog.ts";
import { readDataFiles } from "../engine/engine.ts";
import type { MoverContext } from "./context.ts";
import { BandIndex, lakeBands, sumOf } from "./fold-bands.ts";
import { type KnownField, keysOf } from "./fold-fields.ts";
import { keyField } from "./fold-lookup.ts";
import { planTasks, withLocalFiles } from "./fold-scan.ts";
import type { TieredRelation } from "./tiered.ts";

export interface VerifyOptions {
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: { readonly table: string; readonly rows: bigint; readonly of: bigint }) => void;
}

export type Difference =
  /** A file that cannot be read, or is not what its manifest says. */
  | { readonly kind: "file"; readonly path: string; readonly code: string; readonly message: string }
  /** Rows of a band that are not those that were journaled. */
  | {
      readonly kind: "band";
      readonly from: string;
      readonly to: string;
      readonly leaf: string;
      readonly expected: string;
      readonly found: string;
      /** Files that hold rows of it, at most 20. */
      readonly files: readonly string[];
    }
  /** Rows that belong to no band. */
  | { readonly kind: "stray"; readonly rows: bigint }
  /** keep-heap: a row that the heap and the lake do not agree on. */
  | { readonly kind: "row"; readonly key: string; readonly fault: "not in the lake" | "not in the heap" | "differs" };

export interface LakeAudit {
  readonly rows: bigint;
  readonly bytes: bigint;
  readonly files: number;
  readonly bands: number;
  readonly differences: readonly Difference[];
}

const NAMED_FILES = 20;

export async function auditLake(
  ctx: MoverContext,
  relation: TieredRelation,
  state: {
    readonly metadata: TableMetadata;
    readonly bands: readonly BandRow[];
    readonly fields: readonly KnownField[];
  },
  options: VerifyOptions,
): Promise<LakeAudit> {
  const bands = lakeBands(state.bands);
  const audit = new Audit(ctx, relation, state.fields, bands, options);
  const tasks = state.metadata.currentSnapshotId === undefined ? [] : await planTasks(ctx, state.metadata, TRUE);
  const of = tasks.reduce((sum, t) => sum + t.dataFile.recordCount, 0n);
  for (const task of tasks) {
    if (options.signal?.aborted) throw new SpillwayError("interrupted", "the verification was ended");
    await audit.file(task);
    options.onProgress?.({ table: `${relation.schemaName}.${relation.tableName}`, rows: audit.rows, of });
  }
  return {
    rows: audit.rows,
    bytes: tasks.reduce((sum, t) => sum + t.dataFile.fileSizeBytes, 0n),
    files: tasks.length,
    bands: bands.length,
    differences: [...audit.faults, ...audit.compare()],
  };
}

class Audit {
  readonly #ctx: MoverContext;
  readonly #relation: TieredRelation;
  readonly #fields: readonly KnownField[];
  readonly #bands: readonly BandRow[];
  readonly #options: VerifyOptions;
  readonly #index: BandIndex;
  readonly #hasher: RowHasher;
  readonly #keyAt: number;
  readonly #sums = new Map<number, Checksum>();
  readonly #filesOf = new Map<number, string[]>();
  readonly faults: Difference[] = [];
  rows = 0n;

  constructor(
    ctx: MoverContext,
    relation: TieredRelation,
    fields: readonly KnownField[],
    bands: readonly BandRow[],
    options: VerifyOptions,
  ) {
    this.#ctx = ctx;
    this.#relation = relation;
    this.#fields = fields;
    this.#bands = bands;
    this.#options = options;
    this.#index = new BandIndex(bands);
    this.#hasher = new RowHasher(fields.map((f) => f.hash));
    this.#keyAt = fields.indexOf(keyField(relation, fields));
  }

  /** A file that cannot be read is a difference: the others are looked at all the same. */
  async file(task: ScanTask): Promise<void> {
    const { path } = task.dataFile;
    try {
      await this.#checkFiles(task);
      await this.#sumFile(task);
    } catch (error) {
      if (this.#options.signal?.aborted || !(error instanceof SpillwayError) || isPassing(error)) throw error;
      this.faults.push({ kind: "file", path, code: error.code, message: messageOf(error) });
    }
  }

  async #checkFiles({ dataFile, deletes }: ScanTask): Promise<void> {
    const found = await this.#ctx.store.head(dataFile.path);
    if (found === null) throw new SpillwayError("engine_file_missing", `The lake file ${dataFile.path} is missing.`);
    if (BigInt(found.size) !== dataFile.fileSizeBytes) {
      throw new SpillwayError(
        "engine_file_corrupt",
        `The lake file ${dataFile.path} has ${found.size} bytes instead of ${dataFile.fileSizeBytes}.`,
      );
    }
    for (const file of deletes) if (file.format === "puffin") await checkDeletionVector(this.#ctx.store, file);
  }

  async #sumFile(task: ScanTask): Promise<void> {
    const { path, recordCount } = task.dataFile;
    const own = new Map<number, Checksum>();
    let live = 0n;
    const deleted = await withLocalFiles(this.#ctx, [task], async (files) => {
      const batches = readDataFiles({
        engine: this.#ctx.engine,
        files,
        fields: this.#fields.map((f) => f.scan),
        ...(this.#options.signal ? { signal: this.#options.signal } : {}),
      });
      for await (const batch of batches) {
        const keys = keysOf(must(batch.columns[this.#keyAt], "tier key"), batch.length);
        this.#index.addTo(own, { keys, hashes: this.#hasher.hashBatch(batch) });
        live += BigInt(batch.length);
      }
      return BigInt(files[0]?.deletes?.cardinality ?? 0);
    });
    this.rows += live;
    for (const [band, sum] of own) {
      sumOf(this.#sums, band).merge(sum);
      const files = this.#filesOf.get(band) ?? [];
      if (files.length < NAMED_FILES) files.push(path);
      this.#filesOf.set(band, files);
    }
    if (live === recordCount - deleted) return;
    const message = `${live} live rows, where the manifest says ${recordCount} with ${deleted} deleted`;
    this.faults.push({ kind: "file", path, code: "verify_failed", message });
  }

  compare(): Difference[] {
    const differences = this.#bands.flatMap((band, i): Difference[] => {
      const found = (this.#sums.get(i) ?? new Checksum()).toString();
      const expected = band.checksum ?? "nothing journaled";
      if (found === expected) return [];
      const text = (key: bigint): string => keyText(this.#relation.keyKind, key);
      const files = this.#filesOf.get(i) ?? [];
      return [{ kind: "band", from: text(band.lo), to: text(band.hi), leaf: band.leafName, expected, found, files }];
    });
    const strays = this.#sums.get(-1);
    return strays && strays.rows > 0n ? [...differences, { kind: "stray", rows: strays.rows }] : differences;
  }
}

/** Errors of the way to the store, not of what is in it. */
function isPassing(error: SpillwayError): boolean {
  return error.kind === "retry" || error.code === "disk_full" || error.code === "interrupted";
}
