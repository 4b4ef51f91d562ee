/** `spillway init`: the schema, its migrations, and the warehouse. Running it again changes nothing. */
import type { Clock } from "@spillway/base/clock";
import { SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import type { ObjectStore } from "@spillway/lake/store/store";
import { migrate, migrationState } from "@spillway/pg/migrate";
import { fromPgError } from "@spillway/pg/pg-error";
import { inTransaction } from "@spillway/pg/transaction";
import type pg from "pg";
import { loadWarehouse, mismatch, requireOwnership, takeWarehouse, type WarehouseRow } from "./identity.ts";
import { CATALOG_MIGRATIONS, CATALOG_SCHEMA } from "./migrations.ts";

export interface InitOptions {
  readonly client: pg.Client;
  readonly store: ObjectStore;
  /** Canonical. */
  readonly warehouse: string;
  readonly clock: Clock;
  readonly log: Logger;
}

export interface InitResult {
  /** Migrations that were run now. */
  readonly applied: readonly number[];
  readonly warehouse: WarehouseRow;
  /** False when everything was there already. */
  readonly created: boolean;
}

export const MIN_SERVER_VERSION = 140_000;

export async function init(options: InitOptions): Promise<InitResult> {
  const { client, store, warehouse, clock, log } = options;
  await requireVersion(client);
  const applied = await migrate(client, { schema: CATALOG_SCHEMA, migrations: CATALOG_MIGRATIONS, log, clock });
  const known = await loadWarehouse(client);
  if (known !== null) {
    if (known.location !== warehouse) throw mismatch(known.location, warehouse);
    return { applied, warehouse: await requireOwnership(client, store, warehouse), created: false };
  }
  try {
    const row = await inTransaction(client, {}, async (tx) => {
      // One init at a time: the second waits here and then finds the row.
      await tx.query("lock table spillway.warehouse in exclusive mode");
      return (await loadWarehouse(tx)) ?? takeWarehouse(tx, store, warehouse, clock);
    });
    if (row.location !== warehouse) throw mismatch(row.location, warehouse);
    log.info("init.done", { warehouse, lineage: row.lineage });
    return { applied, warehouse: row, created: true };
  } catch (error) {
    throw fromPgError(error, "taking the warehouse");
  }
}

async function requireVersion(client: pg.Client): Promise<void> {
  const { rows } = await client.query<{ v: string }>("select current_setting('server_version_num') as v");
  const version = Number(rows[0]?.v);
  if (version < MIN_SERVER_VERSION) {
    throw new SpillwayError("source_unsupported", `the source runs Postgres ${Math.floor(version / 10_000)}`);
  }
}

/** Throws `catalog_missing`, or `catalog_newer`, unless the database has exactly the catalog of this program. */
export async function requireCatalog(client: pg.Client): Promise<void> {
  const { current, pending } = await migrationState(client, CATALOG_SCHEMA, CATALOG_MIGRATIONS);
  if (current === 0) throw new SpillwayError("catalog_missing", "this database has no Spillway catalog yet");
  if (pending.length > 0) {
    throw new SpillwayError("catalog_missing", "the database's catalog is older than this program", {
      remedy: "Run `spillway init` again: it brings the catalog up to date.",
    });
  }
}
