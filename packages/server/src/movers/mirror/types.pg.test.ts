/**
 * Every type of docs/reference/types.md through the mirror: values, extremes and NULL, by the copy and by the stream, of the type and
 * of an array of it. The oracle is Postgres: the lake's values, cast back, print as the heap's do.
 */

import { must } from "@spillway/base/assert";
import { systemClock } from "@spillway/base/clock";
import { quoteLiteral as literal } from "@spillway/pg/quote";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { RARE_TYPE_SAMPLES, TYPE_SAMPLES, TYPE_SETUP } from "@spillway/testkit/type-samples";
import { waitFor } from "@spillway/testkit/wait";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Runtime } from "../../roles/runtime.ts";
import { testRuntime } from "../test-runtime.ts";
import type { MoverContext } from "../context.ts";
import { registerMirrored } from "./onboard.ts";
import { Pump } from "./pump.ts";
import { currentRows, initSource, TEST_SETTINGS, testHome } from "./test-mirror.ts";

const EXTENSION_SAMPLES: Readonly<Record<string, readonly string[]>> = {
  citext: ["MiXed", ""],
  hstore: ['"a"=>"1", "b"=>NULL', ""],
  ltree: ["Top.Science.Astronomy", ""],
  cube: ["(1, 2),(3, 4)"],
  isbn: ["978-0-393-04002-9"],
};
const SAMPLES = { ...TYPE_SAMPLES, ...RARE_TYPE_SAMPLES, ...EXTENSION_SAMPLES };
const TYPES = Object.keys(SAMPLES);
/** Arrays of arrays are of the same type, and a domain over an array has none of its own that differs. */
const ELEMENTS = TYPES.filter((t) => !t.endsWith("[]") && !["moods", "int2vector", "oidvector"].includes(t));

describe.each([15, 18] as const)("on Postgres %i", (major) => {
  let db: TestDatabase;
  let runtime: Runtime;
  let ctx: MoverContext;
  let stop: () => Promise<void>;
  /** What differs, by type. */
  const faults = new Map<string, string[]>();
  const home = testHome();

  beforeAll(async () => {
    db = await createTestDatabase({ major });
    runtime = await testRuntime(db.url, home.dir);
    ctx = runtime.mover(null);
    await initSource(ctx, systemClock);
    await db.client.query(TYPE_SETUP);
    for (const name of ["citext", "hstore", "ltree", "cube", "isn"]) await db.client.query(`create extension ${name}`);
    await db.client.query(`create table typed (id int primary key, ${TYPES.map((t, i) => `c${i} ${t}`).join(", ")})`);
    await db.client.query(
      `create table arrays (id int primary key, ${ELEMENTS.map((t, i) => `c${i} ${t}[]`).join(", ")})`,
    );
    await fill(0);
    await registerMirrored(ctx, { tables: ["typed", "arrays"], parallel: 1 });
    const over = new AbortController();
    const running = new Pump(ctx, TEST_SETTINGS).run(over.signal);
    stop = async () => {
      over.abort();
      await running;
    };
    await fill(100_000);
    // What was copied is changed too, by and by: values that were not sent come from the earlier version of the row.
    await db.client.query("update typed set id = id + 200000 where id < 100000 and id % 2 = 0");
    await caughtUp();
    await compare("typed", TYPES);
    await compare("arrays", ELEMENTS);
  }, 180_000);
  afterAll(async () => {
    await stop();
    await runtime.close();
    await db.drop();
    home.remove();
  });

  async function fill(from: number): Promise<void> {
    let id = from;
    for (const [i, type] of TYPES.entries()) {
      const values = must(SAMPLES[type], type).map((v) => `(${id++}, ${literal(v)}::${type})`);
      await db.client.query(`insert into typed (id, c${i}) values ${values.join(", ")}`);
    }
    await db.client.query(`insert into typed (id) values (${id++})`);
    for (const [i, type] of ELEMENTS.entries()) {
      const all = must(SAMPLES[type], type)
        .filter((v) => v.length < 10_000)
        .map((v) => `${literal(v)}::${type}`);
      const first = must(all[0], type);
      const arrays = [
        `array[${all.join(", ")}, null]`,
        "'{}'",
        `array[array[${first}, null], array[null, ${first}]]`,
        `array[null]`,
      ];
      const values = arrays.map((a) => `(${id++}, ${a}::${type}[])`);
      await db.client.query(`insert into arrays (id, c${i}) values ${values.join(", ")}`);
    }
  }

  async function caughtUp(): Promise<void> {
    const { rows } = await db.client.query<{ lsn: string }>("select pg_current_wal_insert_lsn()::text as lsn");
    await db.client.query("select pg_logical_emit_message(true, 'spillway.flush', '')");
    await waitFor("everything to be in the lake", async () => {
      const found = await db.client.query<{ n: number; stop: string | null }>(
        `select count(*) filter (where m.phase = 'live' and s.f_lsn >= $1)::int as n, max(x.stop_reason) as stop
         from spillway.relation x join spillway.mirror_table m using (relation_id) join spillway.seam s using (relation_id)`,
        [rows[0]?.lsn],
      );
      if (found.rows[0]?.stop) throw new Error(found.rows[0].stop);
      return found.rows[0]?.n === 2;
    });
  }

  async function compare(table: string, types: readonly string[]): Promise<void> {
    const names = ["id", ...types.map((_, i) => `c${i}`)];
    await db.client.query(`create temp table lake_${table} (like ${table})`);
    const places = names.map((_, i) => `$${i + 1}`).join(", ");
    let rows = 0;
    for (const text of await currentRows(ctx, db.client, table)) {
      await db.client.query(`insert into lake_${table} values (${places})`, JSON.parse(text) as (string | null)[]);
      rows += 1;
    }
    const counted = await db.client.query<{ n: number }>(`select count(*)::int as n from ${table}`);
    expect(rows).toBe(counted.rows[0]?.n);
    for (const [i, type] of types.entries()) {
      const { rows: differing } = await db.client.query<{ was: string | null; is: string | null }>(
        `select left(t.c${i}::text, 60) as was, left(l.c${i}::text, 60) as is from ${table} t full join lake_${table} l using (id)
         where t.c${i}::text is distinct from l.c${i}::text`,
      );
      faults.set(
        `${table} ${type}`,
        differing.map(({ was, is }) => `${was} / ${is}`).filter((f) => !isZero(type, f)),
      );
    }
  }

  /** One file's dictionary holds one zero: the sign of a float's zero is the Parquet writer's, and said in the type table. */
  function isZero(type: string, fault: string): boolean {
    return (type === "real" || type === "double precision") && /^-?0 \/ -?0$/.test(fault);
  }

  test.each(TYPES)("%s", (type) => {
    expect(faults.get(`typed ${type}`)).toEqual([]);
  });

  test.each(ELEMENTS)("an array of %s", (type) => {
    expect(faults.get(`arrays ${type}`)).toEqual([]);
  });

  test("no built-in type is missing here, and those that are refused are refused by name", async () => {
    const { rows } = await db.client.query<{ t: string }>(
      `select format_type(oid, null) as t from pg_type where typnamespace = 'pg_catalog'::regnamespace and typtype in ('b', 'r', 'm')
         and typcategory <> 'A' and typname !~ '^_?pg_[a-z_]+_(data|toast)'`,
    );
    const here = new Set<string>();
    for (const type of TYPES) {
      const found = await db.client.query<{ t: string }>(`select format_type('${type}'::regtype, null) as t`);
      here.add(String(found.rows[0]?.t));
    }
    for (const { t } of rows.filter((row) => !here.has(row.t))) {
      await db.client.query(`create table refused (id int primary key, v ${t})`);
      const registered = registerMirrored(ctx, { tables: ["refused"], parallel: 1, dryRun: true });
      await expect(registered, t).rejects.toMatchObject({
        code: "register_refused",
        message: expect.stringContaining(t),
      });
      await db.client.query("drop table refused");
    }
  });
});
