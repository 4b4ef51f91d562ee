/** Looks, every now and then, for what the stream has not told: see `leaves.ts`. */
import { SpillwayError } from "@spillway/base/errors";
import type { Lsn } from "@spillway/base/lsn";
import type { MoverContext } from "../context.ts";
import { saysDdl } from "./ddl-triggers.ts";
import { cameWithRows, leafChange, type Leaves, loadLeaves, putLeaves, readLeaves, type SeenLeaves } from "./leaves.ts";
import type { MirrorTable } from "./mirror-table.ts";

export interface Strange {
  readonly table: MirrorTable;
  readonly error: SpillwayError;
}

/** Leaves that the stream has told, for the flush that F passes them with. */
export function changedLeaves(tables: readonly MirrorTable[]): { relationId: bigint; leaves: Leaves }[] {
  return tables.flatMap((table) => {
    if (!table.leavesChanged || table.leaves === null) return [];
    table.leavesChanged = false;
    return { relationId: table.relation.relationId, leaves: table.leaves };
  });
}

/** The tables whose leaves changed in a way that F should explain by now, and does not. */
export async function watchLeaves(ctx: MoverContext, tables: readonly MirrorTable[], f: Lsn): Promise<Strange[]> {
  const all = tables.filter((t) => t.phase === "live" && t.failure === null);
  if (all.length === 0) return [];
  // Where DDL is said in the stream, other files are those of a command that keeps the rows (VACUUM FULL, CLUSTER). What was seen
  // before the triggers were there is judged all the same.
  const live = (await ctx.pool.withClient((c) => saysDdl(c))) ? all.filter((t) => t.suspect !== null) : all;
  if (live.length === 0) return [];
  const seen = await ctx.pool.withClient((c) =>
    readLeaves(
      c,
      live.map((t) => t.relation.relid),
    ),
  );
  const strange: Strange[] = [];
  for (const table of live) {
    const now = seen.get(table.relation.relid);
    if (now === undefined) continue;
    const error = await judge(ctx, table, now, f);
    if (error !== null) strange.push({ table, error });
  }
  return strange;
}

async function judge(ctx: MoverContext, table: MirrorTable, now: SeenLeaves, f: Lsn): Promise<SpillwayError | null> {
  const id = table.relation.relationId;
  if (table.leaves === null) {
    const stored = await ctx.pool.withClient((c) => loadLeaves(c, id));
    table.leaves = stored.leaves;
    if (stored.truncated) table.feed.truncates++;
  }
  const change = leafChange(table.leaves, now.leaves);
  if (change === null) {
    table.suspect = null;
    return null;
  }
  // Judged when everything that was committed before it was first seen has gone through the stream.
  if (table.suspect === null || leafChange(table.suspect.leaves, now.leaves) !== null) table.suspect = now;
  if (f < table.suspect.lsn) return null;
  const said = (what: string): SpillwayError =>
    new SpillwayError("mirror_schema_ambiguous", `${table.name}: ${what}, which the change stream does not tell`);
  if (change.gone.length > 0) return said("a partition was detached or dropped");
  if (change.rewritten.length > 0 && table.feed.truncates === 0) return said("rows were rewritten");
  for (const leaf of change.added) {
    if (await ctx.pool.withClient((c) => cameWithRows(c, leaf)))
      return said("a partition was attached with rows in it");
  }
  table.leaves = now.leaves;
  table.suspect = null;
  table.feed.truncates = 0;
  await ctx.pool.withClient((c) => putLeaves(c, id, now.leaves));
  return null;
}
