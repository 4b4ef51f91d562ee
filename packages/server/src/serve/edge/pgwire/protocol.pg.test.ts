/** The protocol below the drivers: start-up, limits, TLS, order of messages, clients that misbehave. */
import { execFile, execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect as tlsConnect } from "node:tls";
import { promisify } from "node:util";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { scramClient } from "@spillway/pg/wire/scram";
import { startTestEdge, type TestEdge } from "./test-edge.ts";

let edge: TestEdge;
let dir: string;

function certificate(name: string): { cert: string; key: string } {
  const [cert, key] = [join(dir, `${name}.crt`), join(dir, `${name}.key`)];
  const args = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
  execFileSync(
    "openssl",
    [...args, "-subj", `/CN=${name}`, "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
    { stdio: "ignore" },
  );
  return { cert: readFileSync(cert, "utf8"), key: readFileSync(key, "utf8") };
}

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), "spillway-pgwire-"));
  edge = await startTestEdge(undefined, {
    tls: certificate("one"),
    limits: { connections: 12, handshakeMs: 1500, messageBytes: 1 << 20, stallMs: 3000, idleInTransactionMs: 1200 },
  });
});
afterAll(async () => {
  await edge.close();
  rmSync(dir, { recursive: true, force: true });
});

afterEach(async () => {
  for (const socket of open) socket.destroy();
  open.clear();
  for (let i = 0; i < 200 && edge.edge.connections > 0; i++) await new Promise((resolve) => setTimeout(resolve, 20));
});

const int32 = (n: number): Buffer => {
  const out = Buffer.alloc(4);
  out.writeInt32BE(n);
  return out;
};
const zeroed = (text: string): Buffer => Buffer.from(`${text}\0`);
const message = (type: string, ...parts: Buffer[]): Buffer => {
  const body = Buffer.concat(parts);
  return Buffer.concat([Buffer.from(type), int32(body.length + 4), body]);
};
const startup = (version = 0x30000, more: Record<string, string> = {}): Buffer => {
  const pairs = Object.entries({ user: "owner", database: "db", ...more }).flatMap(([k, v]) => [zeroed(k), zeroed(v)]);
  const body = Buffer.concat([int32(version), ...pairs, Buffer.from([0])]);
  return Buffer.concat([int32(body.length + 4), body]);
};

const open = new Set<Socket>();

class Raw {
  readonly socket: Socket;
  #bytes = Buffer.alloc(0);
  #wake: () => void = () => {};
  closed = false;

  constructor(socket: Socket) {
    this.socket = socket;
    open.add(socket);
    socket.on("data", (chunk: Buffer) => {
      this.#bytes = Buffer.concat([this.#bytes, chunk]);
      this.#wake();
    });
    socket.on("close", () => {
      this.closed = true;
      this.#wake();
    });
    socket.on("error", () => {});
  }

  static async open(): Promise<Raw> {
    const socket = connect(edge.port, "127.0.0.1");
    await new Promise((resolve) => socket.once("connect", resolve));
    return new Raw(socket);
  }

  async bytes(count: number): Promise<Buffer> {
    while (this.#bytes.length < count) {
      if (this.closed) throw new Error("closed");
      await new Promise<void>((resolve, reject) => {
        const late = setTimeout(() => reject(new Error(`no answer; ${this.#bytes.length} bytes wait`)), 5000);
        this.#wake = () => {
          clearTimeout(late);
          resolve();
        };
      });
    }
    const out = this.#bytes.subarray(0, count);
    this.#bytes = this.#bytes.subarray(count);
    return out;
  }

  async next(): Promise<{ type: string; body: Buffer }> {
    const head = await this.bytes(5);
    return { type: head.toString("latin1", 0, 1), body: await this.bytes(head.readInt32BE(1) - 4) };
  }

  /** Messages up to and with one of this type. */
  async until(type: string): Promise<{ type: string; body: Buffer }[]> {
    const out: { type: string; body: Buffer }[] = [];
    for (;;) {
      const one = await this.next();
      out.push(one);
      if (one.type === type) return out;
    }
  }

  async end(): Promise<void> {
    while (!this.closed) await new Promise<void>((resolve) => (this.#wake = resolve));
  }

  async login(version = 0x30000, more: Record<string, string> = {}): Promise<{ type: string; body: Buffer }[]> {
    this.socket.write(startup(version, more));
    const before: { type: string; body: Buffer }[] = [];
    let first = await this.next();
    if (first.type === "v") {
      before.push(first);
      first = await this.next();
    }
    expect(first.body.readInt32BE(0)).toBe(10);
    const scram = scramClient("owner's pass");
    const initial = Buffer.from(scram.first);
    this.socket.write(message("p", zeroed("SCRAM-SHA-256"), int32(initial.length), initial));
    const answer = await this.next();
    this.socket.write(message("p", Buffer.from(await scram.final(answer.body.toString("utf8", 4)))));
    const final = await this.next();
    scram.verify(final.body.toString("utf8", 4));
    return [...before, ...(await this.until("Z"))];
  }
}

async function loggedIn(): Promise<Raw> {
  const raw = await Raw.open();
  await raw.login();
  return raw;
}

const types = (messages: readonly { type: string }[]): string =>
  messages
    .map(({ type }) => type)
    // Parameters may be reported at any time.
    .filter((type) => type !== "S")
    .join("");
const stateOf = ({ body }: { body: Buffer }): string => /C([0-9A-Z]{5})\0/.exec(body.toString("latin1"))?.[1] ?? "";
const parse = (sql: string, name = ""): Buffer => message("P", zeroed(name), zeroed(sql), Buffer.from([0, 0]));
const bind = (portal = "", name = ""): Buffer =>
  message("B", zeroed(portal), zeroed(name), Buffer.from([0, 0, 0, 0, 0, 0]));
const execute = (max = 0, portal = ""): Buffer => message("E", zeroed(portal), int32(max));
const SYNC = message("S");

describe("start-up", () => {
  test("the parameters and the key of each version", async () => {
    const old = await Raw.open();
    const oldSeen = await old.login();
    expect(oldSeen.find(({ type }) => type === "K")?.body.length).toBe(8);
    const names = oldSeen.filter(({ type }) => type === "S").map(({ body }) => body.toString("utf8").split("\0")[0]);
    expect(names).toEqual(expect.arrayContaining(["server_version", "client_encoding", "TimeZone", "DateStyle", "standard_conforming_strings", "integer_datetimes"])); // prettier-ignore
    const recent = await Raw.open();
    const seen = await recent.login(0x30002);
    expect(types(seen)).not.toContain("v");
    expect(seen.find(({ type }) => type === "K")?.body.length).toBe(36);
    const future = await Raw.open();
    const negotiated = await future.login(0x3270f, { "_pq_.magic": "1" });
    expect(negotiated[0]?.type).toBe("v");
    expect(negotiated[0]?.body.readInt32BE(0)).toBe(0x30002);
    expect(negotiated[0]?.body.toString("latin1", 8)).toBe("_pq_.magic\0");
    for (const raw of [old, recent, future]) raw.socket.destroy();
  });

  test.each([
    ["another protocol", Buffer.concat([int32(8), int32(0x20000)]), "0A000"],
    ["no user", Buffer.concat([int32(9), int32(0x30000), Buffer.from([0])]), "28000"],
    ["too long", Buffer.concat([int32(1 << 30), int32(0x30000)]), "08P01"],
    ["replication", startup(0x30000, { replication: "database" }), "0A000"],
  ])("%s", async (_, bytes, state) => {
    const raw = await Raw.open();
    raw.socket.write(bytes);
    const answer = await raw.next();
    expect(answer.type).toBe("E");
    expect(stateOf(answer)).toBe(state);
    await raw.end();
  });

  test("a client that says nothing is let go", async () => {
    const raw = await Raw.open();
    const started = performance.now();
    await raw.end();
    expect(performance.now() - started).toBeLessThan(5000);
  });

  test("GSS encryption is declined, TLS is not; bytes slipped in before it end the connection", async () => {
    const raw = await Raw.open();
    raw.socket.write(Buffer.concat([int32(8), int32(80877104)]));
    expect((await raw.bytes(1)).toString()).toBe("N");
    raw.socket.write(Buffer.concat([int32(8), int32(80877103), Buffer.from("injected")]));
    await expect(raw.next()).resolves.toMatchObject({ type: "E" });
    await raw.end();
  });
});

describe("TLS", () => {
  const url = (mode: string, more = ""): string => `${edge.url()}?sslmode=${mode}${more}`;
  // The edge is in this process: it must not wait for psql.
  const psql = async (target: string): Promise<string> => {
    const env = { ...process.env, PGSSLROOTCERT: "" };
    return (await promisify(execFile)("psql", [target, "-XAtc", "SELECT 42"], { env })).stdout.trim();
  };

  test("psql with channel binding, and the certificate of now", async () => {
    expect(await psql(url("require", "&channel_binding=require"))).toBe("42");
    const peer = (): Promise<string> =>
      new Promise((resolve, reject) => {
        const socket = tlsConnect(
          { port: edge.port, host: "127.0.0.1", ALPNProtocols: ["postgresql"], rejectUnauthorized: false },
          () => {
            resolve(`${socket.getPeerCertificate().subject.CN as string} ${String(socket.alpnProtocol)}`);
            socket.destroy();
          },
        );
        socket.on("error", reject);
      });
    // Without asking first, as clients of Postgres 17 can.
    expect(await peer()).toBe("one postgresql");
    edge.edge.reloadTls(certificate("two"));
    expect(await peer()).toBe("two postgresql");
    expect(() => edge.edge.reloadTls({ cert: "x", key: "y" })).toThrow(/certificate/);
    expect(await psql(url("require", "&channel_binding=require"))).toBe("42");
  });
});

describe("the order of messages", () => {
  test("what follows an error is skipped until Sync", async () => {
    const raw = await loggedIn();
    raw.socket.write(
      Buffer.concat([parse("SELECT nope FROM items"), bind(), execute(), parse("SELECT 1"), bind(), execute(), SYNC]),
    );
    expect(types(await raw.until("Z"))).toBe("EZ");
    raw.socket.write(
      Buffer.concat([
        parse("SELECT nope FROM plain"),
        bind(),
        execute(),
        SYNC,
        parse("SELECT a FROM plain LIMIT 1"),
        bind(),
        execute(),
        SYNC,
      ]),
    );
    expect(types(await raw.until("Z"))).toBe("EZ");
    expect(types(await raw.until("Z"))).toBe("12DCZ");
    raw.socket.destroy();
  });

  test.each(["items", "plain"])("a portal is read in parts (%s)", async (table) => {
    const raw = await loggedIn();
    raw.socket.write(message("Q", zeroed("BEGIN")));
    await raw.until("Z");
    const sql = `SELECT ${table === "items" ? "id" : "a"} FROM ${table} ORDER BY 1 LIMIT 5`;
    raw.socket.write(Buffer.concat([parse(sql), bind("p"), execute(2, "p"), SYNC]));
    expect(types(await raw.until("Z"))).toBe("12DDsZ");
    // Another statement in between.
    raw.socket.write(message("Q", zeroed("SELECT count(*) FROM items")));
    expect(types(await raw.until("Z"))).toBe("TDCZ");
    raw.socket.write(
      Buffer.concat([execute(2, "p"), execute(0, "p"), message("D", Buffer.from("P"), zeroed("p")), SYNC]),
    );
    expect(types(await raw.until("Z"))).toBe("DDsDCTZ");
    raw.socket.write(Buffer.concat([message("C", Buffer.from("P"), zeroed("p")), execute(0, "p"), SYNC]));
    const seen = await raw.until("Z");
    expect(types(seen)).toBe("3EZ");
    expect(stateOf(seen[1] ?? { body: Buffer.alloc(0) })).toBe("34000");
    raw.socket.destroy();
  });

  test("statements between two Syncs are one transaction", async () => {
    const raw = await loggedIn();
    const update = parse("UPDATE items SET label = 'lost' WHERE id = 11");
    raw.socket.write(Buffer.concat([update, bind(), execute(), parse("SELECT nope FROM items"), SYNC]));
    expect(types(await raw.until("Z"))).toBe("12CEZ");
    raw.socket.write(message("Q", zeroed("SELECT label FROM items WHERE id = 11")));
    expect((await raw.until("Z"))[1]?.body.toString("utf8", 6)).toBe("label 4");
    // Several statements in one text too.
    raw.socket.write(message("Q", zeroed("UPDATE items SET label = 'lost' WHERE id = 12; SELECT nope FROM items")));
    expect(types(await raw.until("Z"))).toBe("CEZ");
    raw.socket.write(message("Q", zeroed("SELECT label FROM items WHERE id = 12")));
    expect((await raw.until("Z"))[1]?.body.toString("utf8", 6)).toBe("label 5");
    raw.socket.destroy();
  });

  test("a description runs nothing", async () => {
    const raw = await loggedIn();
    const insert = "INSERT INTO items (id, k) VALUES (77777, 77777) RETURNING id";
    raw.socket.write(Buffer.concat([parse(insert, "s"), message("D", Buffer.from("S"), zeroed("s")), SYNC]));
    expect(types(await raw.until("Z"))).toBe("1tTZ");
    raw.socket.write(message("Q", zeroed("SELECT count(*) FROM items WHERE id = 77777")));
    expect((await raw.until("Z"))[1]?.body.toString("utf8", 6)).toBe("0");
    raw.socket.destroy();
  });

  test("malformed and unknown messages", async () => {
    const raw = await loggedIn();
    raw.socket.write(Buffer.concat([message("P", Buffer.from("no zero")), SYNC]));
    const seen = await raw.until("Z");
    expect(types(seen)).toBe("EZ");
    expect(stateOf(seen[0] ?? { body: Buffer.alloc(0) })).toBe("08P01");
    raw.socket.write(message("Q", Buffer.from([0xff, 0xfe, 0])));
    expect(stateOf((await raw.until("Z"))[0] ?? { body: Buffer.alloc(0) })).toBe("22021");
    raw.socket.write(
      Buffer.concat([message("B", zeroed(""), zeroed("nobody"), Buffer.from([0, 0, 0, 0, 0, 0])), SYNC]),
    );
    expect(stateOf((await raw.until("Z"))[0] ?? { body: Buffer.alloc(0) })).toBe("26000");
    raw.socket.write(Buffer.concat([Buffer.from("Q"), int32(64 << 20)]));
    expect((await raw.until("E"))[0]?.type).toBe("E");
    await raw.end();
  });
});

describe("limits", () => {
  test("too many clients, and idle in a transaction", async () => {
    const all = await Promise.all(Array.from({ length: 12 }, () => loggedIn()));
    await expect(loggedIn()).rejects.toThrow();
    const first = all[0];
    first?.socket.write(message("Q", zeroed("BEGIN")));
    await first?.until("Z");
    const ended = (await first?.until("E")) ?? [];
    expect(stateOf(ended.at(-1) ?? { body: Buffer.alloc(0) })).toBe("25P03");
    for (const raw of all) raw.socket.destroy();
    while (edge.edge.connections > 0) await new Promise((resolve) => setTimeout(resolve, 20));
  });

  test.each([
    ["tiers", "SELECT a.id, repeat(b.label, 200) FROM items a, items b"],
    ["source", "SELECT repeat('x', 1000) FROM generate_series(1, 5000000)"],
  ])("a client that stops reading costs little and is let go (%s)", async (_, sql) => {
    const raw = await loggedIn();
    const before = process.memoryUsage().rss;
    raw.socket.write(message("Q", zeroed(sql)));
    raw.socket.pause();
    const started = performance.now();
    while (edge.edge.connections > 0 && performance.now() - started < 20_000)
      await new Promise((resolve) => setTimeout(resolve, 50));
    expect(edge.edge.connections).toBe(0);
    expect(performance.now() - started).toBeGreaterThan(2500);
    expect((process.memoryUsage().rss - before) / (1 << 20)).toBeLessThan(250);
    raw.socket.destroy();
  });

  test("a client that leaves stops its statement", async () => {
    const raw = await loggedIn();
    raw.socket.write(message("Q", zeroed("SELECT pg_sleep(60)")));
    const second = await loggedIn();
    second.socket.write(message("Q", zeroed("SELECT count(*) FROM items a, items b, items c, items d")));
    await new Promise((resolve) => setTimeout(resolve, 400));
    raw.socket.destroy();
    second.socket.end();
    const started = performance.now();
    while (edge.edge.connections > 0 && performance.now() - started < 5000)
      await new Promise((resolve) => setTimeout(resolve, 20));
    expect(performance.now() - started).toBeLessThan(1500);
    const { rows } = await edge.source.db.client.query(
      "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND pid <> pg_backend_pid() AND state = 'active'",
    );
    expect(rows).toEqual([]);
  });
});
