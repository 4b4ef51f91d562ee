/** The one slot and the one publication of a source: their names, how they come into being, who may not be put into them. */
import { must } from "@spillway/base/assert";
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import { formatLsn } from "@spillway/base/lsn";
import { sqlstateOf } from "@spillway/pg/pg-error";
import { quoteIdent } from "@spillway/pg/quote";
import { createSlot, identifySystem, readSlot } from "@spillway/pg/replication/session";
import type { RawConnection } from "@spillway/pg/wire/connection";
import type pg from "pg";
import type { Db } from "../../catalog/catalog.ts";
import { dropDdlTriggers, ensureDdlTriggers } from "./ddl-triggers.ts";
import { loadMirror, type MirrorRow } from "./state.ts";

/**
 * Names by the database's oid: no text of the user's is in them, so no two databases of a cluster can have the same,
 * whatever punctuation their names hold. Slots are the cluster's, publications the database's.
 */
export function mirrorNames(databaseOid: number): { readonly slot: string; readonly publication: string } {
  return { slot: `spillway_${databaseOid}`, publication: "spillway" };
}

/**
 * Whether this server tells transactions that are under way that a table has joined a publication. Before these minors a
 * change of such a transaction could be left out.
 * Source: release notes of 13.21, 14.18, 15.13, 16.9, 17.5 ("distribute invalidations").
 */
export function hasAddTableFix(serverVersion: number): boolean {
  const fixed: Readonly<Record<number, number>> = { 13: 21, 14: 18, 15: 13, 16: 9, 17: 5 };
  const major = Math.floor(serverVersion / 10_000);
  if (major >= 18) return true;
  const minor = fixed[major];
  return minor !== undefined && serverVersion % 10_000 >= minor;
}

/** How long a new slot may wait for the transactions that run. */
const SLOT_TIMEOUT_MS = 60_000;

/**
 * Makes publication and slot, unless they are there, and writes them into the catalog. `replication` is a connection for
 * logical replication, `db` one for SQL. Throws `mirror_not_logical`, `deadline_exceeded` naming who is waited for.
 */
export async function ensureMirror(db: pg.Client, replication: RawConnection): Promise<MirrorRow> {
  await requireLogical(db);
  await ensureDdlTriggers(db);
  const known = await loadMirror(db);
  if (known !== null && (await readSlot(replication, known.slotName)) !== null) return known;
  if (known !== null) {
    throw new SpillwayError("mirror_slot_lost", `the slot ${known.slotName} is gone`, {
      details: { slot: known.slotName },
    });
  }
  const { rows } = await db.query<{ oid: string }>(
    "select oid::text from pg_database where datname = current_database()",
  );
  const names = mirrorNames(Number(must(rows[0], "database").oid));
  await ensurePublication(db, names.publication, replication.serverVersion);
  const { systemId, timeline } = await identifySystem(replication);
  const startLsn = await ensureSlot(replication, names.slot);
  await db.query(
    `insert into spillway.mirror (slot_name, publication_name, system_identifier, start_lsn, timeline)
     values ($1, $2, $3, $4, $5) on conflict (id) do nothing`,
    [names.slot, names.publication, systemId, formatLsn(startLsn), timeline],
  );
  return must(await loadMirror(db), "the mirror's row");
}

async function requireLogical(db: Db): Promise<void> {
  const { rows } = await db.query<{ level: string; may: boolean }>(
    `select current_setting('wal_level') as level,
       (select rolsuper or rolreplication from pg_roles where rolname = current_user)
         or coalesce((select bool_or(pg_has_role(current_user, oid, 'MEMBER')) from pg_roles where rolname in ('rds_replication')), false) as may`,
  );
  const row = must(rows[0], "settings");
  if (row.level !== "logical") {
    throw new SpillwayError("mirror_not_logical", `the server's wal_level is ${row.level}, not logical`);
  }
  if (!row.may) throw new SpillwayError("mirror_not_logical", "the role has not the attribute REPLICATION");
}

async function ensurePublication(db: Db, name: string, serverVersion: number): Promise<void> {
  const { rows } = await db.query<{ any: boolean }>(
    "select exists (select from pg_publication where pubname = $1) as any",
    [name],
  );
  if (rows[0]?.any === true) return;
  const generated = serverVersion >= 180_000 ? ", publish_generated_columns = stored" : "";
  await db.query(
    `create publication ${quoteIdent(name)} with (publish = 'insert, update, delete, truncate', publish_via_partition_root = true${generated})`,
  );
}

/** A slot that a former attempt has left before it was written down is taken: nothing was confirmed to it. */
async function ensureSlot(replication: RawConnection, name: string): Promise<bigint> {
  const old = await readSlot(replication, name);
  if (old !== null) return must(old.confirmedFlushLsn, "the slot's position");
  try {
    const slot = await createSlot(replication, { name, failover: true, snapshot: "none", timeoutMs: SLOT_TIMEOUT_MS });
    return slot.consistentPoint;
  } catch (error) {
    if (isSpillwayError(error) && sqlstateOf(error) === "53400") {
      throw new SpillwayError("mirror_not_logical", `no slot can be made: ${error.message}`, { cause: error });
    }
    throw error;
  }
}

/** Takes the slot and the publication away, with the last mirrored table. */
export async function dropMirror(db: Db, mirror: MirrorRow): Promise<void> {
  await dropDdlTriggers(db);
  await db.query(`drop publication if exists ${quoteIdent(mirror.publicationName)}`);
  await db.query(
    "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1 and not active",
    [mirror.slotName],
  );
}
