/**
 * DDL as an event trigger has said it, at its place in the stream: columns are followed by attnum, leaves come and go. What wrote
 * old rows anew in a way that the lake does not know makes the table be copied again, from exactly here.
 */
import { SpillwayError } from "@spillway/base/errors";
import type { MoverContext } from "../context.ts";
import { type Drift, schemaDrift } from "../schema-drift.ts";
import type { DdlFacts, DdlRewrite } from "./ddl-facts.ts";
import { followDrift } from "./follow-stream.ts";
import { leafChange, loadLeaves } from "./leaves.ts";
import type { MirrorTable } from "./mirror-table.ts";

/** Bits of what a rewrite is for: source, the docs of pg_event_trigger_table_rewrite_reason. */
const [PERSISTENCE, RETYPE, ACCESS_METHOD] = [1, 4, 8];
/** Types whose old values are the same values of the new type. */
const SAME_VALUES: ReadonlySet<string> = new Set(["21>23", "21>20", "23>20", "700>701"]);

/** Sets what the next flush takes along. Throws `mirror_schema_ambiguous` when the table has to be copied again. */
export async function followFacts(
  ctx: MoverContext,
  table: MirrorTable,
  facts: DdlFacts,
  rewrite: DdlRewrite | null,
): Promise<void> {
  const ambiguous = (why: string): SpillwayError =>
    new SpillwayError("mirror_schema_ambiguous", `${table.name}: ${why}`);
  if (!facts.logged) throw ambiguous("it is unlogged now: its changes are not in the stream");
  const { relationId } = table.relation;
  table.leaves ??= (await ctx.pool.withClient((c) => loadLeaves(c, relationId))).leaves;
  const change = leafChange(table.leaves, facts.leaves);
  if (change !== null) {
    if (change.gone.length > 0) throw ambiguous("a partition was detached or dropped");
    const came = change.added.find((oid) => facts.filled.includes(oid));
    if (came !== undefined) throw ambiguous("a partition was attached with rows in it");
    table.leaves = facts.leaves;
    table.leavesChanged = true;
  }
  const drift = schemaDrift(table.relation, facts.columns);
  if (rewrite !== null && !keepsValues(rewrite, drift)) throw ambiguous("its rows were rewritten");
  if (drift === null) return;
  if (drift.retyped.some(({ to }) => table.relation.pkAttnums.includes(to.attnum))) {
    throw ambiguous("a column of its primary key has another type");
  }
  await followDrift(ctx, table, { drift, now: facts.columns, missing: facts.missing });
  // What was known of the columns before is not to be met again.
  table.shapes.clear();
}

/** Pure: whether every row still has the values that the lake has. */
export function keepsValues({ reason, plain }: DdlRewrite, drift: Drift | null): boolean {
  if ((reason & ~(PERSISTENCE | RETYPE | ACCESS_METHOD)) !== 0) return false;
  // A column that was added by the same command is in the new files: what old rows read in it is not written down.
  if (drift !== null && drift.added.length > 0) return false;
  if ((reason & RETYPE) === 0) return true;
  const retyped = drift?.retyped ?? [];
  return (
    plain && retyped.length > 0 && retyped.every(({ from, to }) => SAME_VALUES.has(`${from.typeOid}>${to.typeOid}`))
  );
}
