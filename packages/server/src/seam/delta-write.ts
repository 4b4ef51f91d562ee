/** From the rows that a statement was given to the rows that it left: what the delta must hold. */
import { must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import { outputText } from "@spillway/pg/columns/plan";
import { quoteIdent } from "@spillway/pg/quote";
import type { TextResult } from "@spillway/pg/wire/query";
import { deltaColumn, deltaTable, keyExpression, keyLiteral } from "../catalog/catalog.ts";
import type { LakeState, ResolvedRelation, SeamColumn } from "./resolve.ts";

export interface DeltaWrite {
  readonly query: (sql: string) => Promise<TextResult>;
  readonly relation: ResolvedRelation;
  readonly lake: LakeState;
  /** The retention line. */
  readonly r: bigint | null;
  /** Tables like the relation: the rows now, and as they were. All are below T. */
  readonly cold: string;
  readonly before: string;
}

/** Writes what differs; returns how many delta rows that were. Throws SPW02 below the retention line. */
export async function writeDelta(write: DeltaWrite): Promise<number> {
  const { query, relation, lake, r, cold, before } = write;
  const column = (attnum: number): SeamColumn =>
    must(
      relation.columns.find((c) => c.attnum === attnum),
      "column",
    );
  const pk = lake.pkAttnums.map(column);
  const same = pk
    .map(nameOf)
    .map((n) => `b.${n} = c.${n}`)
    .join(" AND ");
  // Compared as text: not every type has an equality, and what reads the same is the same.
  const changed = `SELECT * FROM ${cold} c WHERE NOT EXISTS (SELECT FROM ${before} b WHERE ${same} AND b::text = c::text)`;
  const gone = `SELECT * FROM ${before} b WHERE NOT EXISTS (SELECT FROM ${cold} c WHERE ${same})`;
  const kind = must(lake.keyKind, "key kind");
  const key = `q.${nameOf(column(must(lake.keyAttnum, "key")))}`;
  if (r !== null)
    await refuseBelow(query, `SELECT 1 FROM (${changed}) q WHERE ${key} < ${keyLiteral(kind, r)} LIMIT 1`);
  const followed = relation.columns.filter((c) => lake.followed.has(c.attnum));
  const others = followed.filter((c) => !lake.pkAttnums.includes(c.attnum)).map((c) => deltaColumn(c.attnum));
  const sets = others.map((c) => `, ${c} = excluded.${c}`).join("");
  const put = (op: "U" | "D", columns: readonly SeamColumn[], x: string, from: string): Promise<TextResult> =>
    query(
      `INSERT INTO ${deltaTable(lake.relationId)} (op, version, key, x, ${columns.map((c) => deltaColumn(c.attnum)).join(", ")})
       SELECT '${op}', nextval('spillway.delta_version'), ${keyExpression(kind, key)}, ${x},
         ${columns.map((c) => valueSql(c)).join(", ")} FROM (${from}) q
       ON CONFLICT (${lake.pkAttnums.map(deltaColumn).join(", ")}) DO UPDATE SET op = excluded.op,
         version = excluded.version, key = excluded.key, x = excluded.x${sets}`,
    );
  const tombstones = await put("D", pk, "NULL", gone);
  const upserts = await put("U", followed, unfollowed(relation, lake), changed);
  return countOf(tombstones) + countOf(upserts);
}

async function refuseBelow(query: DeltaWrite["query"], sql: string): Promise<void> {
  const found = await query(sql);
  if (found.rows.length === 0) return;
  throw new SpillwayError("pg_error", "A row lies below the retention line, whose lake rows were expired on purpose.", {
    remedy: "Do not write rows that old; `spillway status` shows the line.",
    details: { sqlstate: "SPW02" },
  });
}

/** Columns that the worker has not followed yet, by attnum. */
function unfollowed(relation: ResolvedRelation, lake: LakeState): string {
  const columns = relation.columns.filter((c) => !lake.followed.has(c.attnum));
  if (columns.length === 0) return "NULL::jsonb";
  return `jsonb_build_object(${columns.map((c) => `'${c.attnum}', ${outputText(`q.${nameOf(c)}`)}`).join(", ")})`;
}

function nameOf(column: SeamColumn): string {
  return quoteIdent(column.spec.name);
}

function valueSql(column: SeamColumn): string {
  const value = `q.${nameOf(column)}`;
  return column.table.deltaType === "text" ? outputText(value) : value;
}

/** The count in a command's tag. */
export function countOf(result: TextResult): number {
  return Number(/(\d+)$/.exec(result.tag)?.[1] ?? "0");
}
