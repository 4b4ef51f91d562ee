/**
 * From the first byte of a connection to the end of its authentication: TLS (asked for, or at once as libpq 17 can), protocol
 * version, start-up parameters, SCRAM. A cancel request ends here too.
 * Source: https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP
 */
import type { Socket } from "node:net";
import { TLSSocket, type SecureContext } from "node:tls";
import { SpillwayError } from "@spillway/base/errors";
import type { Principal } from "../../session/session.ts";
import { writeAuthentication, writeNegotiateProtocol } from "./backend.ts";
import { BodyReader, type FrontendReader } from "./frontend-reader.ts";
import type { OutBuffer } from "./out-buffer.ts";
import type { LoginRequest, WireAuthenticator } from "./ports.ts";
import { endPointOf, fakeVerifier, parseVerifier, scramServer, type ScramExchange } from "./scram-server.ts";
import { pgError } from "./wire-errors.ts";

/** A certificate that may change while the server runs. */
export interface WireTls {
  readonly context: SecureContext;
}

export interface HandshakeOptions {
  readonly auth: WireAuthenticator;
  /** Null: TLS is not offered. */
  readonly tls: (() => WireTls) | null;
  /** Refuses every login without TLS. */
  readonly requireTls: boolean;
  /** Behind the salts of users who do not exist; the same at every manager. */
  readonly secret: Buffer;
  readonly address: string;
  readonly cancel: (processId: number, key: Buffer) => void;
}

export interface Greeted {
  readonly principal: Principal;
  /** 3.0 is 0x30000, 3.2 is 0x30002. */
  readonly version: number;
  /** Names in lower case but for those that Postgres writes otherwise. */
  readonly parameters: ReadonlyMap<string, string>;
  readonly database: string;
  readonly socket: Socket;
}

const SSL_REQUEST = 80877103;
const GSS_REQUEST = 80877104;
const CANCEL_REQUEST = 80877102;
/** Postgres's own bound on a start-up packet. */
const MAX_STARTUP_BYTES = 10_000;
const LATEST = 0x3_0002;

/** Null when the connection only canceled something, or went away. Throws what ends it with a FATAL error. */
export async function greet(
  socket: Socket,
  reader: FrontendReader,
  out: OutBuffer,
  options: HandshakeOptions,
): Promise<Greeted | null> {
  let stream = socket;
  for (;;) {
    const head = await reader.bytes(4);
    if (head === null) return null;
    if (head[0] === 0x16 && stream === socket) {
      const secure = await startTls(stream, reader, options, head);
      if (secure === null) return null;
      stream = secure;
      out.use(stream);
      continue;
    }
    const length = head.readInt32BE(0);
    if (length < 8 || length > MAX_STARTUP_BYTES) throw protocolError("invalid length of startup packet");
    const body = await reader.bytes(length - 4);
    if (body === null) return null;
    const code = body.readInt32BE(0);
    if (code === CANCEL_REQUEST) {
      if (body.length >= 12) options.cancel(body.readInt32BE(4), body.subarray(8));
      return null;
    }
    if (code === SSL_REQUEST && stream === socket && options.tls !== null) {
      // What came with the request was sent before the encryption, by whoever.
      if (reader.buffered > 0) throw protocolError("received unencrypted data after SSL request");
      stream.write("S");
      const secure = await startTls(stream, reader, options, null);
      if (secure === null) return null;
      stream = secure;
      out.use(stream);
      continue;
    }
    if (code === SSL_REQUEST || code === GSS_REQUEST) {
      stream.write("N");
      continue;
    }
    return startSession(stream, reader, out, options, code, body.subarray(4));
  }
}

/** Null when the client gave up. */
async function startTls(
  socket: Socket,
  reader: FrontendReader,
  { tls }: HandshakeOptions,
  first: Buffer | null,
): Promise<TLSSocket | null> {
  if (tls === null) throw protocolError("TLS is not offered here");
  reader.detach();
  if (first !== null) socket.unshift(first);
  const { context } = tls();
  const secure = new TLSSocket(socket, {
    isServer: true,
    secureContext: context,
    ALPNProtocols: ["postgresql"],
  } as ConstructorParameters<typeof TLSSocket>[1]);
  const ready = await new Promise<boolean>((resolve) => {
    secure.once("secure", () => resolve(true));
    secure.once("error", () => resolve(false));
    secure.once("close", () => resolve(false));
  });
  secure.on("error", () => {});
  if (!ready) return null;
  // A client that did not ask first has to say by ALPN that it means this protocol.
  if (first !== null && secure.alpnProtocol !== "postgresql") {
    secure.destroy();
    return null;
  }
  reader.attach(secure);
  return secure;
}

async function startSession(
  socket: Socket,
  reader: FrontendReader,
  out: OutBuffer,
  options: HandshakeOptions,
  code: number,
  body: Buffer,
): Promise<Greeted | null> {
  const [major, minor] = [code >>> 16, code & 0xffff];
  if (major !== 3) {
    throw protocolError(`unsupported frontend protocol ${major}.${minor}: server supports 3.0 to 3.2`, "0A000");
  }
  const parameters = parseParameters(body);
  const unknown = [...parameters.keys()].filter((name) => name.startsWith("_pq_."));
  for (const name of unknown) parameters.delete(name);
  const version = minor >= 2 ? LATEST : 0x3_0000;
  if (version !== code || unknown.length > 0) writeNegotiateProtocol(out, version, unknown);
  const user = parameters.get("user") ?? "";
  if (user === "") throw pgError("28000", "no PostgreSQL user name specified in startup packet");
  if (options.requireTls && !(socket instanceof TLSSocket)) {
    throw pgError("28000", "this server takes only encrypted connections", { hint: "Use sslmode=require." });
  }
  if ((parameters.get("replication") ?? "false") !== "false") {
    throw pgError("0A000", "replication connections are not served here");
  }
  const database = parameters.get("database") ?? user;
  const application = parameters.get("application_name") ?? "";
  const request: LoginRequest = { user, database, address: options.address, application };
  if (!(await authenticate(socket, reader, out, options, request))) return null;
  const principal = await options.auth.login(request);
  return { principal, version, parameters, database, socket };
}

function parseParameters(body: Buffer): Map<string, string> {
  const parameters = new Map<string, string>();
  const fields = new BodyReader(body);
  for (;;) {
    const name = fields.text();
    if (name === "") break;
    parameters.set(name, fields.text());
  }
  fields.done();
  for (const [name, value] of parseOptions(parameters.get("options") ?? "")) {
    if (!parameters.has(name)) parameters.set(name, value);
  }
  parameters.delete("options");
  return parameters;
}

/** `-c name=value` and `--name=value`, a backslash before a space that belongs to the value. */
export function parseOptions(text: string): [string, string][] {
  const words = text.match(/(?:\\.|\S)+/g)?.map((word) => word.replace(/\\(.)/g, "$1")) ?? [];
  const found: [string, string][] = [];
  for (let i = 0; i < words.length; i++) {
    let word = words[i] ?? "";
    if (word === "-c") word = words[(i += 1)] ?? "";
    else if (word.startsWith("-c")) word = word.slice(2);
    else if (word.startsWith("--")) word = word.slice(2);
    else throw pgError("42601", `invalid command-line argument for server process: ${word}`);
    const at = word.indexOf("=");
    if (at < 1) throw pgError("42601", `-c ${word} requires a value`);
    found.push([word.slice(0, at).replaceAll("-", "_"), word.slice(at + 1)]);
  }
  return found;
}

/** False when the client went away. */
async function authenticate(
  socket: Socket,
  reader: FrontendReader,
  out: OutBuffer,
  options: HandshakeOptions,
  request: LoginRequest,
): Promise<boolean> {
  const text = await options.auth.scramVerifierOf(request.user);
  const verifier = (text === null ? null : parseVerifier(text)) ?? fakeVerifier(request.user, options.secret);
  const endPoint = socket instanceof TLSSocket ? certificateEndPoint(socket) : null;
  const mechanisms = [...(endPoint === null ? [] : ["SCRAM-SHA-256-PLUS"]), "SCRAM-SHA-256"];
  writeAuthentication(out, 10, Buffer.from(`${mechanisms.join("\0")}\0\0`, "latin1"));
  out.flush();
  const first = await saslMessage(reader);
  if (first === null) return false;
  const fields = new BodyReader(first);
  const mechanism = fields.text();
  if (!mechanisms.includes(mechanism)) throw protocolError("client selected an invalid SASL authentication mechanism");
  const size = fields.int32();
  const exchange = scramServer({ mechanism, verifier, endPoint });
  writeAuthentication(
    out,
    11,
    Buffer.from(exchange.first(size < 0 ? "" : fields.bytes(size).toString("utf8")), "utf8"),
  );
  out.flush();
  const final = await saslMessage(reader);
  if (final === null) return false;
  writeAuthentication(out, 12, Buffer.from(await proved(exchange, final, options, request), "utf8"));
  writeAuthentication(out, 0);
  return true;
}

async function proved(
  exchange: ScramExchange,
  final: Buffer,
  options: HandshakeOptions,
  request: LoginRequest,
): Promise<string> {
  try {
    return exchange.final(final.toString("utf8"));
  } catch (error) {
    await options.auth.failed(request);
    if (error instanceof SpillwayError && error.details["sqlstate"] === "28P01") {
      throw pgError("28P01", `password authentication failed for user "${request.user}"`, {}, "pg_auth_failed");
    }
    throw error;
  }
}

async function saslMessage(reader: FrontendReader): Promise<Buffer | null> {
  const message = await reader.next();
  if (message === null) return null;
  if (message.type !== "p") throw protocolError(`expected SASL response, got message type ${message.type}`);
  return message.body;
}

function certificateEndPoint(socket: TLSSocket): Buffer | null {
  const certificate = socket.getCertificate() as { raw?: Buffer } | null;
  return certificate?.raw ? endPointOf(certificate.raw) : null;
}

function protocolError(message: string, sqlstate = "08P01"): SpillwayError {
  return new SpillwayError("pg_protocol_error", message, { details: { sqlstate } });
}
