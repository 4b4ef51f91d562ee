/** New data directories: one empty cluster for each version is made once and kept in the cache, then copied. */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { appendFileSync, existsSync, mkdirSync, mkdtempSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type PgBinaries, publish } from "./binaries.ts";
import { cacheDir, giveToPostgres, postgresUser } from "./host.ts";

const INITDB = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"];

/** Settings of every test server: little memory, no waiting for the disk, and logical decoding possible. */
export const TEST_SETTINGS: Readonly<Record<string, string>> = {
  wal_level: "logical",
  fsync: "off",
  full_page_writes: "off",
  shared_buffers: "32MB",
  max_connections: "100",
  max_wal_senders: "20",
  max_replication_slots: "20",
  max_prepared_transactions: "20",
  max_wal_size: "256MB",
  autovacuum: "on",
  log_line_prefix: "%m [%p] %q%u@%d/%a ",
  timezone: "UTC",
};

/** Makes `dataDir` a new cluster, unless it is one already. */
export function createCluster(binaries: PgBinaries, dataDir: string): void {
  if (existsSync(join(dataDir, "PG_VERSION"))) return;
  mkdirSync(dataDir, { recursive: true, mode: 0o700 });
  giveToPostgres(dataDir);
  const template = join(clusterTemplate(binaries), "data");
  execFileSync("cp", ["-a", "--reflink=auto", `${template}/.`, dataDir]);
}

function clusterTemplate(binaries: PgBinaries): string {
  const key = createHash("sha256")
    .update(JSON.stringify([binaries.version, INITDB]))
    .digest("hex")
    .slice(0, 12);
  const target = join(cacheDir(), `initdb-${binaries.major}-${key}`);
  if (existsSync(target)) return target;
  const staging = mkdtempSync(join(cacheDir(), "initdb-staging-"));
  giveToPostgres(staging);
  execFileSync(join(binaries.binDir, "initdb"), [...INITDB, "-D", join(staging, "data")], {
    ...postgresUser(),
    cwd: "/",
    env: { PATH: "/usr/bin:/bin", LC_ALL: "C" },
    stdio: ["ignore", "ignore", "pipe"],
  });
  publish(staging, target);
  return target;
}

/** Appends settings to `postgresql.conf`: the last value wins, and `ALTER SYSTEM` still overrides them. */
export function appendSettings(dataDir: string, settings: Readonly<Record<string, string>>): void {
  const lines = Object.entries(settings).map(([name, value]) => `${name} = '${value.replaceAll("'", "''")}'\n`);
  appendFileSync(join(dataDir, "postgresql.conf"), lines.join(""));
}

/** The socket is trusted, so that the test can always get in; loopback as asked. Replication included. */
export function writeHba(dataDir: string, auth: "trust" | "scram-sha-256"): void {
  const rules = ["all", "replication"].flatMap((database) => [
    `local ${database} all trust`,
    `host ${database} all 127.0.0.1/32 ${auth}`,
  ]);
  writeFileSync(join(dataDir, "pg_hba.conf"), `${rules.join("\n")}\n`);
}
