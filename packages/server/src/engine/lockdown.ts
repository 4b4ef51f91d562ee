/**
 * An instance that runs statements of others: no file outside of its directories, no extension, no attachment, and no
 * setting can be changed any more. Read back, and tried, before anybody is let in.
 * Source: https://duckdb.org/docs/stable/operations_manual/securing_duckdb/overview
 */
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { duckList, duckLiteral } from "./quote.ts";
import type { EngineSession } from "./session.ts";

export interface Lockdown {
  /** What may be read and written: the lake's, the cache's and the staging's. */
  readonly directories: readonly string[];
}

const EXPECTED: Readonly<Record<string, string>> = {
  enable_external_access: "false",
  autoinstall_known_extensions: "false",
  autoload_known_extensions: "false",
  allow_community_extensions: "false",
  lock_configuration: "true",
  TimeZone: "UTC",
};

/** Harmless where it is refused, and a hole where it is not. */
function probes(outside: string): readonly string[] {
  const file = duckLiteral(`${outside}/spillway-probe`);
  return [
    "SELECT count(*) FROM read_text('/etc/hostname')",
    "SELECT count(*) FROM glob('/etc/*')",
    "SELECT count(*) FROM read_csv('/etc/hostname')",
    "SELECT count(*) FROM '/etc/hostname.csv'",
    "SELECT count(*) FROM read_text('https://127.0.0.1:1/x')",
    `COPY (SELECT 1) TO ${file}`,
    `ATTACH ${file} AS spillway_probe`,
    `EXPORT DATABASE ${file}`,
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "SET memory_limit = '100GB'",
    "SET temp_directory = '/'",
    "SET allowed_directories = ['/']",
    "RESET enable_external_access",
    "PRAGMA enable_external_access = true",
  ];
}

/** Throws `node_refused` naming the setting or the statement that is not as it must be. */
export async function lockDown(session: EngineSession, { directories }: Lockdown): Promise<void> {
  await session.run("SET GLOBAL TimeZone = 'UTC'");
  await session.run(`SET allowed_directories = ${duckList(directories.map((d) => (d.endsWith("/") ? d : `${d}/`)))}`);
  await session.run("SET enable_external_access = false; SET lock_configuration = true");
}

/** What `lockDown` set, read back; and what it forbids, tried. */
export async function checkLockdown(session: EngineSession, { directories }: Lockdown): Promise<void> {
  const names = Object.keys(EXPECTED).map(duckLiteral).join(", ");
  const rows = await session.rows(`SELECT name, value FROM duckdb_settings() WHERE name IN (${names})`);
  const found = new Map(rows.map(([name, value]) => [String(name), String(value)]));
  for (const [name, value] of Object.entries(EXPECTED)) {
    if (found.get(name) !== value)
      throw refused(`the setting ${name} is ${found.get(name) ?? "missing"}, not ${value}`);
  }
  for (const sql of probes(directories.includes("/tmp") ? "/var" : "/tmp")) {
    const why = await session.run(sql).then(
      () => null,
      (error: unknown) => messageOf(error),
    );
    if (why === null) throw refused(`${JSON.stringify(sql)} was run`);
  }
}

function refused(what: string): SpillwayError {
  return new SpillwayError("node_refused", `The engine is not locked down: ${what}.`);
}
