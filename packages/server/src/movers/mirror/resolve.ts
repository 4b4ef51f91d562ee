/** Rows by their ordinals: for values that an update left out, and for telling keys with equal hashes apart. */
import { assert, must } from "@spillway/base/assert";
import { concatBatches, elementsPerRow, takeRows } from "@spillway/base/batch";
import { type Column, type ColumnBatch, isVarColumn } from "@spillway/base/columns";
import { SpillwayError } from "@spillway/base/errors";
import type { DataFile } from "@spillway/lake/model";
import { readDataFiles, type ScanField } from "../../engine/engine.ts";
import type { MoverContext } from "../context.ts";
import type { Discern, Fixup, WantedKey } from "./apply.ts";
import { keyFields, type Segment, type TableShape } from "./change-log.ts";
import type { LakeState } from "./lake-state.ts";

/** Positions of one file that are asked for at a time. */
const POSITIONS_PER_QUERY = 2000;

/** Rows at positions of a file, deleted ones too, in the order of `positions`. */
async function readAt(
  ctx: MoverContext,
  file: DataFile,
  fields: readonly ScanField[],
  positions: readonly number[],
): Promise<ColumnBatch> {
  const wanted = [...new Set(positions)].toSorted((a, b) => a - b);
  const found: ColumnBatch[] = [];
  const place = new Map<number, number>();
  const local = await ctx.cache.localize([{ path: file.path, size: Number(file.fileSizeBytes) }]);
  try {
    for (let from = 0; from < wanted.length; from += POSITIONS_PER_QUERY) {
      const list = wanted.slice(from, from + POSITIONS_PER_QUERY).join(", ");
      const batches = readDataFiles({
        engine: ctx.engine,
        files: [{ path: must(local.paths[0], "local path"), rows: file.recordCount }],
        fields,
        withPosition: true,
        where: `file_row_number IN (${list})`,
      });
      for await (const batch of batches) {
        const at = must(batch.columns.at(-1), "__pos");
        for (let i = 0; i < batch.length; i++) place.set(Number("data" in at ? at.data[i] : -1), place.size);
        found.push({ length: batch.length, columns: batch.columns.slice(0, -2) });
      }
    }
  } finally {
    local.release();
  }
  assert(place.size === wanted.length, "a file has the rows that the index says");
  return takeRows(
    concatBatches(found),
    positions.map((p) => must(place.get(p), "row")),
  );
}

/** Rows by ordinal, in the order of `ordinals`: columns in the order of `fields`. */
export async function readOrdinals(
  ctx: MoverContext,
  state: LakeState,
  fields: readonly ScanField[],
  ordinals: readonly number[],
): Promise<ColumnBatch> {
  const parts: ColumnBatch[] = [];
  const order = new Map<number, number>();
  const byFile = new Map<DataFile, { positions: number[]; at: number[] }>();
  ordinals.forEach((ordinal, at) => {
    const place = placeOf(state, ordinal);
    if ("rows" in place) {
      order.set(at, order.size);
      parts.push(takeRows(pickFields(place.rows, place.shape, fields), [place.row]));
      return;
    }
    const { file, position } = place;
    const entry = byFile.get(file) ?? { positions: [], at: [] };
    byFile.set(file, entry);
    entry.positions.push(position);
    entry.at.push(at);
  });
  for (const [file, { positions, at }] of byFile) {
    parts.push(await readAt(ctx, file, fields, positions));
    for (const i of at) order.set(i, order.size);
  }
  const all = concatBatches(parts);
  return takeRows(
    all,
    ordinals.map((_, i) => must(order.get(i), "row")),
  );
}

type Place =
  | { readonly file: DataFile; readonly position: number }
  | { readonly rows: ColumnBatch; readonly shape: TableShape; readonly row: number };

function placeOf(state: LakeState, ordinal: number): Place {
  const block = state.blockOf(ordinal);
  const row = ordinal - block.base;
  if (block.file !== null) return { file: block.file, position: row };
  const segment = must(block.segment, "segment");
  if (segment.rows !== null) return { rows: segment.rows, shape: segment.shape, row };
  let rest = row;
  for (const file of segment.staged) {
    const rows = Number(file.recordCount);
    if (rest < rows) return { file, position: rest };
    rest -= rows;
  }
  throw new SpillwayError("internal", `ordinal ${ordinal} is in no staged file`);
}

function pickFields(rows: ColumnBatch, shape: TableShape, fields: readonly ScanField[]): ColumnBatch {
  const columns = fields.map((field) => {
    const at = shape.fields.findIndex((f) => f.id === field.id);
    return must(rows.columns[at], `column ${field.name}`);
  });
  return { length: rows.length, columns };
}

/** All rows of a segment, from its staged files when they are not in memory. */
export async function rowsOf(ctx: MoverContext, segment: Segment): Promise<ColumnBatch> {
  if (segment.rows !== null) return segment.rows;
  const parts: ColumnBatch[] = [];
  for (const file of segment.staged) {
    const local = await ctx.cache.localize([{ path: file.path, size: Number(file.fileSizeBytes) }]);
    try {
      const files = [{ path: must(local.paths[0], "local path"), rows: file.recordCount }];
      const fields = segment.shape.fields.map((f) => ({ ...f, initialDefault: null }));
      for await (const batch of readDataFiles({ engine: ctx.engine, files, fields })) parts.push(batch);
    } finally {
      local.release();
    }
  }
  return concatBatches(parts);
}

/** Reads the candidates' keys and compares. */
export function discerner(ctx: MoverContext, state: LakeState, shape: TableShape): Discern {
  const fields = keyFields(shape).map((f) => ({ ...f, initialDefault: null }));
  return async (ordinals, key: WantedKey) => {
    const own = "ordinal" in key ? await readOrdinals(ctx, state, fields, [key.ordinal]) : key.keys;
    const at = "ordinal" in key ? 0 : key.at;
    const keys = await readOrdinals(ctx, state, fields, ordinals);
    const found = ordinals.filter((_, i) => sameRow(keys, i, own, at));
    if (found.length > 1) throw new SpillwayError("internal", "a key is in the lake twice");
    return found[0] ?? null;
  };
}

/** Whether the values are equal, column by column; keys hold no NULL. */
export function sameRow(a: ColumnBatch, i: number, b: ColumnBatch, j: number): boolean {
  return a.columns.every((column, c) => sameValue(column, i, must(b.columns[c], "column"), j));
}

function sameValue(a: Column, i: number, b: Column, j: number): boolean {
  if (isVarColumn(a) !== isVarColumn(b)) return false;
  if (isVarColumn(a) && isVarColumn(b)) {
    const x = Buffer.from(a.heap.buffer, a.heap.byteOffset, a.heap.byteLength);
    const y = Buffer.from(b.heap.buffer, b.heap.byteOffset, b.heap.byteLength);
    return x.compare(y, b.offsets[j], b.offsets[j + 1], a.offsets[i], a.offsets[i + 1]) === 0;
  }
  if (isVarColumn(a) || isVarColumn(b)) return false;
  const width = elementsPerRow(a.spec);
  for (let e = 0; e < width; e++) {
    const [x, y] = [a.data[i * width + e], b.data[j * width + e]];
    // An int that was widened since compares as a number.
    if (x !== y && BigInt(x ?? 0) !== BigInt(y ?? 0)) return false;
  }
  return true;
}

/** Where a value that was not sent is to be taken from, by segment, row and field: an ordinal. */
export class Missing {
  readonly #sources = new Map<Segment, Map<number, Map<number, number>>>();

  /** Follows the versions in the order of the stream, so that each chain ends in a value. */
  constructor(state: LakeState, fixups: readonly Fixup[]) {
    for (const { segment, row, columns, from } of fixups) {
      const rows = this.#sources.get(segment) ?? new Map<number, Map<number, number>>();
      this.#sources.set(segment, rows);
      const fields = new Map<number, number>();
      rows.set(row, fields);
      const block = state.blockOf(from);
      const before = block.segment ? this.#sources.get(block.segment)?.get(from - block.base) : undefined;
      for (const column of columns) {
        const id = must(segment.shape.fields[column], "field").id;
        fields.set(id, before?.get(id) ?? from);
      }
    }
  }

  /** The rows of the segment with everything filled in. Throws `mirror_toast_missing` when a value is nowhere. */
  async fill(
    ctx: MoverContext,
    state: LakeState,
    segment: Segment,
    alive: (row: number) => boolean,
  ): Promise<ColumnBatch> {
    const rows = await rowsOf(ctx, segment);
    const marks = segment.toast.filter((mark) => alive(mark.row));
    if (marks.length === 0) return rows;
    const sources = this.#sources.get(segment);
    const columns = [...rows.columns];
    for (const [c, field] of segment.shape.fields.entries()) {
      const list = marks.filter((mark) => mark.columns.includes(c)).map((mark) => mark.row);
      if (list.length === 0) continue;
      const ordinals = list.map((row) => {
        const ordinal = sources?.get(row)?.get(field.id);
        if (ordinal !== undefined) return ordinal;
        throw new SpillwayError("mirror_toast_missing", `column ${field.name} of a row was not sent and has no source`);
      });
      const values = await readOrdinals(ctx, state, [{ ...field, initialDefault: null }], ordinals);
      columns[c] = patch(must(columns[c], "column"), rows.length, list, must(values.columns[0], "column"));
    }
    return { length: rows.length, columns };
  }
}

/** The column with other values in some rows. */
function patch(column: Column, length: number, rows: readonly number[], values: Column): Column {
  const both = concatBatches([
    { length, columns: [column] },
    { length: rows.length, columns: [values] },
  ]);
  const order = Uint32Array.from({ length }, (_, i) => i);
  rows.forEach((row, i) => {
    order[row] = length + i;
  });
  return must(takeRows(both, order).columns[0], "column");
}
