/** Changes off a real server, applied to a model by key, against what SQL says the tables hold. */
import { afterAll, beforeAll, beforeEach, afterEach, describe, expect, test } from "vitest";
import { must } from "@spillway/base/assert";
import type { Lsn } from "@spillway/base/lsn";
import type { ColumnBatch } from "@spillway/base/columns";
import { TYPE_SAMPLES, TYPE_SETUP } from "@spillway/testkit/type-samples";
import { startPostgres, type PgInstance } from "@spillway/testkit/postgres";
import { waitFor } from "@spillway/testkit/wait";
import type pg from "pg";
import type { ColumnBuilder } from "../columns/builder.ts";
import { canReadBinary, columnBuilder, planColumn, type PgColumnPlan } from "../columns/plan.ts";
import { textOf } from "../columns/text-out.ts";
import { typeFactsOf, typeFactsSql } from "../columns/type-facts.ts";
import { connectRaw } from "../wire/connect-raw.ts";
import type { RawConnection } from "../wire/connection.ts";
import { PgOutputDecoder, type OldTuple, type PgOutputSink, type PgRelation, type Tuple } from "./pgoutput.ts";
import { createSlot, dropSlot } from "./session.ts";
import { ReplicationStream } from "./stream.ts";

type Value = string | null | undefined;
interface Change {
  readonly table: string;
  readonly xid: number;
  readonly kind: "insert" | "update" | "delete" | "truncate";
  readonly oldKey: string | null;
  /** undefined: an unchanged TOASTed value. */
  readonly row: readonly Value[];
}
interface State {
  readonly builders: readonly ColumnBuilder[];
  readonly plans: readonly PgColumnPlan[];
}

/** Keeps every table as a map from key (its first column) to row, in text. */
class Model implements PgOutputSink<State> {
  readonly tables = new Map<string, Map<string, Value[]>>();
  readonly messages: string[] = [];
  readonly seenInStream = { blocks: 0, aborts: 0, commits: 0, unchanged: 0 };
  committed: Lsn = 0n;
  transactions = 0;
  #open: Change[] = [];
  readonly #streams = new Map<number, Change[]>();
  #stream = 0;
  readonly #facts: ReturnType<typeof typeFactsOf>;

  constructor(facts: ReturnType<typeof typeFactsOf>) {
    this.#facts = facts;
  }

  onBegin(): void {
    this.#open = [];
  }
  onCommit(_: Lsn, endLsn: Lsn): void {
    this.#apply(this.#open, endLsn);
  }
  onRelation(relation: PgRelation<State>): void {
    const plans = relation.columns.map((c) => planColumn(c.name, this.#facts({ oid: c.typeOid, typmod: c.typmod })));
    relation.state = { plans, builders: plans.map(columnBuilder) };
  }
  onInsert(relation: PgRelation<State>, tuple: Tuple, xid: number): void {
    this.#push({ table: relation.name, xid, kind: "insert", oldKey: null, row: this.#row(relation, tuple) });
  }
  onUpdate(relation: PgRelation<State>, _: OldTuple | null, old: Tuple | null, tuple: Tuple, xid: number): void {
    const oldKey = old === null ? null : (this.#row(relation, old)[0] ?? "");
    this.#push({ table: relation.name, xid, kind: "update", oldKey, row: this.#row(relation, tuple) });
  }
  onDelete(relation: PgRelation<State>, _: OldTuple, old: Tuple, xid: number): void {
    this.#push({ table: relation.name, xid, kind: "delete", oldKey: this.#row(relation, old)[0] ?? "", row: [] });
  }
  onTruncate(relations: readonly PgRelation<State>[], _c: boolean, _r: boolean, xid: number): void {
    for (const { name } of relations) this.#push({ table: name, xid, kind: "truncate", oldKey: null, row: [] });
  }
  onMessage(transactional: boolean, _: Lsn, prefix: string, content: Buffer): void {
    this.messages.push(`${transactional ? "tx" : "now"} ${prefix} ${content.toString()}`);
  }
  onStreamStart(xid: number, first: boolean): void {
    expect(first).toBe(!this.#streams.has(xid));
    this.#stream = xid;
    this.seenInStream.blocks++;
    if (first) this.#streams.set(xid, []);
  }
  onStreamStop(): void {
    this.#stream = 0;
  }
  onStreamCommit(xid: number, _: Lsn, endLsn: Lsn): void {
    this.seenInStream.commits++;
    this.#apply(must(this.#streams.get(xid), "a stream"), endLsn);
    this.#streams.delete(xid);
  }
  onStreamAbort(xid: number, subxid: number): void {
    this.seenInStream.aborts++;
    const changes = must(this.#streams.get(xid), "a stream");
    if (xid === subxid) this.#streams.delete(xid);
    else
      this.#streams.set(
        xid,
        changes.filter((change) => change.xid !== subxid),
      );
  }

  #push(change: Change): void {
    if (this.#stream === 0) this.#open.push(change);
    else must(this.#streams.get(this.#stream), "a stream").push(change);
  }

  #row(relation: PgRelation<State>, tuple: Tuple): Value[] {
    const { builders } = must(relation.state, "a state");
    for (const [i, builder] of builders.entries()) tuple.appendTo(builder, i);
    const batch: ColumnBatch = { length: 1, columns: builders.map((builder) => builder.finish()) };
    return batch.columns.map((column, i) => {
      if (!tuple.isUnchanged(i)) return textOf(column, 0);
      this.seenInStream.unchanged++;
      return undefined;
    });
  }

  #apply(changes: readonly Change[], endLsn: Lsn): void {
    this.transactions++;
    this.committed = endLsn;
    for (const { table, kind, oldKey, row } of changes) {
      const rows = this.tables.get(table) ?? new Map<string, Value[]>();
      this.tables.set(table, rows);
      if (kind === "truncate") rows.clear();
      const before = oldKey ?? row[0] ?? "";
      const old = rows.get(before);
      if (kind === "insert") expect(old).toBeUndefined();
      if (kind === "update" || kind === "delete") {
        expect(old, `${table} ${before}`).toBeDefined();
        rows.delete(before);
      }
      if (kind === "insert" || kind === "update")
        rows.set(
          row[0] ?? "",
          row.map((v, i) => (v === undefined ? old?.[i] : v)),
        );
    }
  }
}

describe.each([
  [15, "text"],
  [15, "binary"],
  [18, "text"],
  [18, "binary"],
] as const)("the change stream of Postgres %i in %s", (major, form) => {
  let server: PgInstance;
  let client: pg.Client;
  let control: RawConnection;
  let model: Model;
  let stream: ReplicationStream;
  const types = Object.keys(TYPE_SAMPLES);
  const url = (): string => server.url("changes");

  beforeAll(async () => {
    server = await startPostgres({ major, settings: { logical_decoding_work_mem: "64kB", wal_level: "logical" } });
    await server.createDatabase("changes");
    client = await server.connect("changes");
    control = await connectRaw(url());
    await client.query(TYPE_SETUP);
    const list = types.map((type, i) => `"C ${i}" ${type}`).join(", ");
    await client.query(`CREATE TABLE every_type (id int PRIMARY KEY, ${list});
      CREATE TABLE plain (id int8 PRIMARY KEY, n int, amount numeric(20,4), at timestamptz, f float8, t text, b bytea, u uuid, ok bool, d date, big numeric);
      CREATE TABLE other (k text PRIMARY KEY, v text);
      ALTER TABLE other REPLICA IDENTITY FULL;
      CREATE TABLE wide (id int PRIMARY KEY, short text, long text);
      ALTER TABLE wide ALTER long SET STORAGE EXTERNAL`);
    await client.query(
      form === "text" ? "CREATE PUBLICATION p FOR ALL TABLES" : "CREATE PUBLICATION p FOR TABLE plain, other, wide",
    );
  });

  afterAll(async () => {
    await control?.close();
    await client?.end();
    await server?.destroy();
  });

  beforeEach(async () => {
    const [oids] = await control.query(
      "SELECT DISTINCT atttypid::text FROM pg_attribute WHERE attrelid >= 16384 AND attnum > 0",
    );
    const [facts] = await control.query(typeFactsSql(must(oids, "oids").rows.map((row) => Number(row[0]))));
    model = new Model(typeFactsOf(must(facts, "facts").rows));
    const connection = await connectRaw(url(), { replication: "database" });
    await createSlot(connection, { name: "s" });
    const decoder = new PgOutputDecoder(model);
    const options = { slot: "s", startLsn: 0n, publications: ["p"], binary: form === "binary" };
    stream = await ReplicationStream.start(connection, options, {
      onChange: (buffer, start, end) => decoder.decode(buffer, start, end),
      onKeepalive: () => {},
    });
    void stream.ended.finally(() => connection.close()).catch(() => {});
  });

  afterEach(async () => {
    await stream.stop();
    const connection = await connectRaw(url(), { replication: "database" });
    await dropSlot(connection, "s", true);
    await connection.close();
    await client.query("TRUNCATE every_type, plain, other, wide");
  });

  /** Waits until the model has everything that is committed now. */
  async function caughtUp(): Promise<void> {
    await client.query(
      "INSERT INTO other VALUES ('mark', gen_random_uuid()) ON CONFLICT (k) DO UPDATE SET v = EXCLUDED.v",
    );
    const { rows } = await client.query<{ lsn: string }>("SELECT pg_current_wal_flush_lsn() AS lsn");
    const { rows: marks } = await client.query<{ v: string }>("SELECT v FROM other WHERE k = 'mark'");
    await waitFor(`changes up to ${rows[0]?.lsn}`, () => model.tables.get("other")?.get("mark")?.[1] === marks[0]?.v, {
      timeoutMs: 30_000,
    });
  }

  async function compare(table: string): Promise<void> {
    const { fields } = await client.query(`SELECT * FROM ${table} LIMIT 0`);
    const list = fields
      .map(({ name }) => `CASE WHEN "${name}" IS DISTINCT FROM NULL THEN concat("${name}") END`)
      .join(", ");
    const { rows } = await client.query<(string | null)[]>({ text: `SELECT ${list} FROM ${table}`, rowMode: "array" });
    const kinds = fields.map((field) => field.dataTypeID);
    const shown = rows.map((row) => row.map((text, i) => canonical(kinds[i] ?? 0, text)));
    const held = [...(model.tables.get(table)?.values() ?? [])].map((row) =>
      row.map((text, i) => canonical(kinds[i] ?? 0, text ?? null)),
    );
    const sorted = (list: (string | null)[][]): string[] => list.map((row) => JSON.stringify(row)).toSorted();
    expect(held.length).toBe(rows.length);
    const [expected, actual] = [sorted(shown), sorted(held)];
    for (const [i, row] of expected.entries()) if (actual[i] !== row) expect(actual[i]).toBe(row);
  }

  function canonical(oid: number, text: string | null): string | null {
    if (text === null) return null;
    if (oid === 16) return text.startsWith("t") ? "t" : "f";
    if (oid === 700) return String(Math.fround(Number(text)));
    return oid === 701 ? String(Number(text)) : text;
  }

  test("values of every type, nulls, updates, deletes, new keys", async () => {
    if (form === "text") {
      for (const [i, type] of types.entries()) {
        for (const [row, value] of [...(TYPE_SAMPLES[type] ?? []), null].entries()) {
          const set = `ON CONFLICT (id) DO UPDATE SET "C ${i}" = EXCLUDED."C ${i}"`;
          await client.query(`INSERT INTO every_type (id, "C ${i}") VALUES ($1, $2) ${set}`, [row, value]);
        }
      }
    }
    await client.query(`INSERT INTO plain SELECT g, -g, g * 12345.6789, to_timestamp(g * 1e5), g / 7.0, repeat('é', g), decode(md5(g::text), 'hex'),
        md5(g::text)::uuid, g % 2 = 0, date '2000-01-01' - g, 10::numeric ^ (g % 50) FROM generate_series(1, 300) g;
      INSERT INTO plain (id) VALUES (-9223372036854775808), (9223372036854775807);
      INSERT INTO plain (id, f, at, d, big) VALUES (-1, 'NaN', 'infinity', '-infinity', 'NaN'), (-2, '-Infinity', '-infinity', 'infinity', '-Infinity'),
        (-3, '-0', '0044-03-15 12:00:00+00 BC', '4713-01-01 BC', 1e-300);
      UPDATE plain SET n = NULL, amount = -amount WHERE id % 3 = 0;
      UPDATE plain SET id = id + 1000000 WHERE id BETWEEN 10 AND 20;
      DELETE FROM plain WHERE id % 7 = 0;
      INSERT INTO other SELECT 'k' || g, nullif('v' || g % 5, 'v0') FROM generate_series(1, 50) g;
      UPDATE other SET v = 'x' WHERE v IS NULL; UPDATE other SET k = k || '!' WHERE v = 'x'; DELETE FROM other WHERE v = 'v3'`);
    await client.query(
      "BEGIN; DELETE FROM plain WHERE id = 1; INSERT INTO plain (id, t) VALUES (1, 'again'); UPDATE plain SET t = 'twice' WHERE id = 1; COMMIT",
    );
    await caughtUp();
    await compare("plain");
    await compare("other");
    if (form === "text") await compare("every_type");
  });

  test("savepoints that are rolled back, in small and in streamed transactions", async () => {
    await client.query(`BEGIN; INSERT INTO plain (id) VALUES (1); SAVEPOINT a; INSERT INTO plain (id) VALUES (2); SAVEPOINT b;
      INSERT INTO plain (id) VALUES (3); ROLLBACK TO b; INSERT INTO plain (id) VALUES (4); ROLLBACK TO a; INSERT INTO plain (id) VALUES (5); COMMIT`);
    const fill = (from: number, tag: string): string =>
      `INSERT INTO plain (id, t) SELECT g, '${tag}' || repeat('x', 100) FROM generate_series(${from}, ${from + 2999}) g;`;
    await client.query(`BEGIN; ${fill(10_000, "kept")} SAVEPOINT a; ${fill(20_000, "undone")} SAVEPOINT b; ${fill(30_000, "undone too")}
      UPDATE plain SET t = 'undone' WHERE id < 11000; ROLLBACK TO a; ${fill(20_000, "instead")} SAVEPOINT c; ${fill(40_000, "kept in a savepoint")}
      RELEASE c; UPDATE plain SET n = 7 WHERE id BETWEEN 20000 AND 20100; COMMIT`);
    await client.query(`BEGIN; ${fill(50_000, "all undone")} ROLLBACK`);
    await caughtUp();
    await compare("plain");
    expect(model.tables.get("plain")?.size).toBe(2 + 9000);
    expect(model.seenInStream.blocks).toBeGreaterThan(3);
    expect(model.seenInStream.commits).toBe(1);
    // Two savepoints at least; the transaction at the end is no longer sent when its end is known (18).
    expect(model.seenInStream.aborts).toBeGreaterThanOrEqual(2);
  });

  test("streamed transactions that run side by side", async () => {
    const [one, two] = [await server.connect("changes"), await server.connect("changes")];
    await one.query("BEGIN");
    await two.query("BEGIN");
    for (let i = 0; i < 6; i++) {
      await one.query(
        `INSERT INTO plain (id, t) SELECT g, repeat('a', 100) FROM generate_series(${i * 1000}, ${i * 1000 + 999}) g`,
      );
      await two.query(
        `INSERT INTO other SELECT 'o' || g, repeat('b', 100) FROM generate_series(${i * 1000}, ${i * 1000 + 999}) g`,
      );
      await client.query(`INSERT INTO wide VALUES (${i}, 'small', 'between')`);
    }
    await two.query("COMMIT");
    await one.query("COMMIT");
    await caughtUp();
    for (const table of ["plain", "other", "wide"]) await compare(table);
    expect(model.seenInStream.commits).toBe(2);
    await one.end();
    await two.end();
  });

  test("TRUNCATE of several tables, alone and in mid-transaction", async () => {
    await client.query("INSERT INTO plain (id) VALUES (1), (2); INSERT INTO wide VALUES (1, 'a', 'b')");
    await client.query("TRUNCATE plain, wide RESTART IDENTITY CASCADE");
    await client.query(
      "BEGIN; INSERT INTO plain (id) VALUES (1), (2), (3); TRUNCATE plain; INSERT INTO plain (id) VALUES (3); COMMIT",
    );
    await caughtUp();
    await compare("plain");
    await compare("wide");
    expect(model.tables.get("plain")?.size).toBe(1);
  });

  test("unchanged TOASTed values are marked, not lost", async () => {
    await client.query(`INSERT INTO wide SELECT g, 'short', repeat(md5(g::text), 300) FROM generate_series(1, 5) g;
      UPDATE wide SET short = 'changed' WHERE id < 4; UPDATE wide SET id = id + 100 WHERE id = 2; UPDATE wide SET long = repeat('n', 9000) WHERE id = 3`);
    await caughtUp();
    await compare("wide");
    expect(model.seenInStream.unchanged).toBeGreaterThanOrEqual(3);
  });

  test("columns added, dropped and renamed between changes", async () => {
    await client.query(
      "INSERT INTO wide VALUES (1, 'a', 'b'); ALTER TABLE wide ADD extra text DEFAULT 'e'; INSERT INTO wide VALUES (2, 'a', 'b', 'f')",
    );
    await client.query(
      "ALTER TABLE wide DROP extra; INSERT INTO wide VALUES (3, 'a', 'b'); ALTER TABLE wide RENAME short TO brief; UPDATE wide SET brief = 'c' WHERE id = 3",
    );
    await caughtUp();
    expect([...(model.tables.get("wide")?.values() ?? [])]).toEqual([["1", "a", "b"], ["2", "a", "b", "f"], ["3", "c", "b"]]); // prettier-ignore
    await client.query("ALTER TABLE wide RENAME brief TO short");
  });

  test("logical messages, in a transaction and at once", async () => {
    await client.query("SELECT pg_logical_emit_message(true, 'spillway', 'committed ü')");
    await client.query(`BEGIN; SELECT pg_logical_emit_message(true, 'spillway', 'rolled back');
      SELECT pg_logical_emit_message(false, 'spillway', 'not rolled back'); ROLLBACK`);
    await caughtUp();
    expect(model.messages).toEqual(["tx spillway committed ü", "now spillway not rolled back"]);
  });

  test("binary is offered only where every column can be read in it", () => {
    const plans = (oids: number[]): PgColumnPlan[] =>
      oids.map((oid) =>
        planColumn("c", { oid, typmod: -1, name: "x", typtype: "b", category: "X", schema: "pg_catalog" }),
      );
    expect(canReadBinary(plans([20, 25, 1700, 3802]))).toBe(true);
    expect(canReadBinary(plans([20, 1186]))).toBe(false);
  });
});
