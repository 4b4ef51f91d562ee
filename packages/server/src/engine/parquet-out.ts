/**
 * Column batches into Parquet data files, with field ids and exact metrics. Rows are staged in one of
 * two private files; while one is read and written by COPY, the next is filled, so reading from Postgres
 * and compressing go on at the same time in bounded memory.
 *
 * A file appears in the store whole or not at all: DuckDB writes a temporary name beside it, which
 * is fsynced and renamed (local) or uploaded (elsewhere). `onFile` is awaited with the location before
 * anything under that location can exist, so that a journal knows every file that may be left behind.
 */
import { mkdir, unlink } from "node:fs/promises";
import { createReadStream } from "node:fs";
import { dirname, join } from "node:path";
import type { ColumnBatch } from "@spillway/base/columns";
import { must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import { newUuid, randomHex } from "@spillway/base/ids";
import type { DataFile, PartitionSpec, PrimitiveValue } from "@spillway/lake/model";
import { localPathOf, type ObjectStore } from "@spillway/lake/store/store";
import { FileStore } from "@spillway/lake/store/file";
import { dataFileOf, isFloat } from "./file-metrics.ts";
import type { Engine } from "./instance.ts";
import { partitionSql, type PartitionSql } from "./partition-sql.ts";
import { duckIdent, duckLiteral } from "./quote.ts";
import type { EngineSession } from "./session.ts";
import { StageFile } from "./stage-file.ts";
import type { LakeField } from "./types.ts";

export interface WriteOptions {
  readonly engine: Engine;
  readonly batches: AsyncIterable<ColumnBatch>;
  /** The columns of the batches, in their order. */
  readonly fields: readonly LakeField[];
  readonly spec: PartitionSpec;
  readonly store: ObjectStore;
  /** The folder of the data files: `<table location>/data`. */
  readonly dataLocation: string;
  /** Where files are written before they are uploaded; used only when the store is not local. */
  readonly stageDir: string;
  /** Awaited with each file's location before anything is written there. */
  readonly onFile?: (location: string) => Promise<void>;
  /** Told of each file once it is in the store, while the next is being written. */
  readonly onWritten?: (file: DataFile) => void;
  /** Rows after which a file ends. Default 1 Mi. */
  readonly fileRows?: number;
  /** Bytes in memory after which a file ends. Default 64 MiB. */
  readonly stageBytes?: number;
  readonly rowGroupRows?: number;
  readonly sortOrderId?: number;
  readonly signal?: AbortSignal;
}

const FILE_ROWS = 1 << 20;
const STAGE_BYTES = 64 << 20;
const ROW_GROUP_ROWS = 122_880;
/** Of zstd: a third less work than the default of 3 for 7 % more bytes, on rows of mixed types. */
const COMPRESSION_LEVEL = 1;
/** Distinct values of a row group beyond which no dictionary is tried: those of long columns cost more than they save. */
const DICTIONARY_VALUES = 4096;
/** With more partitions than this in one table, it is sorted by them first. */
const SORT_ABOVE = 16;

/** Writes everything that `batches` gives. Throws what they throw; then no file of the call is left in the store, unless the removal failed too. */
export async function writeDataFiles(options: WriteOptions): Promise<DataFile[]> {
  const writer = new DataFileWriter(options);
  try {
    for await (const batch of options.batches) await writer.append(batch);
    return await writer.finish();
  } catch (error) {
    await writer.abort();
    throw error;
  }
}

/** The same, for a caller that gives batches one by one. */
export class DataFileWriter {
  readonly #options: WriteOptions;
  readonly #files: DataFile[] = [];
  readonly #published: string[] = [];
  #copier: EngineSession | null = null;
  /** One is filled while the one before is copied. */
  #stage: StageFile | null = null;
  #copying: Promise<void> = Promise.resolve();
  #failure: unknown = null;

  constructor(options: WriteOptions) {
    this.#options = options;
  }

  async append(batch: ColumnBatch): Promise<void> {
    if (this.#failure !== null) throw this.#failure;
    if (this.#options.signal?.aborted) throw new SpillwayError("engine_interrupted", "Writing was interrupted.");
    if (batch.length === 0) return;
    const stage = (this.#stage ??= await StageFile.create(this.#options.engine, this.#options.fields));
    await stage.append(batch);
    const { fileRows = FILE_ROWS, stageBytes = STAGE_BYTES } = this.#options;
    if (stage.rows >= fileRows || stage.bytes >= stageBytes) await this.#seal(stage);
  }

  async finish(): Promise<DataFile[]> {
    if (this.#stage) await this.#seal(this.#stage);
    await this.#copying;
    await this.#end(true);
    if (this.#failure !== null) throw this.#failure;
    return this.#files;
  }

  /** Stops, and removes what was written. */
  async abort(): Promise<void> {
    this.#copier?.interrupt();
    await this.#copying;
    await this.#end(false);
    await this.#options.store.delete(this.#published).catch(() => {});
  }

  /** Hands a full stage to COPY, once the one before it is written. */
  async #seal(stage: StageFile): Promise<void> {
    this.#stage = null;
    try {
      await stage.finish();
      await this.#copying;
      if (this.#failure !== null) throw this.#failure;
    } catch (error) {
      await stage.remove();
      throw error;
    }
    this.#copying = this.#write(stage).catch((error: unknown) => {
      this.#failure ??= error;
    });
  }

  async #write(stage: StageFile): Promise<void> {
    const { engine, fields } = this.#options;
    const session = (this.#copier ??= await engine.session());
    const sorted = engine.freshName("sorted");
    let source = stage.sql;
    try {
      const sql = partitionSql(this.#options.spec, fields);
      const partitions = sql === null ? [WHOLE] : await partitionsOf(session, source, sql);
      if (sql !== null && partitions.length > SORT_ABOVE) {
        await session.run(`CREATE TABLE ${sorted} AS SELECT * FROM ${source} ORDER BY ${sql.expressions.join(", ")}`);
        source = sorted;
      }
      for (const partition of partitions) await this.#writeFile(session, source, partition);
    } finally {
      await stage.remove();
      if (source === sorted) await engine.use((s) => s.run(`DROP TABLE IF EXISTS ${sorted}`));
    }
  }

  async #writeFile(session: EngineSession, source: string, partition: Partition): Promise<void> {
    const { dataLocation, onFile, fields, rowGroupRows = ROW_GROUP_ROWS, store } = this.#options;
    const location = `${dataLocation}/${newUuid()}.parquet`;
    await onFile?.(location);
    const local = await this.#stagePath(location);
    const ids = fields.map((f) => `${duckIdent(f.name)}: ${f.id}`).join(", ");
    const where = partition.where === null ? "" : ` WHERE ${partition.where}`;
    // Readers with DuckDB in them leave rows out by the bloom filters of a BLOB column (see scan-sql.ts).
    const withBloom = !fields.some((f) => f.kind === "bytes");
    const dictionary = (await this.#hasNegativeZero(session, source)) ? 0 : DICTIONARY_VALUES;
    try {
      const [stats] = await session.copyTo(
        `COPY (SELECT * FROM ${source}${where}) TO ${duckLiteral(local)} (FORMAT parquet, COMPRESSION zstd,
           COMPRESSION_LEVEL ${COMPRESSION_LEVEL}, DICTIONARY_SIZE_LIMIT ${dictionary},
           ROW_GROUP_SIZE ${rowGroupRows}, USE_TMP_FILE false${withBloom ? "" : ", WRITE_BLOOM_FILTER false"}, FIELD_IDS {${ids}}, RETURN_STATS)`,
        this.#options.signal ? { signal: this.#options.signal } : {},
      );
      const facts = must(stats, "statistics of the written file");
      const nanCounts = await this.#nanCounts(session, source, partition, new Set(nanFields(fields, facts.columns)));
      await publish(store, local, location);
      this.#published.push(location);
      const { sortOrderId } = this.#options;
      const file = await dataFileOf(session, fields, {
        location,
        specId: this.#options.spec.specId,
        partition: partition.tuple,
        stats: facts,
        nanCounts,
        ...(sortOrderId === undefined ? {} : { sortOrderId }),
      });
      this.#files.push(file);
      this.#options.onWritten?.(file);
    } catch (error) {
      await unlink(local).catch(() => {});
      throw error;
    }
  }

  /** Counts NaNs of the columns that have some; the usual file costs nothing. */
  async #nanCounts(
    session: EngineSession,
    source: string,
    partition: Partition,
    columns: ReadonlySet<LakeField>,
  ): Promise<Map<number, bigint>> {
    if (columns.size === 0) return new Map();
    const list = [...columns];
    const where = partition.where === null ? "" : ` WHERE ${partition.where}`;
    const counts = list.map((f) => `count(*) FILTER (WHERE isnan(${duckIdent(f.name)}))`).join(", ");
    const [row] = await session.rows(`SELECT ${counts} FROM ${source}${where}`);
    return new Map(list.map((f, i) => [f.id, row?.[i] as bigint]));
  }

  /** DuckDB's dictionaries take -0.0 and 0.0 for one value. */
  async #hasNegativeZero(session: EngineSession, source: string): Promise<boolean> {
    const floats = this.#options.fields.filter((f) => f.kind === "float32" || f.kind === "float64");
    if (floats.length === 0) return false;
    const tests = floats.map(({ name }) => `(${duckIdent(name)} = 0 AND signbit(${duckIdent(name)}))`);
    const found = await session.rows(`SELECT 1 FROM ${source} WHERE ${tests.join(" OR ")} LIMIT 1`);
    return found.length > 0;
  }

  /** A name that the store's own sweep of temporary files knows. */
  async #stagePath(location: string): Promise<string> {
    const direct = this.#options.store instanceof FileStore ? localPathOf(location) : null;
    const dir = direct === null ? this.#options.stageDir : dirname(direct);
    await mkdir(dir, { recursive: true });
    return join(dir, `.${randomHex(16)}.spillway-tmp`);
  }

  async #end(clean: boolean): Promise<void> {
    const stage = this.#stage;
    this.#stage = null;
    await stage?.remove();
    if (this.#copier) this.#options.engine.release(this.#copier, clean);
    this.#copier = null;
  }
}

interface Partition {
  readonly tuple: readonly (PrimitiveValue | null)[];
  /** Null when all rows of the table are of this partition. */
  readonly where: string | null;
}

const WHOLE: Partition = { tuple: [], where: null };

async function partitionsOf(session: EngineSession, source: string, sql: PartitionSql): Promise<Partition[]> {
  const rows = await session.rows(`SELECT DISTINCT ${sql.expressions.join(", ")} FROM ${source} ORDER BY ALL`);
  return rows.map((row) => ({
    tuple: row as (PrimitiveValue | null)[],
    where:
      rows.length === 1
        ? null
        : sql.expressions.map((e, i) => `${e} IS NOT DISTINCT FROM ${sql.literal(i, row[i])}`).join(" AND "),
  }));
}

function nanFields(fields: readonly LakeField[], stats: ReadonlyMap<string, { hasNan: boolean }>): LakeField[] {
  return fields.filter((f) => isFloat(f) && stats.get(f.name)?.hasNan === true);
}

/** Moves or uploads a finished local file to its place in the store. */
async function publish(store: ObjectStore, local: string, location: string): Promise<void> {
  if (store instanceof FileStore) {
    await store.adopt(local, location);
    return;
  }
  await store.put(location, contentOf(local));
  await unlink(local);
}

/** Opens the file only when somebody reads, so that a store that refuses at once leaves nothing open. */
async function* contentOf(local: string): AsyncIterable<Uint8Array> {
  yield* createReadStream(local, { highWaterMark: 1 << 20 }) as AsyncIterable<Uint8Array>;
}
