/** The demo's tables: real US flights of 2001 (vega-datasets), as a partitioned table and as a plain copy, and airports. */
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type { ColumnBatch } from "@spillway/base/columns";
import { SpillwayError } from "@spillway/base/errors";
import { copyIn } from "@spillway/pg/copy/copy-in";
import { connectRaw } from "@spillway/pg/wire/connect-raw";
import { duckLiteral, Engine } from "@spillway/server/engine/engine";
import type pg from "pg";

export interface LoadOptions {
  readonly url: string;
  readonly client: pg.Client;
  /** Only the first so many flights; null for all. */
  readonly rows: number | null;
  readonly onProgress: (rows: number) => void;
  readonly signal: AbortSignal;
}

const COLUMNS = `
  flight_id bigint NOT NULL, departed timestamp NOT NULL, delay int, distance int,
  origin text NOT NULL, destination text NOT NULL`;
const MONTHS = ["2001-01", "2001-02", "2001-03", "2001-04", "2001-05", "2001-06", "2001-07", "2001-08"];

/** The package exports no path to its data: the folder is found from where its code is. */
function dataFile(name: string): string {
  const main = fileURLToPath(import.meta.resolve("vega-datasets"));
  for (let dir = dirname(main); dir !== dirname(dir); dir = dirname(dir)) {
    const path = join(dir, "data", name);
    if (existsSync(path)) return path;
  }
  throw new SpillwayError("demo_failed", `the package vega-datasets has no ${name}`);
}

/** Returns how many flights there are. */
export async function loadTables(options: LoadOptions): Promise<number> {
  const { client } = options;
  await client.query(`CREATE TABLE flights (${COLUMNS}) PARTITION BY RANGE (departed)`);
  for (const [i, month] of MONTHS.slice(0, -1).entries()) {
    await client.query(
      `CREATE TABLE flights_${month.replace("-", "_")} PARTITION OF flights FOR VALUES FROM ('${month}-01') TO ('${MONTHS[i + 1]}-01')`,
    );
  }
  await client.query(`CREATE TABLE flights_plain (${COLUMNS})`);
  await client.query(`CREATE TABLE airports (iata text PRIMARY KEY, name text, city text, state text, country text,
    latitude double precision, longitude double precision)`);
  const engine = await Engine.open({ memoryBytes: 256 << 20, threads: 2 });
  try {
    const flights = duckLiteral(dataFile("flights-3m.parquet"));
    const rows = await copyQuery(
      options,
      engine,
      `SELECT row_number() OVER ()::BIGINT AS flight_id, date AS departed, delay::INTEGER AS delay, distance::INTEGER AS distance, origin,
         destination FROM ${flights}${options.rows === null ? "" : ` USING SAMPLE ${options.rows} ROWS (reservoir, 42)`}`,
      "flights (flight_id, departed, delay, distance, origin, destination)",
    );
    await copyQuery(
      { ...options, onProgress: () => {} },
      engine,
      `SELECT * FROM read_csv(${duckLiteral(dataFile("airports.csv"))}, header = true, all_varchar = true)`,
      "airports (iata, name, city, state, country, latitude, longitude)",
    );
    return rows;
  } finally {
    engine.close();
  }
}

async function copyQuery(options: LoadOptions, engine: Engine, sql: string, into: string): Promise<number> {
  const connection = await connectRaw(options.url, { applicationName: "spillway demo" });
  const session = await engine.session();
  try {
    const result = await session.query(sql, { signal: options.signal });
    async function* counted(): AsyncIterable<ColumnBatch> {
      let rows = 0;
      for await (const batch of result.batches()) {
        rows += batch.length;
        options.onProgress(rows);
        yield batch;
      }
    }
    return await copyIn({ connection, into, batches: counted(), signal: options.signal });
  } finally {
    engine.release(session, false);
    await connection.close();
  }
}

/** The plain copy, the keys, and what the planner wants to know. */
export async function finishTables(client: pg.Client): Promise<void> {
  await client.query("SET maintenance_work_mem = '256MB'");
  await client.query("INSERT INTO flights_plain SELECT * FROM flights");
  await client.query("ALTER TABLE flights ADD PRIMARY KEY (departed, flight_id)");
  await client.query("ALTER TABLE flights_plain ADD PRIMARY KEY (departed, flight_id)");
  await client.query("ANALYZE flights, flights_plain, airports");
}
