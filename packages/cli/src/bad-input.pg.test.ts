/**
 * Bad input: each case is answered by one line with a stable code, its cause and a remedy, by the exit code of its
 * kind, and leaves catalog and lake as they were.
 */
import { spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CODES, type ErrorCode } from "@spillway/base/codes";
import { must } from "@spillway/base/assert";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { type ProcessResult, runCli } from "@spillway/testkit/processes";
import { afterAll, beforeAll, describe, expect, test } from "vitest";

let db: TestDatabase;
let bare: TestDatabase;
let home: string;
let env: Record<string, string>;

beforeAll(async () => {
  home = mkdtempSync(join(tmpdir(), "spillway-test-"));
  [db, bare] = [await createTestDatabase(), await createTestDatabase()];
  env = {
    SPILLWAY_DATABASE_URL: db.url,
    SPILLWAY_WAREHOUSE: join(home, "lake"),
    SPILLWAY_CACHE_DIR: join(home, "cache"),
    SPILLWAY_LOG_LEVEL: "error",
  };
  await db.client.query(
    `
    create table good (id int, k int, v text, primary key (id, k)) partition by range (k);
    create table good_0 partition of good for values from (0) to (10);
    create table good_10 partition of good for values from (10) to (20);
    insert into good select i, i % 20, 'v' || i from generate_series(1, 200) i;
    create table ready (id int, k int, v text, primary key (id, k)) partition by range (k);
    create table ready_0 partition of ready for values from (0) to (10);
    create table plain (id int primary key, v text);
    create view a_view as select * from plain;
    create table listed (id int, k int, primary key (id, k)) partition by list (k);
    create table no_key (id int, k int) partition by range (k);
    create table no_key_0 partition of no_key for values from (0) to (10);
    create table hard (id int, k int, t tsvector, r record_less, primary key (id, k)) partition by range (k);`.replace(
      ", r record_less",
      "",
    ),
  );
  await db.client.query(`create role spillway_nobody login; grant connect on database "${db.name}" to spillway_nobody`);
  for (const args of [
    ["init"],
    ["register", "--table", "good", "--lag", "0"],
    ["worker", "--once", "--cycle-interval", "100ms"],
  ]) {
    expect(await spillway(args)).toMatchObject({ code: 0 });
  }
  writeFileSync(join(home, "unknown.yaml"), "warehouze: /lake\n");
  writeFileSync(join(home, "broken.yaml"), "a: [1, 2\n");
  writeFileSync(join(home, "list.yaml"), "- a\n- b\n");
  writeFileSync(join(home, "token"), "short\n");
  writeFileSync(join(home, "good-token"), "long-enough-token\n");
  writeFileSync(join(home, "not.pem"), "no certificate\n");
}, 120_000);
afterAll(async () => {
  await db.client.query(`drop owned by spillway_nobody; drop role spillway_nobody`);
  await Promise.all([db.drop(), bare.drop()]);
  rmSync(home, { recursive: true, force: true });
});

type Env = Readonly<Record<string, string | undefined>>;

const spillway = (args: readonly string[], more: Env = {}, input = ""): Promise<ProcessResult> =>
  runCli(args, { env: { ...env, ...more }, input, timeoutMs: 60_000 });

interface Case {
  readonly args: readonly string[];
  readonly code: ErrorCode;
  /** A part of the line. */
  readonly says: string;
  readonly env?: () => Env;
  readonly input?: string;
}

/** Paths below the test's folder are written `~/`. */
const CASES: readonly Case[] = [
  // The command line.
  { args: [], code: "usage", says: "no command" },
  { args: ["regster"], code: "usage", says: "Did you mean register?" },
  { args: ["register", "--table", "ready", "--lagg", "1"], code: "usage", says: "Did you mean --lag?" },
  { args: ["register"], code: "usage", says: "--table" },
  { args: ["register", "--table", "ready", "--mode", "sideways"], code: "usage", says: "tiered, direct" },
  { args: ["register", "--table", "ready", "--format-version", "4"], code: "usage", says: "2, 3" },
  { args: ["register", "--table"], code: "usage", says: "argument missing" },
  { args: ["sql"], code: "usage", says: "standard input" },
  { args: ["sql", ""], code: "usage", says: "empty" },
  { args: ["sql", "-"], code: "usage", says: "empty" },
  { args: ["sql", "select 1", "select 2"], code: "usage", says: "too many arguments" },
  { args: ["sql", "--format", "xml", "select 1"], code: "usage", says: "table, csv, json, ndjson" },
  { args: ["sql", "--file", "~/none.sql"], code: "usage", says: "none.sql" },
  { args: ["sql", "--file", "~/unknown.yaml", "select 1"], code: "usage", says: "as one argument" },
  { args: ["sql", "--params", "{", "select 1"], code: "usage", says: "not JSON" },
  { args: ["sql", "--params", '{"a": 1}', "select 1"], code: "usage", says: "array" },
  { args: ["sql", "--as-of", "yesterday", "select 1"], code: "usage", says: "neither a snapshot id nor a time" },
  { args: ["sql", "--as-of", "7", "delete from good"], code: "usage", says: "--as-of and --freshness read" },
  { args: ["sql", "--freshness", "soon", "select 1"], code: "usage", says: "neither strict nor a duration" },
  { args: ["sql", "--as-of-lsn", "77", "select 1"], code: "usage", says: "not a WAL position" },
  {
    args: ["explain", "--as-of-lsn", "0/7", "--freshness", "1s", "select 1"],
    code: "usage",
    says: "exclude each other",
  },
  { args: ["verify"], code: "usage", says: "--all" },
  { args: ["verify", "--all", "--table", "good"], code: "usage", says: "--all" },
  { args: ["demo", "trains"], code: "usage", says: "trains" },
  { args: ["demo", "--rows", "many"], code: "usage", says: "many" },
  { args: ["bench", "nothing"], code: "usage", says: "nothing" },
  // Settings.
  { args: ["status", "--config", "~/none.yaml"], code: "config_invalid", says: "none.yaml" },
  { args: ["status", "--config", "~/unknown.yaml"], code: "config_invalid", says: "warehouze" },
  { args: ["status", "--config", "~/broken.yaml"], code: "config_invalid", says: "broken.yaml" },
  { args: ["status", "--config", "~/list.yaml"], code: "config_invalid", says: "not a map" },
  { args: ["sql", "--pin-ttl", "soon", "select 1"], code: "config_invalid", says: "--pin-ttl" },
  {
    args: ["sql", "select 1"],
    code: "config_invalid",
    says: "SPILLWAY_PIN_TTL",
    env: () => ({ SPILLWAY_PIN_TTL: "1ms" }),
  },
  { args: ["worker", "--premake", "-1"], code: "config_invalid", says: "at least 0" },
  { args: ["config", "--log-level", "loud"], code: "config_invalid", says: "debug, info, warn, error" },
  { args: ["status"], code: "config_missing", says: "database-url", env: () => ({ SPILLWAY_DATABASE_URL: "" }) },
  { args: ["sql", "select 1"], code: "config_missing", says: "warehouse", env: () => ({ SPILLWAY_WAREHOUSE: "" }) },
  { args: ["sql", "select 1"], code: "store_path_invalid", says: "lake", env: () => ({ SPILLWAY_WAREHOUSE: "lake" }) },
  { args: ["init"], code: "store_path_invalid", says: "ftp", env: () => ({ SPILLWAY_WAREHOUSE: "ftp://host/lake" }) },
  // The source.
  {
    args: ["status"],
    code: "pg_unreachable",
    says: "127.0.0.1",
    env: () => ({ SPILLWAY_DATABASE_URL: "postgres://u@127.0.0.1:1/x" }),
  },
  {
    args: ["status"],
    code: "pg_conninfo_invalid",
    says: "port",
    env: () => ({ SPILLWAY_DATABASE_URL: "postgres://u@127.0.0.1:port/x" }),
  },
  {
    args: ["status"],
    code: "pg_database_missing",
    says: "nowhere",
    env: () => ({ SPILLWAY_DATABASE_URL: db.server.url("nowhere") }),
  },
  {
    args: ["status"],
    code: "pg_auth_failed",
    says: "nobody_at_all",
    env: () => ({ SPILLWAY_DATABASE_URL: asUser("nobody_at_all") }),
  },
  { args: ["status"], code: "catalog_missing", says: "catalog", env: () => ({ SPILLWAY_DATABASE_URL: bare.url }) },
  {
    args: ["sql", "select 1"],
    code: "catalog_missing",
    says: "catalog",
    env: () => ({ SPILLWAY_DATABASE_URL: bare.url }),
  },
  {
    args: ["init"],
    code: "warehouse_mismatch",
    says: "other",
    env: () => ({ SPILLWAY_WAREHOUSE: join(home, "other") }),
  },
  {
    args: ["init"],
    code: "warehouse_taken",
    says: "another database",
    env: () => ({ SPILLWAY_DATABASE_URL: bare.url }),
  },
  {
    args: ["status"],
    code: "pg_permission_denied",
    says: "permission denied",
    env: () => ({ SPILLWAY_DATABASE_URL: asUser("spillway_nobody") }),
  },
  // Tables.
  { args: ["register", "--table", "nothing"], code: "table_unknown", says: "nothing" },
  { args: ["register", "--table", "a.b.c.d"], code: "table_unknown", says: "a.b.c.d" },
  { args: ["register", "--table", "plain", "--lag", "1"], code: "register_refused", says: "partitioned" },
  { args: ["register", "--table", "a_view", "--lag", "1"], code: "register_refused", says: "a view" },
  { args: ["register", "--table", "listed", "--lag", "1"], code: "register_refused", says: "range" },
  { args: ["register", "--table", "no_key", "--lag", "1"], code: "register_refused", says: "primary key" },
  {
    args: ["register", "--table", "ready", "--tier-key", "v", "--lag", "1"],
    code: "register_refused",
    says: "partitioned by",
  },
  { args: ["register", "--table", "ready", "--lag", "banana"], code: "register_refused", says: "banana" },
  {
    args: ["register", "--table", "ready", "--lag", "1", "--lake-partition", "hour"],
    code: "register_refused",
    says: "hour",
  },
  { args: ["register", "--table", "good", "--lag", "5"], code: "register_other_mode", says: "lag 0" },
  { args: ["verify", "--table", "plain"], code: "table_unknown", says: "plain" },
  { args: ["policy", "--table", "good", "--set", "fold_rows"], code: "policy_invalid", says: "name=value" },
  { args: ["policy", "--table", "good", "--set", "fold_rows=many"], code: "policy_invalid", says: "whole number" },
  { args: ["policy", "--table", "good", "--unset", "folds"], code: "policy_invalid", says: "folds" },
  { args: ["maintain"], code: "usage", says: "--all" },
  // Statements.
  { args: ["sql", "selec 1"], code: "sql_syntax", says: "selec" },
  { args: ["sql", "select * from nothing"], code: "table_unknown", says: "nothing" },
  { args: ["sql", "select none from good"], code: "engine_sql_error", says: "none" },
  { args: ["sql", "drop table good"], code: "sql_unsupported", says: "" },
  { args: ["sql", "select 1; select 2"], code: "sql_unsupported", says: "" },
  { args: ["sql", "select $1::int"], code: "engine_sql_error", says: "parameter" },
  { args: ["sql", "--as-of", "42", "select * from good"], code: "lake_snapshot_unknown", says: "42" },
  { args: ["sql", "--as-of-lsn", "0/42", "select * from good"], code: "as_of_unsupported", says: "follows the WAL" },
  { args: ["sql", "update nothing set a = 1"], code: "table_unknown", says: "nothing" },
  { args: ["sql", "insert into good (id, k) values ('x', 1)"], code: "pg_error", says: "integer" },
  { args: ["explain", "delete from good"], code: "sql_unsupported", says: "SELECT" },
  // The catalog endpoint.
  { args: ["catalog", "--listen", "0.0.0.0:0"], code: "catalog_exposed", says: "token and TLS" },
  { args: ["catalog", "--listen", "0.0.0.0:0", "--token-file", "~/good-token"], code: "catalog_exposed", says: "TLS" },
  { args: ["catalog", "--listen", "somewhere"], code: "config_invalid", says: "somewhere" },
  { args: ["catalog", "--listen", "127.0.0.1:0", "--token-file", "~/none"], code: "config_invalid", says: "none" },
  {
    args: ["catalog", "--listen", "127.0.0.1:0", "--token-file", "~/token"],
    code: "config_invalid",
    says: "8 to 4096",
  },
  { args: ["catalog", "--listen", "127.0.0.1:0", "--tls-cert", "~/token"], code: "config_invalid", says: "together" },
  {
    args: ["catalog", "--listen", "127.0.0.1:0", "--tls-cert", "~/not.pem", "--tls-key", "~/not.pem"],
    code: "config_invalid",
    says: "TLS",
  },
  // The store.
  {
    args: ["init"],
    code: "store_unreachable",
    says: "s3://bucket",
    env: () => ({
      SPILLWAY_DATABASE_URL: bare.url,
      SPILLWAY_WAREHOUSE: "s3://bucket/lake",
      SPILLWAY_S3_ENDPOINT: "http://127.0.0.1:1",
      AWS_ACCESS_KEY_ID: "a",
      AWS_SECRET_ACCESS_KEY: "b",
    }),
  },
  {
    args: ["init"],
    code: "store_path_invalid",
    says: "not a folder",
    env: () => ({ SPILLWAY_DATABASE_URL: bare.url, SPILLWAY_WAREHOUSE: join(home, "good-token", "lake") }),
  },
];

function asUser(user: string): string {
  const url = new URL(db.url);
  url.username = user;
  return url.toString();
}

/** All that a command could have left half done. */
async function fingerprint(): Promise<unknown> {
  const { rows } = await db.client.query(`select (select json_agg(l) from spillway.lake_table l) as lake,
    (select json_agg(r.relid) from spillway.relation r) as relations, (select count(*) from spillway.staged_file) as staged,
    (select count(*) from spillway.journal where phase = 'open') as open_ops, (select sum(t) from spillway.seam) as t,
    (select count(*) from pg_class) as classes`);
  return { catalog: rows[0], files: filesBelow(join(home, "lake")) };
}

function filesBelow(dir: string): string[] {
  if (!existsSync(dir)) return [];
  return readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter((e) => e.isFile())
    .map((e) => join(e.parentPath, e.name))
    .toSorted();
}

function requireOneLine(done: ProcessResult, code: ErrorCode, says: string): void {
  const lines = done.stderr.trimEnd().split("\n");
  expect(lines).toHaveLength(1);
  const line = lines[0] ?? "";
  expect(line).toMatch(new RegExp(`^${code}: .+[.!?] .+[.!?]$`));
  expect(line.toLowerCase()).toContain(says.toLowerCase());
  expect(line).not.toContain("undefined");
  expect(done.code).toBe(CODES[code].kind === "usage" ? 2 : 1);
}

describe("bad input", () => {
  test("there are at least forty cases", () => expect(CASES.length).toBeGreaterThanOrEqual(40));

  let before: unknown;
  beforeAll(async () => {
    before = await fingerprint();
  });

  test.concurrent.each(CASES.map((c) => [`${c.args.join(" ")} → ${c.code} (${c.says})`, c] as const))(
    "%s",
    async (_name, { args, code, says, env: more, input }) => {
      const done = await spillway(
        args.map((a) => a.replace(/^~\//, `${home}/`)),
        more?.() ?? {},
        input,
      );
      requireOneLine(done, code, says);
    },
  );

  test("nothing was left half done", async () => {
    expect(await fingerprint()).toEqual(before);
    expect(await spillway(["sql", "--format", "csv", "select count(*) as n from good"])).toMatchObject({
      stdout: "n\n200\n",
    });
  });
});

describe("a lake that was tampered with", () => {
  const dataFile = (): string =>
    must(
      filesBelow(join(home, "lake")).find((f) => f.endsWith(".parquet")),
      "data file",
    );
  const read = ["sql", "--format", "csv", "select sum(id) as s from good"];
  const answers = async (code: ErrorCode, says: string, args = read): Promise<void> =>
    requireOneLine(await spillway(args), code, says);

  test("a data file that is gone", async () => {
    const file = dataFile();
    renameSync(file, `${file}.away`);
    await answers("engine_file_missing", file);
    renameSync(`${file}.away`, file);
  });

  test("a data file that was cut, or changed", async () => {
    const file = dataFile();
    const bytes = readFileSync(file);
    writeFileSync(file, bytes.subarray(0, bytes.length - 100));
    await answers("engine_file_corrupt", file);
    writeFileSync(file, Buffer.concat([bytes.subarray(0, -20), Buffer.alloc(20, 255)]));
    await answers("engine_file_corrupt", file);
    writeFileSync(file, bytes);
    expect(await spillway(["verify", "--table", "good"])).toMatchObject({ code: 0 });
  });

  test("a metadata file that is gone, or is none", async () => {
    const { rows } = await db.client.query("select metadata_location as m from spillway.lake_table");
    const file = String(rows[0].m).replace("file://", "");
    const bytes = readFileSync(file);
    writeFileSync(file, "{");
    await answers("lake_metadata_invalid", "");
    rmSync(file);
    await answers("store_not_found", file);
    writeFileSync(file, bytes);
  });

  test("an owner file of another database", async () => {
    const file = join(home, "lake", "_spillway", "owner.json");
    const text = readFileSync(file, "utf8");
    writeFileSync(file, text.replace(/"lineage":"[^"]*"/, '"lineage":"00000000-0000-4000-8000-000000000000"'));
    await answers("lake_not_ours", "lineage", ["worker", "--once"]);
    await answers("lake_not_ours", "lineage", ["register", "--table", "ready", "--lag", "1"]);
    writeFileSync(file, text);
  });

  test.runIf(process.getuid?.() === 0)("a store that is full, until it is not", async () => {
    const full = join(home, "full");
    mkdirSync(full);
    if (spawnSync("mount", ["-t", "tmpfs", "-o", "size=64k", "tmpfs", full]).status !== 0) return;
    try {
      const own = { SPILLWAY_DATABASE_URL: bare.url, SPILLWAY_WAREHOUSE: join(full, "lake") };
      await bare.client.query(`create table big (id int, k int, v text, primary key (id, k)) partition by range (k);
        create table big_0 partition of big for values from (0) to (10);
        create table big_10 partition of big for values from (10) to (20);
        insert into big values (0, 15, 'newest');
        insert into big select i, i % 10, md5(i::text) from generate_series(1, 20000) i`);
      for (const args of [["init"], ["register", "--table", "big", "--lag", "0"]]) {
        expect(await spillway(args, own)).toMatchObject({ code: 0 });
      }
      const done = await spillway(["worker", "--once", "--cycle-interval", "100ms"], own);
      expect([done.code, done.stderr]).toEqual([1, expect.stringContaining("disk_full")]);
      const { rows } = await bare.client.query("select count(*)::int as n from big_0");
      expect(rows).toEqual([{ n: 20_000 }]);
      expect(spawnSync("mount", ["-o", "remount,size=64m", full]).status).toBe(0);
      expect(await spillway(["worker", "--once", "--cycle-interval", "100ms"], own)).toMatchObject({ code: 0 });
      expect(await spillway(["sql", "--format", "csv", "select count(*) as n from big"], own)).toMatchObject({
        stdout: "n\n20001\n",
      });
    } finally {
      spawnSync("umount", [full]);
    }
  });

  test("a catalog made by a newer program", async () => {
    await db.client.query(
      "insert into spillway.migration select (m).* from (select jsonb_populate_record(x, '{\"id\": 999}') m from spillway.migration x limit 1) y",
    );
    await answers("catalog_newer", "999", ["status"]);
    await answers("catalog_newer", "999");
    await db.client.query("delete from spillway.migration where id = 999");
    expect(await spillway(read)).toMatchObject({ code: 0 });
  });
});
