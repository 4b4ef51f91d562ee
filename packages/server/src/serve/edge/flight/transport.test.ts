/** The edge's gRPC against grpc-js's own client: slow readers, calls that end early, errors, TLS whose certificate changes. */
import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Client, credentials, Metadata, type ServiceError } from "@grpc/grpc-js";
import { SpillwayError } from "@spillway/base/errors";
import { silentLogger } from "@spillway/base/log";
import { sleep, waitFor } from "@spillway/testkit/wait";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startTransport, type CallContext, type FlightService, type Transport } from "./transport.ts";

const PATH = "/arrow.flight.protocol.FlightService";
const identity = (bytes: Buffer): Buffer => bytes;
const MESSAGE = randomBytes(512 << 10);

/** Sends for ever, and knows how much was asked of it and whether it was told to stop. */
class Endless implements FlightService {
  sent = 0;
  ended = 0;
  readonly signals: AbortSignal[] = [];
  fail: unknown = null;

  async *doGet(call: CallContext): AsyncIterable<Buffer> {
    this.signals.push(call.signal);
    try {
      for (;;) {
        if (call.signal.aborted) return;
        this.sent += 1;
        yield MESSAGE;
        await sleep(0);
      }
    } finally {
      this.ended += 1;
    }
  }

  getFlightInfo(call: CallContext, request: Buffer): Promise<Buffer> {
    if (this.fail !== null) return Promise.reject(this.fail as Error);
    call.reply("authorization", "Bearer t");
    return Promise.resolve(Buffer.concat([request, Buffer.from(call.header("who"))]));
  }

  async *doPut(_call: CallContext, requests: AsyncIterable<Buffer>): AsyncIterable<Buffer> {
    let bytes = 0;
    for await (const request of requests) bytes += request.length;
    yield Buffer.from(String(bytes));
  }

  async *handshake(): AsyncIterable<Buffer> {}
  async *doAction(): AsyncIterable<Buffer> {}
  async *listActions(): AsyncIterable<Buffer> {}
  pollFlightInfo = (): Promise<Buffer> => Promise.resolve(Buffer.alloc(0));
  getSchema = (): Promise<Buffer> => Promise.resolve(Buffer.alloc(0));
}

let transport: Transport;
let service: Endless;
let client: Client;

beforeAll(async () => {
  service = new Endless();
  const options = { host: "127.0.0.1", port: 0, tls: null, log: silentLogger, maxMessageBytes: 1 << 20 };
  transport = await startTransport(service, options);
  client = new Client(`127.0.0.1:${transport.port}`, credentials.createInsecure(), {
    "grpc.max_receive_message_length": -1,
  });
});
afterAll(async () => {
  client.close();
  await transport.stop(100);
});

const get = () => client.makeServerStreamRequest(`${PATH}/DoGet`, identity, identity, Buffer.alloc(0));

function info(c: Client, request: Buffer, metadata = new Metadata()): Promise<{ body: Buffer; bearer: unknown }> {
  return new Promise((resolve, reject) => {
    let bearer: unknown = null;
    const call = c.makeUnaryRequest(`${PATH}/GetFlightInfo`, identity, identity, request, metadata, (error, body) => {
      if (error) reject(error);
      else resolve({ body: body ?? Buffer.alloc(0), bearer });
    });
    call.on("metadata", (m: Metadata) => (bearer = m.get("authorization")[0]));
  });
}

describe("a reader that stops", () => {
  test("holds the sender back after a few messages, and gets the rest when it goes on", async () => {
    service.sent = 0;
    const call = get();
    call.on("error", () => {});
    let got = 0;
    call.once("data", () => call.pause());
    call.on("data", () => (got += 1));
    await waitFor("the sender to be held back", async () => {
      const before = service.sent;
      await sleep(300);
      return service.sent > 1 && service.sent === before;
    });
    // 512 KiB each: what the sockets and windows hold, and no more.
    expect(service.sent).toBeLessThan(64);
    const held = service.sent;
    call.resume();
    await waitFor("more", () => got > held + 20);
    call.cancel();
  });

  test("one that is gone ends the work within a second", async () => {
    await waitFor("calls before to end", () => service.ended === service.signals.length);
    const call = get();
    call.on("error", () => {});
    call.once("data", () => call.cancel());
    await waitFor("the call", () => service.ended < service.signals.length || call.destroyed);
    await waitFor("the end", () => service.ended === service.signals.length, { timeoutMs: 1000 });
    expect(service.signals.at(-1)?.aborted).toBe(true);
  });

  test("so does a deadline", async () => {
    await waitFor("calls before to end", () => service.ended === service.signals.length);
    const before = service.signals.length;
    const call = client.makeServerStreamRequest(`${PATH}/DoGet`, identity, identity, Buffer.alloc(0), new Metadata(), {
      deadline: Date.now() + 300,
    });
    call.on("error", () => {});
    call.on("data", () => {});
    await waitFor("the end", () => service.ended === before + 1, { timeoutMs: 2000 });
  });
});

test("headers come in and go out", async () => {
  const metadata = new Metadata();
  metadata.set("who", "ann");
  expect(await info(client, Buffer.from("x"), metadata)).toEqual({ body: Buffer.from("xann"), bearer: "Bearer t" });
});

test("errors: status, code and SQLSTATE; what nobody foresaw says nothing of its stack", async () => {
  const failed = async (error: unknown): Promise<ServiceError> => {
    service.fail = error;
    try {
      return await info(client, Buffer.alloc(0)).then(
        () => Promise.reject(new Error("it was answered")),
        (e: unknown) => e as ServiceError,
      );
    } finally {
      service.fail = null;
    }
  };
  const denied = await failed(new SpillwayError("access_denied", "no such table", { details: { sqlstate: "42501" } }));
  expect(denied.code).toBe(7);
  expect(denied.metadata.get("spillway-code")).toEqual(["access_denied"]);
  expect(denied.metadata.get("spillway-sqlstate")).toEqual(["42501"]);
  expect(denied.details).toMatch(/^access_denied: no such table\. /);
  expect((await failed(new SpillwayError("auth_failed", "no"))).code).toBe(16);
  expect((await failed(new SpillwayError("flight_unsupported", "no"))).code).toBe(12);
  const strange = await failed(new TypeError("x is not a function\n    at file.ts:1:1"));
  expect([strange.code, strange.details]).toEqual([13, expect.stringMatching(/^internal: [^\n]*$/)]);
});

test("a message beyond the limit is refused, and the connection goes on", async () => {
  await expect(info(client, Buffer.alloc(2 << 20))).rejects.toMatchObject({ code: 8 });
  expect((await info(client, Buffer.from("y"))).body.toString()).toBe("y");
});

test("a client that ends its side first gets its answer", async () => {
  const answer = await new Promise<string>((resolve, reject) => {
    const call = client.makeBidiStreamRequest(`${PATH}/DoPut`, identity, identity);
    call.on("data", (bytes: Buffer) => resolve(bytes.toString()));
    call.on("error", reject);
    call.write(Buffer.alloc(1000));
    call.write(Buffer.alloc(234));
    call.end();
  });
  expect(answer).toBe("1234");
});

test("TLS, and a certificate that is replaced while it runs", async () => {
  const dir = mkdtempSync(join(tmpdir(), "spillway-flight-tls-"));
  const [certFile, keyFile] = [join(dir, "cert.pem"), join(dir, "key.pem")];
  const make = (name: string): void => {
    const subject = ["-subj", `/CN=${name}`, "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-days", "2"];
    const files = ["-keyout", keyFile, "-out", certFile];
    execFileSync("openssl", ["req", "-x509", "-newkey", "rsa:2048", "-nodes", ...files, ...subject], {
      stdio: "ignore",
    });
  };
  make("first");
  const secure = await startTransport(service, {
    host: "127.0.0.1",
    port: 0,
    tls: { certFile, keyFile },
    log: silentLogger,
  });
  const ask = async (ca: Buffer): Promise<string> => {
    const c = new Client(`localhost:${secure.port}`, credentials.createSsl(ca));
    try {
      return (await info(c, Buffer.from("s"))).body.toString();
    } finally {
      c.close();
    }
  };
  try {
    const first = readFileSync(certFile);
    await waitFor("TLS", () =>
      ask(first).then(
        (text) => text === "s",
        () => false,
      ),
    );
    make("second");
    const second = readFileSync(certFile);
    await waitFor(
      "the new certificate",
      () =>
        ask(second).then(
          (text) => text === "s",
          () => false,
        ),
      {
        timeoutMs: 10_000,
      },
    );
    await expect(ask(first)).rejects.toMatchObject({ code: 14 });
  } finally {
    await secure.stop(100);
    rmSync(dir, { recursive: true, force: true });
  }
});

test("a port that is taken is said in one line", async () => {
  const taken = { host: "127.0.0.1", port: transport.port, tls: null, log: silentLogger };
  await expect(startTransport(service, taken)).rejects.toMatchObject({ code: "serve_listen_failed" });
});
