/** The mirrored tables of one session, kept as the catalog says. */
import type { SpillwayError } from "@spillway/base/errors";
import { type Lsn, minLsn } from "@spillway/base/lsn";
import type { MoverContext } from "../context.ts";
import { MirrorTable } from "./mirror-table.ts";
import type { Feed } from "./sink.ts";
import { loadMirrorTables, type MirrorTableRow, stopMirrored } from "./state.ts";

export class TableSet {
  readonly #tables = new Map<number, MirrorTable>();
  /** Tables that this session has known at any time. */
  readonly #seen = new Set<number>();
  readonly #dropped: (feed: Feed) => void;

  /** `dropped` is called for tables that left. */
  constructor(dropped: (feed: Feed) => void) {
    this.#dropped = dropped;
  }

  get all(): MirrorTable[] {
    return [...this.#tables.values()];
  }

  get(oid: number): MirrorTable | undefined {
    return this.#tables.get(oid);
  }

  byRelation(relationId: bigint): MirrorTable | undefined {
    return this.all.find((t) => t.relation.relationId === relationId);
  }

  /** The lowest F of the live tables; null when there is none. */
  frontier(): Lsn | null {
    const live = this.all.flatMap((t) => (t.phase === "live" && t.f !== null ? t.f : []));
    return live.length === 0 ? null : live.reduce(minLsn);
  }

  /** Reads the catalog. True when this session cannot go on with what it says. */
  async reload(ctx: MoverContext): Promise<boolean> {
    const rows = await ctx.pool.withClient((c) => loadMirrorTables(c));
    let isOver = rows.length === 0;
    const there = new Set<number>();
    for (const row of rows) {
      there.add(row.relation.relid);
      if (!this.#meet(row)) isOver = true;
    }
    for (const [oid, table] of this.#tables) {
      if (there.has(oid)) continue;
      this.#dropped(table.feed);
      this.#tables.delete(oid);
    }
    return isOver;
  }

  /** False when the server has described the table already, and what that meant is not true any more. */
  #meet(row: MirrorTableRow): boolean {
    const { relid } = row.relation;
    const found = this.#tables.get(relid);
    const isSame = found?.relation.relationId === row.relation.relationId;
    const isCopying = row.phase === "copying" || row.phase === "copied";
    const isRevived =
      isSame && (found.phase === "needs_copy" ? row.phase !== "needs_copy" : found.phase === "live" && isCopying);
    if (found && isSame && !isRevived) {
      found.refresh(row);
      if (found.phase === "needs_copy") this.#dropped(found.feed);
      return true;
    }
    if (this.#seen.has(relid)) return false;
    this.#seen.add(relid);
    this.#tables.set(relid, new MirrorTable(row));
    return true;
  }
}

/** Stops a table in the catalog, with its reason. */
export async function stopTable(ctx: MoverContext, table: MirrorTable, error: SpillwayError): Promise<void> {
  table.failure = error;
  table.phase = "needs_copy";
  ctx.log.error("mirror.table_stopped", { table: table.name, code: error.code, error });
  await ctx.pool.withClient((c) => stopMirrored(c, table.relation.relationId, error.code, error.message));
}
