/**
 * Registering a table: all checks first, then the lake's first metadata file, then one transaction that makes the landing, the
 * delta, the functions and triggers, and the catalog's rows. Nothing is half done: a registration that was
 * interrupted before that transaction has left only a journaled file, and is simply done again.
 */
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import { faultPoint } from "@spillway/base/fault";
import { newUuid } from "@spillway/base/ids";
import { createTableMetadata, writeMetadata } from "@spillway/lake/metadata";
import type { TableMetadata } from "@spillway/lake/model";
import { outputText } from "@spillway/pg/columns/plan";
import { quoteIdent, quoteQualified } from "@spillway/pg/quote";
import type pg from "pg";
import {
  abandonOp,
  captureSpecOf,
  type CaptureSpec,
  columnSignature,
  type Db,
  deltaTable,
  deltaColumn,
  insertRelation,
  installRelation,
  KEY_MIN,
  keyExpression,
  keyText,
  landingName,
  loadLakeTableByName,
  loadRelationByOid,
  openOp,
  type Partition,
  readPartitions,
  type Relation,
  requireOwnership,
} from "../catalog/catalog.ts";
import { lockingTransaction, type MoverContext, stager, typedError } from "./context.ts";
import { firstColumns, lakeSchema, lakeSpec } from "./lake-shape.ts";
import { checkRegister, type RegisterOptions, type RegisterPlan } from "./register-checks.ts";
import { createSibling } from "./sibling.ts";
import { findTable, readTableFacts, type TableFacts } from "./table-facts.ts";

export interface RegisterResult {
  readonly table: string;
  readonly outcome: "registered" | "already" | "would-register";
  readonly mode: string;
  readonly keyName: string;
  /** The cut-line, as people read it. */
  readonly cutLine: string;
  readonly lakeTable: string;
  readonly metadataLocation: string | null;
  readonly partitions: number;
  readonly notes: readonly string[];
}

/** Locks on the user's table are waited for this long in all; each single wait is the context's. */
const LOCK_ATTEMPTS = 50;

/** Throws `register_refused` with every reason, `register_other_mode`, `table_unknown`, `lake_table_taken`, … */
export async function register(ctx: MoverContext, options: RegisterOptions): Promise<RegisterResult> {
  const { facts, existing } = await ctx.pool.withClient(async (c) => {
    await requireOwnership(c, ctx.store, ctx.warehouse);
    const relid = await findTable(c, options.table);
    return { facts: await readTableFacts(c, relid), existing: await loadRelationByOid(c, relid) };
  });
  if (existing !== null) return alreadyRegistered(existing, options, facts);
  const { reasons, notes, plan } = checkRegister(facts, options);
  const name = `${facts.schemaName}.${facts.tableName}`;
  if (plan === null) {
    throw new SpillwayError("register_refused", `${name} cannot be registered: ${reasons.join("; ")}`, {
      details: { reasons },
    });
  }
  await requireLakeNameFree(ctx, facts);
  if (options.dryRun) return resultOf(facts, plan, options, lowestKey(facts), "would-register", null, notes);
  const done = await createRelation(ctx, facts, plan, options);
  ctx.log.info("register.done", { table: name, mode: options.mode, cut_line: keyText(plan.keyKind, done.t) });
  return resultOf(facts, plan, options, done.t, "registered", done.metadataLocation, notes);
}

function resultOf(
  facts: TableFacts,
  plan: RegisterPlan,
  options: RegisterOptions,
  t: bigint,
  outcome: RegisterResult["outcome"],
  metadataLocation: string | null,
  notes: readonly string[],
): RegisterResult {
  return {
    table: `${facts.schemaName}.${facts.tableName}`,
    outcome,
    mode: options.keepHeap ? `${options.mode}, keep-heap` : options.mode,
    keyName: plan.keyName,
    cutLine: keyText(plan.keyKind, t),
    lakeTable: `${facts.schemaName}.${facts.tableName}`,
    metadataLocation,
    partitions: facts.leaves.length,
    notes,
  };
}

/** The lower bound of the lowest partition. */
function lowestKey(facts: TableFacts): bigint {
  return facts.leaves[0]?.lo ?? KEY_MIN;
}

/** The same options again: nothing to do. Others: how to get there. */
function alreadyRegistered(relation: Relation, options: RegisterOptions, facts: TableFacts): RegisterResult {
  const name = `${relation.schemaName}.${relation.tableName}`;
  const differing = Object.entries(givenOptions(options)).flatMap(([flag, value]) => {
    const was = givenWas(relation, flag);
    return was === value ? [] : [`${flag} ${was ?? "unset"}, asked for ${value}`];
  });
  if (differing.length > 0) {
    throw new SpillwayError("register_other_mode", `${name} is registered already with ${differing.join("; ")}`, {
      remedy: changeRemedy(relation, options),
    });
  }
  const kind = relation.keyKind ?? "int";
  return {
    table: name,
    outcome: "already",
    mode: relation.keepHeap ? `${relation.mode}, keep-heap` : relation.mode,
    keyName: relation.columns.find((c) => c.attnum === relation.keyAttnum)?.name ?? "",
    cutLine: relation.seam.t === null ? "none" : keyText(kind, relation.seam.t),
    lakeTable: name,
    metadataLocation: null,
    partitions: facts.leaves.length,
    notes: [],
  };
}

function changeRemedy(relation: Relation, options: RegisterOptions): string {
  const table = `--table ${relation.schemaName}.${relation.tableName}`;
  const steps = `Run \`spillway unregister ${table}\`, then \`spillway register ${table} --mode ${options.mode} ...\` again`;
  if (relation.seam.s === null) return `${steps}; no row is in the lake yet.`;
  return relation.keepHeap || relation.mode === "mirrored"
    ? `${steps}; the heap has every row, so give --drop-lake and the lake is built anew.`
    : `${steps}; the rows in the lake have to be brought back into the table first (\`spillway sql\` reads them).`;
}

/** What was asked for, as text, to be compared when the command is run again. */
export function givenOptions(options: RegisterOptions): Record<string, string> {
  const given: Record<string, string | undefined> = {
    mode: options.mode,
    "keep-heap": String(options.keepHeap ?? false),
    "tier-key": options.tierKey,
    lag: options.lag,
    "lake-retention": options.lakeRetention,
    "partition-width": options.partitionWidth,
    "lake-partition": options.lakePartition,
    "format-version": options.formatVersion?.toString(),
    "historical-inserts": options.historicalInserts,
  };
  return Object.fromEntries(Object.entries(given).filter((e): e is [string, string] => e[1] !== undefined));
}

function givenWas(relation: Relation, flag: string): string | undefined {
  const defaults: Record<string, string> = {
    "lake-partition": "none",
    "format-version": "3",
    "historical-inserts": "upsert",
  };
  if (flag === "tier-key") return relation.columns.find((c) => c.attnum === relation.keyAttnum)?.name;
  return relation.options.given?.[flag] ?? defaults[flag];
}

async function requireLakeNameFree(ctx: MoverContext, facts: TableFacts): Promise<void> {
  const taken = await ctx.pool.withClient((c) => loadLakeTableByName(c, facts.schemaName, facts.tableName));
  if (taken !== null) {
    throw new SpillwayError(
      "lake_table_taken",
      `the lake has a table ${facts.schemaName}.${facts.tableName} from a former registration, at ${taken.location}`,
    );
  }
}

async function createRelation(
  ctx: MoverContext,
  facts: TableFacts,
  plan: RegisterPlan,
  options: RegisterOptions,
): Promise<{ t: bigint; metadataLocation: string }> {
  const name = `${facts.schemaName}.${facts.tableName}`;
  const opId = await ctx.pool.withClient((c) =>
    openOp(c, { kind: "register", relationId: null, lakeId: null, epoch: ctx.epoch, detail: { table: name } }),
  );
  try {
    faultPoint("register.journaled");
    const metadata = newMetadata(ctx, facts, plan);
    const metadataLocation = await writeMetadata(
      ctx.store,
      metadata,
      { version: 0, uuid: newUuid() },
      stager(ctx, opId),
    );
    faultPoint("register.before_commit");
    const t = await withLockRetries(ctx, () =>
      lockingTransaction(ctx, (tx) => install(tx, { opId, facts, plan, options, metadata, metadataLocation })),
    );
    faultPoint("register.after_commit");
    return { t, metadataLocation };
  } catch (error) {
    await ctx.pool.withClient((c) => abandonOp(c, opId, "register failed")).catch(() => {});
    throw typedError(error, `registering ${name}`);
  }
}

/** Tries again while clients hold the table's locks, each time only for a moment. */
export async function withLockRetries<T>(
  ctx: MoverContext,
  work: () => Promise<T>,
  attempts: number = LOCK_ATTEMPTS,
): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await work();
    } catch (error) {
      const typed = isLockTimeout(error);
      if (!typed || attempt >= attempts || ctx.signal?.aborted) throw error;
      await ctx.clock.sleep(50 + Math.random() * 150, ctx.signal);
    }
  }
}

export function isLockTimeout(error: unknown): boolean {
  return isSpillwayError(error, "pg_lock_timeout") || (error as { code?: unknown } | null)?.code === "55P03";
}

function newMetadata(ctx: MoverContext, facts: TableFacts, plan: RegisterPlan): TableMetadata {
  const columns = firstColumns(facts.columns);
  const spec = lakeSpec(plan, columns);
  const uuid = newUuid();
  const folder = [facts.schemaName, `${facts.tableName}-${uuid.slice(0, 8)}`].map(safeFolder).join("/");
  return createTableMetadata({
    tableUuid: uuid,
    location: `${ctx.warehouse}/${folder}`,
    schema: lakeSchema(facts, columns),
    ...(spec ? { spec } : {}),
    formatVersion: plan.formatVersion,
    nowMs: ctx.clock.wallMs(),
    properties: { "write.metadata.previous-versions-max": "20" },
  });
}

/** Letters that every store and every reader takes as they are. */
function safeFolder(name: string): string {
  return name.replace(/[^A-Za-z0-9_-]/g, (c) => `_${(c.codePointAt(0) ?? 0).toString(16)}`);
}

interface Install {
  readonly opId: bigint;
  readonly facts: TableFacts;
  readonly plan: RegisterPlan;
  readonly options: RegisterOptions;
  readonly metadata: TableMetadata;
  readonly metadataLocation: string;
}

/** The transaction. Locks out writers of the landing only, and DDL on the table. */
async function install(tx: pg.Client, i: Install): Promise<bigint> {
  const { facts, plan, options } = i;
  await requireUnchanged(tx, facts);
  const landing = facts.defaultPartition ?? (await createLanding(tx, facts, plan));
  const landingSql = quoteQualified(landing.schemaName, landing.name);
  await tx.query(`lock table ${landingSql} in share row exclusive mode`);
  const t = await cutLine(tx, facts, plan, landingSql);
  const lakeId = await insertLakeTable(tx, i);
  const columns = firstColumns(facts.columns);
  const relationId = await insertRelation(tx, {
    relid: facts.relid,
    schemaName: facts.schemaName,
    tableName: facts.tableName,
    mode: options.mode,
    keepHeap: options.keepHeap ?? false,
    state: "active",
    keyAttnum: plan.keyAttnum,
    keyKind: plan.keyKind,
    pkAttnums: facts.primaryKey?.attnums ?? [],
    landing: landing.oid,
    landingCreated: facts.defaultPartition === null,
    lakeId,
    lag: plan.lag,
    lakeRetention: plan.lakeRetention,
    heapRetention: null,
    partitionWidth: plan.partitionWidth,
    partitionMonths: plan.partitionMonths,
    lakePartition: plan.lakePartition,
    options: {
      historicalInserts: plan.historicalInserts,
      formatVersion: plan.formatVersion,
      given: givenOptions(options),
    },
    columnSignature: await columnSignature(tx, facts.relid),
    columns,
    t,
  });
  const relation = await loadRelationByOid(tx, facts.relid);
  if (relation === null) throw new SpillwayError("table_unknown", `relation ${relationId} is gone`);
  const spec = captureSpecOf(relation, facts.columns);
  await installRelation(tx, spec, { ...landing, isLanding: true });
  if (facts.defaultPartition !== null) await captureExisting(tx, spec, landingSql);
  await tx.query("delete from spillway.staged_file where op_id = $1", [i.opId.toString()]);
  const { rowCount } = await tx.query(
    `update spillway.journal set phase = 'committed', ended_at = now(), relation_id = $2, lake_id = $3
     where op_id = $1 and phase = 'open'`,
    [i.opId.toString(), relationId.toString(), lakeId.toString()],
  );
  if (rowCount !== 1) throw new SpillwayError("op_abandoned", `operation ${i.opId} was abandoned`);
  return t;
}

/** Nothing may have changed between the checks and the lock. */
async function requireUnchanged(tx: Db, facts: TableFacts): Promise<void> {
  const table = quoteQualified(facts.schemaName, facts.tableName);
  await tx.query(`lock table only ${table} in share update exclusive mode`);
  const now = await readTableFacts(tx, facts.relid);
  const essence = (f: TableFacts): string =>
    JSON.stringify([
      f.schemaName,
      f.tableName,
      f.primaryKey,
      f.columns.map((c) => [c.attnum, c.name, c.typeOid, c.typmod, c.notNull]),
      f.leaves.map((l) => [l.oid, l.lo.toString(), l.hi.toString()]),
      f.defaultPartition?.oid,
    ]);
  if (essence(now) !== essence(facts)) {
    throw new SpillwayError("mover_busy", `${facts.schemaName}.${facts.tableName} was altered while it was registered`);
  }
}

/** Made apart and attached, so that readers and writers of the table go on. */
async function createLanding(tx: Db, facts: TableFacts, plan: RegisterPlan): Promise<Partition> {
  const parent = quoteQualified(facts.schemaName, facts.tableName);
  const landing = await createSibling(tx, facts, await freeName(tx, facts.schemaName, landingName(facts.tableName)));
  await tx.query(`comment on table ${landing} is 'Spillway: rows that no other partition takes'`);
  await tx.query(`alter table ${parent} attach partition ${landing} default`);
  const partitions = await readPartitions(tx, facts.relid, plan.keyKind);
  const found = partitions.find((p) => p.isDefault);
  if (!found) throw new SpillwayError("premake_failed", `the landing ${landing} could not be made`);
  return found;
}

/** The name, or with a number behind it when it is taken. */
export async function freeName(tx: Db, schema: string, wanted: string): Promise<string> {
  for (let i = 0; i < 100; i++) {
    const name = i === 0 ? wanted : `${wanted.slice(0, 59)}_${i + 1}`;
    const { rows } = await tx.query<{ taken: boolean }>("select to_regclass($1) is not null as taken", [
      quoteQualified(schema, name),
    ]);
    if (rows[0]?.taken === false) return name;
  }
  throw new SpillwayError("premake_failed", `no free name like ${wanted} in schema ${schema}`);
}

/** The lowest bound, or the lowest key of a landing that was there before. */
async function cutLine(tx: Db, facts: TableFacts, plan: RegisterPlan, landingSql: string): Promise<bigint> {
  const lowest = lowestKey(facts);
  if (facts.defaultPartition === null) return lowest;
  const key = quoteIdent(plan.keyName);
  const { rows } = await tx.query<{ k: bigint | string | null }>(
    `select ${keyExpression(plan.keyKind, "m")} as k from (select min(${key}) as m from only ${landingSql}) x`,
  );
  const k = rows[0]?.k;
  if (k === null || k === undefined) return lowest;
  return BigInt(k) < lowest ? BigInt(k) : lowest;
}

/** Rows that a former DEFAULT partition holds: the delta has every row of the landing, from the beginning. */
async function captureExisting(tx: Db, spec: CaptureSpec, landingSql: string): Promise<void> {
  const key = spec.columns.find((c) => c.attnum === spec.keyAttnum);
  if (!key) return;
  const values = spec.columns.map((c) => {
    const value = `r.${quoteIdent(c.name)}`;
    return c.isText ? outputText(value) : value;
  });
  await tx.query(
    `insert into ${deltaTable(spec.relationId)} (op, version, key, ${spec.columns.map((c) => deltaColumn(c.attnum)).join(", ")})
     select 'U', nextval('spillway.delta_version'), ${keyExpression(spec.keyKind, `r.${quoteIdent(key.name)}`)},
       ${values.join(", ")} from only ${landingSql} r`,
  );
}

async function insertLakeTable(tx: Db, i: Install): Promise<bigint> {
  const { facts, metadata } = i;
  await tx.query("insert into spillway.namespace (name) values ($1) on conflict do nothing", [facts.schemaName]);
  const { rows } = await tx.query<{ lake_id: string }>(
    `insert into spillway.lake_table (namespace, name, table_uuid, location, metadata_location, metadata_version,
       format_version, current_snapshot_id, sequence_number)
     values ($1, $2, $3, $4, $5, 0, $6, null, 0) returning lake_id`,
    [
      facts.schemaName,
      facts.tableName,
      metadata.tableUuid,
      metadata.location,
      i.metadataLocation,
      metadata.formatVersion,
    ],
  );
  return BigInt(rows[0]?.lake_id ?? 0);
}
