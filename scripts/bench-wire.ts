/**
 * What decoding into columns costs over the bytes alone: COPY binary and the change stream, each received and thrown
 * away, and decoded, alternating in this process against one server of its own.
 * Run: node --import tsx --conditions source scripts/bench-wire.ts [rows] [repeats]. Ends with one JSON line.
 */
import { startPostgres } from "@spillway/testkit/postgres";
import { BatchBuilder } from "@spillway/pg/columns/batch-builder";
import { planColumn, selectList, type PgColumnPlan } from "@spillway/pg/columns/plan";
import { typeFactsOf, typeFactsSql } from "@spillway/pg/columns/type-facts";
import { copyOut } from "@spillway/pg/copy/copy-out";
import { PgOutputDecoder, type PgRelation } from "@spillway/pg/replication/pgoutput";
import { createSlot } from "@spillway/pg/replication/session";
import { ReplicationStream } from "@spillway/pg/replication/stream";
import { connectRaw } from "@spillway/pg/wire/connect-raw";
import type { RawConnection } from "@spillway/pg/wire/connection";
import { queryMessage } from "@spillway/pg/wire/frontend";
import { RowHasher } from "@spillway/base/rowhash";

const rows = Number(process.argv[2] ?? 1_000_000);
const repeats = Number(process.argv[3] ?? 3);
const INSERT = 0x49;
const COMMIT = 0x43;

const server = await startPostgres({ major: 15, settings: { shared_buffers: "512MB", max_wal_size: "8GB" } });
const sql = await connectRaw(server.url());
await sql.query(`CREATE TABLE t (id int8 PRIMARY KEY, cust int4, at timestamptz, amount numeric(12,2), status text, note text, ok bool);
  CREATE PUBLICATION p FOR TABLE t`);
const slots = await connectRaw(server.url(), { replication: "database" });
await createSlot(slots, { name: "s" });
await slots.close();
for (let from = 0; from < rows; from += 10_000) {
  await sql.query(`INSERT INTO t SELECT g, g % 10000, timestamptz '2020-01-01' + g * interval '1 second', (g % 100000) / 100.0,
    (array['new', 'paid', 'shipped', 'returned'])[1 + g % 4], 'some longer note text for the order number ' || g || ' padding pad', g % 3 = 0
    FROM generate_series(${from + 1}, ${Math.min(from + 10_000, rows)}) g`);
}
const [attributes] = await sql.query(
  "SELECT attname, atttypid::text, atttypmod::text FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0 ORDER BY attnum",
);
const [types] = await sql.query(typeFactsSql((attributes?.rows ?? []).map((row) => Number(row[1]))));
const facts = typeFactsOf(types?.rows ?? []);
const columns = (attributes?.rows ?? []).map(([name, oid, typmod]) =>
  planColumn(name ?? "", facts({ oid: Number(oid), typmod: Number(typmod) })),
);

async function copyRaw(connection: RawConnection): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const message = (type: number): void => {
      if (type === 0x5a) resolve();
    };
    connection.begin({ message, error: reject, fail: reject });
    connection.send(queryMessage(`COPY (SELECT ${selectList(columns)} FROM t) TO STDOUT (FORMAT binary)`));
  });
}

async function copyDecoded(connection: RawConnection, hash: boolean): Promise<void> {
  const hasher = new RowHasher(columns.map(({ spec }, i) => ({ fieldId: i + 1, kind: spec.kind })));
  let seen = 0;
  for await (const batch of copyOut({ connection, source: `(SELECT ${selectList(columns)} FROM t)`, columns })) {
    seen += batch.length;
    if (hash) hasher.hashBatch(batch);
  }
  if (seen !== rows) throw new Error(`${seen} rows instead of ${rows}`);
}

async function changes(binary: boolean, decode: boolean): Promise<void> {
  const connection = await connectRaw(server.url(), { replication: "database" });
  let seen = 0;
  let finish: () => void = () => {};
  const done = new Promise<void>((resolve) => (finish = resolve));
  const plansOf = (relation: PgRelation): PgColumnPlan[] =>
    relation.columns.map((c) => planColumn(c.name, facts({ oid: c.typeOid, typmod: c.typmod })));
  const nothing = (): void => {};
  const decoder = new PgOutputDecoder<BatchBuilder>({
    onBegin: nothing,
    onCommit: () => (seen >= rows ? finish() : undefined),
    onRelation: (relation) => (relation.state = new BatchBuilder(plansOf(relation))),
    onInsert: ({ state }, tuple) => {
      if (state === null) return;
      for (const [i, builder] of state.builders.entries()) tuple.appendTo(builder, i);
      state.endRow();
      if (state.length === 65_536) state.finish();
      seen++;
    },
    onUpdate: nothing,
    onDelete: nothing,
    onTruncate: nothing,
    onMessage: nothing,
    onStreamStart: nothing,
    onStreamStop: nothing,
    onStreamCommit: nothing,
    onStreamAbort: nothing,
  });
  const count = (buffer: Buffer, start: number): void => {
    if (buffer[start] === INSERT) seen++;
    else if (buffer[start] === COMMIT && seen >= rows) finish();
  };
  const onChange = decode ? (b: Buffer, s: number, e: number): void => decoder.decode(b, s, e) : count;
  const options = { slot: "s", startLsn: 0n, publications: ["p"], binary };
  const stream = await ReplicationStream.start(connection, options, { onChange, onKeepalive: nothing });
  await Promise.race([done, stream.ended]);
  await stream.stop();
  await connection.close();
}

const runs: Record<string, () => Promise<void>> = {
  copy_raw: () => copyRaw(sql),
  copy_columns: () => copyDecoded(sql, false),
  copy_columns_hashed: () => copyDecoded(sql, true),
  changes_raw_text: () => changes(false, false),
  changes_columns_text: () => changes(false, true),
  changes_raw_binary: () => changes(true, false),
  changes_columns_binary: () => changes(true, true),
};
const rates: Record<string, number[]> = {};
const cpu: Record<string, number[]> = {};
for (let i = 0; i < repeats; i++) {
  for (const [name, run] of Object.entries(runs)) {
    const usage = process.cpuUsage();
    const start = performance.now();
    await run();
    const used = process.cpuUsage(usage);
    (rates[name] ??= []).push(Math.round(rows / ((performance.now() - start) / 1000)));
    (cpu[name] ??= []).push((used.user + used.system) / rows);
  }
}
await sql.close();
await server.destroy();
const median = (values: number[]): number => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;
const pick = (table: Record<string, number[]>): Record<string, number> =>
  Object.fromEntries(Object.entries(table).map(([name, values]) => [name, Number(median(values).toFixed(2))]));
console.log(JSON.stringify({ bench: "wire", rows, rows_per_s: pick(rates), client_cpu_us_per_row: pick(cpu) }));
process.exit(0);
