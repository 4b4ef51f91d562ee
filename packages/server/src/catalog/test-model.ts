/**
 * For tests: a registered table with a plain copy of it (the model) and a plain table in place of its lake. The model is
 * changed as the table is, and then compared with what the invariant of docs/internals/seam.md §1 says the table is:
 * heap rows at or above T, and lake rows below it as the delta corrects them. Postgres itself does the comparing.
 */
import { assert, must } from "@spillway/base/assert";
import { quoteIdent as q } from "@spillway/pg/quote";
import type pg from "pg";
import {
  type CaptureSpec,
  columnSignature,
  insertRelation,
  installCapture,
  installRelation,
  type KeyKind,
  KEY_TYPES,
  loadCaptureSpec,
  loadRelation,
  type Mode,
  type Partition,
  readPartitions,
  readTableColumns,
} from "./catalog.ts";

export interface ModelOptions {
  readonly mode?: Mode;
  readonly keepHeap?: boolean;
  readonly lakeRetention?: bigint;
  readonly historicalInserts?: "upsert" | "refuse";
}

export class ModelTable {
  readonly client: pg.Client;
  readonly name: string;
  readonly spec: CaptureSpec;
  readonly pk: readonly string[];

  constructor(client: pg.Client, name: string, spec: CaptureSpec, pk: readonly string[]) {
    this.client = client;
    this.name = name;
    this.spec = spec;
    this.pk = pk;
  }

  get sql(): string {
    return q(this.name);
  }

  get model(): string {
    return `${q(`${this.name}_model`)}`;
  }

  /** The same statement on the table and on its model; `@` stands for either. */
  async both(text: string, client: pg.Client = this.client): Promise<pg.QueryResult> {
    const result = await client.query(text.replaceAll("@", this.sql));
    const model = await this.client.query(text.replaceAll("@", this.model));
    const [got, wanted] = [result, model].map((r) => JSON.stringify([r.command, r.rowCount, r.rows]));
    assert(got === wanted, () => `the table answered ${got}, its model ${wanted}`);
    return result;
  }

  async delta(): Promise<{ op: string; key: string }[]> {
    const { rows } = await this.client.query(
      `select op, key::text from spillway.delta_${this.spec.relationId} order by key, c${this.spec.pkAttnums[0]}`,
    );
    return rows as { op: string; key: string }[];
  }

  async landingCount(): Promise<number> {
    const { rows } = await this.client.query(`select count(*)::int as n from ${q(`${this.name}_landing`)}`);
    return (rows[0] as { n: number }).n;
  }

  /** Puts the capture on the leaf and copies it into the lake, as a tier movement does. */
  async capture(leaf: string): Promise<void> {
    const found = must(await this.partition(leaf), leaf);
    await this.client.query("begin");
    await installCapture(this.client, this.spec, { ...found, isLanding: false });
    await this.client.query(`delete from spillway.delta_${this.spec.relationId} where key >= $1 and key < $2`, [
      found.lo.toString(),
      found.hi.toString(),
    ]);
    await this.client.query("commit");
    await this.client.query(`insert into ${q(`${this.name}_lake`)} select * from only ${q(leaf)}`);
  }

  async partition(leaf: string): Promise<Partition | undefined> {
    return (await readPartitions(this.client, this.spec.relid, this.spec.keyKind)).find((p) => p.name === leaf);
  }

  async advance(leaf: string, drop = true): Promise<void> {
    const found = must(await this.partition(leaf), leaf);
    const values = [this.spec.relationId.toString(), found.hi.toString()];
    await this.client.query("begin");
    await this.client.query("update spillway.seam_guard set t = $2 where relation_id = $1", values);
    await this.client.query("update spillway.seam set t = $2 where relation_id = $1", values);
    await this.client.query("commit");
    if (drop) await this.client.query(`drop table ${q(leaf)}`);
  }

  async tier(leaf: string): Promise<void> {
    await this.capture(leaf);
    await this.advance(leaf);
  }

  /** The table by the invariant, compared with the model. */
  async check(): Promise<void> {
    const columns = this.spec.columns.map((c) => q(c.name));
    const on = this.spec.pkAttnums.map((n, i) => `l.${q(this.pk[i] ?? "")}::text = d.c${n}::text`).join(" and ");
    const keyName = must(
      this.spec.columns.find((c) => c.attnum === this.spec.keyAttnum),
      "key",
    ).name;
    const key = `spillway_test_key(${q(keyName)})`;
    const cast = async (name: string): Promise<string> => {
      const { rows } = await this.client.query(
        "select format_type(atttypid, atttypmod) as t from pg_attribute where attrelid = $1::regclass and attname = $2",
        [this.sql, name],
      );
      return (rows[0] as { t: string }).t;
    };
    const fromDelta: string[] = [];
    for (const c of this.spec.columns) fromDelta.push(`c${c.attnum}::${await cast(c.name)} as ${q(c.name)}`);
    const delta = `spillway.delta_${this.spec.relationId}`;
    const t = `(select t from spillway.seam where relation_id = ${this.spec.relationId})`;
    await this.client.query(`create or replace view ${q(`${this.name}_whole`)} as
      select ${columns.join(", ")} from ${this.sql} where ${key} >= ${t}
      union all select ${columns.join(", ")} from ${q(`${this.name}_lake`)} l
        where ${key.replace("(", "(l.")} < ${t} and not exists (select from ${delta} d where d.key < ${t} and ${on})
      union all select ${fromDelta.join(", ")} from ${delta} where op = 'U' and key < ${t}`);
    const list = columns.map((c) => `${c}::text`).join(", ");
    const [model, whole] = [this.model, `${q(`${this.name}_whole`)}`].map((name) => `select ${list} from ${name}`);
    const { rows } = await this.client.query(
      `select 'missing' as fault, x::text as row from (${model} except all ${whole}) x
       union all select 'too many', x::text from (${whole} except all ${model}) x limit 20`,
    );
    assert(rows.length === 0, () => `the table is not what its model is: ${JSON.stringify(rows, null, 1)}`);
    await this.client.query(`drop view ${q(`${this.name}_whole`)}`);
  }
}

let count = 0;

/** `columns` hold the primary key; leaves `<name>_0`, `_1`, … between the bounds, and a landing. */
export async function makeTable(
  client: pg.Client,
  keyName: string,
  columns: string,
  bounds: readonly string[],
  options: ModelOptions = {},
  name = `t${++count}`,
): Promise<ModelTable> {
  await client.query(`create or replace function spillway_test_key(anyelement) returns bigint language sql as $$
    select case when pg_typeof($1) = 'date'::regtype then ($1::text::date - date '1970-01-01')::bigint
      when pg_typeof($1)::text like 'timestamp%' then (extract(epoch from $1::text::timestamp at time zone 'UTC') * 1000000)::bigint
      else $1::text::bigint end $$`);
  await client.query(`set timezone = 'UTC'`);
  await client.query(`create table ${q(name)} (${columns}) partition by range (${q(keyName)})`);
  for (let i = 0; i + 1 < bounds.length; i++) {
    await client.query(
      `create table ${q(`${name}_${i}`)} partition of ${q(name)} for values from (${bounds[i]}) to (${bounds[i + 1]})`,
    );
  }
  await client.query(`create table ${q(`${name}_landing`)} partition of ${q(name)} default`);
  await client.query(`create table ${q(`${name}_model`)} (like ${q(name)} including all)`);
  await client.query(`create table ${q(`${name}_lake`)} (like ${q(name)})`);
  const { rows } = await client.query(
    `select $1::regclass::oid::int as relid, $2::regclass::oid::int as landing,
       (select array_agg(k::int order by o) from pg_index i, unnest(i.indkey::int2[]) with ordinality x (k, o)
        where i.indrelid = $1::regclass and i.indisprimary) as pk`,
    [`${q(name)}`, `${q(`${name}_landing`)}`],
  );
  const { relid, landing, pk } = rows[0] as { relid: number; landing: number; pk: number[] };
  const now = await readTableColumns(client, relid);
  const key = must(
    now.find((c) => c.name === keyName),
    "key",
  );
  const kind = must(KEY_TYPES.get(key.typeOid), "kind") as KeyKind;
  const parts = await readPartitions(client, relid, kind);
  await client.query("begin");
  const relationId = await insertRelation(client, {
    relid,
    schemaName: "public",
    tableName: name,
    mode: options.mode ?? "tiered",
    keepHeap: options.keepHeap ?? false,
    state: "active",
    keyAttnum: key.attnum,
    keyKind: kind,
    pkAttnums: pk,
    landing,
    landingCreated: true,
    lakeId: null,
    lag: 0n,
    lakeRetention: options.lakeRetention ?? null,
    heapRetention: null,
    partitionWidth: null,
    partitionMonths: null,
    lakePartition: null,
    options: options.historicalInserts ? { historicalInserts: options.historicalInserts } : {},
    columnSignature: await columnSignature(client, relid),
    columns: now.map((c, i) => ({ ...c, fieldId: i + 1, initialDefault: null, dropped: false })),
    t: must(parts[0], "a leaf").lo,
  });
  const spec = await loadCaptureSpec(client, must(await loadRelation(client, relationId), "relation"));
  await installRelation(client, spec, { oid: landing, schemaName: "public", name: `${name}_landing`, isLanding: true });
  await client.query("commit");
  return new ModelTable(
    client,
    name,
    spec,
    pk.map(
      (n) =>
        must(
          now.find((c) => c.attnum === n),
          "pk",
        ).name,
    ),
  );
}
