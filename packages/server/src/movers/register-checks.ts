/** Whether a table can be registered: every reason why not, at once. Pure. */
import { parseDuration } from "@spillway/base/config";
import {
  durationInKeyUnits,
  type HistoricalInserts,
  KEY_TYPES,
  type KeyKind,
  type Mode,
  type TableColumn,
} from "../catalog/catalog.ts";
import type { TableFacts } from "./table-facts.ts";

export type LakePartition = "hour" | "day" | "month" | "year" | "none";

export interface RegisterOptions {
  /** As in SQL: `public.flights`, `"Mixed".t`. */
  readonly table: string;
  /** Default: the column that the table is partitioned by. */
  readonly tierKey?: string;
  readonly mode: Mode;
  readonly keepHeap?: boolean;
  /** Durations (`90d`) for times and dates, whole numbers for integer keys. */
  readonly lag?: string;
  readonly lakeRetention?: string;
  readonly partitionWidth?: string;
  readonly lakePartition?: LakePartition;
  readonly formatVersion?: 2 | 3;
  readonly historicalInserts?: HistoricalInserts;
  readonly dryRun?: boolean;
}

/** What the options mean for this table. */
export interface RegisterPlan {
  readonly keyAttnum: number;
  readonly keyName: string;
  readonly keyKind: KeyKind;
  readonly lag: bigint;
  readonly lakeRetention: bigint | null;
  readonly partitionWidth: bigint | null;
  readonly partitionMonths: number | null;
  readonly lakePartition: LakePartition;
  readonly formatVersion: 2 | 3;
  readonly historicalInserts: HistoricalInserts;
}

export interface CheckResult {
  readonly reasons: readonly string[];
  /** Things that work, but not as somebody might expect. */
  readonly notes: readonly string[];
  /** Null when there are reasons. */
  readonly plan: RegisterPlan | null;
}

/** Types of text fate whose values are equal exactly when their texts are. */
const SAME_BY_TEXT = new Set([869, 650, 829, 774, 1560, 1562, 3220]);
const FLOATS = new Set([700, 701]);
const BPCHAR = 1042;

export function checkRegister(facts: TableFacts, options: RegisterOptions): CheckResult {
  const reasons: string[] = [];
  const say = (condition: boolean, reason: string): void => {
    if (condition) reasons.push(reason);
  };
  say(options.mode === "mirrored", "mode mirrored is not what this command registers");
  say(facts.relkind !== "p", describeKind(facts.relkind));
  say(facts.isPartition, "it is itself a partition of another table");
  say(facts.relkind === "p" && facts.strategy !== "r", "it is partitioned by list or hash, not by range");
  say(facts.partitionAttnums.length > 1, "it is partitioned by several columns, not by the tier key alone");
  say(facts.partitionAttnums.includes(0), "it is partitioned by an expression, not by a column");
  say(facts.persistence !== "p" && facts.relkind !== "p", "it is unlogged or temporary");
  say(facts.rowSecurity, "it has row-level security, which does not reach the lake");
  say(facts.hasRules, "it has rules, which reroute writes");
  say(
    !facts.isOwner,
    "the role of the connection does not own it, and so cannot put triggers on it or drop partitions",
  );
  say(!facts.canCreateInSchema, `the role of the connection may not create tables in schema ${facts.schemaName}`);
  const key = checkKey(facts, options, reasons);
  checkPrimaryKey(facts, key, reasons);
  checkColumns(facts, reasons);
  if (options.keepHeap !== true) {
    reasons.push(
      ...facts.incomingKeys.map((name) => `it is referenced by foreign key ${name}, so no partition can be dropped`),
    );
  }
  reasons.push(...facts.leafFaults.filter((fault) => options.keepHeap !== true || !/ is used by /.test(fault)));
  say(
    facts.relkind === "p" && key !== null && facts.leaves.length === 0,
    "it has no partition yet: make the first one",
  );
  const plan = key === null ? null : planOptions(facts, options, key, reasons);
  return { reasons, notes: notesOf(facts, options), plan: reasons.length === 0 ? plan : null };
}

function describeKind(relkind: string): string {
  const kinds: Record<string, string> = {
    r: "it is not partitioned: make it a range-partitioned table by the tier key",
    v: "it is a view",
    m: "it is a materialized view",
    f: "it is a foreign table",
    S: "it is a sequence",
    i: "it is an index",
    I: "it is an index",
  };
  return kinds[relkind] ?? "it is not a partitioned table";
}

function checkKey(facts: TableFacts, options: RegisterOptions, reasons: string[]): TableColumn | null {
  const partitionColumn = facts.columns.find((c) => c.attnum === facts.partitionAttnums[0]) ?? null;
  const named = options.tierKey === undefined ? partitionColumn : facts.columns.find((c) => c.name === options.tierKey);
  if (named === undefined) {
    reasons.push(`it has no column ${options.tierKey}`);
    return null;
  }
  if (named === null) return null;
  const kind = KEY_TYPES.get(named.typeOid);
  if (kind === undefined) {
    reasons.push(
      `its tier key ${named.name} is of type ${named.typeName}, not one of smallint, int, bigint, date, timestamp, timestamptz`,
    );
  }
  if (partitionColumn !== null && named.attnum !== partitionColumn.attnum) {
    reasons.push(`it is partitioned by ${partitionColumn.name}, not by the tier key ${named.name}`);
  }
  return kind === undefined ? null : named;
}

function checkPrimaryKey(facts: TableFacts, key: TableColumn | null, reasons: string[]): void {
  const pk = facts.primaryKey;
  if (pk === null) {
    reasons.push("it has no primary key");
    return;
  }
  if (pk.deferrable) reasons.push("its primary key is deferrable, so ON CONFLICT and exact captures do not work on it");
  if (key !== null && !pk.attnums.includes(key.attnum)) reasons.push(`its primary key does not contain the tier key`);
  for (const column of facts.columns.filter((c) => pk.attnums.includes(c.attnum))) {
    const fault = keyTypeFault(column);
    if (fault !== null) reasons.push(`column ${column.name} of its primary key ${fault}`);
  }
}

/** The lake compares keys by value or by text; what Postgres takes for equal must be equal there. */
export function keyTypeFault(column: TableColumn): string | null {
  if (column.looseCollation) return "has a collation that is not deterministic";
  if (FLOATS.has(column.baseOid)) return `is of type ${column.typeName}, whose equality is not that of its values`;
  if (column.baseOid === BPCHAR && column.typmod < 0) return "is of type bpchar without a length";
  if (column.plan.fate !== "text") return null;
  if (column.typtype === "e" || SAME_BY_TEXT.has(column.baseOid)) return null;
  return `is of type ${column.typeName}, of which equal values can have different texts`;
}

function checkColumns(facts: TableFacts, reasons: string[]): void {
  const seen = new Map<string, string>();
  for (const column of facts.columns) {
    if (column.plan.fate === "refused") {
      reasons.push(`column ${column.name} is of type ${column.typeName}: ${column.plan.reason ?? "unsupported"}`);
    }
    if (column.generated === "v")
      reasons.push(`column ${column.name} is a virtual generated column, which no trigger sees`);
    const folded = column.name.toLowerCase();
    const other = seen.get(folded);
    if (other !== undefined)
      reasons.push(`columns ${other} and ${column.name} differ by case only, which the lake's engines do not`);
    seen.set(folded, column.name);
    if (/^(__file|__pos|_file|_pos|_row_id|_last_updated_sequence_number)$/i.test(column.name)) {
      reasons.push(`column ${column.name} has a name that is reserved in the lake`);
    }
  }
}

function planOptions(
  facts: TableFacts,
  options: RegisterOptions,
  key: TableColumn,
  reasons: string[],
): RegisterPlan | null {
  const kind = KEY_TYPES.get(key.typeOid);
  if (kind === undefined) return null;
  const amount = (flag: string, text: string | undefined): bigint | null => {
    if (text === undefined) return null;
    const value = parseAmount(kind, text);
    if (value === null || value < 0n) {
      reasons.push(`--${flag} ${text} is not ${amountForm(kind)}`);
      return null;
    }
    return value;
  };
  const months = kind === "int" ? null : parseMonths(options.partitionWidth);
  const width = months === null ? amount("partition-width", options.partitionWidth) : null;
  if (width === 0n) reasons.push("--partition-width is 0");
  const lakePartition = options.lakePartition ?? "none";
  if (kind === "int" && lakePartition !== "none") {
    reasons.push(`--lake-partition ${lakePartition} needs a tier key that is a time or a date`);
  }
  if (kind === "date" && lakePartition === "hour")
    reasons.push("--lake-partition hour needs a tier key with a time of day");
  if (options.mode === "direct" && options.keepHeap === true) reasons.push("--keep-heap goes with mode tiered only");
  return {
    keyAttnum: key.attnum,
    keyName: key.name,
    keyKind: kind,
    lag: amount("lag", options.lag) ?? 0n,
    lakeRetention: amount("lake-retention", options.lakeRetention),
    partitionWidth: width,
    partitionMonths: months,
    lakePartition,
    formatVersion: options.formatVersion ?? 3,
    historicalInserts: options.historicalInserts ?? "upsert",
  };
}

function amountForm(kind: KeyKind): string {
  if (kind === "int") return "a whole number";
  return kind === "date" ? "a number of whole days such as 90d" : "a duration such as 12h or 90d";
}

/** A distance along the key; null when the text is none. */
export function parseAmount(kind: KeyKind, text: string): bigint | null {
  if (kind === "int") return /^\d+$/.test(text) ? BigInt(text) : null;
  const ms = parseDuration(text);
  return ms === null ? null : durationInKeyUnits(kind, ms);
}

/** `month`, `3 months`, `year`, `quarter`: calendar widths, which have no fixed length. */
export function parseMonths(text: string | undefined): number | null {
  const match = /^(\d+)?\s*(month|quarter|year)s?$/.exec(text ?? "");
  if (!match) return null;
  const unit = match[2] === "month" ? 1 : match[2] === "quarter" ? 3 : 12;
  return Number(match[1] ?? "1") * unit || null;
}

function notesOf(facts: TableFacts, options: RegisterOptions): string[] {
  const notes: string[] = [];
  if (options.mode === "tiered") {
    notes.push(
      options.historicalInserts === "refuse"
        ? "plain INSERTs of rows below the cut-line are refused; spillway.upsert takes them"
        : "a plain INSERT of a key that the lake has already is an upsert: no unique index sees the lake, and ON CONFLICT does not either",
    );
  }
  if (options.mode === "direct") {
    notes.push(
      "rows below the cut-line are written by `spillway sql` and the library only; plain INSERTs of them are refused",
    );
  }
  if (facts.deleteTriggers.length > 0 && options.mode === "tiered" && options.keepHeap !== true) {
    notes.push(
      `the DELETE triggers ${facts.deleteTriggers.join(", ")} also fire when a historical row leaves the landing for the delta, and not when a partition is dropped`,
    );
  }
  return notes;
}
