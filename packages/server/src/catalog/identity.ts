/**
 * Whose lake it is. A restored copy, a loaded dump, or the old primary of a fork has the same catalog, the same warehouse and
 * a valid epoch; it would clean up the original's files. So the warehouse holds an ownership object, taken by conditional
 * put, and it and the catalog's own record must say the same as the server that we are connected to.
 */
import type { Clock } from "@spillway/base/clock";
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import { newUuid } from "@spillway/base/ids";
import type { ObjectStore } from "@spillway/lake/store/store";
import { fromPgError, sqlstateOf } from "@spillway/pg/pg-error";
import type { Db } from "./db.ts";
import { big } from "./rows.ts";

/** The server as it says it is. */
export interface ServerIdentity {
  /** 0 where the role may not ask. */
  readonly systemIdentifier: bigint;
  readonly databaseOid: number;
  /** 0 where the role may not ask. */
  readonly timeline: number;
  /** When the server was started, in µs since 1970: no copy of it, of whatever kind, has the same. 0: not recorded. */
  readonly instance: bigint;
}

export interface WarehouseRow extends ServerIdentity {
  readonly location: string;
  readonly lineage: string;
  /** Raised by each adoption, so that the one who adopted last is the owner. */
  readonly generation: bigint;
}

const OWNER_FILE = "_spillway/owner.json";

export function ownerPath(warehouse: string): string {
  return `${warehouse}/${OWNER_FILE}`;
}

export async function readIdentity(db: Db): Promise<ServerIdentity> {
  const { rows } = await db.query<{ oid: string; started: string }>(
    `select oid::text, (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint::text as started
     from pg_database where datname = current_database()`,
  );
  const asked = async (sql: string): Promise<string> => {
    try {
      const { rows: found } = await db.query<{ v: string }>(sql);
      return found[0]?.v ?? "0";
    } catch (error) {
      if (sqlstateOf(error) !== "42501") throw fromPgError(error, "reading the server's identity");
      return "0";
    }
  };
  const systemIdentifier = await asked("select system_identifier::text as v from pg_control_system()");
  // The control file learns of a promotion with the checkpoint after it; the name of the file that is written knows it at once.
  const timeline = await asked(
    `select case when pg_is_in_recovery() then (select timeline_id from pg_control_checkpoint())
       else ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int end::text as v`,
  );
  return {
    systemIdentifier: BigInt(systemIdentifier),
    databaseOid: Number(rows[0]?.oid),
    timeline: Number(timeline),
    instance: BigInt(rows[0]?.started ?? "0"),
  };
}

export async function loadWarehouse(db: Db): Promise<WarehouseRow | null> {
  const { rows } = await db.query<{
    location: string;
    lineage: string;
    system_identifier: string;
    database_oid: string | number;
    timeline: number;
    generation: string;
    instance: string;
  }>("select * from spillway.warehouse");
  const raw = rows[0];
  if (!raw) return null;
  return {
    location: raw.location,
    lineage: raw.lineage,
    systemIdentifier: big(raw.system_identifier),
    databaseOid: Number(raw.database_oid),
    timeline: raw.timeline,
    generation: big(raw.generation),
    instance: big(raw.instance),
  };
}

/**
 * Takes an unowned warehouse for this database, or finds it taken by this very database. In a transaction of the caller's,
 * which is rolled back when this throws: `warehouse_taken`, or the store's errors.
 */
export async function takeWarehouse(
  tx: Db,
  store: ObjectStore,
  warehouse: string,
  clock: Clock,
): Promise<WarehouseRow> {
  const identity = await readIdentity(tx);
  let row: WarehouseRow = { ...identity, location: warehouse, lineage: newUuid(), generation: 1n };
  try {
    await store.put(ownerPath(warehouse), Buffer.from(printOwner(row, clock)), { ifNoneMatch: true });
  } catch (error) {
    if (!isSpillwayError(error, "store_precondition", "store_outcome_unknown")) throw error;
    const owner = await readOwner(store, warehouse);
    // An init of ours that was interrupted before it committed.
    const isOurs =
      owner !== null &&
      owner.systemIdentifier === identity.systemIdentifier &&
      owner.databaseOid === identity.databaseOid &&
      identity.systemIdentifier !== 0n;
    if (owner !== null && !isOurs && owner.lineage !== row.lineage) {
      throw new SpillwayError("warehouse_taken", `the warehouse ${warehouse} belongs to another database`, {
        details: { lineage: owner.lineage },
      });
    }
    if (owner !== null) row = { ...row, lineage: owner.lineage, generation: owner.generation };
  }
  await tx.query(
    `insert into spillway.warehouse (location, lineage, system_identifier, database_oid, timeline, generation, instance)
     values ($1, $2, $3, $4, $5, $6, $7)`,
    [
      row.location,
      row.lineage,
      row.systemIdentifier.toString(),
      row.databaseOid,
      row.timeline,
      row.generation.toString(),
      row.instance.toString(),
    ],
  );
  return row;
}

/** Null when there is none. */
export async function readOwner(store: ObjectStore, warehouse: string): Promise<WarehouseRow | null> {
  try {
    const raw = JSON.parse(Buffer.from(await store.get(ownerPath(warehouse))).toString("utf8")) as Record<
      string,
      string
    >;
    return {
      location: warehouse,
      lineage: String(raw["lineage"]),
      systemIdentifier: BigInt(raw["systemIdentifier"] ?? "0"),
      databaseOid: Number(raw["databaseOid"]),
      timeline: Number(raw["timeline"]),
      generation: BigInt(raw["generation"] ?? "0"),
      instance: BigInt(raw["instance"] ?? "0"),
    };
  } catch (error) {
    if (isSpillwayError(error, "store_not_found")) return null;
    throw error;
  }
}

export function printOwner(row: WarehouseRow, clock: Clock): string {
  return JSON.stringify({
    lineage: row.lineage,
    systemIdentifier: row.systemIdentifier.toString(),
    databaseOid: row.databaseOid,
    timeline: row.timeline,
    generation: row.generation.toString(),
    instance: row.instance.toString(),
    writtenAt: new Date(clock.wallMs()).toISOString(),
  });
}

/** Why the lake is not this database's, or null. Pure. What a role may not ask (0) is not compared. */
export function ownershipFault(catalog: WarehouseRow, owner: WarehouseRow | null, now: ServerIdentity): string | null {
  if (owner === null) return "the warehouse has no ownership object";
  if (owner.lineage !== catalog.lineage) return "the warehouse belongs to another lineage";
  // The catalog's is raised first, the object's after it: an interrupted renewal leaves it one behind.
  const isOurs = owner.generation === catalog.generation || owner.generation === catalog.generation - 1n;
  if (!isOurs)
    return "the lake was since used by another copy of this database, or this one was restored to an earlier point";
  for (const [what, recorded] of [
    ["catalog", catalog],
    ["ownership object", owner],
  ] as const) {
    const fault = identityFault(recorded, now);
    if (fault !== null) return `${fault}, by the ${what}`;
  }
  return null;
}

function identityFault(recorded: ServerIdentity, now: ServerIdentity): string | null {
  const differs = (a: bigint | number, b: bigint | number): boolean => Number(a) !== 0 && Number(b) !== 0 && a !== b;
  if (differs(recorded.systemIdentifier, now.systemIdentifier)) return "the lake belongs to another server";
  if (differs(recorded.databaseOid, now.databaseOid)) return "the lake belongs to another database of this server";
  if (differs(recorded.timeline, now.timeline)) {
    return `the server is on timeline ${now.timeline}, the lake was last seen on ${recorded.timeline}`;
  }
  return null;
}

/** Throws `catalog_missing`, `warehouse_mismatch` or `lake_not_ours` unless this database owns the warehouse. */
export async function requireOwnership(db: Db, store: ObjectStore, warehouse: string): Promise<WarehouseRow> {
  const catalog = await loadWarehouse(db);
  if (catalog === null) throw new SpillwayError("catalog_missing", "this database has no Spillway catalog yet");
  if (catalog.location !== warehouse) throw mismatch(catalog.location, warehouse);
  const fault = ownershipFault(catalog, await readOwner(store, warehouse), await readIdentity(db));
  if (fault !== null) throw new SpillwayError("lake_not_ours", `${warehouse}: ${fault}`);
  return catalog;
}

/**
 * The same, and that this very server, since it was started, is the one that claimed the lake last (claim.ts). Before every
 * deletion: a copy of the server that nobody has noticed yet has all the rest. Throws `lake_unclaimed` too.
 */
export async function requireClaim(db: Db, store: ObjectStore, warehouse: string): Promise<void> {
  const catalog = await requireOwnership(db, store, warehouse);
  const [owner, now] = [await readOwner(store, warehouse), await readIdentity(db)];
  if (owner?.instance === now.instance && catalog.instance === now.instance) return;
  throw new SpillwayError(
    "lake_unclaimed",
    `${warehouse} was last claimed by a server that was started at another time`,
  );
}

export function mismatch(recorded: string, given: string): SpillwayError {
  return new SpillwayError(
    "warehouse_mismatch",
    `the database's lake is at ${recorded}, the warehouse setting says ${given}`,
  );
}
