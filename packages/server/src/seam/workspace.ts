/** The temporary tables in which Postgres evaluates a correction of the lake's rows. They end with the transaction. */
import { quoteIdent, quoteLiteral } from "@spillway/pg/quote";
import type { TextResult } from "@spillway/pg/wire/query";
import type { ResolvedRelation } from "./resolve.ts";

/** The lake's rows that the statement may concern, and what it leaves of them. */
export const COLD = "pg_temp.spw_cold";
/** The same rows as they were. */
export const BEFORE = "pg_temp.spw_before";
/** INSERT: the new rows, whichever tier they belong to. */
export const NEW = "pg_temp.spw_new";
/** A view of the heap's part of the table. */
export const HOT = "pg_temp.spw_hot";

export interface WorkspaceRequest {
  readonly query: (sql: string) => Promise<TextResult>;
  readonly relation: ResolvedRelation;
  /** Quoted columns of the primary key. */
  readonly pk: readonly string[];
  /** The condition "below the cut-line" on the table's own column. */
  readonly isBelow: string;
  readonly withNew: boolean;
}

/** Makes COLD (and NEW) like the table, with its defaults, generated columns and checks, without rows; and HOT. */
export async function makeWorkspace(request: WorkspaceRequest): Promise<void> {
  const { query, relation, pk, isBelow, withNew } = request;
  const tables = withNew ? [COLD, NEW] : [COLD];
  const like = `(LIKE ${relation.sql} INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING CONSTRAINTS) ON COMMIT DROP`;
  for (const table of tables) await query(`CREATE TEMP TABLE ${table.replace("pg_temp.", "")} ${like}`);
  for (const column of relation.columns.filter((c) => c.table.identity !== "")) {
    // LIKE would give an identity column a sequence of its own.
    const { name } = column.spec;
    const result = await query(`SELECT pg_get_serial_sequence(${quoteLiteral(relation.sql)}, ${quoteLiteral(name)})`);
    const sequence = quoteLiteral(String(result.rows[0]?.[0]));
    for (const table of tables) {
      await query(`ALTER TABLE ${table} ALTER ${quoteIdent(name)} SET DEFAULT nextval(${sequence}::regclass)`);
    }
  }
  await query(`ALTER TABLE ${COLD} ADD PRIMARY KEY (${pk.join(", ")})`);
  await query(`CREATE TEMP VIEW spw_hot AS SELECT * FROM ${relation.sql} WHERE NOT (${isBelow})`);
}
