/** Registering mirrored tables: checks, publication, the catalog's rows in one transaction, and the first copy. */
import { must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import { faultPoint } from "@spillway/base/fault";
import { newUuid } from "@spillway/base/ids";
import { createTableMetadata, writeMetadata } from "@spillway/lake/metadata";
import type { TableMetadata } from "@spillway/lake/model";
import { quoteIdent, quoteQualified } from "@spillway/pg/quote";
import { connectRaw } from "@spillway/pg/wire/connect-raw";
import type pg from "pg";
import {
  abandonOp,
  columnSignature,
  insertRelation,
  loadLakeTableByName,
  loadRelationByOid,
  openOp,
  requireOwnership,
} from "../../catalog/catalog.ts";
import { lockingTransaction, type MoverContext, stager } from "../context.ts";
import { firstColumns, lakeSchema } from "../lake-shape.ts";
import { withLockRetries } from "../register.ts";
import { findTable, readTableFacts, type TableFacts } from "../table-facts.ts";
import { COPY_EPOCH, copyTable, type CopyOptions, noteLeaves, planParts } from "./copy.ts";
import { requireMirrorable } from "./mirror-checks.ts";
import { ensureMirror, hasAddTableFix } from "./slot.ts";
import type { MirrorRow } from "./state.ts";

export interface MirrorOptions extends CopyOptions {
  /** As in SQL; `schema.*` and other patterns with `*` name every table of a kind that matches. */
  readonly tables: readonly string[];
  readonly formatVersion?: 2 | 3;
  readonly dryRun?: boolean;
}

export interface MirrorResult {
  readonly table: string;
  readonly outcome: "registered" | "already" | "resumed" | "would-register";
  readonly rows: bigint;
}

/** Longer than deadlock_timeout, at which an autovacuum is asked to give way. */
const PATIENT_LOCK_MS = 5_000;

/** Throws `register_refused` with the reasons of the first table that cannot be mirrored; nothing is begun then. */
export async function registerMirrored(ctx: MoverContext, options: MirrorOptions): Promise<MirrorResult[]> {
  await ctx.pool.withClient((c) => requireOwnership(c, ctx.store, ctx.warehouse));
  const oids = await ctx.pool.withClient((c) => expand(c, options.tables));
  const replication = await connectRaw(ctx.conninfo, { applicationName: ctx.applicationName, replication: "database" });
  try {
    const facts: TableFacts[] = [];
    for (const oid of oids) facts.push(await check(ctx, oid, replication.serverVersion));
    if (options.dryRun) {
      return facts.map((f) => ({ table: nameOf(f), outcome: "would-register", rows: 0n }));
    }
    const mirror = await ctx.pool.withClient((c) => ensureMirror(c, replication));
    const results: MirrorResult[] = [];
    for (const f of facts) results.push(await onboard(ctx, f, mirror, options, replication.serverVersion));
    return results;
  } finally {
    await replication.close();
  }
}

async function check(ctx: MoverContext, oid: number, serverVersion: number): Promise<TableFacts> {
  return ctx.pool.withClient(async (c) => {
    const facts = await readTableFacts(c, oid);
    if ((await loadRelationByOid(c, oid)) === null) await requireMirrorable(c, facts, serverVersion);
    return facts;
  });
}

/** The oids of names and patterns, each once. Throws `table_unknown`. */
async function expand(db: pg.Client, names: readonly string[]): Promise<number[]> {
  const oids = new Set<number>();
  for (const name of names) {
    if (!name.includes("*")) {
      oids.add(await findTable(db, name));
      continue;
    }
    const [schema = "", table = ""] = name.includes(".") ? name.split(".", 2) : ["public", name];
    const like = (text: string): string => text.replace(/[\\%_]/g, "\\$&").replaceAll("*", "%");
    const { rows } = await db.query<{ oid: string }>(
      `select c.oid::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
       where c.relkind in ('r', 'p') and not c.relispartition and c.relpersistence = 'p'
         and n.nspname not in ('pg_catalog', 'information_schema', 'spillway')
         and n.nspname like $1 and c.relname like $2 order by n.nspname, c.relname`,
      [like(schema), like(table)],
    );
    if (rows.length === 0) throw new SpillwayError("table_unknown", `no table matches ${name}`);
    for (const row of rows) oids.add(Number(row.oid));
  }
  return [...oids];
}

async function onboard(
  ctx: MoverContext,
  facts: TableFacts,
  mirror: MirrorRow,
  options: MirrorOptions,
  serverVersion: number,
): Promise<MirrorResult> {
  const table = nameOf(facts);
  const existing = await ctx.pool.withClient((c) => loadRelationByOid(c, facts.relid));
  if (existing !== null && existing.mode !== "mirrored") {
    throw new SpillwayError("register_other_mode", `${table} is registered already as ${existing.mode}`);
  }
  if (existing !== null && existing.state !== "registering") return { table, outcome: "already", rows: 0n };
  const relationId = existing?.relationId ?? (await create(ctx, facts, mirror, options, serverVersion));
  faultPoint("mirror.registered");
  await copyTable(ctx, relationId, options);
  const rows = await ctx.pool.withClient(async (c) => {
    const found = await c.query<{ n: string | null }>(
      "select sum(rows)::text as n from spillway.mirror_range where relation_id = $1",
      [relationId.toString()],
    );
    return BigInt(found.rows[0]?.n ?? 0);
  });
  ctx.log.info("mirror.copied", { table, rows });
  return { table, outcome: existing === null ? "registered" : "resumed", rows };
}

async function create(
  ctx: MoverContext,
  facts: TableFacts,
  mirror: MirrorRow,
  options: MirrorOptions,
  serverVersion: number,
): Promise<bigint> {
  const taken = await ctx.pool.withClient((c) => loadLakeTableByName(c, facts.schemaName, facts.tableName));
  if (taken !== null) {
    throw new SpillwayError(
      "lake_table_taken",
      `the lake has a table ${nameOf(facts)} from a former registration, at ${taken.location}`,
    );
  }
  const opId = await ctx.pool.withClient((c) =>
    openOp(c, { kind: "register", relationId: null, lakeId: null, epoch: ctx.epoch, detail: { table: nameOf(facts) } }),
  );
  try {
    const metadata = newMetadata(ctx, facts, options.formatVersion ?? 3);
    const location = await writeMetadata(ctx.store, metadata, { version: 0, uuid: newUuid() }, stager(ctx, opId));
    const copyOp = await ctx.pool.withClient((c) =>
      openOp(c, {
        kind: "mirror-copy",
        relationId: null,
        lakeId: null,
        epoch: COPY_EPOCH,
        detail: { table: nameOf(facts) },
      }),
    );
    // SHARE UPDATE EXCLUSIVE makes no writer wait, so it may be waited for until an autovacuum has given way.
    const lockMs = hasAddTableFix(serverVersion) ? PATIENT_LOCK_MS : ctx.lockTimeoutMs;
    return await withLockRetries(ctx, () =>
      lockingTransaction(
        ctx,
        (tx) => install(tx, { facts, mirror, metadata, location, opId, copyOp, serverVersion, options }),
        lockMs,
      ),
    );
  } catch (error) {
    await ctx.pool.withClient((c) => abandonOp(c, opId, "register failed")).catch(() => {});
    throw error;
  }
}

function newMetadata(ctx: MoverContext, facts: TableFacts, formatVersion: 2 | 3): TableMetadata {
  const uuid = newUuid();
  const safe = (name: string): string =>
    name.replace(/[^A-Za-z0-9_-]/g, (c) => `_${(c.codePointAt(0) ?? 0).toString(16)}`);
  return createTableMetadata({
    tableUuid: uuid,
    location: `${ctx.warehouse}/${safe(facts.schemaName)}/${safe(`${facts.tableName}-${uuid.slice(0, 8)}`)}`,
    schema: lakeSchema(facts, firstColumns(facts.columns)),
    formatVersion,
    nowMs: ctx.clock.wallMs(),
    properties: { "write.metadata.previous-versions-max": "20" },
  });
}

interface Install {
  readonly facts: TableFacts;
  readonly mirror: MirrorRow;
  readonly metadata: TableMetadata;
  readonly location: string;
  readonly opId: bigint;
  readonly copyOp: bigint;
  readonly serverVersion: number;
  readonly options: MirrorOptions;
}

/** Everything in one transaction: what the stream sends of the table from its commit on finds the catalog's rows. */
async function install(tx: pg.Client, i: Install): Promise<bigint> {
  const { facts } = i;
  const table = quoteQualified(facts.schemaName, facts.tableName);
  const mode = hasAddTableFix(i.serverVersion) ? "share update exclusive" : "share row exclusive";
  await tx.query(`lock table ${table} in ${mode} mode`);
  await requireMirrorable(tx, await readTableFacts(tx, facts.relid), i.serverVersion);
  const relationId = await insertRows(tx, i);
  await planParts(tx, relationId, facts.relid);
  await noteLeaves(tx, relationId, facts.relid);
  const published = await tx.query(
    "select from pg_publication_rel r join pg_publication p on p.oid = r.prpubid where p.pubname = $1 and r.prrelid = $2",
    [i.mirror.publicationName, facts.relid],
  );
  if (published.rowCount === 0) {
    await tx.query(`alter publication ${quoteIdent(i.mirror.publicationName)} add table ${table}`);
  }
  await tx.query("delete from spillway.staged_file where op_id = $1", [i.opId.toString()]);
  const { rowCount } = await tx.query(
    `update spillway.journal set phase = 'committed', ended_at = now(), relation_id = $2 where op_id = $1 and phase = 'open'`,
    [i.opId.toString(), relationId.toString()],
  );
  if (rowCount !== 1) throw new SpillwayError("op_abandoned", `operation ${i.opId} was abandoned`);
  return relationId;
}

async function insertRows(tx: pg.Client, i: Install): Promise<bigint> {
  const { facts, metadata } = i;
  await tx.query("insert into spillway.namespace (name) values ($1) on conflict do nothing", [facts.schemaName]);
  const lake = await tx.query<{ lake_id: string }>(
    `insert into spillway.lake_table (namespace, name, table_uuid, location, metadata_location, metadata_version,
       format_version, current_snapshot_id, sequence_number)
     values ($1, $2, $3, $4, $5, 0, $6, null, 0) returning lake_id`,
    [facts.schemaName, facts.tableName, metadata.tableUuid, metadata.location, i.location, metadata.formatVersion],
  );
  const lakeId = BigInt(must(lake.rows[0], "lake table").lake_id);
  const relationId = await insertRelation(tx, {
    relid: facts.relid,
    schemaName: facts.schemaName,
    tableName: facts.tableName,
    mode: "mirrored",
    keepHeap: false,
    state: "registering",
    keyAttnum: null,
    keyKind: null,
    pkAttnums: facts.primaryKey?.attnums ?? [],
    landing: null,
    landingCreated: false,
    lakeId,
    lag: null,
    lakeRetention: null,
    heapRetention: null,
    partitionWidth: null,
    partitionMonths: null,
    lakePartition: null,
    options: {
      formatVersion: i.options.formatVersion ?? 3,
      given: { mode: "mirrored", "format-version": String(i.options.formatVersion ?? 3) },
    },
    columnSignature: await columnSignature(tx, facts.relid),
    columns: firstColumns(facts.columns),
    t: null,
  });
  await tx.query(
    `insert into spillway.mirror_table (relation_id, phase, hold_lsn, copy_op)
     values ($1, 'copying', pg_current_wal_insert_lsn(), $2)`,
    [relationId.toString(), i.copyOp.toString()],
  );
  return relationId;
}

function nameOf(facts: TableFacts): string {
  return `${facts.schemaName}.${facts.tableName}`;
}
