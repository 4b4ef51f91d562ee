/** Taking a table out of the mirror, while the pump runs; slot and publication go with the last one. */
import { evictSlotHolder } from "@spillway/pg/replication/evict";
import { dropSlot, readSlot } from "@spillway/pg/replication/session";
import { quoteIdent, quoteQualified } from "@spillway/pg/quote";
import { connectRaw } from "@spillway/pg/wire/connect-raw";
import type { Db, Relation } from "../../catalog/catalog.ts";
import type { MoverContext } from "../context.ts";
import { dropDdlTriggers } from "./ddl-triggers.ts";
import { mirrorNames } from "./slot.ts";
import { loadMirror } from "./state.ts";

/** How long the pump is given to let go of the slot by itself. */
const PUMP_LEAVES_MS = 5_000;

/** In the transaction that removes the relation. */
export async function leavePublication(tx: Db, relation: Relation): Promise<void> {
  const mirror = await loadMirror(tx);
  if (mirror === null) return;
  const id = relation.relationId.toString();
  const { rows } = await tx.query<{ nspname: string; relname: string }>(
    `select n.nspname, c.relname from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
       join pg_class c on c.oid = r.prrelid join pg_namespace n on n.oid = c.relnamespace
     where p.pubname = $1 and r.prrelid = $2`,
    [mirror.publicationName, relation.relid],
  );
  for (const { nspname, relname } of rows) {
    await tx.query(
      `alter publication ${quoteIdent(mirror.publicationName)} drop table ${quoteQualified(nspname, relname)}`,
    );
  }
  // Files of a copy that has not joined: removed like those of any operation that was taken back.
  await tx.query(
    `update spillway.journal set phase = 'abandoned', ended_at = now()
     where phase = 'open' and op_id = (select copy_op from spillway.mirror_table where relation_id = $1)`,
    [id],
  );
  await tx.query("delete from spillway.mirror_table where relation_id = $1", [id]);
  const left = await tx.query("select from spillway.mirror_table");
  if (left.rowCount !== 0) return;
  await tx.query(`drop publication if exists ${quoteIdent(mirror.publicationName)}`);
  await dropDdlTriggers(tx);
  await tx.query("delete from spillway.mirror");
}

/** Drops the slot if no table is mirrored any more. Called after the removal was committed. */
export async function dropLeftSlot(ctx: MoverContext): Promise<void> {
  const { isLeft, name } = await ctx.pool.withClient(async (c) => {
    const { rows } = await c.query<{ oid: string }>(
      "select oid::text from pg_database where datname = current_database()",
    );
    return { isLeft: (await loadMirror(c)) === null, name: mirrorNames(Number(rows[0]?.oid)).slot };
  });
  if (!isLeft) return;
  const sql = await connectRaw(ctx.conninfo, { applicationName: ctx.applicationName });
  try {
    const endMs = ctx.clock.monotonicMs() + PUMP_LEAVES_MS;
    let slot = await readSlot(sql, name);
    while (slot?.active && ctx.clock.monotonicMs() < endMs) {
      await ctx.clock.sleep(100);
      slot = await readSlot(sql, name);
    }
    if (slot === null) return;
    if (slot.active) await evictSlotHolder({ sql, slot: name, clock: ctx.clock });
  } finally {
    await sql.close();
  }
  const replication = await connectRaw(ctx.conninfo, { applicationName: ctx.applicationName, replication: "database" });
  try {
    await dropSlot(replication, name);
  } finally {
    await replication.close();
  }
}
