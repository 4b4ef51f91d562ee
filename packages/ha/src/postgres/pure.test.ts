/** The pure parts of Postgres control: files of configuration, timelines, tar, words of programs. */
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { execFileSync } from "node:child_process";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { detectBinaries, parseVersion } from "./binaries.ts";
import {
  cleanAutoConf,
  conninfoQuote,
  ensureInclude,
  hbaAddresses,
  hbaLines,
  renderConf,
  writeBlock,
  writePassfile,
} from "./config-files.ts";
import { parseControlData } from "./control-file.ts";
import { parsePidFile } from "./postmaster.ts";
import { codeOfWords, tellingLine } from "./programs.ts";
import { TarExtractor } from "./tar.ts";
import { historyFileName, lineage, parseHistory } from "./timeline.ts";

let dir: string;
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), "spillway-ha-pure-"));
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const CONF = {
  major: 15,
  port: 5432,
  listen: ["127.0.0.1"],
  socketDirs: ["/run/a"],
  clusterName: "o'brien",
  synchronousStandbyNames: "ANY 1 (spillway_node_2)",
  readOnly: false,
  upstream: null,
  synchronizedStandbySlots: [],
  maxWalSenders: 16,
  maxReplicationSlots: 16,
  syncfs: false,
};
const UPSTREAM = {
  host: "10.0.0.2",
  port: 5432,
  user: "r",
  passfile: "/x/pgpass",
  slot: "spillway_node_1",
  applicationName: "spillway_node_1",
  sslmode: "prefer",
};

test("a folder of links to some of the programs leads to the folder of all of them", async () => {
  const root = mkdtempSync(join(tmpdir(), "spillway-ha-links-"));
  try {
    const [real, links] = [join(root, "real"), join(root, "links")];
    mkdirSync(real);
    mkdirSync(links);
    for (const name of ["initdb", "postgres", "pg_rewind"]) {
      writeFileSync(join(real, name), `#!/bin/sh\necho "${name} (PostgreSQL) 16.4"\n`, { mode: 0o755 });
    }
    for (const name of ["initdb", "postgres"]) symlinkSync(join(real, name), join(links, name));
    const found = await detectBinaries({ path: links, roots: [] });
    expect(found).toMatchObject({ dir: realpathSync(real), major: 16, hasRewind: true, hasBaseBackup: false });
    // What is named is taken as it is.
    expect(await detectBinaries({ pgBin: links })).toMatchObject({ dir: links, hasRewind: false });
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
});

describe("configuration", () => {
  test("values are quoted, and settings of newer versions only go to those", () => {
    const old = renderConf(CONF);
    expect(old).toContain("cluster_name = 'o''brien'");
    expect(old).toContain("synchronous_standby_names = 'ANY 1 (spillway_node_2)'");
    expect(old).not.toContain("sync_replication_slots");
    const standby = renderConf({ ...CONF, major: 17, upstream: UPSTREAM });
    expect(standby).toContain("sync_replication_slots = 'on'");
    expect(standby).toContain("dbname=''postgres''");
    expect(standby).not.toContain("password=");
    expect(renderConf({ ...CONF, major: 17, upstream: { ...UPSTREAM, slot: "" } })).toContain(
      "sync_replication_slots = 'off'",
    );
    expect(conninfoQuote("a'b\\c")).toBe("'a\\'b\\\\c'");
  });

  test("the include is last and once; what ALTER SYSTEM set of ours is taken out, the rest stays", () => {
    writeFileSync(join(dir, "postgresql.conf"), "include 'spillway-ha.conf'\nwork_mem = '8MB'\n\n");
    expect(ensureInclude(dir)).toBe(true);
    expect(ensureInclude(dir)).toBe(false);
    expect(readFileSync(join(dir, "postgresql.conf"), "utf8")).toBe("work_mem = '8MB'\ninclude 'spillway-ha.conf'\n");
    writeFileSync(
      join(dir, "postgresql.auto.conf"),
      "# x\nwork_mem = '9MB'\nprimary_conninfo = 'host=a'\nPort = '1'\n",
    );
    expect(cleanAutoConf(dir)).toEqual(["primary_conninfo", "port"]);
    expect(readFileSync(join(dir, "postgresql.auto.conf"), "utf8")).toBe("# x\nwork_mem = '9MB'\n");
    expect(cleanAutoConf(dir)).toEqual([]);
  });

  test("the marked block is replaced, what the operator wrote stays", () => {
    const path = join(dir, "pg_hba.conf");
    writeFileSync(path, "host all all 10.0.0.0/8 scram-sha-256\n");
    expect(writeBlock(path, ["one"])).toBe(true);
    expect(writeBlock(path, ["one"])).toBe(false);
    expect(writeBlock(path, ["two"])).toBe(true);
    const text = readFileSync(path, "utf8");
    expect(text.match(/two/g)).toHaveLength(1);
    expect(text).not.toContain("one\n");
    expect(text.endsWith("host all all 10.0.0.0/8 scram-sha-256\n")).toBe(true);
  });

  test("replication only from the nodes' own addresses, refused from everywhere else before clients are let in", () => {
    const lines = hbaLines({
      superuser: "postgres",
      osUser: "pg",
      replicationUser: "r",
      peers: ["10.0.0.1", "localhost", "db.example", "::2"],
      clients: ["0.0.0.0/0"],
    });
    expect(lines.filter((l) => l.startsWith("host replication") && l.endsWith("scram-sha-256"))).toHaveLength(5);
    expect(lines.findIndex((l) => l.includes("reject"))).toBeLessThan(lines.findIndex((l) => l.includes("0.0.0.0/0")));
    expect(hbaAddresses("localhost")).toEqual(["127.0.0.1/32", "::1/128"]);
    expect(lines.some((l) => l.includes("trust"))).toBe(false);
  });

  test("a password file is private, with colons escaped", () => {
    const path = join(dir, "pgpass");
    expect(writePassfile(path, "u", "a:b\\c")).toBe(true);
    expect(readFileSync(path, "utf8")).toBe("*:*:*:u:a\\:b\\\\c\n");
    expect(statSync(path).mode & 0o777).toBe(0o600);
  });
});

describe("timelines", () => {
  const history = parseHistory("1\t0/3000060\tno recovery target specified\n\n2\t0/5000000\tx\n# no\n");
  test("histories", () => {
    expect(history).toEqual([
      { timeline: 1, endLsn: 0x3000060n },
      { timeline: 2, endLsn: 0x5000000n },
    ]);
    expect(historyFileName(26)).toBe("0000001A.history");
  });
  test.each([
    [3, 0x9000000n, "ancestor"],
    [1, 0x3000060n, "ancestor"],
    [1, 0x3000061n, "forked"],
    [2, 0x4ffffffn, "ancestor"],
    [2, 0x5000001n, "forked"],
    [4, 0x1n, "behind"],
  ])("timeline %i at %s: %s", (timeline, lsn, kind) => {
    expect(lineage(timeline, lsn, 3, history).kind).toBe(kind);
  });
  test("a timeline that the history does not know is a fork", () => {
    expect(lineage(2, 1n, 3, parseHistory("1 0/1 x"))).toEqual({ kind: "forked", atLsn: 0n });
  });
});

describe("tar", () => {
  test("unpacks what tar packed, however the stream is cut", () => {
    const source = mkdtempSync(join(dir, "src-"));
    execFileSync(
      "sh",
      [
        "-c",
        "mkdir -p a/b && printf hello > a/b/one && : > a/empty && head -c 70000 /dev/urandom > big && ln -s /somewhere a/link",
      ],
      { cwd: source },
    );
    const archive = execFileSync("tar", ["--format=ustar", "-cf", "-", "."], { cwd: source, maxBuffer: 1 << 24 });
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 9000 }), { minLength: 1, maxLength: 20 }), (sizes) => {
        const target = mkdtempSync(join(dir, "dst-"));
        const tar = new TarExtractor(target);
        for (let at = 0, i = 0; at < archive.length; i++) {
          const size = sizes[i % sizes.length] ?? 1;
          tar.push(archive.subarray(at, at + size));
          at += size;
        }
        tar.end();
        expect(readFileSync(join(target, "a/b/one"), "utf8")).toBe("hello");
        expect(statSync(join(target, "a/empty")).size).toBe(0);
        expect(readFileSync(join(target, "big")).equals(readFileSync(join(source, "big")))).toBe(true);
        expect(readlinkSync(join(target, "a/link"))).toBe("/somewhere");
        rmSync(target, { recursive: true });
      }),
      { numRuns: 20 },
    );
  });
  test("a cut-off archive, and one that climbs out, are refused", () => {
    const source = mkdtempSync(join(dir, "bad-"));
    execFileSync("sh", ["-c", "printf hello > one"], { cwd: source });
    const archive = execFileSync("tar", ["--format=ustar", "-cf", "-", "one"], { cwd: source });
    const cut = new TarExtractor(mkdtempSync(join(dir, "cut-")));
    cut.push(archive.subarray(0, 514));
    expect(() => cut.end()).toThrow(/cut off/);
    const climbing = Buffer.from(archive);
    climbing.write("../x\0", 0, "latin1");
    expect(() => new TarExtractor(mkdtempSync(join(dir, "climb-"))).push(climbing)).toThrow(/outside/);
  });
});

describe("words", () => {
  test.each([
    ["initdb: error: cannot be run as root", "ha_run_as_root"],
    ['LOG:  could not bind IPv4 address "127.0.0.1": Address already in use', "ha_port_taken"],
    ['FATAL:  lock file "postmaster.pid" already exists', "ha_data_dir_in_use"],
    ["FATAL:  database files are incompatible with server", "ha_version_mismatch"],
    ["PANIC:  could not write to file: No space left on device", "ha_disk_full"],
    ["FATAL:  could not access directory: Permission denied", "ha_data_dir_permission"],
    ["hello", null],
  ])("%s", (text, code) => expect(codeOfWords(text)).toBe(code));
  test("the line that says why", () => {
    expect(tellingLine("waiting\npg_rewind: error: target server needs checksums\n")).toBe(
      "pg_rewind: error: target server needs checksums",
    );
    expect(tellingLine(" \n")).toBeNull();
  });
  test("versions and pid files", () => {
    expect(parseVersion("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)").major).toBe(15);
    expect(parseVersion("postgres (PostgreSQL) 18.4\n")).toEqual({ major: 18, version: "18.4" });
    expect(() => parseVersion("mysqld 8")).toThrow(/not a Postgres server/);
    expect(parsePidFile("12\n/d\n1\n5432\n/s\n*\n  1 2\nready   \n")).toEqual({ pid: 12, port: 5432, status: "ready" });
    expect(parseControlData(Buffer.alloc(8192))).toBeNull();
    expect(parseControlData(Buffer.alloc(8))).toBeNull();
  });
});
