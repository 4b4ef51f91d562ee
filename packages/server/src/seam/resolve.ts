/**
 * What the names of a statement are, at one point in time: oid, kind, columns, and for registered tables the cut-line,
 * the lake's metadata pointer and the delta. Names are looked up before the transaction, because LOCK needs
 * them, and checked again inside its snapshot.
 */
import { must } from "@spillway/base/assert";
import type { ColumnSpec } from "@spillway/base/columns";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import type { PgColumnPlan } from "@spillway/pg/columns/plan";
import { quoteIdent, quoteLiteral, quoteQualified } from "@spillway/pg/quote";
import type { RawConnection } from "@spillway/pg/wire/connection";
import type { KeyKind, Mode, RelationState, TableColumn } from "../catalog/catalog.ts";
import { readTableColumns } from "../catalog/catalog.ts";
import { MIRROR_COLUMNS, type MirrorState, parseMirrorState } from "./mirror-state.ts";
import { rawDb } from "./raw-db.ts";

/** A name as the statement has it. */
export interface RelationName {
  readonly schema: string;
  readonly name: string;
  /** For a name without a schema; default: the connection's. */
  readonly searchPath?: readonly string[];
}

/** The state of a registered table in the snapshot. */
export interface LakeState {
  readonly relationId: bigint;
  readonly mode: Mode;
  readonly keepHeap: boolean;
  readonly state: RelationState;
  readonly keyAttnum: number | null;
  readonly keyKind: KeyKind | null;
  readonly pkAttnums: readonly number[];
  readonly heapRetention: boolean;
  readonly t: bigint | null;
  readonly s: bigint | null;
  readonly r: bigint | null;
  readonly metadataLocation: string | null;
  /** Null for a table without a frontier. */
  readonly mirror: MirrorState | null;
  /** By attnum: the columns as last followed. */
  readonly followed: ReadonlyMap<number, FollowedColumn>;
}

export interface FollowedColumn {
  readonly fieldId: number;
  /** What rows written before the column existed read, as Postgres's text; null = NULL. */
  readonly initialDefault: string | null;
}

export interface SeamColumn {
  readonly attnum: number;
  readonly plan: PgColumnPlan;
  readonly spec: ColumnSpec;
  readonly table: TableColumn;
  /** Added, and what rows from before read is not kept anywhere: nobody knows until the worker has decided. */
  readonly isUnknowable?: boolean;
}

export interface ResolvedRelation {
  readonly oid: number;
  readonly relkind: string;
  readonly schema: string;
  readonly name: string;
  /** Quoted and qualified, for Postgres. */
  readonly sql: string;
  readonly columns: readonly SeamColumn[];
  /** Null for a plain relation, which is read from Postgres alone. */
  readonly lake: LakeState | null;
}

interface StateRow {
  readonly oid: number;
  readonly relkind: string;
  readonly schema: string;
  readonly name: string;
  readonly signature: string;
  readonly registeredRoot: string | null;
  readonly lake: LakeState | null;
}

/**
 * `direct`: for a correction that commits to the lake itself. The journal rows of that commit are made by another connection
 * after this transaction's first statement, so it must be READ COMMITTED; what it reads stands still because it holds the
 * lock on the table's metadata pointer, without which neither the lake nor T can move.
 */
export type Access = "read" | "write" | "direct";

const MODES: Readonly<Record<Access, string>> = {
  read: "REPEATABLE READ READ ONLY",
  write: "REPEATABLE READ READ WRITE",
  direct: "READ COMMITTED READ WRITE",
};

function pointerLock(rows: readonly StateRow[]): string {
  return `SELECT 1 FROM spillway.lake_table WHERE lake_id IN (SELECT lake_id FROM spillway.relation
    WHERE relid IN (${rows.map((r) => r.oid).join(", ")})) ORDER BY lake_id FOR UPDATE;`;
}

/** What may be read from Postgres alone, by pg_class.relkind. */
const READABLE = new Set(["r", "p", "v", "m", "f"]);
const LOCKABLE = new Set(["r", "p", "v"]);
const TRIES = 5;
const CACHED_TABLES = 1000;

/** Opens transactions in which a set of names is locked and resolved. Remembers columns and names between statements. */
export class Resolver {
  readonly #columns = new Map<string, readonly SeamColumn[]>();
  readonly #known = new Map<string, StateRow>();

  /**
   * Begins a REPEATABLE READ transaction on the connection, with the relations locked ACCESS SHARE before its snapshot
   * is taken. The caller ends it. Throws `table_unknown`, `relation_not_readable`, and Postgres's own errors.
   */
  async begin(
    connection: RawConnection,
    names: readonly RelationName[],
    signal?: AbortSignal,
    access: Access = "read",
  ): Promise<ResolvedRelation[]> {
    const options = signal ? { signal } : {};
    for (let tries = 1; tries <= TRIES; tries++) {
      let known = names.map((n) => this.#known.get(keyOf(n)));
      if (known.includes(undefined)) known = await this.#look(connection, names, options);
      const rows = known.map((row) => must(row, "relation"));
      const locks = [...new Map(rows.filter((r) => LOCKABLE.has(r.relkind)).map((r) => [r.oid, r])).values()];
      // In one order for everybody, so that two readers cannot block each other through a third.
      const list = locks
        .toSorted((a, b) => a.oid - b.oid)
        .map((r) => quoteQualified(r.schema, r.name))
        .join(", ");
      const lock = list === "" ? "" : `LOCK TABLE ${list} IN ACCESS SHARE MODE;`;
      try {
        const results = await connection.query(
          `BEGIN ISOLATION LEVEL ${MODES[access]}; ${lock} ${access === "direct" ? pointerLock(rows) : ""} ${stateSql(names)}`,
          options,
        );
        const now = parseState(must(results.at(-1), "state").rows);
        if (
          rows.every(
            (row, i) => now[i] && row.oid === now[i].oid && row.name === now[i].name && row.schema === now[i].schema,
          )
        ) {
          this.#remember(names, now);
          return await this.#complete(
            connection,
            now.map((row) => must(row, "relation")),
          );
        }
      } catch (error) {
        await rollback(connection);
        if (!(error instanceof SpillwayError) || !isMissingTable(error)) throw error;
        if (tries === TRIES) throw error;
      }
      await rollback(connection);
      for (const name of names) this.#known.delete(keyOf(name));
    }
    throw new SpillwayError("seam_moving", `Tables changed their names ${TRIES} times while they were opened.`);
  }

  /** The same inside a transaction that is open: its snapshot is older than the locks. */
  async within(
    connection: RawConnection,
    names: readonly RelationName[],
    signal?: AbortSignal,
  ): Promise<ResolvedRelation[]> {
    const options = signal ? { signal } : {};
    const rows = await this.#look(connection, names, options);
    const list = [...new Set(rows.filter((r) => LOCKABLE.has(r.relkind)))]
      .toSorted((a, b) => a.oid - b.oid)
      .map((r) => quoteQualified(r.schema, r.name));
    if (list.length > 0) await connection.query(`LOCK TABLE ${list.join(", ")} IN ACCESS SHARE MODE`, options);
    return this.#complete(connection, rows);
  }

  async #look(
    connection: RawConnection,
    names: readonly RelationName[],
    options: { signal?: AbortSignal },
  ): Promise<StateRow[]> {
    const results = await connection.query(stateSql(names), options).catch((error: unknown) => {
      throw /relation "spillway\./.test(messageOf(error))
        ? new SpillwayError("catalog_missing", "The database has no schema spillway.", { cause: error })
        : error;
    });
    const found = parseState(must(results.at(-1), "state").rows);
    const rows = found.map((row, i) => {
      const name = must(names[i], "name");
      const text = name.schema === "" ? name.name : `${name.schema}.${name.name}`;
      if (!row) throw new SpillwayError("table_unknown", `There is no table ${JSON.stringify(text)} in the source.`);
      if (!READABLE.has(row.relkind)) {
        throw new SpillwayError("relation_not_readable", `${JSON.stringify(text)} is no table or view.`);
      }
      if (row.registeredRoot !== null) {
        throw new SpillwayError(
          "relation_not_readable",
          `${JSON.stringify(text)} is a partition of the registered table ${row.registeredRoot}.`,
        );
      }
      return row;
    });
    for (const row of rows) if (row.relkind === "v" || row.relkind === "m") await refuseTieredView(connection, row);
    this.#remember(names, rows);
    return rows;
  }

  #remember(names: readonly RelationName[], rows: readonly (StateRow | null)[]): void {
    if (this.#known.size > CACHED_TABLES) this.#known.clear();
    names.forEach((name, i) => {
      const row = rows[i];
      // Whether a view reads a registered table may change with the view: looked at each time.
      if (row && row.relkind !== "v" && row.relkind !== "m") this.#known.set(keyOf(name), row);
    });
  }

  async #complete(connection: RawConnection, rows: readonly StateRow[]): Promise<ResolvedRelation[]> {
    const resolved: ResolvedRelation[] = [];
    for (const row of rows) {
      const key = `${row.oid}\0${row.signature}`;
      let columns = this.#columns.get(key);
      if (!columns) {
        const table = await readTableColumns(rawDb(connection), row.oid);
        columns = table.map(toSeamColumn);
        if (row.lake) columns = await withMissingValues(connection, row.oid, row.lake, columns);
        if (this.#columns.size > CACHED_TABLES) this.#columns.clear();
        this.#columns.set(key, columns);
      }
      resolved.push({
        oid: row.oid,
        relkind: row.relkind,
        schema: row.schema,
        name: row.name,
        sql: quoteQualified(row.schema, row.name),
        columns,
        lake: row.lake,
      });
    }
    return resolved;
  }
}

async function rollback(connection: RawConnection): Promise<void> {
  if (connection.isOpen && connection.transactionStatus !== "I") await connection.query("ROLLBACK").catch(() => {});
}

function isMissingTable(error: SpillwayError): boolean {
  const state = error.details["sqlstate"];
  return state === "42P01" || state === "3F000";
}

function keyOf(name: RelationName): string {
  return [name.schema, name.name, ...(name.schema === "" ? (name.searchPath ?? []) : [])].join("\0");
}

function toSeamColumn(table: TableColumn): SeamColumn {
  return { attnum: table.attnum, plan: table.copyPlan, spec: table.copyPlan.spec, table };
}

/**
 * What rows from before an added column read, for columns that the worker has not followed yet. Postgres keeps it with the
 * partitions that existed then, the landing among them, not with the partitioned table, and as long as they are not rewritten.
 */
async function withMissingValues(
  connection: RawConnection,
  oid: number,
  lake: LakeState,
  columns: readonly SeamColumn[],
): Promise<readonly SeamColumn[]> {
  const result: SeamColumn[] = [];
  for (const column of columns) {
    if (lake.followed.has(column.attnum) || column.table.missingValue !== null) {
      result.push(column);
      continue;
    }
    const found = await connection.query(
      `SELECT (SELECT (a.attmissingval::text::text[])[1] FROM pg_catalog.pg_attribute a
           JOIN pg_catalog.pg_inherits i ON i.inhrelid = a.attrelid
           WHERE i.inhparent = ${oid} AND a.attname = p.attname AND a.atthasmissing AND NOT a.attisdropped LIMIT 1),
         (SELECT c.relfilenode = x.landing_filenode FROM spillway.relation x JOIN pg_catalog.pg_class c ON c.oid = x.landing
           WHERE x.relid = ${oid}),
         (SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_catalog.pg_attrdef d WHERE d.adrelid = ${oid} AND d.adnum = p.attnum)
       FROM pg_catalog.pg_attribute p WHERE p.attrelid = ${oid} AND p.attnum = ${column.attnum}`,
    );
    const [missing = null, same = null, expression = null] = found[0]?.rows[0] ?? [];
    // Nothing kept, and the landing rewritten meanwhile: the default was computed for each row, or is forgotten. Without a landing,
    // the same when there is a default, although it may have been set only later.
    const isForgotten = same === null ? column.table.identity !== "" || expression !== null : same === "f";
    const isUnknowable = missing === null && isForgotten;
    result.push({ ...column, table: { ...column.table, missingValue: missing }, isUnknowable });
  }
  return result;
}

/**
 * A name without quotes is folded to lower case by Postgres, but keeps its case in DuckDB's tree, where quotes cannot be
 * told: first the name as written, then in lower case.
 */
function candidates(name: RelationName): string[] {
  if (name.schema === "" && name.searchPath) {
    return name.searchPath.flatMap((schema) => candidates({ schema, name: name.name }));
  }
  const write = (n: RelationName): string => (n.schema === "" ? quoteIdent(n.name) : quoteQualified(n.schema, n.name));
  const lower = { schema: name.schema.toLowerCase(), name: name.name.toLowerCase() };
  return [...new Set([write(name), write({ schema: lower.schema, name: name.name }), write(lower)])];
}

function stateSql(names: readonly RelationName[]): string {
  const values = names.map((name, i) => {
    const found = candidates(name).map((c) => `pg_catalog.to_regclass(${quoteLiteral(c)})`);
    return `(${i}, coalesce(${[...found, "NULL"].join(", ")})::oid)`;
  });
  return `SELECT r.i, c.oid, c.relkind, n.nspname, c.relname,
    (SELECT md5(string_agg(concat_ws(':', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attisdropped, a.atthasmissing), ','
       ORDER BY a.attnum)) FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0),
    CASE WHEN c.relispartition THEN (SELECT x.schema_name || '.' || x.table_name FROM spillway.relation x
       WHERE x.relid = pg_catalog.pg_partition_root(c.oid) AND x.state <> 'registering') END,
    x.relation_id, x.mode, x.keep_heap, x.state, x.key_attnum, x.key_kind, array_to_string(x.pk_attnums, ','),
    x.heap_retention IS NOT NULL, s.t, s.s, s.r, l.metadata_location,
    (SELECT json_agg(json_build_array(k.attnum, k.field_id, k.initial_default))::text FROM spillway.relation_column k
       WHERE k.relation_id = x.relation_id AND NOT k.dropped),
    ${MIRROR_COLUMNS}
    FROM (VALUES ${values.join(", ")}) r (i, oid)
    LEFT JOIN pg_catalog.pg_class c ON c.oid = r.oid LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN spillway.relation x ON x.relid = c.oid LEFT JOIN spillway.seam s ON s.relation_id = x.relation_id
    LEFT JOIN spillway.lake_table l ON l.lake_id = x.lake_id
    LEFT JOIN spillway.mirror_table m ON m.relation_id = x.relation_id ORDER BY r.i`;
}

function parseState(rows: readonly (readonly (string | null)[])[]): (StateRow | null)[] {
  return rows.map((row) => {
    const at = (i: number): string => row[i] ?? "";
    const big = (i: number): bigint | null => (row[i] === null || row[i] === undefined ? null : BigInt(at(i)));
    if (row[1] === null) return null;
    const columns = (at(19) === "" ? [] : JSON.parse(at(19))) as [number, number, string | null][];
    const lake: LakeState | null =
      row[7] === null
        ? null
        : {
            relationId: BigInt(at(7)),
            mode: at(8) as Mode,
            keepHeap: at(9) === "t",
            state: at(10) as RelationState,
            keyAttnum: row[11] === null ? null : Number(at(11)),
            keyKind: row[12] as KeyKind | null,
            pkAttnums: at(13).split(",").filter(Boolean).map(Number),
            heapRetention: at(14) === "t",
            t: big(15),
            s: big(16),
            r: big(17),
            metadataLocation: row[18] ?? null,
            mirror: parseMirrorState(row.slice(20)),
            followed: new Map(
              columns.map(([attnum, fieldId, initialDefault]) => [attnum, { fieldId, initialDefault }]),
            ),
          };
    return {
      oid: Number(at(1)),
      relkind: at(2),
      schema: at(3),
      name: at(4),
      signature: at(5),
      registeredRoot: row[6] ?? null,
      lake,
    };
  });
}

/** Postgres evaluates a view, and would see the heap only. */
async function refuseTieredView(connection: RawConnection, view: StateRow): Promise<void> {
  const results = await connection.query(`
    WITH RECURSIVE d (oid) AS (
      SELECT ${view.oid}::oid
      UNION
      SELECT p.refobjid FROM d JOIN pg_catalog.pg_rewrite w ON w.ev_class = d.oid
        JOIN pg_catalog.pg_depend p ON p.classid = 'pg_catalog.pg_rewrite'::regclass AND p.objid = w.oid
          AND p.refclassid = 'pg_catalog.pg_class'::regclass
    )
    SELECT x.schema_name || '.' || x.table_name FROM d JOIN spillway.relation x
      ON x.relid IN (d.oid, pg_catalog.pg_partition_root(d.oid)) LIMIT 1`);
  const found = results[0]?.rows[0]?.[0];
  if (found === undefined || found === null) return;
  throw new SpillwayError(
    "relation_not_readable",
    `The view ${JSON.stringify(`${view.schema}.${view.name}`)} reads the registered table ${found}, of which Postgres sees only the heap.`,
    { remedy: "Write the view's query out in the statement." },
  );
}
