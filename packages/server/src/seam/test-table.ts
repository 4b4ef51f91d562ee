/**
 * For tests of the seam: a partitioned table, registered by hand, whose lower partitions go to the lake through the engine and
 * the library, beside a plain copy of the same rows that says what every answer must be.
 */
import { must } from "@spillway/base/assert";
import { newInt63, newUuid } from "@spillway/base/ids";
import { applyUpdates } from "@spillway/lake/commit";
import { createTableMetadata, readMetadata, writeMetadata } from "@spillway/lake/metadata";
import type { TableMetadata } from "@spillway/lake/model";
import { stageSnapshot } from "@spillway/lake/snapshot/stage";
import type { ObjectStore } from "@spillway/lake/store/store";
import { copyOut } from "@spillway/pg/copy/copy-out";
import { selectList } from "@spillway/pg/columns/plan";
import { quoteIdent, quoteQualified } from "@spillway/pg/quote";
import { connectRaw } from "@spillway/pg/wire/connect-raw";
import {
  CATALOG_MIGRATIONS,
  captureSpecOf,
  columnSignature,
  type Db,
  insertRelation,
  installRelation,
  type KeyKind,
  KEY_MIN,
  keyLiteral,
  loadRelation,
  type Mode,
  readTableColumns,
  type TableColumn,
} from "../catalog/catalog.ts";
import { type Engine, icebergType, type LakeField, writeDataFiles } from "../engine/engine.ts";

export interface Fixture {
  readonly db: Db;
  readonly url: string;
  readonly engine: Engine;
  readonly store: ObjectStore;
}

export interface TableOptions {
  readonly schema?: string;
  readonly name: string;
  /** Column definitions with the primary key. */
  readonly columns: string;
  readonly key: string;
  readonly keyKind: KeyKind;
  readonly pk: readonly string[];
  /** Partitions: bounds as SQL constants, and the upper one as a canonical key. */
  readonly leaves: readonly { readonly from: string; readonly to: string; readonly hi: bigint }[];
  readonly mode?: Mode;
  readonly keepHeap?: boolean;
}

export async function installCatalog(db: Db): Promise<void> {
  await db.query("create schema spillway");
  for (const migration of CATALOG_MIGRATIONS) await db.query(migration.sql);
}

export class TieredTable {
  readonly #fixture: Fixture;
  readonly #options: TableOptions;
  readonly sql: string;
  /** The plain table with the same rows. */
  readonly model: string;
  readonly relationId: bigint;
  readonly lakeId: bigint;
  readonly columns: readonly TableColumn[];

  private constructor(
    fixture: Fixture,
    options: TableOptions,
    ids: { relationId: bigint; lakeId: bigint },
    columns: readonly TableColumn[],
  ) {
    this.#fixture = fixture;
    this.#options = options;
    this.sql = quoteQualified(options.schema ?? "public", options.name);
    this.model = quoteQualified("model", options.name);
    this.relationId = ids.relationId;
    this.lakeId = ids.lakeId;
    this.columns = columns;
  }

  static async create(fixture: Fixture, options: TableOptions): Promise<TieredTable> {
    const { db, store } = fixture;
    const schema = options.schema ?? "public";
    const sql = quoteQualified(schema, options.name);
    await db.query(`create schema if not exists ${quoteIdent(schema)}`);
    await db.query("create schema if not exists model");
    await db.query(`create table ${sql} (${options.columns}) partition by range (${quoteIdent(options.key)})`);
    await db.query(`create table ${quoteQualified(schema, `${options.name}_landing`)} partition of ${sql} default`);
    for (const [i, leaf] of options.leaves.entries()) {
      const name = quoteQualified(schema, `${options.name}_p${i}`);
      await db.query(`create table ${name} partition of ${sql} for values from (${leaf.from}) to (${leaf.to})`);
    }
    await db.query(`create table ${quoteQualified("model", options.name)} (${options.columns})`);
    const { rows } = await db.query<{ oid: string }>(
      `select '${sql.replaceAll("'", "''")}'::regclass::oid::text as oid`,
    );
    const relid = Number(must(rows[0], "oid").oid);
    const columns = await readTableColumns(db, relid);
    const location = `${store.root}/${schema}/${options.name}`;
    const metadata = createTableMetadata({
      tableUuid: newUuid(),
      location,
      schema: {
        schemaId: 0,
        fields: columns.map((c) => ({ id: c.attnum, name: c.name, required: c.notNull, type: icebergType(c.plan) })),
      },
      nowMs: Date.now(),
    });
    const pointer = await writeMetadata(store, metadata, { version: 0, uuid: newUuid() });
    await db.query("insert into spillway.namespace (name) values ($1) on conflict do nothing", [schema]);
    const lake = await db.query<{ lake_id: string }>(
      `insert into spillway.lake_table (namespace, name, table_uuid, location, metadata_location, metadata_version, format_version)
       values ($1, $2, $3, $4, $5, 0, 3) returning lake_id::text`,
      [schema, options.name, metadata.tableUuid, location, pointer],
    );
    const lakeId = BigInt(must(lake.rows[0], "lake").lake_id);
    const attnum = (name: string): number =>
      must(
        columns.find((c) => c.name === name),
        name,
      ).attnum;
    const relationId = await insertRelation(db, {
      relid,
      schemaName: schema,
      tableName: options.name,
      mode: options.mode ?? "tiered",
      keepHeap: options.keepHeap ?? false,
      state: "active",
      keyAttnum: attnum(options.key),
      keyKind: options.keyKind,
      pkAttnums: options.pk.map(attnum),
      landing: null,
      landingCreated: true,
      lakeId,
      lag: null,
      lakeRetention: null,
      heapRetention: null,
      partitionWidth: null,
      partitionMonths: null,
      lakePartition: null,
      options: {},
      columnSignature: await columnSignature(db, relid),
      columns: columns.map((c) => ({
        attnum: c.attnum,
        fieldId: c.attnum,
        name: c.name,
        typeOid: c.typeOid,
        typmod: c.typmod,
        typeName: c.typeName,
        notNull: c.notNull,
        initialDefault: null,
        dropped: false,
      })),
      t: KEY_MIN,
    });
    const relation = must(await loadRelation(db, relationId), "relation");
    const landing = `${options.name}_landing`;
    const found = await db.query<{ oid: string }>("select $1::regclass::oid::text as oid", [
      quoteQualified(schema, landing),
    ]);
    await installRelation(db, captureSpecOf(relation, columns), {
      oid: Number(must(found.rows[0], "landing").oid),
      schemaName: schema,
      name: landing,
      isLanding: true,
    });
    return new TieredTable(fixture, options, { relationId, lakeId }, columns);
  }

  /** Runs a statement on the table and on its model: `@` is the name. */
  async both(statement: string): Promise<void> {
    await this.#fixture.db.query(statement.replaceAll("@", this.sql));
    await this.#fixture.db.query(statement.replaceAll("@", this.model));
  }

  /** A change of the model, and what of the delta makes the same in the table: rows by primary key. */
  async correct(op: "U" | "D", key: bigint, values: readonly unknown[]): Promise<void> {
    const names = this.columns.map((c) => `c${c.attnum}`);
    const given = this.columns.map((c, i) => (op === "U" || this.#options.pk.includes(c.name) ? `$${i + 1}` : "null"));
    const params =
      op === "U" ? [...values] : this.columns.flatMap((c, i) => (this.#options.pk.includes(c.name) ? [values[i]] : []));
    let n = 0;
    const slots = op === "U" ? given : given.map((g) => (g === "null" ? g : `$${(n += 1)}`));
    const pk = this.columns.filter((c) => this.#options.pk.includes(c.name)).map((c) => `c${c.attnum}`);
    const set = names.filter((c) => !pk.includes(c)).map((c) => `${c} = excluded.${c}`);
    await this.#fixture.db.query(
      `insert into spillway.delta_${this.relationId} (op, version, key, ${names.join(", ")})
       values ('${op}', nextval('spillway.delta_version'), ${key}, ${slots.join(", ")})
       on conflict (${pk.join(", ")}) do update set op = excluded.op, version = excluded.version, key = excluded.key${set.map((s) => `, ${s}`).join("")}`,
      params,
    );
  }

  fields(): LakeField[] {
    return this.columns.map((c) => ({
      id: c.attnum,
      name: c.name,
      kind: c.plan.kind,
      ...(c.plan.decimal ? { decimal: c.plan.decimal } : {}),
    }));
  }

  async metadata(): Promise<{ metadata: TableMetadata; location: string; version: number }> {
    const { rows } = await this.#fixture.db.query<{ metadata_location: string; metadata_version: number }>(
      "select metadata_location, metadata_version from spillway.lake_table where lake_id = $1",
      [this.lakeId.toString()],
    );
    const row = must(rows[0], "lake table");
    const metadata = await readMetadata(this.#fixture.store, row.metadata_location);
    return { metadata, location: row.metadata_location, version: row.metadata_version };
  }

  /** Copies the rows below `hi` to the lake, moves T there, and drops their partitions (not for keep-heap). */
  async tier(hi: bigint, fileRows?: number): Promise<void> {
    const { db, url, engine, store } = this.#fixture;
    const key = quoteIdent(this.#options.key);
    const { rows } = await db.query<{ t: string }>("select t::text from spillway.seam where relation_id = $1", [
      this.relationId.toString(),
    ]);
    const low = BigInt(must(rows[0], "seam").t);
    const { keyKind } = this.#options;
    const from = low === KEY_MIN ? "" : `${key} >= ${keyLiteral(keyKind, low)} and `;
    const connection = await connectRaw(url);
    const { metadata, location, version } = await this.metadata();
    const plans = this.columns.map((c) => c.copyPlan);
    const source = `(select ${selectList(plans)} from ${this.sql} where ${from}${key} < ${keyLiteral(keyKind, hi)} order by ${key})`;
    const files = await writeDataFiles({
      engine,
      store,
      batches: copyOut({ connection, source, columns: plans, batchRows: 500 }),
      fields: this.fields(),
      spec: { specId: 0, fields: [] },
      dataLocation: `${metadata.location}/data`,
      stageDir: "/tmp",
      ...(fileRows === undefined ? {} : { fileRows }),
    });
    await connection.close();
    const staged = await stageSnapshot({
      metadata,
      store,
      operation: "append",
      snapshotId: newInt63(),
      nowMs: Date.now(),
      addDataFiles: files,
    });
    const next = applyUpdates(metadata, staged.updates, Date.now(), { previousMetadataLocation: location });
    const pointer = await writeMetadata(store, next, { version: version + 1, uuid: newUuid() });
    await db.query("begin");
    await db.query(
      "update spillway.lake_table set metadata_location = $2, metadata_version = $3, current_snapshot_id = $4, sequence_number = $5 where lake_id = $1",
      [this.lakeId.toString(), pointer, version + 1, String(next.currentSnapshotId), String(next.lastSequenceNumber)],
    );
    await db.query("update spillway.seam set t = $2, s = $3, s_sequence = $4 where relation_id = $1", [
      this.relationId.toString(),
      hi.toString(),
      String(next.currentSnapshotId),
      String(next.lastSequenceNumber),
    ]);
    await db.query("update spillway.seam_guard set t = $2 where relation_id = $1", [
      this.relationId.toString(),
      hi.toString(),
    ]);
    await db.query("commit");
    if (this.#options.keepHeap) return;
    for (const [i, leaf] of this.#options.leaves.entries()) {
      const name = quoteQualified(this.#options.schema ?? "public", `${this.#options.name}_p${i}`);
      if (leaf.hi <= hi) await db.query(`drop table if exists ${name}`);
    }
  }
}
