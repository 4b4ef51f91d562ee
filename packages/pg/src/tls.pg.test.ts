/** TLS as sslmode asks for it, against a server with a certificate of a private authority. */
import { execFileSync } from "node:child_process";
import { chmodSync, copyFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { giveToPostgres, scratchDir } from "@spillway/testkit/host";
import { type PgInstance, startPostgres } from "@spillway/testkit/postgres";
import { connect, endClient } from "./connect.ts";

let server: PgInstance;
let dir: string;

function openssl(...args: string[]): void {
  execFileSync("openssl", args, { cwd: dir, stdio: "ignore" });
}

/** A certificate for the name `localhost`, and for no address. */
function makeCertificates(): void {
  dir = scratchDir("tls");
  const subject = (name: string): string[] => ["-subj", `/CN=${name}`];
  for (const ca of ["ca", "other"]) {
    openssl(
      "req",
      "-x509",
      "-newkey",
      "rsa:2048",
      "-nodes",
      "-keyout",
      `${ca}.key`,
      "-out",
      `${ca}.crt`,
      "-days",
      "2",
      ...subject(ca),
    );
  }
  openssl(
    "req",
    "-new",
    "-newkey",
    "rsa:2048",
    "-nodes",
    "-keyout",
    "server.key",
    "-out",
    "server.csr",
    ...subject("localhost"),
  );
  writeFileSync(join(dir, "san"), "subjectAltName=DNS:localhost");
  const sign = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san"];
  openssl("x509", "-req", "-in", "server.csr", "-out", "server.crt", ...sign);
}

beforeAll(async () => {
  makeCertificates();
  // Debian's server is built with TLS; not all of npm's are.
  server = await startPostgres({ major: 15, auth: "scram-sha-256" });
  for (const name of ["server.crt", "server.key"]) {
    copyFileSync(join(dir, name), join(server.dataDir, name));
    giveToPostgres(join(server.dataDir, name));
  }
  chmodSync(join(server.dataDir, "server.key"), 0o600);
  await server.withClient("postgres", (c) => c.query("ALTER SYSTEM SET ssl = on"));
  await server.restart();
});
afterAll(() => server.destroy());

async function isEncrypted(host: string, params: string): Promise<boolean> {
  const client = await connect(`postgres://postgres:test-password@${host}:${server.port}/postgres?${params}`);
  const sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
  const { rows } = await client.query<{ ssl: boolean }>(sql);
  await endClient(client);
  return rows[0]?.ssl === true;
}
const root = (name: string): string => `sslrootcert=${encodeURIComponent(join(dir, name))}`;

test.each([
  ["disable", false],
  ["allow", false],
  ["prefer", true],
  ["require", true],
])("sslmode=%s", async (mode, encrypted) => {
  expect(await isEncrypted("127.0.0.1", `sslmode=${mode}`)).toBe(encrypted);
});

test("verify-ca checks the authority, verify-full the name too", async () => {
  expect(await isEncrypted("127.0.0.1", `sslmode=verify-ca&${root("ca.crt")}`)).toBe(true);
  expect(await isEncrypted("localhost", `sslmode=verify-full&${root("ca.crt")}`)).toBe(true);
  expect(await isEncrypted("localhost", `sslmode=verify-full&hostaddr=127.0.0.1&${root("ca.crt")}`)).toBe(true);
  const refused = { code: "pg_tls_failed" };
  await expect(isEncrypted("127.0.0.1", `sslmode=verify-full&${root("ca.crt")}`)).rejects.toMatchObject(refused);
  await expect(isEncrypted("127.0.0.1", `sslmode=verify-ca&${root("other.crt")}`)).rejects.toMatchObject(refused);
  await expect(isEncrypted("localhost", `sslmode=verify-full&${root("other.crt")}`)).rejects.toMatchObject(refused);
  // As libpq does: with a root certificate, `require` is as strict as verify-ca.
  await expect(isEncrypted("localhost", `sslmode=require&${root("other.crt")}`)).rejects.toMatchObject(refused);
  await expect(isEncrypted("localhost", "sslmode=verify-ca")).rejects.toMatchObject(refused);
});

test("channel binding", async () => {
  expect(await isEncrypted("127.0.0.1", "sslmode=require&channel_binding=require")).toBe(true);
  expect(await isEncrypted("127.0.0.1", "sslmode=require&channel_binding=disable")).toBe(true);
  const plain = isEncrypted("127.0.0.1", "sslmode=disable&channel_binding=require");
  await expect(plain).rejects.toMatchObject({ code: "pg_auth_failed" });
});

test("pg_hba.conf may refuse one way: allow and prefer then go the other", async () => {
  const hba = join(server.dataDir, "pg_hba.conf");
  const reload = async (rules: string): Promise<void> => {
    writeFileSync(hba, `local all all trust\n${rules}\n`);
    await server.withClient("postgres", (c) => c.query("SELECT pg_reload_conf(), pg_sleep(0.2)"));
  };
  await reload("hostssl all all 127.0.0.1/32 scram-sha-256");
  expect(await isEncrypted("127.0.0.1", "sslmode=allow")).toBe(true);
  await expect(isEncrypted("127.0.0.1", "sslmode=disable")).rejects.toMatchObject({ code: "pg_auth_failed" });
  await reload("hostnossl all all 127.0.0.1/32 scram-sha-256");
  expect(await isEncrypted("127.0.0.1", "sslmode=prefer")).toBe(false);
  await expect(isEncrypted("127.0.0.1", "sslmode=require")).rejects.toMatchObject({ code: "pg_auth_failed" });
});
