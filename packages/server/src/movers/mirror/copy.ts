/**
 * The first copy of a table: ctid ranges read under an exported snapshot, several at a time, into data files that nothing
 * refers to yet. Each finished range is journaled with the LSN of its snapshot, so that a copy that was killed goes on.
 */
import { must } from "@spillway/base/assert";
import type { ColumnBatch } from "@spillway/base/columns";
import { SpillwayError } from "@spillway/base/errors";
import { faultPoint } from "@spillway/base/fault";
import { randomHex } from "@spillway/base/ids";
import { formatLsn } from "@spillway/base/lsn";
import { defaultSpec, readMetadata } from "@spillway/lake/metadata";
import type { DataFile, TableMetadata } from "@spillway/lake/model";
import { copyOut } from "@spillway/pg/copy/copy-out";
import { selectList } from "@spillway/pg/columns/plan";
import { quoteLiteral, quoteQualified } from "@spillway/pg/quote";
import { createSlot } from "@spillway/pg/replication/session";
import { inTransaction } from "@spillway/pg/transaction";
import type { RawConnection } from "@spillway/pg/wire/connection";
import { connectRaw } from "@spillway/pg/wire/connect-raw";
import { type Db, loadLakeTable, loadRelation, readTableColumns, type Relation } from "../../catalog/catalog.ts";
import { writeDataFiles } from "../../engine/engine.ts";
import { displayName, type MovedColumn, movedColumns, type MoverContext, withFreshClient } from "../context.ts";
import { schemaDrift } from "../schema-drift.ts";
import { filesToJson } from "./file-json.ts";
import { batchedStager } from "./flush.ts";
import { leafChange, type Leaves, loadLeaves, putLeaves, readLeaves } from "./leaves.ts";

export interface CopyProgress {
  readonly rows: bigint;
  readonly parts: number;
  readonly done: number;
  readonly rowsPerSecond: number;
  /** Null until it can be said. */
  readonly secondsLeft: number | null;
}

export interface CopyOptions {
  readonly parallel: number;
  readonly onProgress?: (progress: CopyProgress) => void;
}

/** Journal rows with this epoch belong to no leader: a copy lives from one to the next. */
export const COPY_EPOCH = 9_223_372_036_854_775_807n;

/** 128 MiB of heap. */
const PART_BLOCKS = 16_384;
const SNAPSHOT_TIMEOUT_MS = 120_000;
/** First key of the advisory lock of a copy; the second is the relation's id. */
const LOCK_CLASS = 0x5370_6d63;

interface Part {
  readonly part: number;
  readonly schema: string;
  readonly table: string;
  readonly first: bigint;
  readonly end: bigint | null;
}

/** Plans the parts of the table as it is now. In the transaction that registers it. */
export async function planParts(tx: Db, relationId: bigint, relid: number): Promise<void> {
  await tx.query("delete from spillway.mirror_range where relation_id = $1", [relationId.toString()]);
  await tx.query(
    `insert into spillway.mirror_range (relation_id, part, leaf, leaf_schema, leaf_name, first_block, end_block)
     select $1, row_number() over (order by l.oid, b), l.oid, l.nspname, l.relname, b,
       case when b + $3 >= l.blocks then null else b + $3 end
     from (select c.oid, n.nspname, c.relname, greatest(1, pg_relation_size(c.oid) / current_setting('block_size')::int) as blocks
           from (select $2::oid as relid union select relid from pg_partition_tree($2::oid::regclass)) t
           join pg_class c on c.oid = t.relid join pg_namespace n on n.oid = c.relnamespace where c.relkind = 'r') l,
       generate_series(0::bigint, l.blocks - 1, $3::bigint) b`,
    [relationId.toString(), relid, PART_BLOCKS],
  );
}

/** Writes down the leaves that the copy is of. After the row of the mirrored table is there. */
export async function noteLeaves(tx: Db, relationId: bigint, relid: number): Promise<void> {
  const seen = (await readLeaves(tx, [relid])).get(relid);
  await putLeaves(tx, relationId, seen?.leaves ?? new Map());
}

/** True when all parts are there; false when another process copies this table. Throws what a part cannot be read for. */
export async function copyTable(ctx: MoverContext, relationId: bigint, options: CopyOptions): Promise<boolean> {
  return withFreshClient(ctx, async (lock) => {
    const { rows } = await lock.query<{ got: boolean }>("select pg_try_advisory_lock($1, $2) as got", [
      LOCK_CLASS,
      Number(relationId % 2_147_483_647n),
    ]);
    if (rows[0]?.got !== true) return false;
    await new TableCopy(ctx, relationId, options).run();
    return true;
  });
}

class TableCopy {
  readonly #ctx: MoverContext;
  readonly #relationId: bigint;
  readonly #options: CopyOptions;
  #copied = 0n;
  #done = 0;
  #parts = 0;
  #startMs = 0;
  readonly #stop = new AbortController();

  constructor(ctx: MoverContext, relationId: bigint, options: CopyOptions) {
    this.#ctx = ctx;
    this.#relationId = relationId;
    this.#options = options;
  }

  async run(): Promise<void> {
    const { pool, clock } = this.#ctx;
    const relation = must(await pool.withClient((c) => loadRelation(c, this.#relationId)), "relation");
    const { parts, done, opId } = await pool.withClient((c) => this.#load(c));
    this.#startMs = clock.monotonicMs();
    this.#parts = parts.length + done;
    this.#done = done;
    if (parts.length > 0) await this.#copy(relation, parts, opId);
    await pool.withClient((c) =>
      c.query(
        "update spillway.mirror_table set phase = 'copied', changed_at = now() where relation_id = $1 and phase = 'copying'",
        [this.#relationId.toString()],
      ),
    );
    faultPoint("mirror.copied");
  }

  async #load(db: Db): Promise<{ parts: Part[]; done: number; opId: bigint }> {
    const id = this.#relationId.toString();
    const table = await db.query<{ copy_op: string | null }>(
      "select copy_op from spillway.mirror_table where relation_id = $1",
      [id],
    );
    const { rows } = await db.query<{
      part: number;
      leaf_schema: string;
      leaf_name: string;
      first_block: string;
      end_block: string | null;
      is_done: boolean;
    }>(
      `select part, leaf_schema, leaf_name, first_block, end_block, done_at is not null as is_done
       from spillway.mirror_range where relation_id = $1 order by part`,
      [id],
    );
    const parts = rows
      .filter((r) => !r.is_done)
      .map((r) => ({
        part: r.part,
        schema: r.leaf_schema,
        table: r.leaf_name,
        first: BigInt(r.first_block),
        end: r.end_block === null ? null : BigInt(r.end_block),
      }));
    return {
      parts,
      done: rows.length - parts.length,
      opId: BigInt(must(table.rows[0]?.copy_op, "the copy's operation")),
    };
  }

  async #copy(relation: Relation, planned: Part[], opId: bigint): Promise<void> {
    let parts = planned;
    const { pool, conninfo, applicationName, store } = this.#ctx;
    const exporter = await connectRaw(conninfo, { applicationName, replication: "database" });
    try {
      const slot = await createSlot(exporter, {
        name: `spillway_copy_${randomHex(12)}`,
        temporary: true,
        snapshot: "export",
        timeoutMs: SNAPSHOT_TIMEOUT_MS,
      });
      const snapshot = must(slot.snapshotName, "a snapshot");
      const leaves = await this.#leavesAt(snapshot, relation);
      if (!(await this.#goesOn(leaves))) {
        await this.#plan(relation, leaves);
        parts = (await pool.withClient((c) => this.#load(c))).parts;
        this.#parts = parts.length;
      }
      const lake = must(await pool.withClient((c) => loadLakeTable(c, must(relation.lakeId, "lake"))), "lake table");
      const metadata = await readMetadata(store, lake.metadataLocation);
      const queue = [...parts];
      const lsn = formatLsn(slot.consistentPoint);
      const workers = Math.min(this.#options.parallel, parts.length);
      const results = await Promise.allSettled(
        Array.from({ length: workers }, () => this.#worker({ relation, queue, snapshot, leaves, lsn, metadata, opId })),
      );
      const failed = results.find((r) => r.status === "rejected");
      if (failed) throw failed.reason;
    } finally {
      await exporter.close();
    }
  }

  /** The leaves under the snapshot, with their files. */
  async #leavesAt(snapshot: string, relation: Relation): Promise<Leaves> {
    const { conninfo, applicationName } = this.#ctx;
    const connection = await connectRaw(conninfo, { applicationName });
    try {
      await connection.query(
        `begin isolation level repeatable read read only; set transaction snapshot ${quoteLiteral(snapshot)}`,
      );
      // From the catalogs' rows, which the snapshot rules: pg_partition_tree would say what is there now.
      const [result] = await connection.query(
        `with recursive t (oid) as (select ${relation.relid}::oid union all select i.inhrelid from t join pg_inherits i on i.inhparent = t.oid)
         select c.oid::text, c.relfilenode::text from t join pg_class c on c.oid = t.oid where c.relkind = 'r'`,
      );
      return new Map((result?.rows ?? []).map(([oid, filenode]) => [Number(oid), Number(filenode)]));
    } finally {
      await connection.close();
    }
  }

  /** False when nothing is copied yet. Throws when what is copied was read from other leaves, or other files of theirs. */
  async #goesOn(leaves: Leaves): Promise<boolean> {
    const id = this.#relationId;
    const { copied, stored } = await this.#ctx.pool.withClient(async (c) => ({
      copied: await c.query(
        "select from spillway.mirror_range where relation_id = $1 and done_at is not null limit 1",
        [id.toString()],
      ),
      stored: await loadLeaves(c, id),
    }));
    if (copied.rowCount === 0) return false;
    if (leafChange(stored.leaves, leaves) !== null) {
      throw ambiguous("its partitions, or the files of its rows, changed while it was copied");
    }
    return true;
  }

  async #plan(relation: Relation, leaves: Leaves): Promise<void> {
    await this.#ctx.pool.withClient((c) =>
      inTransaction(c, {}, async (tx) => {
        await planParts(tx, this.#relationId, relation.relid);
        await tx.query("delete from spillway.mirror_range where relation_id = $1 and leaf <> all ($2::oid[])", [
          this.#relationId.toString(),
          [...leaves.keys()],
        ]);
        await putLeaves(tx, this.#relationId, leaves);
      }),
    );
  }

  /**
   * Columns and files stay what they are from here to the end of the transaction; whatever changed since the snapshot was taken is
   * seen now.
   */
  async #freeze(connection: RawConnection, { relation, leaves }: Job): Promise<void> {
    await connection.query(
      `lock table ${quoteQualified(relation.schemaName, relation.tableName)} in access share mode`,
    );
    const seen = await this.#ctx.pool.withClient((c) => readLeaves(c, [relation.relid]));
    const change = leafChange(leaves, seen.get(relation.relid)?.leaves ?? new Map());
    if (change !== null && (change.gone.length > 0 || change.rewritten.length > 0)) {
      throw ambiguous("its partitions, or the files of its rows, changed while it was copied");
    }
  }

  async #worker(job: Job): Promise<void> {
    const { conninfo, applicationName, signal } = this.#ctx;
    const connection = await connectRaw(conninfo, {
      applicationName,
      settings: { idle_in_transaction_session_timeout: 0 },
    });
    try {
      await connection.query(
        `begin isolation level repeatable read read only; set transaction snapshot ${quoteLiteral(job.snapshot)}`,
      );
      await this.#freeze(connection, job);
      const columns = await this.#columns(job.relation);
      for (;;) {
        if (signal?.aborted || this.#stop.signal.aborted)
          throw new SpillwayError("interrupted", "the copy was interrupted");
        const part = job.queue.shift();
        if (!part) break;
        await this.#part(connection, job, part, columns);
      }
      await connection.query("commit");
    } catch (error) {
      this.#stop.abort();
      throw error;
    } finally {
      await connection.close();
    }
  }

  /** The columns as they were followed, which must be those that the snapshot shows. */
  async #columns(relation: Relation): Promise<MovedColumn[]> {
    const now = await this.#ctx.pool.withClient((c) => readTableColumns(c, relation.relid));
    if (schemaDrift(relation, now) !== null) {
      throw new SpillwayError("mirror_schema_ambiguous", `${displayName(relation)} was altered while it was copied`);
    }
    return movedColumns(relation, now);
  }

  async #part(connection: RawConnection, job: Job, part: Part, columns: readonly MovedColumn[]): Promise<void> {
    const plans = columns.map((c) => c.column.copyPlan);
    const from = quoteQualified(part.schema, part.table);
    const upper = part.end === null ? "" : ` and ctid < '(${part.end},0)'::tid`;
    let rows = 0n;
    const progress = (batch: ColumnBatch): void => {
      rows += BigInt(batch.length);
      this.#copied += BigInt(batch.length);
      this.#report();
    };
    async function* counted(): AsyncIterable<ColumnBatch> {
      const source = `(select ${selectList(plans)} from only ${from} where ctid >= '(${part.first},0)'::tid${upper})`;
      for await (const batch of copyOut({ connection, source, columns: plans })) {
        progress(batch);
        yield batch;
      }
    }
    const { ctx } = { ctx: this.#ctx };
    const files: DataFile[] = await writeDataFiles({
      engine: ctx.engine,
      batches: counted(),
      fields: columns.map((c) => c.field),
      spec: defaultSpec(job.metadata),
      store: ctx.store,
      dataLocation: `${job.metadata.location}/data`,
      stageDir: ctx.stageDir,
      onFile: batchedStager(ctx, job.opId),
      ...(ctx.signal ? { signal: ctx.signal } : {}),
    });
    await ctx.pool.withClient((c) =>
      c.query(
        `update spillway.mirror_range set snapshot_lsn = $3, rows = $4, files = $5, done_at = now()
         where relation_id = $1 and part = $2`,
        [this.#relationId.toString(), part.part, job.lsn, rows.toString(), filesToJson(files)],
      ),
    );
    this.#done++;
    this.#report();
    faultPoint("mirror.range_copied");
  }

  #report(): void {
    const seconds = (this.#ctx.clock.monotonicMs() - this.#startMs) / 1000;
    const share = this.#parts === 0 ? 1 : this.#done / this.#parts;
    this.#options.onProgress?.({
      rows: this.#copied,
      parts: this.#parts,
      done: this.#done,
      rowsPerSecond: seconds > 0 ? Math.round(Number(this.#copied) / seconds) : 0,
      secondsLeft: share > 0 && this.#done < this.#parts ? Math.round((seconds * (1 - share)) / share) : null,
    });
  }
}

interface Job {
  readonly relation: Relation;
  readonly queue: Part[];
  readonly snapshot: string;
  /** As the snapshot shows them. */
  readonly leaves: Leaves;
  readonly lsn: string;
  readonly metadata: TableMetadata;
  readonly opId: bigint;
}

function ambiguous(what: string): SpillwayError {
  return new SpillwayError("mirror_schema_ambiguous", what);
}
