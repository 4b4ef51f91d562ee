/** The partitions of a table, with their bounds as canonical keys. */
import type { Db } from "./db.ts";
import { KEY_INFINITY, KEY_MIN, type KeyKind, keyExpression } from "./key.ts";
import { quoteLiteral } from "@spillway/pg/quote";
import { big } from "./rows.ts";

export interface Partition {
  readonly oid: number;
  readonly schemaName: string;
  readonly name: string;
  readonly isDefault: boolean;
  /** Canonical; MINVALUE is `KEY_MIN`. Meaningless for the default. */
  readonly lo: bigint;
  /** Exclusive; MAXVALUE is `KEY_INFINITY` with `unbounded`. */
  readonly hi: bigint;
  readonly unbounded: boolean;
  readonly relkind: string;
  readonly filenode: number;
  /** Planner's estimate; -1 when the partition was never analyzed. */
  readonly estimatedRows: number;
}

interface Raw {
  oid: string;
  nspname: string;
  relname: string;
  bound: string;
  relkind: string;
  filenode: string;
  reltuples: number;
}

const PARTITIONS = `
  select c.oid::text, n.nspname, c.relname, pg_get_expr(c.relpartbound, c.oid) as bound, c.relkind,
    pg_relation_filenode(c.oid)::text as filenode, c.reltuples
  from pg_inherits i join pg_class c on c.oid = i.inhrelid join pg_namespace n on n.oid = c.relnamespace
  where i.inhparent = $1 and not coalesce((to_jsonb(i) ->> 'inhdetachpending')::boolean, false)`;

const BOUND = /^FOR VALUES FROM \((.*)\) TO \((.*)\)$/s;

/** All partitions of a single-column range-partitioned table: those with bounds in key order, then the default. */
export async function readPartitions(db: Db, relid: number, kind: KeyKind): Promise<Partition[]> {
  const { rows } = await db.query<Raw>(PARTITIONS, [relid]);
  const parsed = rows.map((raw) => ({ raw, match: BOUND.exec(raw.bound) }));
  const texts = parsed.flatMap(({ match }) => (match ? [match[1] ?? "", match[2] ?? ""] : []));
  const keys = await boundKeys(
    db,
    kind,
    texts.filter((t) => t !== "MINVALUE" && t !== "MAXVALUE"),
  );
  const keyOf = (text: string): bigint =>
    text === "MINVALUE" ? KEY_MIN : text === "MAXVALUE" ? KEY_INFINITY : (keys.get(text) ?? KEY_MIN);
  const found = parsed.map(({ raw, match }) => ({
    oid: Number(raw.oid),
    schemaName: raw.nspname,
    name: raw.relname,
    isDefault: match === null,
    lo: match ? keyOf(match[1] ?? "") : KEY_MIN,
    hi: match ? keyOf(match[2] ?? "") : KEY_INFINITY,
    unbounded: match?.[2] === "MAXVALUE",
    relkind: raw.relkind,
    filenode: Number(raw.filenode ?? 0),
    estimatedRows: raw.reltuples,
  }));
  return found.toSorted((a, b) =>
    a.isDefault !== b.isDefault ? (a.isDefault ? 1 : -1) : a.lo < b.lo ? -1 : a.lo > b.lo ? 1 : 0,
  );
}

/** The bounds' texts, which Postgres prints as literals, in canonical form. */
async function boundKeys(db: Db, kind: KeyKind, texts: readonly string[]): Promise<Map<string, bigint>> {
  if (texts.length === 0) return new Map();
  const type = kind === "int" ? "bigint" : kind;
  const values = texts.map((text) => unquote(text));
  const { rows } = await db.query<{ k: string }>(
    `select ${keyExpression(kind, "v")} as k from (select u::${type} as v, o from unnest($1::text[]) with ordinality as x (u, o)) y order by o`,
    [values],
  );
  return new Map(texts.map((text, i) => [text, big(rows[i]?.k)]));
}

/** `'2024-01-01 00:00:00+00'`, `(-5)`, `'5'::bigint` as their value. */
function unquote(text: string): string {
  const quoted = /^E?'((?:[^']|'')*)'/.exec(text);
  if (quoted) return (quoted[1] ?? "").replaceAll("''", "'");
  return text.replace(/^\((.*)\)$/, "$1").replace(/::[\w ]+$/, "");
}

/** The greatest tier key that the heap holds, and whether it holds any row; infinite keys count as none. */
export async function maxKey(db: Db, table: string, keyName: string, kind: KeyKind): Promise<bigint | null> {
  const finite = kind === "int" ? "" : ` where ${keyName} < ${quoteLiteral("infinity")}`;
  const { rows } = await db.query<{ k: string | null }>(
    `select ${keyExpression(kind, "m")} as k from (select max(${keyName}) as m from ${table}${finite}) x`,
  );
  const k = rows[0]?.k;
  return k === null || k === undefined ? null : big(k);
}
