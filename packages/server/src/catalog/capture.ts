/**
 * Capture: the SQL by which changes to the landing, and to a partition that is being copied, get into the delta
 * (docs/internals/seam.md §6). Generated for each table and each captured partition from the columns as last followed.
 *
 * A capture writes the state that the row has when the trigger runs, read back by primary key, and not the trigger's NEW:
 * another trigger of the user's may have changed the row again in between, in whatever order they fire.
 */
import { CANONICAL_TEXT_SETTINGS } from "@spillway/base/pg-types";
import { must } from "@spillway/base/assert";
import { outputText } from "@spillway/pg/columns/plan";
import { quoteIdent, quoteLiteral, quoteQualified } from "@spillway/pg/quote";
import { type KeyKind, keyExpression } from "./key.ts";
import {
  CAPTURE_TRIGGER,
  captureFunction,
  deltaColumn,
  deltaTable,
  PARENT_TRUNCATE_TRIGGER,
  TRUNCATE_TRIGGER,
  truncateFunction,
} from "./names.ts";
import type { HistoricalInserts, Mode } from "./rows.ts";

export interface CaptureColumn {
  readonly attnum: number;
  readonly name: string;
  /** The delta column's type; `text` may need a cast from the table's own. */
  readonly deltaType: string;
  /** The lake holds the value's text. */
  readonly isText: boolean;
}

/** What the generated SQL depends on. */
export interface CaptureSpec {
  readonly relationId: bigint;
  readonly relid: number;
  readonly schemaName: string;
  readonly tableName: string;
  readonly mode: Mode;
  readonly keepHeap: boolean;
  readonly hasRetention: boolean;
  readonly historicalInserts: HistoricalInserts;
  readonly keyKind: KeyKind;
  readonly keyAttnum: number;
  readonly pkAttnums: readonly number[];
  readonly columns: readonly CaptureColumn[];
  /** `spillway.column_signature` of the table at that time. */
  readonly signature: string;
}

/** A partition with a capture: a leaf, or the landing. */
export interface CaptureTarget {
  readonly oid: number;
  readonly schemaName: string;
  readonly name: string;
  readonly isLanding: boolean;
}

export function createDelta(spec: CaptureSpec): string {
  const columns = spec.columns.map((c) => {
    const pk = spec.pkAttnums.includes(c.attnum);
    return `${deltaColumn(c.attnum)} ${c.deltaType}${pk ? " not null" : ""}`;
  });
  // Updated again and again until it is folded: room for the new versions on the same page.
  return `create table if not exists ${deltaTable(spec.relationId)} (
    op "char" not null, version bigint not null, key bigint not null, x jsonb,
    ${columns.join(", ")},
    primary key (${pkList(spec)})
  ) with (fillfactor = 70)`;
}

export function dropDelta(relationId: bigint): string {
  return `drop table if exists ${deltaTable(relationId)}`;
}

function pkList(spec: CaptureSpec): string {
  return spec.pkAttnums.map(deltaColumn).join(", ");
}

function columnOf(spec: CaptureSpec, attnum: number): CaptureColumn {
  return must(
    spec.columns.find((c) => c.attnum === attnum),
    `column ${attnum}`,
  );
}

function nameOf(spec: CaptureSpec, attnum: number): string {
  return quoteIdent(columnOf(spec, attnum).name);
}

function valueOf(column: CaptureColumn, row: string): string {
  const value = `${row}.${quoteIdent(column.name)}`;
  return column.isText ? outputText(value) : value;
}

/** `a.x = b.x and …` over the primary key. */
function samePk(spec: CaptureSpec, left: string, right: string): string {
  return spec.pkAttnums.map((n) => `${left}.${nameOf(spec, n)} = ${right}.${nameOf(spec, n)}`).join(" and ");
}

/** Settings that the text of some types depends on: only where there is such a column, because each costs a little. */
function functionSettings(spec: CaptureSpec): string {
  const settings = spec.columns.some((c) => c.isText)
    ? Object.entries(CANONICAL_TEXT_SETTINGS).filter(([name]) => name !== "client_encoding")
    : [];
  return settings.map(([name, value]) => ` set ${quoteIdent(name.toLowerCase())} = ${quoteLiteral(value)}`).join("");
}

const VERSION = "nextval('spillway.delta_version')";

function putSql(spec: CaptureSpec, target: CaptureTarget): string {
  const delta = spec.columns.map((c) => deltaColumn(c.attnum));
  const others = spec.columns.filter((c) => !spec.pkAttnums.includes(c.attnum)).map((c) => deltaColumn(c.attnum));
  const sets = others.map((c) => `, ${c} = excluded.${c}`).join("");
  return `insert into ${deltaTable(spec.relationId)} as d (op, version, key, ${delta.join(", ")})
      select 'U', ${VERSION}, ${keyExpression(spec.keyKind, `r.${nameOf(spec, spec.keyAttnum)}`)},
        ${spec.columns.map((c) => valueOf(c, "r")).join(", ")}
      from only ${quoteQualified(target.schemaName, target.name)} r where ${samePk(spec, "r", "new")}
      on conflict (${pkList(spec)}) do update set op = 'U', version = ${VERSION}, key = excluded.key, x = null${sets}`;
}

function tombstoneSql(spec: CaptureSpec, target: CaptureTarget): string {
  const pk = spec.pkAttnums.map((n) => valueOf(columnOf(spec, n), "old"));
  return `insert into ${deltaTable(spec.relationId)} as d (op, version, key, ${pkList(spec)})
      select 'D', ${VERSION}, ${keyExpression(spec.keyKind, `old.${nameOf(spec, spec.keyAttnum)}`)}, ${pk.join(", ")}
      where not exists (select from only ${quoteQualified(target.schemaName, target.name)} r where ${samePk(spec, "r", "old")})
      on conflict (${pkList(spec)}) do update set op = 'D', version = ${VERSION}, key = excluded.key${resetList(spec)}`;
}

function resetList(spec: CaptureSpec): string {
  const others = spec.columns.filter((c) => !spec.pkAttnums.includes(c.attnum));
  return `, x = null${others.map((c) => `, ${deltaColumn(c.attnum)} = null`).join("")}`;
}

/**
 * What the landing does with a row below the cut-line that the writer sees. The capture has been made already,
 * whatever that cut-line is, so a stale one loses nothing.
 */
function landingSql(spec: CaptureSpec, target: CaptureTarget): string {
  if (!target.isLanding) return "";
  const table = quoteLiteral(`${spec.schemaName}.${spec.tableName}`);
  const lock = spec.hasRetention || spec.mode === "direct" ? " for share" : "";
  const direct =
    spec.mode === "direct"
      ? `raise exception 'table % is direct: a row below its cut-line is written to the lake itself', ${table}
          using errcode = 'SPW01', hint = 'Use: spillway sql "INSERT ..."';`
      : "";
  const refuse =
    spec.historicalInserts === "refuse"
      ? `if coalesce(current_setting('spillway.upsert', true), '') <> 'on' then
        raise exception 'table % refuses plain INSERTs of rows below its cut-line', ${table}
          using errcode = 'SPW07', hint = 'Use spillway.upsert(regclass, jsonb).';
      end if;`
      : "";
  const remove = spec.keepHeap
    ? ""
    : `perform set_config('spillway.internal', pg_current_xact_id()::text, true);
      delete from only ${quoteQualified(target.schemaName, target.name)} r where ${samePk(spec, "r", "new")};
      perform set_config('spillway.internal', '', true);`;
  return `
    select g.t, g.r into cut_line, retention_line from spillway.seam_guard g where g.relation_id = ${spec.relationId}${lock};
    k := ${keyExpression(spec.keyKind, `new.${nameOf(spec, spec.keyAttnum)}`)};
    if k < cut_line then
      if k = -9223372036854775807 then
        raise exception 'the lake holds no row of table % whose tier key is -infinity', ${table} using errcode = 'SPW03';
      end if;
      if k < retention_line then
        raise exception 'table % has expired its rows of that age', ${table} using errcode = 'SPW02';
      end if;
      ${direct}
      ${refuse}
      ${remove}
    end if;`;
}

/** In a transaction with an old snapshot, queries see old catalogs while the row has the new columns. */
function staleCheck(): string {
  return `if current_setting('transaction_isolation') <> 'read committed' then
    select string_agg(a.attname, ',' order by a.attname) into seen from pg_attribute a
      where a.attrelid = tg_relid and a.attnum > 0 and not a.attisdropped;
    select string_agg(n, ',' order by n::name) into had from jsonb_object_keys(
      case when tg_op = 'DELETE' then to_jsonb(old) else to_jsonb(new) end) n;
    if seen is distinct from had then
      raise exception 'the columns of table % changed since this transaction began', tg_relid::regclass
        using errcode = '40001';
    end if;
  end if;`;
}

/** The trigger function of one partition. */
export function createCaptureFunction(spec: CaptureSpec, target: CaptureTarget): string {
  const here = `tg_table_name = ${quoteLiteral(target.name)} and tg_table_schema = ${quoteLiteral(target.schemaName)}`;
  const pkChanged = spec.pkAttnums
    .map((n) => `old.${nameOf(spec, n)} is distinct from new.${nameOf(spec, n)}`)
    .join(" or ");
  return `create or replace function ${captureFunction(spec.relationId, target.oid)}() returns trigger language plpgsql
security definer set search_path = pg_catalog, pg_temp${functionSettings(spec)} as ${dollarQuote(`
declare
  cut_line bigint;
  retention_line bigint;
  k bigint;
  seen text;
  had text;
begin
  if not (select c.relispartition from pg_class c where c.oid = tg_relid) then
    -- Detached by somebody, with the trigger still on: its rows are not the table's any more.
    return null;
  end if;
  ${staleCheck()}
  if ${here} and (select string_agg(attnum || ' ' || atttypid || ' ' || atttypmod || ' ' || attname, ',' order by attnum)
      from pg_attribute where attrelid = ${spec.relid} and attnum > 0 and not attisdropped) = ${quoteLiteral(spec.signature)} then
    if tg_op = 'DELETE' then
      ${tombstoneSql(spec, target)};
      return null;
    end if;
    if tg_op = 'UPDATE' then
      if ${pkChanged} then
        ${tombstoneSql(spec, target)};
      end if;
    end if;
    ${putSql(spec, target)};
    ${landingSql(spec, target)}
    return null;
  end if;
  if tg_op <> 'INSERT' then
    execute spillway.slow_tombstone(${spec.relationId}, ${spec.relid}, tg_relid) using old;
  end if;
  if tg_op <> 'DELETE' then
    execute spillway.slow_capture(${spec.relationId}, ${spec.relid}, tg_relid) using new;
    ${target.isLanding ? `perform spillway.slow_landing(${spec.relationId}, ${spec.relid}, tg_relid, to_jsonb(new));` : ""}
  end if;
  return null;
end `)}`;
}

/** TRUNCATE of a captured partition: a tombstone for each of its rows, which only READ COMMITTED is sure to see. */
export function createTruncateFunction(spec: CaptureSpec): string {
  return `create or replace function ${truncateFunction(spec.relationId)}() returns trigger language plpgsql
security definer set search_path = pg_catalog, pg_temp${functionSettings(spec)} as ${dollarQuote(`
begin
  if tg_relid = ${spec.relid} then
    raise exception 'TRUNCATE of table % would not reach its rows in the lake', tg_relid::regclass
      using errcode = 'SPW04', hint = 'Truncate single partitions, or use spillway unregister.';
  end if;
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'TRUNCATE of %, which is being moved to the lake, needs READ COMMITTED', tg_relid::regclass
      using errcode = 'SPW04';
  end if;
  execute spillway.truncate_capture(${spec.relationId}, ${spec.relid}, tg_relid);
  return null;
end `)}`;
}

/** The functions of a partition's capture, also over those that are there: its triggers stay as they are. */
export function createCaptureFunctions(spec: CaptureSpec, target: CaptureTarget): string[] {
  return [createCaptureFunction(spec, target), createTruncateFunction(spec)];
}

/** Puts the capture on one partition; waits for the writers in flight. The functions come first. */
export function createCaptureTriggers(spec: CaptureSpec, target: CaptureTarget): string[] {
  const table = quoteQualified(target.schemaName, target.name);
  return [
    createCaptureFunction(spec, target),
    ...dropCaptureTriggers(target),
    // The condition is checked before the event is queued: our own removals cost nothing.
    `create trigger ${quoteIdent(CAPTURE_TRIGGER)} after insert or update or delete on ${table} for each row
       when (current_setting('spillway.internal', true) is distinct from pg_current_xact_id()::text)
       execute function ${captureFunction(spec.relationId, target.oid)}()`,
    `create trigger ${quoteIdent(TRUNCATE_TRIGGER)} before truncate on ${table} for each statement
       execute function ${truncateFunction(spec.relationId)}()`,
    `alter table ${table} enable always trigger ${quoteIdent(CAPTURE_TRIGGER)}`,
    `alter table ${table} enable always trigger ${quoteIdent(TRUNCATE_TRIGGER)}`,
  ];
}

export function dropCaptureTriggers(target: Pick<CaptureTarget, "schemaName" | "name">): string[] {
  const table = quoteQualified(target.schemaName, target.name);
  return [
    `drop trigger if exists ${quoteIdent(CAPTURE_TRIGGER)} on ${table}`,
    `drop trigger if exists ${quoteIdent(TRUNCATE_TRIGGER)} on ${table}`,
  ];
}

export function dropCaptureFunction(relationId: bigint, oid: number): string {
  return `drop function if exists ${captureFunction(relationId, oid)}()`;
}

export function dropTruncateFunction(relationId: bigint): string {
  return `drop function if exists ${truncateFunction(relationId)}()`;
}

/** keep-heap tables may be truncated as a whole: every partition below T has a capture of its own. */
export function createParentTrigger(spec: CaptureSpec): string[] {
  const table = quoteQualified(spec.schemaName, spec.tableName);
  const name = quoteIdent(PARENT_TRUNCATE_TRIGGER);
  if (spec.keepHeap) return [`drop trigger if exists ${name} on ${table}`];
  return [
    `drop trigger if exists ${name} on ${table}`,
    `create trigger ${name} before truncate on ${table} for each statement
       execute function ${truncateFunction(spec.relationId)}()`,
    `alter table ${table} enable always trigger ${name}`,
  ];
}

/** A dollar quote whose tag the text does not hold. */
function dollarQuote(text: string): string {
  let tag = "$capture$";
  for (let i = 0; text.includes(tag); i++) tag = `$capture${i}$`;
  return `${tag}${text}${tag}`;
}
