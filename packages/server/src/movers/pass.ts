/**
 * One pass over the registered tables. A table that fails does not hold up the others: what passes by itself is tried again
 * with growing pauses, what needs a person stops the table with its code and reason, and both are shown by `status`.
 */
import { isSpillwayError, type SpillwayError } from "@spillway/base/errors";
import { fromPgError } from "@spillway/pg/pg-error";
import { loadRelation, loadRelations, type Relation, resumeRelation, stopRelation } from "../catalog/catalog.ts";
import { displayName, type MoverContext } from "./context.ts";
import { TABLE_STEPS, type TableStep } from "./steps.ts";
import { asTiered } from "./tiered.ts";
import { clearWait, DROP_WAITS, noteWait } from "./waits.ts";

export interface PassResult {
  readonly tables: number;
  readonly moved: number;
  /** Tables that failed in this pass, by name, with the error's code. */
  readonly failed: Readonly<Record<string, string>>;
  /** Tables that were left out, because they failed a short while ago. */
  readonly waiting: number;
}

interface Trouble {
  failures: number;
  /** By the monotonic clock. */
  nextMs: number;
}

const FIRST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 60_000;

export interface PassOptions {
  readonly steps?: readonly TableStep[];
  /** Only these tables, by relation id. */
  readonly only?: readonly bigint[];
  /** Tables that are pausing are taken too. */
  readonly force?: boolean;
}

/** Remembers which tables are in trouble, from one pass to the next. One for each term of leadership. */
export class Passes {
  readonly #trouble = new Map<bigint, Trouble>();

  /** Throws what ends the term: `leader_lost`, a lost source, the signal. */
  async run(ctx: MoverContext, options: PassOptions = {}): Promise<PassResult> {
    const all = await ctx.pool.withClient((c) => loadRelations(c));
    const relations = inTurn(options.only ? all.filter((r) => options.only?.includes(r.relationId)) : all, ctx.epoch);
    const failed: Record<string, string> = {};
    let moved = 0;
    let waiting = 0;
    for (const relation of relations) {
      if (ctx.signal?.aborted) break;
      if (relation.state !== "active" && relation.state !== "stopped") continue;
      // What stops and resumes a mirrored table is its pump and its copy.
      if (asTiered(relation) === null) continue;
      const trouble = this.#trouble.get(relation.relationId);
      if (!options.force && trouble && ctx.clock.monotonicMs() < trouble.nextMs) {
        waiting += 1;
        continue;
      }
      const outcome = await this.#table(ctx, relation, options.steps ?? TABLE_STEPS);
      moved += outcome.moved;
      if (outcome.error) failed[displayName(relation)] = outcome.error.code;
    }
    return { tables: relations.length, moved, failed, waiting };
  }

  async #table(
    ctx: MoverContext,
    first: Relation,
    steps: readonly TableStep[],
  ): Promise<{ moved: number; error: SpillwayError | null }> {
    let relation: Relation | null = first;
    let moved = 0;
    let error: SpillwayError | null = null;
    for (const step of steps) {
      if (ctx.signal?.aborted) break;
      if (moved > 0) relation = await ctx.pool.withClient((c) => loadRelation(c, first.relationId));
      const tiered = relation === null ? null : asTiered(relation);
      if (tiered === null) break;
      try {
        moved += (await step.run(ctx, tiered)).moved;
      } catch (thrown) {
        error = fromPgError(thrown, `${step.name} of ${displayName(tiered)}`);
        if (endsTerm(ctx, error)) throw error;
        await this.#failed(ctx, tiered, step, error);
        if (step.essential) break;
      }
    }
    if (error === null && !ctx.signal?.aborted) await this.#recovered(ctx, first);
    return { moved, error };
  }

  async #failed(ctx: MoverContext, relation: Relation, step: TableStep, error: SpillwayError): Promise<void> {
    const failures = (this.#trouble.get(relation.relationId)?.failures ?? 0) + 1;
    const pauseMs = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** (failures - 1));
    this.#trouble.set(relation.relationId, { failures, nextMs: ctx.clock.monotonicMs() + pauseMs });
    const passing = ["retry", "conflict", "unknown"].includes(error.kind);
    const stops = step.stops && !passing;
    const fields = { table: displayName(relation), step: step.name, code: error.code, error, attempt: failures };
    if (stops) ctx.log.error("table.stopped", fields);
    else ctx.log.warn("table.waits", fields);
    await ctx.pool.withClient(async (c) => {
      if (stops) await stopRelation(c, relation.relationId, error.code, error.message);
      await noteWait(c, relation.relationId, {
        step: step.name,
        reason: error.message,
        code: error.code,
        retryMs: pauseMs,
      });
    });
  }

  async #recovered(ctx: MoverContext, relation: Relation): Promise<void> {
    const hadTrouble = this.#trouble.delete(relation.relationId);
    if (!hadTrouble && relation.state !== "stopped") return;
    const resumed = await ctx.pool.withClient(async (c) => {
      const { rows } = await c.query<{ step: string; code: string | null }>(
        "select step, code from spillway.relation_wait where relation_id = $1",
        [relation.relationId.toString()],
      );
      // What something else stopped (a failed verify, say) is not for a pass to resume.
      if (relation.state === "stopped" && rows[0]?.code !== relation.stopCode) return false;
      await resumeRelation(c, relation.relationId);
      // A drop that waits for its lock keeps its own.
      if (rows[0] && rows[0].code !== DROP_WAITS) await clearWait(c, relation.relationId);
      return true;
    });
    if (!resumed) return;
    ctx.log.info("table.resumed", { table: displayName(relation) });
  }
}

/** Each term begins with another table: where terms are short, those at the end of the list get their turn all the same. */
function inTurn<T>(relations: readonly T[], epoch: bigint | null): readonly T[] {
  if (relations.length === 0) return relations;
  const first = Number((epoch ?? 0n) % BigInt(relations.length));
  return [...relations.slice(first), ...relations.slice(0, first)];
}

/** Errors that are not this table's: the lease, or the source itself, is lost; or the work was called off. */
function endsTerm(ctx: MoverContext, error: SpillwayError): boolean {
  if (ctx.signal?.aborted) return true;
  return isSpillwayError(
    error,
    "leader_lost",
    "op_abandoned",
    "lake_not_ours",
    "pg_unreachable",
    "pg_no_primary",
    "pg_connection_lost",
    // The next term's recovery finds out, and takes back what did not happen.
    "pg_commit_unknown",
    "pg_read_only",
    "interrupted",
  );
}
