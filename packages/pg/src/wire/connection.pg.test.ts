/** Raw connections against real servers: authentication, TLS, limits, and how they end. */
import { execFileSync } from "node:child_process";
import { appendFileSync, chmodSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { SpillwayError } from "@spillway/base/errors";
import { giveToPostgres } from "@spillway/testkit/host";
import { startPostgres, type PgInstance } from "@spillway/testkit/postgres";
import { waitFor } from "@spillway/testkit/wait";
import { connectRaw } from "./connect-raw.ts";
import { RawConnection } from "./connection.ts";
import type { RawTarget, SslMode } from "./target.ts";

async function errorOf(work: Promise<unknown>): Promise<SpillwayError> {
  const error: unknown = await work.then(
    () => null,
    (e: unknown) => e,
  );
  if (!(error instanceof SpillwayError)) throw new Error(`not a typed error: ${String(error)}`);
  return error;
}

describe.each([15, 18] as const)("raw connections to Postgres %i", (major) => {
  let server: PgInstance;
  let target: RawTarget;

  beforeAll(async () => {
    server = await startPostgres({ major });
    target = { host: server.host, port: server.port, user: "postgres", database: "postgres" };
    const admin = await server.connect();
    await admin.query(`CREATE ROLE r_scram LOGIN PASSWORD 'pässword'; SET password_encryption = 'md5'; CREATE ROLE r_md5 LOGIN PASSWORD 'secret';
      CREATE ROLE r_plain LOGIN PASSWORD 'secret'; CREATE ROLE r_none LOGIN; CREATE ROLE r_ssl LOGIN`);
    await admin.end();
    const ssl = join(server.dataDir, "server");
    execFileSync(
      "openssl",
      [
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "3650",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        `${ssl}.key`,
        "-out",
        `${ssl}.crt`,
      ],
      { stdio: "ignore" },
    );
    chmodSync(`${ssl}.key`, 0o600);
    for (const name of ["server.key", "server.crt"]) giveToPostgres(join(server.dataDir, name));
    appendFileSync(join(server.dataDir, "postgresql.conf"), "ssl = on\n");
    const hba = join(server.dataDir, "pg_hba.conf");
    const rules = ["scram-sha-256", "md5", "password"].map(
      (method, i) => `host all ${["r_scram", "r_md5", "r_plain"][i]} 127.0.0.1/32 ${method}`,
    );
    rules.push(
      "host all r_none 127.0.0.1/32 reject",
      "hostnossl all r_ssl 127.0.0.1/32 reject",
      "hostssl all r_ssl 127.0.0.1/32 trust",
    );
    writeFileSync(hba, `${rules.join("\n")}\n${readFileSync(hba, "utf8")}`);
    await server.restart();
  });
  afterAll(() => server?.destroy());

  test("every method of authentication, and its refusal", async () => {
    for (const [user, password] of [
      ["r_scram", "pässword"],
      ["r_md5", "secret"],
      ["r_plain", "secret"],
    ] as const) {
      const connection = await RawConnection.open({ ...target, user, password });
      const [result] = await connection.query("SELECT current_user");
      expect(result?.rows).toEqual([[user]]);
      await connection.close();
      expect((await errorOf(RawConnection.open({ ...target, user, password: "wrong" }))).code).toBe("pg_auth_failed");
      const missing = await errorOf(RawConnection.open({ ...target, user }));
      expect(missing.toLine()).toMatch(/pg_auth_failed: .*none was given/);
    }
    expect((await errorOf(RawConnection.open({ ...target, user: "r_none" }))).code).toBe("pg_auth_failed");
    expect((await errorOf(RawConnection.open({ ...target, database: "nowhere" }))).code).toBe("pg_database_missing");
  });

  test("sslmode is what it says", async () => {
    const rootCert = readFileSync(join(server.dataDir, "server.crt"), "utf8");
    const open = async (mode: SslMode, more: Partial<RawTarget> = {}, root = false): Promise<string | null> => {
      const ssl = root ? { mode, rootCert } : { mode };
      const connection = await RawConnection.open({ ...target, ssl, ...more });
      const [result] = await connection.query(
        "SELECT ssl::text, repeat('x', 300000) FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
      );
      await connection.close();
      expect(result?.rows[0]?.[1]?.length).toBe(300_000);
      return result?.rows[0]?.[0] ?? null;
    };
    expect(await open("disable")).toBe("false");
    expect(await open("allow")).toBe("false");
    expect(await open("allow", { user: "r_ssl" })).toBe("true");
    expect(await open("prefer")).toBe("true");
    expect(await open("require")).toBe("true");
    expect(await open("verify-ca", {}, true)).toBe("true");
    expect(await open("verify-full", { host: "localhost", hostaddr: "127.0.0.1" }, true)).toBe("true");
    expect((await errorOf(open("verify-full", {}, true))).code).toBe("pg_tls_failed");
    expect((await errorOf(open("verify-ca"))).code).toBe("pg_tls_failed");
    expect((await errorOf(open("disable", { user: "r_ssl" }))).code).toBe("pg_auth_failed");
    const socketPath = join(server.socketDir, `.s.PGSQL.${server.port}`);
    expect(await open("require", { socketPath })).toBe("false");
  });

  test("a cancel works over TLS too, and leaves the connection usable", async () => {
    const connection = await RawConnection.open({ ...target, ssl: { mode: "require" } });
    const abort = new AbortController();
    setTimeout(() => abort.abort(), 100);
    expect((await errorOf(connection.query("SELECT pg_sleep(30)", { signal: abort.signal }))).code).toBe("pg_canceled");
    const late = await errorOf(connection.query("SELECT pg_sleep(30)", { timeoutMs: 100 }));
    expect(late.code).toBe("deadline_exceeded");
    for (let i = 0; i < 20; i++) expect((await connection.query("SELECT 1"))[0]?.rows).toEqual([["1"]]);
    await connection.close();
  });

  test("several results, notices, errors, transaction status", async () => {
    const notices: string[] = [];
    const connection = await connectRaw(server.url(), { onNotice: (n) => notices.push(n.message) });
    expect(connection.serverVersion).toBeGreaterThanOrEqual(major * 10_000);
    const results = await connection.query(
      "SELECT 1 AS a, NULL::text AS b; CREATE TEMP TABLE x (i int); INSERT INTO x VALUES (1), (2); ; SELECT * FROM x",
    );
    expect(results.map((r) => r.tag)).toEqual(["SELECT 1", "CREATE TABLE", "INSERT 0 2", "SELECT 2"]);
    expect(results[0]).toMatchObject({ fields: [{ name: "a", typeOid: 23 }, { name: "b", typeOid: 25 }], rows: [["1", null]] }); // prettier-ignore
    await connection.query("DO $$ BEGIN RAISE NOTICE 'hello'; END $$");
    expect(notices).toEqual(["hello"]);
    await connection.query("BEGIN");
    expect(connection.transactionStatus).toBe("T");
    const error = await errorOf(connection.query("INSERT INTO x VALUES (1); SELECT 1/0; SELECT 2"));
    expect(error).toMatchObject({ code: "pg_error", details: { sqlstate: "22012" } });
    expect(connection.transactionStatus).toBe("E");
    await connection.query("ROLLBACK");
    const unique = await errorOf(
      connection.query("CREATE TEMP TABLE u (secret text PRIMARY KEY); INSERT INTO u VALUES ('s3cret'), ('s3cret')"),
    );
    expect(unique.details).toMatchObject({ sqlstate: "23505", constraint: "u_pkey" });
    expect(JSON.stringify(unique)).not.toContain("s3cret");
    expect((await errorOf(connection.query("COPY (SELECT 1) FROM STDIN"))).details["sqlstate"]).toBe("42601");
    expect((await errorOf(connection.query("CREATE TEMP TABLE y (i int); COPY y FROM STDIN"))).code).toBe(
      "pg_canceled",
    );
    const [settings] = await connection.query(
      "SELECT current_setting('DateStyle'), current_setting('TimeZone'), current_setting('client_encoding')",
    );
    expect(settings?.rows).toEqual([["ISO, YMD", "UTC", "UTF8"]]);
    await connection.close();
    expect(await connection.closed).toBeNull();
    expect((await errorOf(connection.query("SELECT 1"))).code).toBe("pg_connection_lost");
  });

  test("large results come whole", async () => {
    const connection = await connectRaw(server.url());
    const [result] = await connection.query("SELECT repeat(chr(97 + g % 26), 40000 * g) FROM generate_series(1, 60) g");
    expect(result?.rows.length).toBe(60);
    for (const [i, row] of (result?.rows ?? []).entries()) {
      expect(row[0] === String.fromCharCode(97 + ((i + 1) % 26)).repeat(40_000 * (i + 1))).toBe(true);
    }
    await connection.close();
  });

  test("the end of the server, or of the session, is a typed error", async () => {
    const [one, two] = [await connectRaw(server.url()), await connectRaw(server.url())];
    const running = errorOf(one.query("SELECT pg_sleep(30)"));
    await two.query(`SELECT pg_terminate_backend(${one.processId})`);
    expect(await running).toMatchObject({ code: "pg_connection_lost", details: { sqlstate: "57P01" } });
    const other = errorOf(two.query("SELECT pg_sleep(30)"));
    await server.kill("SIGKILL");
    expect((await other).code).toBe("pg_connection_lost");
    expect((await errorOf(connectRaw(server.url()))).code).toBe("pg_unreachable");
    await server.start();
    await waitFor("the server", () =>
      connectRaw(server.url()).then(
        (c) => c.close().then(() => true),
        () => false,
      ),
    );
  });

  test("a server that does not answer is given up in time", async () => {
    server.signalAll("SIGSTOP");
    try {
      const start = performance.now();
      const error = await errorOf(RawConnection.open({ ...target, connectTimeoutMs: 300 }));
      expect(error.code).toBe("pg_unreachable");
      expect(performance.now() - start).toBeLessThan(3000);
      const abort = AbortSignal.timeout(100);
      expect((await errorOf(RawConnection.open(target, { signal: abort }))).code).toBe("pg_canceled");
    } finally {
      server.signalAll("SIGCONT");
    }
  });
});
