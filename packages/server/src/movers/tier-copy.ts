/** The copy of a leaf: one snapshot, COPY into column batches, the checksum and Parquet from the same pass; then read back. */
import { assert } from "@spillway/base/assert";
import type { ColumnBatch } from "@spillway/base/columns";
import { SpillwayError } from "@spillway/base/errors";
import { Checksum, RowHasher } from "@spillway/base/rowhash";
import type { DataFile, TableMetadata } from "@spillway/lake/model";
import { defaultSpec } from "@spillway/lake/metadata";
import { copyOut } from "@spillway/pg/copy/copy-out";
import { selectList } from "@spillway/pg/columns/plan";
import { quoteQualified } from "@spillway/pg/quote";
import type { RawConnection } from "@spillway/pg/wire/connection";
import { connectRaw } from "@spillway/pg/wire/connect-raw";
import { fileChecksum, writeDataFiles } from "../engine/engine.ts";
import { hashField, type MovedColumn, type MoverContext, scanField, stager } from "./context.ts";

export interface Copied {
  readonly files: readonly DataFile[];
  /** Of the rows as they came from Postgres. */
  readonly checksum: Checksum;
  /** Of the rows as they are read from the files in the store: each is read while the next is being written. */
  readonly readBack: Promise<Checksum>;
}

export interface CopyRequest {
  readonly opId: bigint;
  readonly leaf: { readonly schemaName: string; readonly name: string };
  readonly columns: readonly MovedColumn[];
  readonly metadata: TableMetadata;
  /** Called inside the copy's snapshot, before the first row: throws when the leaf is not what it must be. */
  readonly check: (connection: RawConnection) => Promise<void>;
  readonly onProgress?: (rows: bigint) => void;
}

/** Writes the leaf's rows into new data files. Memory does not depend on how many there are. */
export async function copyLeaf(ctx: MoverContext, request: CopyRequest): Promise<Copied> {
  const connection = await connectRaw(ctx.conninfo, {
    applicationName: ctx.applicationName,
    settings: { idle_in_transaction_session_timeout: 600_000 },
    ...(ctx.signal ? { signal: ctx.signal } : {}),
  });
  try {
    await connection.query("begin isolation level repeatable read read only");
    await request.check(connection);
    const copied = await copyRows(ctx, connection, request);
    await connection.query("commit");
    return copied;
  } finally {
    await connection.close();
  }
}

async function copyRows(ctx: MoverContext, connection: RawConnection, request: CopyRequest): Promise<Copied> {
  const plans = request.columns.map((c) => c.column.copyPlan);
  const table = quoteQualified(request.leaf.schemaName, request.leaf.name);
  const hasher = new RowHasher(request.columns.map(hashField));
  const checksum = new Checksum();
  async function* hashed(): AsyncIterable<ColumnBatch> {
    const rows = copyOut({
      connection,
      source: `(select ${selectList(plans)} from only ${table})`,
      columns: plans,
      // While a batch is hashed and appended nothing is read: small ones, so that the server does not wait for it.
      batchRows: 15_360,
      ...(ctx.signal ? { signal: ctx.signal } : {}),
    });
    for await (const batch of rows) {
      checksum.add(hasher.hashBatch(batch));
      request.onProgress?.(checksum.rows);
      yield batch;
    }
  }
  const back = new ReadBack(ctx, request.columns);
  try {
    const files = await writeDataFiles({
      engine: ctx.engine,
      batches: hashed(),
      fields: request.columns.map((c) => c.field),
      spec: defaultSpec(request.metadata),
      store: ctx.store,
      dataLocation: `${request.metadata.location}/data`,
      stageDir: ctx.stageDir,
      onFile: stager(ctx, request.opId),
      onWritten: (file) => back.add(file),
      ...(ctx.signal ? { signal: ctx.signal } : {}),
    });
    return { files, checksum, readBack: back.result() };
  } catch (error) {
    await back.stop();
    throw error;
  }
}

/** Reads files as any reader would, one after the other, as they come. */
class ReadBack {
  readonly #ctx: MoverContext;
  readonly #columns: readonly MovedColumn[];
  readonly #checksum = new Checksum();
  #reading: Promise<void> = Promise.resolve();
  #stopped = false;

  constructor(ctx: MoverContext, columns: readonly MovedColumn[]) {
    this.#ctx = ctx;
    this.#columns = columns;
  }

  add(file: DataFile): void {
    this.#reading = this.#reading.then(async () => {
      if (!this.#stopped) this.#checksum.merge(await checksumOfFiles(this.#ctx, this.#columns, [file]));
    });
    // Whoever asks for the result hears of it.
    this.#reading.catch(() => {});
  }

  result(): Promise<Checksum> {
    const result = this.#reading.then(() => this.#checksum);
    result.catch(() => {});
    return result;
  }

  /** Returns when no file is read any more. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#reading.catch(() => {});
  }
}

/** Compares what the files read back as. Throws `verify_failed`, or why they cannot be read. */
export async function verifyCopy(copied: Copied): Promise<void> {
  const found = await copied.readBack;
  const declared = copied.files.reduce((sum, f) => sum + f.recordCount, 0n);
  if (!found.equals(copied.checksum) || declared !== copied.checksum.rows) {
    throw new SpillwayError(
      "verify_failed",
      `the files read back as ${found.toString()} with ${declared} rows declared, written was ${copied.checksum.toString()}`,
    );
  }
}

/** The checksum of new files' rows, none of them deleted. */
export async function checksumOfFiles(
  ctx: MoverContext,
  columns: readonly MovedColumn[],
  files: readonly DataFile[],
): Promise<Checksum> {
  const checksum = new Checksum();
  const read = ctx.fileChecksum ?? fileChecksum(ctx.engine);
  const [fields, hashes] = [columns.map(scanField), columns.map(hashField)];
  for (const file of files) {
    const local = await ctx.cache.localize([{ path: file.path, size: Number(file.fileSizeBytes) }]);
    try {
      const path = local.paths[0];
      assert(path !== undefined, "a localized file has a path");
      checksum.merge(await read({ path, rows: file.recordCount, fields, hashes }, ctx.signal));
    } finally {
      local.release();
    }
  }
  return checksum;
}
