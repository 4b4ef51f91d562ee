/** The leader's care for copies: one that nobody is at goes on, a table that only needs another copy gets it. */
import { fromPgError } from "@spillway/pg/pg-error";
import type { SpillwayError } from "@spillway/base/errors";
import type { MoverContext } from "../context.ts";
import { displayName } from "../context.ts";
import { clearWait, noteWait } from "../waits.ts";
import { copyTable } from "./copy.ts";
import { COPIES_AGAIN, restartCopy } from "./recopy.ts";
import { loadMirrorTables, stopMirrored } from "./state.ts";

const EVERY_MS = 1000;
const FIRST_PAUSE_MS = 2_000;
const LONGEST_PAUSE_MS = 300_000;

/** Runs until the signal. Failures are waited out for longer and longer, and shown by `status`. */
export async function tendCopies(ctx: MoverContext, parallel: number, signal: AbortSignal): Promise<void> {
  const trouble = new Map<bigint, { pauseMs: number; nextMs: number }>();
  while (!signal.aborted) {
    try {
      await tendOnce(ctx, parallel, signal, trouble);
    } catch (error) {
      ctx.log.debug("mirror.copies_failed", { error: fromPgError(error, "looking for copies") });
    }
    await ctx.clock.sleep(EVERY_MS, signal);
  }
}

async function tendOnce(
  ctx: MoverContext,
  parallel: number,
  signal: AbortSignal,
  trouble: Map<bigint, { pauseMs: number; nextMs: number }>,
): Promise<void> {
  for (const { relation, phase } of await ctx.pool.withClient((c) => loadMirrorTables(c))) {
    if (signal.aborted) return;
    const again = phase === "needs_copy" && COPIES_AGAIN.has(relation.stopCode ?? "");
    if (phase !== "copying" && !again) continue;
    const id = relation.relationId;
    const known = trouble.get(id);
    if (known && ctx.clock.monotonicMs() < known.nextMs) continue;
    try {
      if (again) await restartCopy(ctx, id, await serverVersion(ctx));
      // A register command that is at it holds the lock: then there is nothing to do here.
      await copyTable(ctx, id, { parallel });
      if (trouble.delete(id)) await ctx.pool.withClient((c) => clearWait(c, id));
    } catch (error) {
      const typed: SpillwayError = fromPgError(error, `copying ${displayName(relation)}`);
      if (signal.aborted) return;
      const pauseMs = Math.min(LONGEST_PAUSE_MS, (known?.pauseMs ?? FIRST_PAUSE_MS / 2) * 2);
      trouble.set(id, { pauseMs, nextMs: ctx.clock.monotonicMs() + pauseMs });
      ctx.log.warn("mirror.copy_failed", { table: displayName(relation), code: typed.code, error: typed });
      await ctx.pool.withClient(async (c) => {
        await noteWait(c, id, { step: "copy", reason: typed.message, code: typed.code, retryMs: pauseMs });
        if (typed.code === "mirror_schema_ambiguous") await stopMirrored(c, id, typed.code, typed.message);
      });
    }
  }
}

async function serverVersion(ctx: MoverContext): Promise<number> {
  const { rows } = await ctx.pool.withClient((c) =>
    c.query<{ v: string }>("select current_setting('server_version_num') as v"),
  );
  return Number(rows[0]?.v ?? 0);
}
