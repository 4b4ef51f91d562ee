/** Bad input to `create postgres` and `run`: one clear line with a stable code, and nothing half done. */
import { execFileSync } from "node:child_process";
import { chownSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { freePort, postgresUser } from "@spillway/testkit/host";
import { pgBinaries } from "@spillway/testkit/binaries";
import { spawnScript, type ProcessResult } from "@spillway/testkit/processes";
import { startPostgres } from "@spillway/testkit/postgres";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Formation } from "../client/formation.ts";
import { sharedClock as clock } from "../client/shared-clock.ts";

const asRoot = process.getuid?.() === 0;
const user = asRoot ? ["--user", "postgres"] : [];
let formation: Formation;
let root: string;

beforeAll(async () => {
  formation = await Formation.start({ clock, nodes: 1, pgBin: pgBinaries(15).binDir, namespaces: false });
  root = mkdtempSync(join(tmpdir(), "spillway-ha-in-"));
  const { uid, gid } = postgresUser();
  if (uid !== undefined && gid !== undefined) chownSync(root, uid, gid);
}, 120_000);
afterAll(async () => {
  await formation?.destroy();
  rmSync(root, { recursive: true, force: true });
});

function give(path: string): string {
  const { uid, gid } = postgresUser();
  if (uid !== undefined && gid !== undefined) chownSync(path, uid, gid);
  return path;
}

async function create(
  flags: Record<string, string>,
  asUser: readonly string[] = user,
  token = formation.monitor.registrationToken,
): Promise<ProcessResult> {
  const all: Record<string, string> = {
    monitor: formation.monitor.url,
    "pg-bin": pgBinaries(15).binDir,
    hostname: "127.0.0.1",
    name: "extra",
    pgport: String(await freePort()),
    "keeper-listen": `127.0.0.1:${await freePort()}`,
    ...flags,
  };
  const args = Object.entries(all).flatMap(([name, value]) => [`--${name}`, value]);
  const env = { SPILLWAY_HA_TOKEN: token };
  return spawnScript("packages/ha/src/main.ts", ["create", "postgres", ...args, ...asUser], { env }).done;
}

/** One line on standard error, with the code; the formation knows nothing of the node. */
async function refused(result: ProcessResult, code: string, exit: number): Promise<void> {
  const lines = result.stderr
    .trim()
    .split("\n")
    .filter((l) => !/ (INFO|WARN) /.test(l));
  expect(lines, result.stderr).toHaveLength(1);
  expect(lines[0]).toMatch(new RegExp(`^${code}: .+`));
  expect(result.code).toBe(exit);
  expect((await formation.monitor.nodes()).map((n) => n.name)).toEqual(["node1"]);
}

describe("create postgres", () => {
  test.skipIf(!asRoot)("as root", async () => {
    const pgdata = join(root, "as-root");
    await refused(await create({ pgdata }, []), "ha_run_as_root", 2);
    expect(readdirSync(root)).not.toContain("as-root.ha");
  });

  test("a port that is taken", async () => {
    const port = await freePort();
    const server: Server = createServer();
    await new Promise<void>((done) => server.listen(port, "127.0.0.1", done));
    await refused(await create({ pgdata: join(root, "port"), pgport: String(port) }), "ha_port_taken", 1);
    await new Promise((done) => server.close(done));
  });

  test("a folder that is no data directory, one that is another's, one that is nobody's to write", async () => {
    const full = give(join(mkdtempSync(join(root, "full-")), ""));
    writeFileSync(join(full, "letter.txt"), "hello");
    await refused(await create({ pgdata: full }), "ha_data_dir_invalid", 1);
    expect(readdirSync(full)).toEqual(["letter.txt"]);
    if (!asRoot) return;
    const foreign = join(root, "foreign");
    mkdirSync(foreign, { mode: 0o700 });
    await refused(await create({ pgdata: foreign }), "ha_data_dir_permission", 1);
    await refused(await create({ pgdata: "/proc/self/x" }), "ha_data_dir_permission", 1);
  });

  test("another cluster's data directory; one in use; one of another version", async () => {
    const other = await startPostgres({ major: 15 });
    await refused(await create({ pgdata: other.dataDir }), "ha_data_dir_in_use", 1);
    expect(other.isRunning).toBe(true);
    await other.stop();
    const result = await create({ pgdata: other.dataDir });
    expect(result.stderr).toMatch(/system identifier/);
    await refused(result, "ha_monitor_refused", 1);
    await refused(
      await create({ pgdata: other.dataDir, "pg-bin": pgBinaries(18).binDir }),
      "ha_version_mismatch",
      2 - 1,
    );
    await other.destroy();
  });

  test("programs of another version than the formation's, and no programs at all", async () => {
    const pgdata = join(root, "newer");
    const newer = await create({ pgdata, "pg-bin": pgBinaries(18).binDir });
    expect(newer.stderr).toContain("the formation runs Postgres 15");
    await refused(newer, "ha_monitor_refused", 1);
    await refused(await create({ pgdata, "pg-bin": "/nowhere" }), "ha_binaries_missing", 2);
    expect(existsSync(pgdata)).toBe(false);
  });

  test("a monitor that is not there, and a wrong token", async () => {
    const away = `http://127.0.0.1:${await freePort()}`;
    await refused(await create({ pgdata: join(root, "away"), monitor: away }), "ha_unreachable", 1);
    const wrong = await create({ pgdata: join(root, "token") }, user, "wrong");
    await refused(wrong, "ha_monitor_refused", 1);
  });
});

describe("run", () => {
  test("where nothing was created, and a second keeper for the same directory", async () => {
    const run = (pgdata: string): Promise<ProcessResult> =>
      spawnScript("packages/ha/src/main.ts", ["run", "--pgdata", pgdata, ...user]).done;
    await refused(await run(join(root, "nothing")), "ha_keeper_state_invalid", 1);
    const node = formation.nodes[0];
    if (!node) throw new Error("no node");
    await refused(await run(node.pgdata), "ha_keeper_running", 1);
  });

  test.skipIf(!asRoot)("a full disk: said in one line, nothing left, and it goes on when there is space", async () => {
    const disk = join(root, "disk");
    mkdirSync(disk);
    execFileSync("mount", ["-t", "tmpfs", "-o", "size=24m,mode=0777", "tmpfs", disk]);
    const monitor = formation.monitor;
    const args = ["create", "postgres", "--monitor", monitor.url, "--run", "--formation", "small", "--name", "a"];
    const places = ["--pgdata", join(disk, "data"), "--hostname", "127.0.0.1", "--pg-bin", pgBinaries(15).binDir];
    const ports = ["--pgport", String(await freePort()), "--keeper-listen", `127.0.0.1:${await freePort()}`];
    const env = { SPILLWAY_HA_TOKEN: monitor.registrationToken };
    const keeper = spawnScript("packages/ha/src/main.ts", [...args, ...places, ...ports, ...user], { env });
    try {
      await keeper.waitForLine(/transition not done yet.*ha_disk_full/, 30_000);
      expect(existsSync(join(disk, "data", "PG_VERSION"))).toBe(false);
      execFileSync("mount", ["-o", "remount,size=400m", disk]);
      await keeper.waitForLine(/state .*to=single/, 40_000);
    } finally {
      await keeper.kill("SIGTERM");
      execFileSync("umount", [disk]);
    }
  });
});
