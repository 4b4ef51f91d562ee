/**
 * Maintenance: the passes that keep a lake table in shape, each with its switch and thresholds (`policy.ts`), and those
 * that concern the source as a whole. Every run is journaled with what it did, which is also how it is known when
 * the next one is due, whoever leads then.
 */
import { SpillwayError } from "@spillway/base/errors";
import { finishOp, loadRelation, loadRelations, openOp, type Relation, type WorkRequest } from "../catalog/catalog.ts";
import { compact } from "./compact.ts";
import { displayName, type MoverContext } from "./context.ts";
import { expireSnapshots } from "./expire.ts";
import { foldRelation, giveUp } from "./fold.ts";
import { rewriteManifests } from "./manifests.ts";
import { type Policy, policyOf } from "./policy.ts";
import { removeAbandonedFiles } from "./recover.ts";
import { removeDoomed, sweepPins } from "./remove.ts";
import { removeOrphans, removeTemporary } from "./remove-orphans.ts";
import { asLake, asTiered, type LakeRelation } from "./tiered.ts";

export const PASSES = ["fold", "compact", "manifests", "expire", "remove", "orphans"] as const;
export type PassName = (typeof PASSES)[number];

/** What each pass did, by its name; a pass that had nothing to do says nothing. */
export type PassReport = Partial<Record<PassName, Readonly<Record<string, unknown>>>>;

export interface MaintainOptions {
  /** Default: those of a table that are due by its policy. Named ones run whatever their switches say of when. */
  readonly passes?: readonly PassName[];
}

/** Runs the passes over one table, in the order in which one makes work for the next. Journaled. */
export async function maintainRelation(
  ctx: MoverContext,
  relation: LakeRelation,
  options: MaintainOptions = {},
): Promise<PassReport> {
  const wanted = new Set(options.passes ?? ["compact", "manifests", "expire"]);
  const opId = await ctx.pool.withClient((c) =>
    openOp(c, { kind: "maintain", relationId: relation.relationId, lakeId: relation.lakeId, epoch: ctx.epoch }),
  );
  const report: PassReport = {};
  try {
    const tiered = asTiered(relation);
    if (wanted.has("fold") && tiered !== null) {
      const done = await foldRelation(ctx, tiered, {
        rowsPerPass: Math.max(1, policyOf(relation).number("fold_rows")),
      });
      if (done.passes > 0) report.fold = { ...done };
    }
    if (wanted.has("compact")) {
      const done = await compact(ctx, relation);
      if (done.units + done.superseded > 0) report.compact = { ...done };
    }
    if (wanted.has("manifests")) {
      const done = await rewriteManifests(ctx, relation);
      if (done) report.manifests = { ...done };
    }
    if (wanted.has("expire")) {
      const done = await expireSnapshots(ctx, relation);
      if (done) report.expire = { ...done };
    }
    await ctx.pool.withClient((c) => finishOp(c, opId, { passes: plain(report) }));
  } catch (error) {
    await giveUp(ctx, opId, error);
    throw error;
  }
  if (Object.keys(report).length > 0) {
    ctx.log.info("maintain.done", { table: displayName(relation), passes: JSON.stringify(plain(report)) });
  }
  return report;
}

/** bigints as text: they go into json. */
function plain<T>(value: T): T {
  return JSON.parse(JSON.stringify(value, (_k, v: unknown) => (typeof v === "bigint" ? v.toString() : v))) as T;
}

/** The maintenance as a step of a pass: when the policy says that it is due. */
export async function maintainStep(ctx: MoverContext, relation: LakeRelation): Promise<{ moved: number }> {
  const policy = policyOf(relation);
  if (!policy.on("maintenance_enabled") || !(await isDue(ctx, relation, policy))) return { moved: 0 };
  await maintainRelation(ctx, relation);
  return { moved: 0 };
}

async function isDue(ctx: MoverContext, relation: LakeRelation, policy: Policy): Promise<boolean> {
  const { rows } = await ctx.pool.withClient((c) =>
    c.query<{ due: boolean }>(
      `select greatest(x.registered_at, (select max(j.ended_at) from spillway.journal j
           where j.relation_id = x.relation_id and j.kind = 'maintain' and j.phase = 'committed'))
         <= now() - make_interval(secs => $2::float8 / 1000) as due
       from spillway.relation x where x.relation_id = $1`,
      [relation.relationId.toString(), policy.number("maintenance_interval")],
    ),
  );
  return rows[0]?.due === true;
}

const HOUR_MS = 3_600_000;
const PAUSE_MS = 60_000;
/** Journal rows are kept this long after their end. */
const JOURNAL_DAYS = 30;

/** What concerns no single table, at every cycle of the leader: pins, files, the journal. One for each term. */
export class SourceUpkeep {
  #orphansMs: number | null = null;
  /** Mirrored tables whose maintenance failed: when it is tried again. */
  readonly #pausing = new Map<bigint, number>();

  /** Throws `lake_not_ours` before it removes anything, when the lake is another's. */
  async run(ctx: MoverContext, passes: readonly PassName[] = []): Promise<PassReport> {
    const report: PassReport = {};
    await this.#mirrored(ctx);
    const pins = await sweepPins(ctx);
    const abandoned = await removeAbandonedFiles(ctx);
    const doomed = await removeDoomed(ctx);
    if (pins + abandoned + doomed.removed > 0 || doomed.held !== null) report.remove = { pins, abandoned, ...doomed };
    const nowMs = ctx.clock.monotonicMs();
    if (passes.includes("orphans") || (this.#orphansMs !== null && nowMs - this.#orphansMs >= HOUR_MS)) {
      this.#orphansMs = nowMs;
      const done = await sweepOrphans(ctx);
      const temporary = await removeTemporary(ctx);
      if (done || temporary > 0) report.orphans = { ...done, temporary };
      await pruneJournal(ctx);
    }
    this.#orphansMs ??= nowMs;
    return report;
  }

  /** Mirrored tables have no pass of their own steps: their maintenance goes beside the pump, whose commits it gives way to. */
  async #mirrored(ctx: MoverContext): Promise<void> {
    if (ctx.epoch === null) return;
    for (const relation of await ctx.pool.withClient((c) => loadRelations(c))) {
      const lake = relation.mode === "mirrored" && relation.state === "active" ? asLake(relation) : null;
      const nowMs = ctx.clock.monotonicMs();
      if (lake === null || ctx.signal?.aborted || nowMs < (this.#pausing.get(relation.relationId) ?? 0)) continue;
      try {
        await maintainStep(ctx, lake);
        this.#pausing.delete(relation.relationId);
      } catch (error) {
        const passes = error instanceof SpillwayError && error.code !== "leader_lost" && error.code !== "op_abandoned";
        if (!passes || ctx.signal?.aborted) throw error;
        this.#pausing.set(relation.relationId, nowMs + PAUSE_MS);
        ctx.log.warn("maintain.failed", { table: displayName(relation), code: error.code, error });
      }
    }
  }
}

/** The longest grace of any table holds for all: a file does not tell whose it is. Null when a table has it switched off. */
async function sweepOrphans(ctx: MoverContext): Promise<{ removed: number; logEntries: number } | null> {
  const relations = await ctx.pool.withClient((c) => loadRelations(c));
  const policies = relations.map(policyOf);
  if (policies.some((p) => !p.on("orphan_removal_enabled"))) return null;
  const graceMs = Math.max(...[...policies, policyOf({ policy: {} })].map((p) => p.number("orphan_grace")));
  return removeOrphans(ctx, graceMs);
}

async function pruneJournal(ctx: MoverContext): Promise<void> {
  await ctx.pool.withClient((c) =>
    c.query(
      `delete from spillway.journal j where phase <> 'open' and ended_at < now() - make_interval(days => ${JOURNAL_DAYS})
         and not exists (select from spillway.staged_file f where f.op_id = j.op_id)
         and op_id < (select max(k.op_id) from spillway.journal k where k.relation_id is not distinct from j.relation_id
           and k.kind = j.kind and k.phase = 'committed')`,
    ),
  );
}

/** The passes of a request's detail. Throws `usage` for one that does not exist. */
export function passesOf(names: unknown): readonly PassName[] | undefined {
  if (names === undefined || names === null) return undefined;
  if (!Array.isArray(names) || names.length === 0)
    throw new SpillwayError("usage", `no list of passes: ${String(names)}`);
  return names.map((name: unknown) => {
    const found = PASSES.find((p) => p === name);
    if (found) return found;
    throw new SpillwayError("usage", `there is no pass ${String(name)}; one of: ${PASSES.join(", ")}`);
  });
}

export interface MaintainAnswer {
  readonly tables: Readonly<Record<string, PassReport>>;
  readonly source: PassReport;
}

/** Does what `spillway maintain` asks for, for the leader or by itself. */
export async function maintain(
  ctx: MoverContext,
  upkeep: SourceUpkeep,
  request: { readonly relationId: bigint | null; readonly passes?: readonly PassName[] },
): Promise<MaintainAnswer> {
  const { relationId, passes } = request;
  const relations = await ctx.pool.withClient(async (c) =>
    relationId === null
      ? loadRelations(c)
      : [await loadRelation(c, relationId)].filter((r): r is Relation => r !== null),
  );
  const tables: Record<string, PassReport> = {};
  const ofTables = passes?.filter((p) => p !== "remove" && p !== "orphans");
  for (const relation of relations) {
    const lake = asLake(relation);
    if (lake === null || ofTables?.length === 0) continue;
    tables[displayName(relation)] = await maintainRelation(ctx, lake, ofTables ? { passes: ofTables } : {});
  }
  const wantsSource =
    (passes === undefined && relationId === null) || passes?.includes("remove") || passes?.includes("orphans");
  return { tables, source: wantsSource ? await upkeep.run(ctx, passes) : {} };
}

/** The answer to a filed request; a failure is an answer too. */
export async function answerMaintenance(
  ctx: MoverContext,
  upkeep: SourceUpkeep,
  request: WorkRequest,
): Promise<{ readonly state: "done" | "failed"; readonly result: Readonly<Record<string, unknown>> }> {
  try {
    const passes = passesOf(request.detail["passes"]);
    const answer = await maintain(ctx, upkeep, { relationId: request.relationId, ...(passes ? { passes } : {}) });
    return { state: "done", result: { ...answer } };
  } catch (error) {
    if (ctx.signal?.aborted || !(error instanceof SpillwayError) || error.code === "leader_lost") throw error;
    return { state: "failed", result: { code: error.code, message: error.message } };
  }
}
