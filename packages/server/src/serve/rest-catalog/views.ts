/**
 * Consistent views of the catalog: warehouse `db@lsn:L` and `db@latest` show every mirrored table as of one WAL position, which no
 * sequence of loads of the live tables can. `latest` is fixed when a client asks for its configuration: the position
 * is part of the prefix that it is told to use. Tables that are not mirrored are not in a view: what they have in the lake is no
 * moment of the table, the rest being in Postgres. A view is read-only.
 */
import { SpillwayError } from "@spillway/base/errors";
import { formatLsn, type Lsn, parseLsn } from "@spillway/base/lsn";
import { MAIN_BRANCH } from "@spillway/lake/metadata";
import type { Snapshot, TableMetadata } from "@spillway/lake/model";
import { normalizeLocation } from "@spillway/lake/store/store";
import type { Db } from "../../catalog/catalog.ts";

export type WarehouseView =
  | { readonly kind: "live" }
  | { readonly kind: "latest" }
  | { readonly kind: "lsn"; readonly lsn: Lsn };

/**
 * What a client's `warehouse` names: the one warehouse, by its location in any spelling, by the database's name or not at
 * all, and behind an `@` the moment. Throws `warehouse_unknown`.
 */
export function parseWarehouse(
  own: { readonly location: string; readonly database: string },
  given: string | null,
): WarehouseView {
  const text = given ?? "";
  const at = /@(latest|lsn:[^@]*)$/.exec(text);
  const name = at ? text.slice(0, at.index) : text;
  if (!isOwn(own, name)) throw unknown(text);
  if (!at) return { kind: "live" };
  if (at[1] === "latest") return { kind: "latest" };
  const lsn = parsePosition((at[1] ?? "").slice("lsn:".length));
  if (lsn === null) throw unknown(text);
  return { kind: "lsn", lsn };
}

function isOwn(own: { readonly location: string; readonly database: string }, name: string): boolean {
  if (name === "" || name === own.location || name === own.database) return true;
  try {
    return normalizeLocation(name) === own.location;
  } catch {
    return false;
  }
}

function unknown(text: string): SpillwayError {
  return new SpillwayError("warehouse_unknown", `there is no warehouse ${JSON.stringify(text)} here`);
}

/** `16/B374D848`, or its 16 digits without the slash, which a path would not carry. */
function parsePosition(text: string): Lsn | null {
  if (/^[0-9A-Fa-f]{16}$/.test(text)) return BigInt(`0x${text}`);
  try {
    return parseLsn(text);
  } catch {
    return null;
  }
}

/** The prefix of the paths under which a view's tables are found, and back. */
export function printView(lsn: Lsn): string {
  return `lake@lsn:${lsn.toString(16).toUpperCase().padStart(16, "0")}`;
}

export function parseView(prefix: string): Lsn | null {
  const match = /^lake@lsn:([0-9A-F]{16})$/.exec(prefix);
  return match ? BigInt(`0x${match[1]}`) : null;
}

export interface ViewTable {
  readonly namespace: string;
  readonly name: string;
  readonly metadataLocation: string;
  readonly frontier: Lsn;
}

/** The tables that have a moment: mirrored, and with all their rows in the lake; as far as the position. */
export async function viewTables(db: Db, lsn: Lsn): Promise<ViewTable[]> {
  const { rows } = await db.query<{ namespace: string; name: string; metadata_location: string; f_lsn: string }>(
    `select l.namespace, l.name, l.metadata_location, s.f_lsn::text as f_lsn from spillway.lake_table l
     join spillway.relation x using (lake_id) join spillway.seam s using (relation_id)
     where x.mode = 'mirrored' and s.t is null and s.f_lsn >= $1::pg_lsn order by l.namespace, l.name`,
    [formatLsn(lsn)],
  );
  return rows.map((row) => ({
    namespace: row.namespace,
    name: row.name,
    metadataLocation: row.metadata_location,
    frontier: parseLsn(row.f_lsn),
  }));
}

/** F of the tables that follow the stream. Throws `as_of_unsupported` when there is none. */
export async function latestPosition(db: Db): Promise<Lsn> {
  const { rows } = await db.query<{ f: string | null }>(
    `select min(s.f_lsn)::text as f from spillway.seam s join spillway.mirror_table m using (relation_id)
     where m.phase = 'live' and s.t is null`,
  );
  const f = rows[0]?.f ?? null;
  if (f === null)
    throw new SpillwayError("as_of_unsupported", "no table is mirrored, so there is no moment that all have in common");
  return parseLsn(f);
}

/** The table as it was when the snapshot was the newest: main is there, and nothing later is to be seen. */
export function metadataAt(metadata: TableMetadata, snapshot: Snapshot): TableMetadata {
  const { snapshotId, schemaId, sequenceNumber, timestampMs } = snapshot;
  const snapshots = metadata.snapshots.filter((s) => s.sequenceNumber <= sequenceNumber);
  const kept = new Set(snapshots.map((s) => s.snapshotId));
  const logAt = metadata.snapshotLog.findLastIndex((e) => e.snapshotId === snapshotId);
  const refs = Object.entries(metadata.refs).filter(([name, ref]) => name !== MAIN_BRANCH && kept.has(ref.snapshotId));
  const hasSchema = metadata.schemas.some((s) => s.schemaId === schemaId);
  return {
    ...metadata,
    currentSnapshotId: snapshotId,
    snapshots,
    snapshotLog: logAt < 0 ? [{ snapshotId, timestampMs }] : metadata.snapshotLog.slice(0, logAt + 1),
    refs: { ...Object.fromEntries(refs), [MAIN_BRANCH]: { type: "branch", ...metadata.refs[MAIN_BRANCH], snapshotId } },
    currentSchemaId: hasSchema && schemaId !== undefined ? schemaId : metadata.currentSchemaId,
    statistics: metadata.statistics.filter((f) => kept.has(f.snapshotId)),
    partitionStatistics: metadata.partitionStatistics.filter((f) => kept.has(f.snapshotId)),
  };
}
