/**
 * The event triggers that say DDL in the stream (`catalog/sql/0005-mirror-ddl.ts`): made with the first mirrored table, where the
 * role may. Where it may not, changes are detected as far as the stream shows them, and ambiguous ones make a table be copied again.
 */
import { sqlstateOf } from "@spillway/pg/pg-error";
import { quoteIdent } from "@spillway/pg/quote";
import { inTransaction } from "@spillway/pg/transaction";
import type pg from "pg";
import type { Db } from "../../catalog/catalog.ts";

const TRIGGERS = [
  ["spillway_mirror_ddl_end", "ddl_command_end", "spillway.mirror_ddl_end"],
  ["spillway_mirror_rewrite", "table_rewrite", "spillway.mirror_rewrite"],
  ["spillway_mirror_sql_drop", "sql_drop", "spillway.mirror_sql_drop"],
] as const;

const INSUFFICIENT_PRIVILEGE = "42501";

/** False where the role may not. Idempotent. */
export async function ensureDdlTriggers(db: pg.Client): Promise<boolean> {
  if (await saysDdl(db)) return true;
  try {
    await inTransaction(db, {}, async (tx) => {
      for (const [name, event, call] of TRIGGERS) {
        await tx.query(`drop event trigger if exists ${quoteIdent(name)}`);
        await tx.query(`create event trigger ${quoteIdent(name)} on ${event} execute function ${call}()`);
        // Also for changes that are applied by logical replication.
        await tx.query(`alter event trigger ${quoteIdent(name)} enable always`);
      }
    });
    return true;
  } catch (error) {
    if (sqlstateOf(error) === INSUFFICIENT_PRIVILEGE) return false;
    throw error;
  }
}

/** Whether all of them are there and on. */
export async function saysDdl(db: Db): Promise<boolean> {
  const { rows } = await db.query<{ n: number }>(
    "select count(*)::int as n from pg_event_trigger where evtname = any ($1::text[]) and evtenabled = 'A'",
    [TRIGGERS.map(([name]) => name)],
  );
  return rows[0]?.n === TRIGGERS.length;
}

/** With the last mirrored table. */
export async function dropDdlTriggers(tx: Db): Promise<void> {
  const { rows } = await tx.query<{ name: string }>(
    `select evtname as name from pg_event_trigger e where evtname = any ($1::text[])
       and pg_has_role(current_user, e.evtowner, 'USAGE')`,
    [TRIGGERS.map(([name]) => name)],
  );
  for (const { name } of rows) await tx.query(`drop event trigger if exists ${quoteIdent(name)}`);
}
