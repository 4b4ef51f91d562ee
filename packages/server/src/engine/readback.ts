/** Rows of data files as column batches: for checksums, lookups of a fold, and compaction. */
import { must } from "@spillway/base/assert";
import { takeRows } from "@spillway/base/batch";
import type { ColumnBatch } from "@spillway/base/columns";
import type { Engine } from "./instance.ts";
import { duckIdent } from "./quote.ts";
import { hasDeletes, positionedSql, type ScanField, type ScanFile } from "./scan-sql.ts";
import { duckType } from "./types.ts";

export interface ReadOptions {
  readonly engine: Engine;
  readonly files: readonly ScanFile[];
  /** What the batches hold, in this order. */
  readonly fields: readonly ScanField[];
  /** Adds two int64 columns at the end: `__file` (index in `files`) and `__pos` (position in the file). */
  readonly withPosition?: boolean;
  /** A DuckDB condition over the fields' names. */
  readonly where?: string;
  readonly signal?: AbortSignal;
}

/**
 * Streams the live rows, in the order of files and positions. Errors: `engine_file_missing`, `engine_file_corrupt`.
 * The batches have at most 2048 rows; none is empty.
 */
export async function* readDataFiles(options: ReadOptions): AsyncIterable<ColumnBatch> {
  const { engine, files, fields, signal } = options;
  if (files.length === 0) return;
  const session = await engine.session();
  let clean = false;
  try {
    const select = fields.map((f) => {
      const name = duckIdent(f.name);
      return f.kind === "int16" ? `${name}::${duckType(f)} AS ${name}` : name;
    });
    const where = options.where === undefined ? {} : { where: options.where };
    const positioned = positionedSql(files, fields, select, where);
    const dirty = files.some(hasDeletes);
    // Where nobody asks for them, the engine does not make the positions at all.
    const bare = !dirty && options.withPosition !== true && fields.length > 0;
    const sql = bare ? `SELECT ${fields.map((f) => duckIdent(f.name)).join(", ")} FROM (${positioned})` : positioned;
    const result = await session.query(sql, signal ? { signal } : {});
    for await (const batch of result.batches()) {
      const live = dirty ? withoutDeleted(batch, files) : batch;
      if (live.length === 0) continue;
      yield options.withPosition || bare ? live : { length: live.length, columns: live.columns.slice(0, -2) };
    }
    clean = true;
  } finally {
    engine.release(session, clean);
  }
}

function withoutDeleted(batch: ColumnBatch, files: readonly ScanFile[]): ColumnBatch {
  const fileOf = must(batch.columns.at(-2), "__file");
  const positionOf = must(batch.columns.at(-1), "__pos");
  if (!("data" in fileOf) || !("data" in positionOf)) return batch;
  const kept: number[] = [];
  for (let i = 0; i < batch.length; i++) {
    const file = must(files[Number(fileOf.data[i])], "file");
    if (hasDeletes(file) && file.deletes?.has(Number(positionOf.data[i]))) continue;
    kept.push(i);
  }
  return kept.length === batch.length ? batch : takeRows(batch, kept);
}
