/** For tests: the edge on a loopback port, over a source with tables of both tiers, with users of its own. */
import { createServer } from "node:net";
import { createHash, createHmac, pbkdf2Sync, randomBytes } from "node:crypto";
import pg from "pg";
import { systemClock } from "@spillway/base/clock";
import { createLogger, silentLogger } from "@spillway/base/log";
import { Metrics } from "@spillway/base/metrics";
import { SpillwayError } from "@spillway/base/errors";
import type { Principal } from "../../session/session.ts";
import { inProcessSessions } from "../../session/sessions.ts";
import { testPrincipal, testSource, type TestSource } from "../../session/test-serve.ts";
import { PgWireEdge, type PgWireLimits, type PgWireOptions } from "./pgwire.ts";
import type { RelationFacts, SourceAccess, SourceView, WireAuthenticator } from "./ports.ts";

export interface TestUser {
  readonly name: string;
  readonly password: string;
  /** The login of a role of the source. */
  readonly mapped: string | null;
  /** Relations that he may see, and what holds for them; absent: everything. */
  readonly sees?: (schema: string, name: string) => Partial<RelationFacts> | null;
}

export interface TestEdge {
  readonly source: TestSource;
  readonly edge: PgWireEdge;
  readonly port: number;
  /** Where the database of the source itself listens: what answers are compared with. */
  readonly direct: string;
  url(user?: string, password?: string): string;
  connect(user?: string, password?: string): Promise<pg.Client>;
  close(): Promise<void>;
}

export const OWNER: TestUser = { name: "owner", password: "owner's pass", mapped: "app" };

/** A verifier as pg_authid holds it. */
export function verifierOf(password: string): string {
  const salt = randomBytes(16);
  const salted = pbkdf2Sync(password.normalize("NFKC"), salt, 4096, 32, "sha256");
  const hmac = (text: string): Buffer => createHmac("sha256", salted).update(text).digest();
  const stored = createHash("sha256").update(hmac("Client Key")).digest("base64");
  return `SCRAM-SHA-256$4096:${salt.toString("base64")}$${stored}:${hmac("Server Key").toString("base64")}`;
}

export async function startTestEdge(
  users: readonly TestUser[] = [OWNER],
  options: Partial<Pick<PgWireOptions, "tls" | "requireTls">> & { readonly limits?: Partial<PgWireLimits> } = {},
): Promise<TestEdge> {
  const source = await testSource();
  await source.db.client.query(`
    DROP ROLE IF EXISTS app; CREATE ROLE app LOGIN; GRANT ALL ON SCHEMA public TO app;
    GRANT ALL ON plain TO app`);
  const sessions = inProcessSessions({ seam: source.seam, clock: systemClock });
  const verifiers = new Map(users.map((user) => [user.name, verifierOf(user.password)]));
  const auth: WireAuthenticator = {
    scramVerifierOf: async (user) => verifiers.get(user) ?? null,
    login: async ({ user, database }): Promise<Principal> => {
      if (database !== "db") {
        throw new SpillwayError("pg_database_missing", `database "${database}" does not exist`, {
          details: { sqlstate: "3D000" },
        });
      }
      return testPrincipal(user);
    },
    failed: async () => {},
  };
  const edge = new PgWireEdge({
    sessions,
    auth,
    source: testAccess(source, users),
    tls: options.tls ?? null,
    requireTls: options.requireTls ?? false,
    secret: randomBytes(32),
    clock: systemClock,
    log: process.env["PGWIRE_LOG"]
      ? createLogger({
          level: "debug",
          format: "text",
          now: Date.now,
          write: (line) => process.stderr.write(`${line}\n`),
        })
      : silentLogger,
    metrics: new Metrics(),
    ...(options.limits ? { limits: options.limits } : {}),
  });
  const server = createServer((socket) => void edge.accept(socket));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as { port: number };
  const clients: pg.Client[] = [];
  const url = (user = "owner", password = passwordOf(users, user)): string =>
    `postgres://${encodeURIComponent(user)}:${encodeURIComponent(password)}@127.0.0.1:${port}/db`;
  return {
    source,
    edge,
    port,
    direct: withUser(source.db.url, "app"),
    url,
    connect: async (user, password) => {
      const client = new pg.Client({ connectionString: url(user, password) });
      client.on("error", () => {});
      await client.connect();
      clients.push(client);
      return client;
    },
    close: async () => {
      for (const client of clients) await client.end().catch(() => {});
      await edge.drain(0);
      await new Promise<void>((resolve) => server.close(() => resolve()));
      await sessions.close();
      await source.db.client.query("DROP OWNED BY app; DROP ROLE app").catch(() => {});
      await source.close();
    },
  };
}

function passwordOf(users: readonly TestUser[], name: string): string {
  return users.find((user) => user.name === name)?.password ?? "";
}

function withUser(url: string, user: string): string {
  const changed = new URL(url);
  changed.username = user;
  return changed.toString();
}

/** Reads the source anew for every statement: a real one keeps a second's copy. */
function testAccess(source: TestSource, users: readonly TestUser[]): SourceAccess {
  return {
    view: async (principal): Promise<SourceView> => {
      const user = users.find(({ name }) => name === principal.userName);
      const { client, url } = source.db;
      const { rows } = await client.query<{ oid: number; schema: string; name: string; seam: boolean }>(RELATIONS);
      const functions = await client.query<{ name: string; user: boolean }>(
        "SELECT proname AS name, bool_or(oid >= 16384) AS user FROM pg_proc GROUP BY 1",
      );
      const version = await client.query<{ v: string }>("SELECT current_setting('server_version') AS v");
      return {
        serverVersion: version.rows[0]?.v ?? "",
        version: String(rows.length),
        mappedLogin: user?.mapped ? withUser(url, user.mapped) : null,
        catalogLogin: url,
        functions: new Map(functions.rows.map((row) => [row.name, row.user ? "user" : "system"])),
        relations: rows.map((row) => factsOf(row, user)),
      };
    },
  };
}

const RELATIONS = `SELECT c.oid::int, n.nspname AS schema, c.relname AS name,
    EXISTS (SELECT 1 FROM spillway.relation t WHERE c.oid = t.relid
      OR EXISTS (SELECT 1 FROM pg_inherits i WHERE i.inhrelid = c.oid AND i.inhparent = t.relid)) AS seam
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'spillway') AND c.oid >= 16384`;

const ALL = new Set(["select", "insert", "update", "delete", "ddl"]);

function factsOf(
  row: { readonly oid: number; readonly schema: string; readonly name: string; readonly seam: boolean },
  user: TestUser | undefined,
): RelationFacts {
  const own = user?.sees === undefined ? {} : user.sees(row.schema, row.name);
  return {
    ...row,
    visible: own !== null,
    restricted: false,
    privileges: ALL,
    hiddenColumns: [],
    ...own,
  };
}
