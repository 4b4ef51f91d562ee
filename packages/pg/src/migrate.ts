/**
 * Forward-only migrations. Each runs once, in a transaction of its own, under an advisory lock, and is recorded
 * with a checksum of its text in `<schema>.migration`. A database that has one which this program does not know
 * belongs to a newer program: it is refused, untouched.
 */
import { createHash } from "node:crypto";
import type pg from "pg";
import type { Clock } from "@spillway/base/clock";
import { SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import { fromPgError } from "./pg-error.ts";
import { quoteIdent, quoteQualified } from "./quote.ts";

export interface Migration {
  /** 1, 2, 3, … without gaps. Never changed, never reused. */
  readonly id: number;
  readonly name: string;
  /** Statements without transaction control. */
  readonly sql: string;
}

export interface MigrateOptions {
  /** Made when there is none. */
  readonly schema: string;
  readonly migrations: readonly Migration[];
  readonly log: Logger;
  readonly clock: Clock;
  /** How long to wait for another program that migrates. Default 60 s. */
  readonly waitMs?: number;
}

export interface MigrationState {
  /** The highest migration that the database has; 0: none. */
  readonly current: number;
  /** What is to be run, in order. */
  readonly pending: readonly Migration[];
}

/** Any fixed number, the same in every version. */
const LOCK_KEY = 0x5350_494c_4c57n;

/** Brings the schema up to date and gives the ids that were run. Throws catalog_newer, catalog_changed, deadline_exceeded. */
export async function migrate(client: pg.ClientBase, options: MigrateOptions): Promise<number[]> {
  await lock(client, options);
  try {
    // Looked up under the lock: whoever had it before us may have done the work.
    const { current, pending } = await migrationState(client, options.schema, options.migrations);
    if (current === 0) await createTable(client, options.schema);
    for (const migration of pending) await apply(client, options, migration);
    return pending.map((m) => m.id);
  } finally {
    await client.query("SELECT pg_advisory_unlock($1)", [LOCK_KEY.toString()]).catch(() => {});
  }
}

/** What the database has and lacks, without changing anything. Throws catalog_newer, catalog_changed. */
export async function migrationState(
  client: pg.ClientBase,
  schema: string,
  migrations: readonly Migration[],
): Promise<MigrationState> {
  const table = quoteQualified(schema, "migration");
  const { rows: found } = await client.query<{ there: boolean }>("SELECT to_regclass($1) IS NOT NULL AS there", [
    table,
  ]);
  if (found[0]?.there !== true) return { current: 0, pending: migrations };
  const { rows } = await client.query<{ id: number; name: string; checksum: string }>(
    `SELECT id, name, checksum FROM ${table} ORDER BY id`,
  );
  const newer = rows.filter((row) => row.id > migrations.length);
  if (newer.length > 0) {
    const names = newer.map((row) => `${row.id} (${row.name})`).join(", ");
    throw new SpillwayError("catalog_newer", `the database has migrations that this program does not know: ${names}`);
  }
  for (const [i, row] of rows.entries()) {
    const own = migrations[i];
    if (own === undefined || own.id !== row.id || checksumOf(own) !== row.checksum) {
      throw new SpillwayError(
        "catalog_changed",
        `migration ${row.id} (${row.name}) is not the one that this program has`,
      );
    }
  }
  return { current: rows.length, pending: migrations.slice(rows.length) };
}

function checksumOf(migration: Migration): string {
  return createHash("sha256").update(migration.sql).digest("hex");
}

/** Asks again and again instead of waiting in the server: a waiting statement would hold back vacuum. */
async function lock(client: pg.ClientBase, options: MigrateOptions): Promise<void> {
  const waitMs = options.waitMs ?? 60_000;
  const startMs = options.clock.monotonicMs();
  for (;;) {
    const sql = "SELECT pg_try_advisory_lock($1) AS locked";
    const { rows } = await client.query<{ locked: boolean }>(sql, [LOCK_KEY.toString()]);
    if (rows[0]?.locked === true) return;
    if (options.clock.monotonicMs() - startMs > waitMs) {
      throw new SpillwayError(
        "deadline_exceeded",
        `another program has been migrating the database for over ${waitMs} ms`,
      );
    }
    await options.clock.sleep(100);
  }
}

async function createTable(client: pg.ClientBase, schema: string): Promise<void> {
  await inTransaction(client, `creating the schema ${schema}`, async () => {
    // Someone without CREATE on the database may have been given the schema, empty.
    const { rows } = await client.query("SELECT FROM pg_namespace WHERE nspname = $1", [schema]);
    if (rows.length === 0) await client.query(`CREATE SCHEMA ${quoteIdent(schema)}`);
    await client.query(
      `CREATE TABLE IF NOT EXISTS ${quoteQualified(schema, "migration")} (
         id int PRIMARY KEY, name text NOT NULL, checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())`,
    );
  });
}

async function apply(client: pg.ClientBase, options: MigrateOptions, migration: Migration): Promise<void> {
  await inTransaction(client, `running migration ${migration.id} (${migration.name})`, async () => {
    const table = quoteQualified(options.schema, "migration");
    // The row first: two programs that meet in spite of the lock collide here, before anything is changed.
    await client.query(`INSERT INTO ${table} (id, name, checksum) VALUES ($1, $2, $3)`, [
      migration.id,
      migration.name,
      checksumOf(migration),
    ]);
    await client.query(migration.sql);
  });
  options.log.info("migrate.applied", { schema: options.schema, id: migration.id, name: migration.name });
}

async function inTransaction(client: pg.ClientBase, doing: string, work: () => Promise<void>): Promise<void> {
  await client.query("BEGIN");
  try {
    await work();
    await client.query("COMMIT");
  } catch (error) {
    await client.query("ROLLBACK").catch(() => {});
    throw fromPgError(error, doing);
  }
}
