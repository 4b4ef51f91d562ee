/** One server for each test process and major, and a database of its own for each test, cloned from a template. */
import { randomHex } from "@spillway/base/ids";
import type pg from "pg";
import { defaultMajor, type PgMajor } from "./binaries.ts";
import { type PgInstance, startPostgres } from "./postgres.ts";

export interface DatabaseTemplate {
  /** Names the template within this process: the same name is set up once. */
  readonly name: string;
  readonly setup: (client: pg.Client, url: string) => Promise<void>;
}

export interface DatabaseOptions {
  readonly major?: PgMajor;
  readonly template?: DatabaseTemplate;
}

export interface TestDatabase {
  readonly name: string;
  readonly url: string;
  /** A connected superuser. */
  readonly client: pg.Client;
  readonly server: PgInstance;
  /** Another connected superuser; closed by `drop`. */
  connect(): Promise<pg.Client>;
  drop(): Promise<void>;
}

const servers = new Map<PgMajor, Promise<PgInstance>>();
const templates = new Map<string, Promise<string>>();

/** The server that the tests of this process share. Do not stop it: it ends with the process. */
export function sharedServer(major: PgMajor = defaultMajor()): Promise<PgInstance> {
  const found = servers.get(major) ?? startPostgres({ major });
  servers.set(major, found);
  return found;
}

/** A new database on the shared server. */
export async function createTestDatabase(options: DatabaseOptions = {}): Promise<TestDatabase> {
  const server = await sharedServer(options.major);
  const template = options.template ? await templateDatabase(server, options.template) : "template1";
  const name = `test_${randomHex(12)}`;
  await server.createDatabase(name, template);
  const clients: pg.Client[] = [];
  const connect = async (): Promise<pg.Client> => {
    const client = await server.connect(name);
    clients.push(client);
    return client;
  };
  const drop = async (): Promise<void> => {
    await Promise.all(clients.map((c) => c.end().catch(() => {})));
    await server.dropDatabase(name);
  };
  return { name, url: server.url(name), client: await connect(), server, connect, drop };
}

/** Runs `work` with a database of its own, and drops it. */
export async function withDatabase<T>(
  work: (db: TestDatabase) => Promise<T>,
  options: DatabaseOptions = {},
): Promise<T> {
  const db = await createTestDatabase(options);
  try {
    return await work(db);
  } finally {
    await db.drop();
  }
}

function templateDatabase(server: PgInstance, template: DatabaseTemplate): Promise<string> {
  const key = `${server.majorVersion} ${template.name}`;
  const found = templates.get(key) ?? createTemplate(server, template);
  templates.set(key, found);
  return found;
}

async function createTemplate(server: PgInstance, template: DatabaseTemplate): Promise<string> {
  const name = `template_${randomHex(12)}`;
  await server.createDatabase(name);
  await server.withClient(name, (client) => template.setup(client, server.url(name)));
  return name;
}
