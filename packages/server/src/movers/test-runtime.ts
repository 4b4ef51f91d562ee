/** For tests of the movers: a database with a catalog, a lake in a scratch folder, and tables with plain copies beside them. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { assert, must } from "@spillway/base/assert";
import { systemClock } from "@spillway/base/clock";
import { createLogger, type Logger, silentLogger } from "@spillway/base/log";
import { readMetadata } from "@spillway/lake/metadata";
import type { TableMetadata } from "@spillway/lake/model";
import { planScan, type ScanTask } from "@spillway/lake/scan/scan";
import type pg from "pg";
import { init, loadLakeTable, loadRelationByName } from "../catalog/catalog.ts";
import { openRuntime, type Runtime, type RuntimeOptions } from "../roles/runtime.ts";
import { asTiered, type MoverContext, Passes, register, type RegisterOptions, type TieredRelation } from "./movers.ts";
import { TABLE_STEPS } from "./steps.ts";
import { checkWhole } from "./test-whole.ts";

/** A runtime over a lake and a cache in the folder `home`. */
export function testRuntime(
  databaseUrl: string,
  home: string,
  options: Partial<RuntimeOptions> = {},
): Promise<Runtime> {
  return openRuntime({
    databaseUrl,
    warehouse: join(home, "lake"),
    s3Endpoint: null,
    s3Region: "us-east-1",
    s3PathStyle: true,
    cacheDir: join(home, "cache"),
    cacheBytes: 1 << 30,
    connectTimeoutMs: 5000,
    engineMemoryBytes: 256 << 20,
    lockTimeoutMs: 100,
    premake: 2,
    applicationName: "test",
    clock: systemClock,
    log: testLog(),
    ...options,
  });
}

/** Silent, unless SPILLWAY_TEST_LOG asks what goes on. */
function testLog(): Logger {
  if (!process.env["SPILLWAY_TEST_LOG"]) return silentLogger;
  const write = (line: string): void => void process.stderr.write(`${line}\n`);
  return createLogger({ level: "debug", format: "text", write, now: Date.now });
}

export interface TestSource {
  readonly url: string;
  readonly client: pg.Client;
}

/** The steps that bring rows into the lake, without those that keep it in shape. */
const TIERING = TABLE_STEPS.filter((s) => ["follow", "premake", "sweep", "tier", "drop"].includes(s.name));

export class TestLake {
  readonly client: pg.Client;
  readonly runtime: Runtime;
  readonly home: string;

  private constructor(client: pg.Client, runtime: Runtime, home: string) {
    this.client = client;
    this.runtime = runtime;
    this.home = home;
  }

  static async open(source: TestSource, home = mkdtempSync(join(tmpdir(), "spillway-test-"))): Promise<TestLake> {
    const runtime = await testRuntime(source.url, home);
    const { store, warehouse, pool } = runtime;
    await pool.withClient((c) => init({ client: c, store, warehouse, clock: systemClock, log: silentLogger }));
    return new TestLake(source.client, runtime, home);
  }

  get ctx(): MoverContext {
    return this.runtime.mover(null);
  }

  async close(): Promise<void> {
    await this.runtime.close();
    rmSync(this.home, { recursive: true, force: true });
  }

  async relation(name: string): Promise<TieredRelation> {
    return must(asTiered(must(await loadRelationByName(this.client, "public", name), name)), name);
  }

  /** A table with an int key, leaves of ten keys below 40, 4000 rows, its model, registered and tiered up to 20. */
  async makeInts(name: string, options: Partial<RegisterOptions> = {}): Promise<void> {
    await this.client.query(
      `create table ${name} (id int, k int, v text, w numeric(10,2), primary key (id, k)) partition by range (k)`,
    );
    for (let i = 0; i < 40; i += 10) {
      await this.client.query(`create table ${name}_${i} partition of ${name} for values from (${i}) to (${i + 10})`);
    }
    await this.client.query(`create table ${name}_model (like ${name} including all)`);
    await this.both(name, `insert into @ select i, i % 40, 'v' || i, i / 3.0 from generate_series(1, 4000) i`);
    await register(this.ctx, { table: `public.${name}`, mode: "tiered", lag: "10", ...options });
    await this.settled(name);
  }

  async settled(name: string): Promise<void> {
    const { relationId } = await this.relation(name);
    for (let i = 0; i < 10; i++) {
      const done = await new Passes().run(this.ctx, { force: true, only: [relationId], steps: TIERING });
      assert(Object.keys(done.failed).length === 0, () => `the pass failed: ${JSON.stringify(done.failed)}`);
      if (done.moved === 0) return;
    }
    throw new Error("the passes do not come to an end");
  }

  /** The same statement on the table and on its model; `@` stands for either. */
  async both(name: string, sql: string): Promise<void> {
    await this.client.query(sql.replaceAll("@", name));
    await this.client.query(sql.replaceAll("@", `${name}_model`));
  }

  async upsert(name: string, id: number, k: number, v: string, w = "1.25"): Promise<void> {
    await this.client.query("select spillway.upsert($1, $2)", [name, JSON.stringify({ id, k, v, w })]);
    await this.client.query(
      `insert into ${name}_model values ($1, $2, $3, $4) on conflict (id, k) do update set v = excluded.v, w = excluded.w`,
      [id, k, v, w],
    );
  }

  async remove(name: string, id: number, k: number): Promise<void> {
    await this.client.query("select spillway.delete($1, $2)", [name, JSON.stringify({ id, k })]);
    await this.client.query(`delete from ${name}_model where id = $1 and k = $2`, [id, k]);
  }

  check(name: string): Promise<void> {
    return checkWhole(this.ctx, this.client, name);
  }

  async metadata(name: string): Promise<TableMetadata> {
    const lake = must(await loadLakeTable(this.client, (await this.relation(name)).lakeId), "lake table");
    return readMetadata(this.runtime.store, lake.metadataLocation);
  }

  async tasks(name: string): Promise<readonly ScanTask[]> {
    return (await planScan({ store: this.runtime.store, metadata: await this.metadata(name) })).tasks;
  }

  async count(sql: string): Promise<number> {
    const { rows } = await this.client.query<{ n: string }>(`select count(*) as n ${sql}`);
    return Number(must(rows[0], "count").n);
  }
}
