/** Arrow rows that a client sends, as parameters of statements. */
import { SpillwayError } from "@spillway/base/errors";
import { type ColumnBatch, type ColumnSpec, isVarColumn } from "@spillway/base/columns";
import { textOf } from "@spillway/pg/columns/text-out";
import { type ArrowField, decodeArrowParts, decodeArrowSchema } from "../../../engine/engine.ts";
import type { WireParam } from "../../session/session.ts";
import { decodeFlightData } from "./flight-data.ts";

/** The stream of a DoPut after its first message: a schema, then record batches. */
export interface PutStream {
  /** Null: no rows were sent at all. */
  readonly columns: readonly ColumnSpec[] | null;
  batches(): AsyncIterable<ColumnBatch>;
}

/** Reads up to the schema. `first` is the message that held the descriptor; it may hold the schema too. */
export async function openPut(first: Buffer, rest: AsyncIterator<Buffer>): Promise<PutStream> {
  let message: Buffer | null = first;
  let fields: readonly ArrowField[] | null = null;
  while (message !== null && fields === null) {
    const { header } = decodeFlightData(message);
    if (header.length > 0) fields = decodeArrowSchema(prefixed(header));
    else message = await next(rest);
  }
  const known = fields;
  return {
    columns: known === null ? null : known.map((f) => f.spec),
    batches: () => read(known ?? [], rest),
  };
}

async function* read(fields: readonly ArrowField[], rest: AsyncIterator<Buffer>): AsyncIterable<ColumnBatch> {
  for (let message = await next(rest); message !== null; message = await next(rest)) {
    const { header, body } = decodeFlightData(message);
    if (header.length > 0) yield decodeArrowParts(fields, header, body);
  }
}

async function next(source: AsyncIterator<Buffer>): Promise<Buffer | null> {
  const { done, value } = await source.next();
  return done === true ? null : value;
}

/** Flight leaves out the prefix of an encapsulated message. */
function prefixed(header: Buffer): Buffer {
  const prefix = Buffer.alloc(8, 0xff);
  prefix.writeInt32LE(header.length, 4);
  return Buffer.concat([prefix, header]);
}

/** Rows of parameters, at most `limit`. Throws `limit_exceeded`. */
export async function paramRows(stream: PutStream, limit: number): Promise<WireParam[][]> {
  const rows: WireParam[][] = [];
  for await (const batch of stream.batches()) {
    if (rows.length + batch.length > limit) {
      throw new SpillwayError("limit_exceeded", `A statement was given more than ${limit} rows of parameters.`, {
        remedy: "Send them in several calls, or ingest them.",
      });
    }
    for (let i = 0; i < batch.length; i++) rows.push(batch.columns.map((_, c) => paramAt(batch, c, i)));
  }
  return rows;
}

/** One value: numbers and bytes as they are, the rest in Postgres's text form. */
export function paramAt(batch: ColumnBatch, at: number, row: number): WireParam {
  const column = batch.columns[at];
  if (!column || (column.validity !== null && column.validity[row] === 0)) return null;
  if (isVarColumn(column)) {
    const bytes = column.heap.subarray(column.offsets[row], column.offsets[row + 1]);
    return column.spec.kind === "text" ? Buffer.from(bytes).toString("utf8") : Buffer.from(bytes);
  }
  switch (column.spec.kind) {
    case "bool":
      return column.data[row] === 1;
    case "int16":
    case "int32":
    case "int64":
    case "float64":
      return column.data[row] ?? null;
    default:
      return textOf(column, row);
  }
}
