/** What a change of a table's columns means for the lake and the delta; or why it cannot be followed. Pure. */
import type { SchemaChange } from "@spillway/lake/evolve";
import type { PrimitiveType } from "@spillway/lake/model";
import { canWiden } from "@spillway/lake/evolve";
import { deltaColumn, type RelationColumn, type TableColumn } from "../catalog/catalog.ts";
import { icebergType } from "../engine/engine.ts";
import { valueOfText } from "./defaults.ts";
import type { Drift } from "./schema-drift.ts";

export interface FollowInput {
  readonly drift: Drift;
  readonly columns: readonly RelationColumn[];
  readonly now: readonly TableColumn[];
  readonly pkAttnums: readonly number[];
  readonly formatVersion: 2 | 3;
  /** The lake, or the delta, holds rows that were written before. */
  readonly hasOldRows: boolean;
  /** What old rows read in each added column, by attnum, as text; absent: NULL. */
  readonly initialDefaults: ReadonlyMap<number, string>;
  /** Added columns of which nobody knows any more what old rows read. */
  readonly unknownDefaults: ReadonlySet<number>;
  /** The lake's type of each followed column, by field id. */
  readonly lakeTypes: ReadonlyMap<number, PrimitiveType>;
}

export interface FollowPlan {
  /** In an order in which each can be applied. */
  readonly changes: readonly SchemaChange[];
  /** DDL of the delta, `@` standing for its name; then DML that fills what is new. */
  readonly deltaSql: readonly { readonly text: string; readonly values: readonly (string | null)[] }[];
  /** The columns after it; those that are new have field id 0 until the lake has given them one. */
  readonly columns: readonly RelationColumn[];
}

export type FollowResult = { readonly plan: FollowPlan } | { readonly refused: readonly string[] };

export function planFollow(input: FollowInput): FollowResult {
  const refused = refusals(input);
  if (refused.length > 0) return { refused };
  return {
    plan: {
      changes: lakeChanges(input),
      deltaSql: [...input.drift.dropped.map(dropDelta), ...retypeDelta(input), ...addDelta(input)],
      columns: columnsAfter(input),
    },
  };
}

function refusals(input: FollowInput): string[] {
  const { drift, now } = input;
  const reasons: string[] = [];
  for (const c of drift.added) {
    if (c.plan.fate === "refused")
      reasons.push(`column ${c.name} is of type ${c.typeName}: ${c.plan.reason ?? "unsupported"}`);
    if (c.generated !== "") reasons.push(`column ${c.name} is generated: rows in the lake would lack it`);
    if (input.hasOldRows && input.unknownDefaults.has(c.attnum)) {
      reasons.push(
        `column ${c.name} was added with a default that differs from row to row, or the table was rewritten before the worker saw the new column, so what rows in the lake would have in it is not known: drop the column, and add it again by itself`,
      );
    }
    if (input.hasOldRows && input.formatVersion === 2 && input.initialDefaults.has(c.attnum)) {
      reasons.push(
        `column ${c.name} was added with a default, which a lake table of format version 2 cannot give to old rows`,
      );
    }
  }
  for (const c of drift.dropped) {
    if (input.pkAttnums.includes(c.attnum)) reasons.push(`column ${c.name} of the primary key was dropped`);
  }
  for (const { from, to } of drift.retyped) {
    if (!canFollowType(input, from, to))
      reasons.push(`column ${to.name} became ${to.typeName}; it was ${from.typeName}`);
  }
  const seen = new Set<string>();
  for (const c of now) {
    const folded = c.name.toLowerCase();
    if (seen.has(folded)) reasons.push(`two columns are called ${c.name}, up to case`);
    seen.add(folded);
  }
  return reasons;
}

/** Widenings that leave every old value what it is. */
const WIDENINGS = new Set(["21>23", "21>20", "23>20", "700>701"]);
/** varchar, text: one kind of value, whatever the length. */
const TEXTS = new Set([25, 1043]);
const NUMERIC = 1700;

function canFollowType(input: FollowInput, from: RelationColumn, to: TableColumn): boolean {
  if (to.plan.fate !== "native") return false;
  const isPk = input.pkAttnums.includes(to.attnum);
  if (TEXTS.has(from.typeOid) && TEXTS.has(to.typeOid)) return true;
  const lakeType = input.lakeTypes.get(from.fieldId);
  const wanted = icebergType(to.plan);
  const fits = lakeType !== undefined && (sameType(lakeType, wanted) || canWiden(lakeType, wanted));
  if (WIDENINGS.has(`${from.typeOid}>${to.typeOid}`)) return fits;
  return from.typeOid === NUMERIC && to.typeOid === NUMERIC && fits && !isPk;
}

function sameType(a: PrimitiveType, b: PrimitiveType): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}

function lakeChanges(input: FollowInput): SchemaChange[] {
  const { drift } = input;
  const changes: SchemaChange[] = drift.dropped.map((c) => ({ kind: "drop", column: c.fieldId }));
  // By way of names that nobody has: two columns may have exchanged theirs.
  if (drift.renamed.length > 1) {
    for (const { from } of drift.renamed)
      changes.push({ kind: "rename", column: from.fieldId, to: `__renaming_${from.fieldId}` });
  }
  for (const { from, to } of drift.renamed) changes.push({ kind: "rename", column: from.fieldId, to: to.name });
  for (const { from, to } of drift.retyped) {
    const wanted = icebergType(to.plan);
    const was = input.lakeTypes.get(from.fieldId);
    if (was && !sameType(was, wanted)) changes.push({ kind: "widen", column: from.fieldId, to: wanted });
  }
  for (const { from } of drift.madeNullable) changes.push({ kind: "make-nullable", column: from.fieldId });
  for (const c of drift.added) {
    const text = input.initialDefaults.get(c.attnum);
    const add = { kind: "add" as const, name: c.name, type: icebergType(c.plan) };
    changes.push(text === undefined ? add : { ...add, default: valueOfText(c.copyPlan, text) });
  }
  return changes;
}

function dropDelta(c: RelationColumn): FollowPlan["deltaSql"][number] {
  return { text: `alter table @ drop column if exists ${deltaColumn(c.attnum)}`, values: [] };
}

function retypeDelta(input: FollowInput): FollowPlan["deltaSql"] {
  return input.drift.retyped.flatMap(({ to }) => {
    const c = deltaColumn(to.attnum);
    return [
      { text: `alter table @ alter column ${c} type ${to.deltaType} using ${c}::${to.deltaType}`, values: [] },
      fill(to),
    ];
  });
}

/** What a capture put aside while the column was not known. */
function fill(c: TableColumn): FollowPlan["deltaSql"][number] {
  const n = String(c.attnum);
  return {
    text: `update @ set ${deltaColumn(c.attnum)} = (x ->> $1)::${c.deltaType} where x ? $1`,
    values: [n],
  };
}

function addDelta(input: FollowInput): FollowPlan["deltaSql"] {
  return input.drift.added.flatMap((c) => {
    const column = deltaColumn(c.attnum);
    const statements = [
      { text: `alter table @ add column if not exists ${column} ${c.deltaType}`, values: [] as (string | null)[] },
    ];
    const text = input.initialDefaults.get(c.attnum);
    if (text !== undefined) {
      // A row that was captured before the column existed reads what the table's own old rows read.
      statements.push({
        text: `update @ set ${column} = $2::${c.deltaType} where op = 'U' and not coalesce(x ? $1, false)`,
        values: [String(c.attnum), text],
      });
    }
    return [...statements, fill(c)];
  });
}

function columnsAfter(input: FollowInput): RelationColumn[] {
  const byAttnum = new Map(input.now.map((c) => [c.attnum, c]));
  const kept = input.columns.map((c): RelationColumn => {
    const to = c.dropped ? undefined : byAttnum.get(c.attnum);
    if (!to) return { ...c, dropped: true };
    const { name, typeOid, typmod, typeName } = to;
    // A column that becomes NOT NULL stays nullable in the lake: old rows there may be null.
    return { ...c, name, typeOid, typmod, typeName, notNull: c.notNull && to.notNull };
  });
  const added = input.drift.added.map((c): RelationColumn => ({
    attnum: c.attnum,
    fieldId: 0,
    name: c.name,
    typeOid: c.typeOid,
    typmod: c.typmod,
    typeName: c.typeName,
    notNull: false,
    initialDefault: input.initialDefaults.get(c.attnum) ?? null,
    dropped: false,
  }));
  return [...kept, ...added];
}
