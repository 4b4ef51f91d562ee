/** Rows below the cut-line, out of the lake and the delta, as a correction needs them: as they are in its transaction's snapshot. */
import type { ColumnBatch } from "@spillway/base/columns";
import { SpillwayError } from "@spillway/base/errors";
import type { RawConnection } from "@spillway/pg/wire/connection";
import { duckIdent, type EngineSession } from "../engine/engine.ts";
import { type Predicate, toDuckCondition } from "./predicates.ts";
import type { ResolvedRelation, SeamColumn } from "./resolve.ts";
import type { TableReader } from "./table-read.ts";

export interface ColdRequest {
  readonly tables: TableReader;
  readonly connection: RawConnection;
  readonly session: EngineSession;
  readonly relation: ResolvedRelation;
  /** What comes back. */
  readonly columns: readonly SeamColumn[];
  readonly predicates: readonly Predicate[];
  /** Only rows whose primary key is in this table of the session. */
  readonly only?: { readonly table: string; readonly pk: readonly SeamColumn[] } | null;
  readonly signal?: AbortSignal | undefined;
}

/** Null when there can be none; then `take` is not called. */
export async function readCold<T>(
  request: ColdRequest,
  take: (batches: AsyncIterable<ColumnBatch>) => Promise<T>,
): Promise<T | null> {
  const { tables, connection, session, relation, predicates, only } = request;
  const open = await tables.open(
    connection,
    session,
    { relation, columns: relation.columns, predicates, asOf: null, coldOnly: true },
    request.signal,
  );
  try {
    if (open.lakeSql === null) return null;
    const list = request.columns.map((c) => `r.${duckIdent(c.spec.name)}`).join(", ");
    const on = (only?.pk ?? []).map((c) => `r.${duckIdent(c.spec.name)} = o.${duckIdent(c.spec.name)}`);
    const join = only ? ` SEMI JOIN ${duckIdent(only.table)} o ON ${on.join(" AND ")}` : "";
    const where = predicates.length === 0 ? "" : ` WHERE ${predicates.map(toDuckCondition).join(" AND ")}`;
    const sql = `SELECT ${list} FROM (SELECT * FROM (${open.lakeSql})${where}) r${join}`;
    return await take((await session.query(sql)).batches());
  } finally {
    await open.release();
  }
}

/** Throws `limit_exceeded` beyond so many rows. */
export async function* bounded(batches: AsyncIterable<ColumnBatch>, limit: number): AsyncIterable<ColumnBatch> {
  let rows = 0;
  for await (const batch of batches) {
    rows += batch.length;
    if (rows > limit) {
      throw new SpillwayError(
        "limit_exceeded",
        `The statement would have to look at more than ${limit} rows in the lake.`,
        { remedy: "Narrow its WHERE by the primary key or the tier key, or correct in several statements." },
      );
    }
    yield batch;
  }
}
