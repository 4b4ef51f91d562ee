/** After the faults: everything comes to rest, and is compared with what it must be. */
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { readMetadata } from "@spillway/lake/metadata";
import { storeSource } from "@spillway/lake/snapshot/source";
import type { ObjectStore } from "@spillway/lake/store/store";
import type { Seam } from "@spillway/server/seam/seam";
import { runChild, type ChildEnv } from "../bench/child.ts";
import type { Client } from "../bench/scratch.ts";
import { Random } from "./random.ts";
import { openChaosSeam } from "./seam-open.ts";
import { difference, rows, seenRow } from "./seam-reader.ts";
import type { Fault, Model } from "./seam-model.ts";
import { type ChaosTable, keySql } from "./seam-tables.ts";

export interface Settled {
  readonly faults: readonly Fault[];
  /** What else is not as it must be. */
  readonly leftovers: readonly string[];
}

export async function settle(client: Client, env: ChildEnv, models: ReadonlyMap<ChaosTable, Model>): Promise<Settled> {
  const leftovers: string[] = [];
  const failed = (what: string) => (error: unknown) =>
    void leftovers.push(`${what}: ${error instanceof Error ? error.message.slice(0, 500) : "failed"}`);
  await runChild(["worker", "--once"], env).catch(failed("worker --once"));
  const { seam, runtime, close } = await openChaosSeam(env, "chaos settle");
  const faults = await compare(seam, models).finally(close);
  for (const [table, model] of models) {
    if (table.writes === "plain") faults.push(...(await compareModel(client, table, model)));
  }
  await runChild(["verify", "--all"], env).catch(failed("verify"));
  const { rows: staged } = await client.query<{ path: string }>("select path from spillway.staged_file");
  leftovers.push(...staged.map((row) => `staged: ${row.path}`));
  const { rows: open } = await client.query<{ kind: string }>("select kind from spillway.journal where phase = 'open'");
  leftovers.push(...open.map((row) => `open: ${row.kind}`));
  leftovers.push(...(await stopped(client)), ...(await strangers(client, runtime.store, env)));
  return { faults, leftovers };
}

/** Through the seam: the table against the plain one beside it, or against what the clients were told. */
async function compare(seam: Seam, models: ReadonlyMap<ChaosTable, Model>): Promise<Fault[]> {
  const faults: Fault[] = [];
  for (const [table, model] of models) {
    if (table.writes === "statements") {
      const read = await rows(seam, table, new Random(0, "settle"), true);
      faults.push(...model.check({ ...read, rows: read.rows.map(seenRow) }));
      continue;
    }
    for (const row of await difference(seam, table)) {
      faults.push({ kind: row.startsWith("lost") ? "lost" : "doubled", detail: `at the end, ${table.name}: ${row}` });
    }
  }
  return faults;
}

/** The plain table against what the clients were told: else the comparison above would be with the wrong thing. */
async function compareModel(client: Client, table: ChaosTable, model: Model): Promise<Fault[]> {
  const expected = model.pairs.flatMap((pair) => {
    const state = model.current(pair);
    return state === null ? [] : state.keys.map((key, i) => `(${2 * pair + i}, ${keySql(table, key)}, ${state.stamp})`);
  });
  const values = expected.length === 0 ? "(null::bigint, null, null::bigint)" : expected.join(", ");
  const { rows } = await client.query<{ fault: "lost" | "doubled"; row: string }>(
    `with model (id, k, s) as (values ${values}), shadow as (select id, k, s from ${table.name}_shadow)
     select 'lost' as fault, m::text as row from (select id::bigint, k, s::bigint from model where id is not null
       except select * from shadow) m
     union all select 'doubled', x::text from (select * from shadow except select id::bigint, k, s::bigint from model) x`,
  );
  return rows.map(({ fault, row }) => ({ kind: fault, detail: `what clients were told of ${table.name}: ${row}` }));
}

async function stopped(client: Client): Promise<string[]> {
  const { rows } = await client.query<{ text: string }>(
    "select table_name || ': ' || stop_code || ' ' || stop_reason as text from spillway.relation where state = 'stopped'",
  );
  return rows.map((row) => `stopped: ${row.text}`);
}

/** Files of the lake that nobody knows: no snapshot, no doomed row, no log of the store. */
async function strangers(client: Client, store: ObjectStore, env: ChildEnv): Promise<string[]> {
  const root = env["SPILLWAY_WAREHOUSE"] ?? "";
  if (!existsSync(root)) return [];
  const { rows: tables } = await client.query<{ location: string }>(
    "select metadata_location as location from spillway.lake_table",
  );
  const { rows: doomed } = await client.query<{ path: string }>("select path from spillway.doomed_file");
  const known = new Set(doomed.map((row) => row.path));
  for (const { location } of tables) for (const path of await referenced(store, location)) known.add(path);
  const files = readdirSync(root, { recursive: true, withFileTypes: true })
    .filter((file) => file.isFile() && !file.parentPath.includes("_spillway") && !file.name.endsWith(".spillway-tmp"))
    .map((file) => `file://${join(file.parentPath, file.name)}`);
  return files.filter((file) => !known.has(file)).map((file) => `unknown file: ${file}`);
}

async function referenced(store: ObjectStore, location: string): Promise<string[]> {
  const metadata = await readMetadata(store, location);
  const source = storeSource(store);
  const paths = [location, ...metadata.metadataLog.map((entry) => entry.metadataFile)];
  for (const snapshot of metadata.snapshots) {
    paths.push(snapshot.manifestList);
    for (const manifest of await source.manifests(snapshot)) {
      paths.push(manifest.path);
      for (const entry of await source.entries(metadata, manifest)) paths.push(entry.dataFile.path);
    }
  }
  return paths;
}
