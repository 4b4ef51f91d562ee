/** A streaming standby of a test server: copied while the primary runs, with the functions for low-level backups. */
import { spawnSync } from "node:child_process";
import { rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { freePort, giveToPostgres, scratchDir } from "./host.ts";
import { type PgInstance, startPostgres } from "./postgres.ts";
import { waitFor } from "./wait.ts";

export interface StandbyOptions {
  readonly settings?: Readonly<Record<string, string>>;
  /** A physical slot of the primary, made here when given. */
  readonly slot?: string;
}

/** Starts a standby and waits until it streams. Sessions to it have its own port; `primary` is left as it was. */
export async function startStandby(primary: PgInstance, options: StandbyOptions = {}): Promise<PgInstance> {
  const home = scratchDir("standby", { forPostgres: true });
  const dataDir = join(home, "data");
  await primary.withClient("postgres", async (client) => {
    const [start, stop] =
      primary.majorVersion >= 15
        ? ["SELECT pg_backup_start('standby', true)", "SELECT labelfile FROM pg_backup_stop(false)"]
        : ["SELECT pg_start_backup('standby', true, false)", "SELECT labelfile FROM pg_stop_backup(false, false)"];
    if (options.slot !== undefined) {
      await client.query("SELECT pg_create_physical_replication_slot($1, true)", [options.slot]);
    }
    await client.query(start);
    // Files that vanish under the copy are what the write-ahead log makes good.
    spawnSync("cp", ["-a", primary.dataDir, dataDir]);
    const { rows } = await client.query<{ labelfile: string }>(stop);
    writeFileSync(join(dataDir, "backup_label"), rows[0]?.labelfile ?? "");
  });
  for (const name of ["postmaster.pid", "postmaster.opts", "pg_replslot"]) {
    rmSync(join(dataDir, name), { recursive: true, force: true });
  }
  spawnSync("mkdir", ["-m", "0700", join(dataDir, "pg_replslot")]);
  writeFileSync(join(dataDir, "standby.signal"), "");
  for (const name of ["backup_label", "standby.signal", "pg_replslot"]) giveToPostgres(join(dataDir, name));
  const port = await freePort();
  const source = `host=${primary.host} port=${primary.port} user=postgres password=test-password application_name=standby_${port}`;
  const standby = await startPostgres({
    major: primary.majorVersion,
    dataDir,
    port,
    settings: {
      primary_conninfo: source,
      hot_standby: "on",
      wal_retrieve_retry_interval: "200ms",
      ...(options.slot === undefined ? {} : { primary_slot_name: options.slot }),
      ...options.settings,
    },
  });
  await waitFor("the standby to stream", async () =>
    primary.withClient("postgres", async (client) => {
      const { rows } = await client.query(
        "SELECT FROM pg_stat_replication WHERE application_name = $1 AND state = 'streaming'",
        [`standby_${port}`],
      );
      return rows.length > 0;
    }),
  );
  return standby;
}
