import { chmodSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { testMajors } from "@spillway/testkit/binaries";
import { freePort, scratchDir } from "@spillway/testkit/host";
import { type PgInstance, startPostgres } from "@spillway/testkit/postgres";
import { startProxy } from "@spillway/testkit/proxy";
import { startStandby } from "@spillway/testkit/standby";
import type pg from "pg";
import { connect, endClient } from "./connect.ts";
import { connectRaw } from "./connect-raw.ts";
import { parseConninfo } from "./conninfo.ts";
import { fromPgError, sqlstateOf } from "./pg-error.ts";

describe.each(testMajors())("connecting to Postgres %i", (major) => {
  let primary: PgInstance;
  let standby: PgInstance;
  let nobody: number;
  beforeAll(async () => {
    primary = await startPostgres({ major, auth: "scram-sha-256" });
    standby = await startStandby(primary);
    nobody = await freePort();
  });
  afterAll(async () => {
    await standby.destroy();
    await primary.destroy();
  });

  const url = (hosts: string, params = "", login = "postgres:test-password"): string =>
    `postgres://${login}@${hosts}/postgres?${params}`;
  const at = (...servers: (PgInstance | number)[]): string =>
    servers.map((s) => `127.0.0.1:${typeof s === "number" ? s : s.port}`).join(",");
  async function portOf(text: string): Promise<number> {
    const client = await connect(text);
    const { rows } = await client.query<{ port: number }>("SELECT inet_server_port() AS port");
    await endClient(client);
    return rows[0]?.port ?? 0;
  }

  test.each<[string, "primary" | "standby"]>([
    ["any", "standby"],
    ["read-write", "primary"],
    ["primary", "primary"],
    ["read-only", "standby"],
    ["standby", "standby"],
    ["prefer-standby", "standby"],
  ])("target_session_attrs=%s finds the %s behind a host that is down", async (attrs, which) => {
    const expected = which === "primary" ? primary.port : standby.port;
    const order = at(nobody, standby, primary);
    expect(await portOf(url(order, `target_session_attrs=${attrs}`))).toBe(expected);
    const other = attrs === "any" ? at(nobody, standby) : at(primary, nobody, standby, primary);
    expect(await portOf(url(other, `target_session_attrs=${attrs}`))).toBe(expected);
  });

  test("raw connections find their host the same way, as walsenders too", async () => {
    const hosts = at(nobody, standby, primary);
    const writer = await connectRaw(url(hosts, "target_session_attrs=read-write"), { replication: "database" });
    expect(writer.target.port).toBe(primary.port);
    const [row] = await writer.query("IDENTIFY_SYSTEM");
    expect(row).toBeDefined();
    await writer.close();
    const reader = await connectRaw(url(hosts, "target_session_attrs=standby"));
    expect(reader.target.port).toBe(standby.port);
    await reader.close();
    const none = connectRaw(url(at(nobody, standby), "target_session_attrs=primary"));
    await expect(none).rejects.toMatchObject({ code: "pg_no_primary" });
    await expect(connectRaw(url(at(primary), "", "postgres:wrong"))).rejects.toMatchObject({ code: "pg_auth_failed" });
  });

  test("prefer-standby takes a primary when there is no standby", async () => {
    expect(await portOf(url(at(nobody, primary), "target_session_attrs=prefer-standby"))).toBe(primary.port);
  });

  test("without a suitable host, every host has its reason", async () => {
    const error: unknown = await connect(url(at(nobody, standby), "target_session_attrs=read-write")).catch(
      (e: unknown) => e,
    );
    expect(error).toMatchObject({ code: "pg_no_primary", kind: "retry" });
    expect(String(error)).toContain(`127.0.0.1:${nobody}: connect ECONNREFUSED`);
    expect(String(error)).toContain(`127.0.0.1:${standby.port}: it is a standby`);
    expect(String(error)).not.toContain("test-password");
    await expect(connect(url(at(nobody)))).rejects.toMatchObject({ code: "pg_unreachable" });
    await expect(connect(url("no-such-host.invalid:1"))).rejects.toMatchObject({ code: "pg_unreachable" });
    await expect(connect(url("%2Fno%2Fsuch%2Fdir:1"))).rejects.toMatchObject({ code: "pg_unreachable" });
    await expect(connect(url(at(primary), "target_session_attrs=standby"))).rejects.toThrow(/it is a primary/);
  });

  test("a black hole costs its own timeout only", async () => {
    const hole = await startProxy(primary);
    await hole.setMode("blackhole");
    const start = performance.now();
    const client = await connect(url(at(hole.port, primary), "sslmode=disable"), { connectTimeoutMs: 300 });
    expect(performance.now() - start).toBeLessThan(1500);
    await endClient(client);
    await expect(connect(url(at(hole.port)), { connectTimeoutMs: 300 })).rejects.toMatchObject({
      code: "pg_unreachable",
    });
    await hole.close();
  });

  test("refusals have their own codes, and end the search", async () => {
    const wrong = connect(url(at(primary, standby), "", "postgres:wrong"));
    await expect(wrong).rejects.toMatchObject({ code: "pg_auth_failed", details: { sqlstate: "28P01" } });
    await expect(connect(url(at(primary), "passfile=/nowhere", "postgres"))).rejects.toMatchObject({
      code: "pg_auth_failed",
    });
    const missing = connect(url(at(primary)).replace("/postgres?", "/nothing?"));
    await expect(missing).rejects.toMatchObject({ code: "pg_database_missing" });
    await expect(connect(url(at(primary), "sslmode=require"))).rejects.toMatchObject({ code: "pg_tls_failed" });
    await expect(connect(url(at(primary), "channel_binding=require"))).rejects.toMatchObject({
      code: "pg_auth_failed",
    });
    await expect(connect(url(at(primary), "sslmode=verify-full&sslrootcert=/none"))).rejects.toMatchObject({
      code: "pg_tls_failed",
    });
  });

  test("the password file is read, unless others can read it too", async () => {
    const path = join(scratchDir("passfile"), "pass");
    writeFileSync(path, `127.0.0.1:${primary.port}:*:postgres:test-password\n`, { mode: 0o600 });
    const text = url(at(primary), `passfile=${encodeURIComponent(path)}`, "postgres");
    expect(await portOf(text)).toBe(primary.port);
    chmodSync(path, 0o644);
    await expect(connect(text)).rejects.toThrow(/readable by others/);
  });

  test("a Unix socket", async () => {
    const client = await connect(primary.url("postgres", { socket: true }));
    expect((await client.query("SELECT inet_server_addr() AS addr")).rows).toEqual([{ addr: null }]);
    await endClient(client);
  });

  test("values are exact, and the process's own parsers stay as they were", async () => {
    const client = await connect(url(at(primary)));
    const { rows } = await client.query({
      text: `SELECT 9223372036854775807::int8, 1.50::numeric(10,2), '2024-02-30'::text, timestamptz '2024-01-01 00:00:00.123456+02',
        timestamp '294276-12-31 23:59:59.999999', date '0044-03-15 BC', interval '1 mon -1 day', '{1,NULL}'::int8[],
        '{1.10,NaN}'::numeric[], '{"2024-01-01 00:00:00+00"}'::timestamptz[], 7::int4, true, '\\x00ff'::bytea, '{"a":[1]}'::jsonb, NULL::int8`,
      rowMode: "array",
    });
    expect(rows[0]).toEqual([
      9223372036854775807n,
      "1.50",
      "2024-02-30",
      "2023-12-31 22:00:00.123456+00",
      "294276-12-31 23:59:59.999999",
      "0044-03-15 BC",
      "1 mon -1 days",
      [1n, null],
      ["1.10", "NaN"],
      ["2024-01-01 00:00:00+00"],
      7,
      true,
      Buffer.from([0, 255]),
      { a: [1] },
      null,
    ]);
    await endClient(client);
    const plain = await primary.connect();
    expect((await plain.query("SELECT 1::int8 AS n")).rows).toEqual([{ n: "1" }]);
    await plain.end();
  });

  test("session settings arrive, whatever the string's options say", async () => {
    const text = url(
      at(primary),
      `options=${encodeURIComponent("-c statement_timeout=1 -c work_mem=5MB -c DateStyle=German")}`,
    );
    const client = await connect(text, {
      applicationName: "my app",
      statementTimeoutMs: 12_000,
      lockTimeoutMs: 300,
      idleInTransactionTimeoutMs: 4000,
      tcpUserTimeoutMs: 5000,
      settings: { search_path: '"a b", public' },
    });
    const names = [
      "application_name",
      "statement_timeout",
      "lock_timeout",
      "idle_in_transaction_session_timeout",
      "tcp_user_timeout",
      "search_path",
      "work_mem",
      "DateStyle",
      "TimeZone",
    ];
    const { rows } = await client.query("SELECT current_setting(n) AS v FROM unnest($1::text[]) AS n", [names]);
    expect(rows.map((r: { v: string }) => r.v)).toEqual([
      "my app",
      "12s",
      "300ms",
      "4s",
      "5000",
      '"a b", public',
      "5MB",
      "ISO, YMD",
      "UTC",
    ]);
    await endClient(client);
  });

  test("errors of statements are typed, without the rows' values", async () => {
    const client = await connect(url(at(primary)));
    const failing = async (sql: string): Promise<unknown> =>
      client.query(sql).catch((e: unknown) => fromPgError(e, "testing"));
    await client.query("CREATE TEMP TABLE t (a int PRIMARY KEY); INSERT INTO t VALUES (4711)");
    const unique = await failing("INSERT INTO t VALUES (4711)");
    expect(unique).toMatchObject({
      code: "pg_error",
      details: { sqlstate: "23505", table: "t", constraint: "t_pkey" },
    });
    expect(JSON.stringify(unique)).not.toContain("4711");
    expect(await failing("SET statement_timeout = 20; SELECT pg_sleep(1)")).toMatchObject({ code: "pg_canceled" });
    await client.query("SET statement_timeout = 0; CREATE ROLE nobody; SET ROLE nobody");
    expect(await failing("SELECT FROM pg_authid")).toMatchObject({ code: "pg_permission_denied" });
    await client.query("RESET ROLE; DROP ROLE nobody");
    await client.query("BEGIN READ ONLY");
    const readOnly = await failing("CREATE TABLE x ()");
    expect(readOnly).toMatchObject({ code: "pg_read_only", kind: "retry" });
    expect(sqlstateOf(readOnly)).toBe("25006");
    await client.query("ROLLBACK");
    expect(await failing("SELECT pg_terminate_backend(pg_backend_pid())")).toMatchObject({
      code: "pg_connection_lost",
    });
    expect(await failing("SELECT 1")).toMatchObject({ code: "pg_connection_lost" });
    await endClient(client);
  });

  test("random load balancing reaches every host", async () => {
    const info = parseConninfo(url(at(primary, standby), "load_balance_hosts=random"));
    const ports = new Set<number>();
    for (const random of [() => 0, () => 0.99]) {
      const client: pg.Client = await connect(info, { random });
      ports.add((await client.query<{ port: number }>("SELECT inet_server_port() AS port")).rows[0]?.port ?? 0);
      await endClient(client);
    }
    expect(ports).toEqual(new Set([primary.port, standby.port]));
  });
});
