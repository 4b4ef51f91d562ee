/** The whole life of a tiered table with its lake in S3, by the command line, compared with a plain copy of its rows. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { must } from "@spillway/base/assert";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { type ProcessResult, runCli, spawnCli } from "@spillway/testkit/processes";
import { S3Server } from "@spillway/testkit/s3/s3-server";
import { afterAll, beforeAll, expect, test } from "vitest";

let db: TestDatabase;
let s3: S3Server;
let home: string;
let env: Record<string, string>;

beforeAll(async () => {
  home = mkdtempSync(join(tmpdir(), "spillway-s3-"));
  db = await createTestDatabase();
  s3 = await S3Server.start({ minPartBytes: 1 << 10 });
  env = {
    SPILLWAY_DATABASE_URL: db.url,
    SPILLWAY_WAREHOUSE: "s3://test/lake",
    SPILLWAY_S3_ENDPOINT: s3.endpoint,
    SPILLWAY_S3_PATH_STYLE: "true",
    AWS_ACCESS_KEY_ID: "test",
    AWS_SECRET_ACCESS_KEY: "test",
    SPILLWAY_CACHE_DIR: join(home, "cache"),
    SPILLWAY_METRICS_LISTEN: "off",
    SPILLWAY_RESTORE_WINDOW: "0",
  };
});
afterAll(async () => {
  await s3.stop();
  await db.drop();
  rmSync(home, { recursive: true, force: true });
});

async function run(args: readonly string[], more: Record<string, string> = {}): Promise<ProcessResult> {
  const result = await runCli(args, { env: { ...env, ...more }, timeoutMs: 90_000 });
  expect(result, `${args.join(" ")}: ${result.stderr}`).toMatchObject({ code: 0 });
  return result;
}

async function both(sql: string): Promise<void> {
  await db.client.query(sql.replaceAll("@", "t"));
  await db.client.query(sql.replaceAll("@", "t_model"));
}

/** Row by row, as text, in the order of the key. */
async function same(): Promise<void> {
  const list = "id, k, v, w";
  const { stdout } = await run(["sql", "--format", "csv", "--no-timing", `select ${list} from t order by id, k`]);
  const { rows } = await db.client.query({ text: `select ${list} from t_model order by id, k`, rowMode: "array" });
  const wanted = [list.replaceAll(" ", ""), ...rows.map((r: unknown[]) => r.join(","))];
  expect(stdout.trim().split(/\r?\n/)).toEqual(wanted);
}

async function passes(...names: string[]): Promise<void> {
  await run(["maintain", "--table", "t", ...names.flatMap((n) => ["--pass", n])]);
}

test(
  "register, tier, correct, fold, compact, expire, remove, verify, serve: all in S3",
  { timeout: 300_000 },
  async () => {
    await db.client.query(
      `create table t (id int, k int, v text, w numeric(10,2), primary key (id, k)) partition by range (k);
     create table t_0 partition of t for values from (0) to (10);
     create table t_1 partition of t for values from (10) to (20);
     create table t_2 partition of t for values from (20) to (30);
     create table t_model (like t including all)`,
    );
    await both("insert into @ select i, i % 30, md5(i::text), i / 4.0 from generate_series(1, 3000) i");
    await run(["init"]);
    await run(["register", "--table", "t", "--lag", "5"]);
    await run(["policy", "--table", "t", "--set", "snapshot_retention=0", "snapshot_min_retained=1", "delete_compaction_min_deletes=1", "delete_compaction_min_ratio=0", "rewrite_min_input_files=2"]); // prettier-ignore
    await run(["worker", "--once"]);
    const { rows } = await db.client.query("select t from spillway.seam");
    expect(String(rows[0].t)).toBe("20");
    expect(s3.objects().size).toBeGreaterThan(5);
    await same();

    // Plain, through the functions, and through `sql`.
    await both("insert into @ values (9001, 3, 'late', 1)");
    for (const id of [1, 2, 31, 32]) {
      await db.client.query("select spillway.upsert('t', $1)", [JSON.stringify({ id, k: id % 30, v: "up", w: 5 })]);
      await db.client.query("update t_model set v = 'up', w = 5 where id = $1", [id]);
    }
    await run(["sql", "delete from t where k = 4 and id < 300"]);
    await run(["sql", "update t set v = v || '!' where id in (select id + 1 from t where k = 6 and id < 200)"]);
    await db.client.query("delete from t_model where k = 4 and id < 300");
    await db.client.query(
      "update t_model set v = v || '!' where id in (select id + 1 from t_model where k = 6 and id < 200)",
    );
    await same();
    await passes("fold");
    expect((await db.client.query("select * from spillway.delta_1")).rows).toEqual([]);
    await same();
    await run(["verify", "--all"]);

    const before = new Set(s3.objects().keys());
    await passes("compact");
    await passes("expire");
    await run(["maintain", "--all", "--pass", "remove", "--pass", "orphans"]);
    const gone = [...before].filter((key) => !s3.objects().has(key));
    expect(gone.some((key) => key.endsWith(".parquet"))).toBe(true);
    await same();
    expect(JSON.parse((await run(["verify", "--table", "t", "--json"])).stdout)).toMatchObject({ ok: true });
    expect(s3.openUploads).toBe(0);
    await run(["worker", "--once"]);

    const server = spawnCli(["catalog", "--listen", "127.0.0.1:0"], { env });
    const uri = must((await server.waitForLine(/catalog at (http:\S+)/))[1], "address");
    const table = (await (await fetch(`${uri}/v1/namespaces/public/tables/t`)).json()) as {
      "metadata-location": string;
      metadata: { location: string; snapshots: unknown[] };
    };
    expect(table["metadata-location"]).toMatch(/^s3:\/\/test\/lake\//);
    expect(s3.objects().has(table["metadata-location"].slice("s3://test/".length))).toBe(true);
    expect(table.metadata.snapshots.length).toBeGreaterThan(0);
    expect((await server.kill("SIGTERM")).code).toBe(0);

    // A flipped byte in one file is found.
    const file = must(
      [...s3.objects()].find(([key]) => key.endsWith(".parquet") && key.includes("/t-")),
      "data file",
    );
    const body = Buffer.from(file[1].body);
    body.writeUInt8(body.readUInt8(40) ^ 0xff, 40);
    s3.objects().set(file[0], { ...file[1], body });
    const found = await runCli(["verify", "--table", "t"], {
      env: { ...env, SPILLWAY_CACHE_DIR: join(home, "cold") },
      timeoutMs: 60_000,
    });
    expect(found.code).toBe(1);
    s3.objects().set(file[0], file[1]);

    await run(["unregister", "--table", "t", "--drop-lake", "--yes"]);
  },
);
