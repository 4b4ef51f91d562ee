/**
 * The Postgres wire edge: takes connections that a listener accepted, greets them, and serves each until it ends. It holds the limits
 * of all connections, the keys by which statements are canceled, and the certificate.
 * Source: https://www.postgresql.org/docs/current/protocol.html
 */
import { randomBytes, timingSafeEqual } from "node:crypto";
import type { Socket } from "node:net";
import { createSecureContext, type SecureContext } from "node:tls";
import type { Clock } from "@spillway/base/clock";
import { isSpillwayError, messageOf, SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import type { Metrics } from "@spillway/base/metrics";
import type { ServeSession, Sessions } from "../../session/session.ts";
import { writeBackendKey, writeParameterStatus } from "./backend.ts";
import { Client } from "./client.ts";
import { Engines } from "./engines.ts";
import { FrontendReader } from "./frontend-reader.ts";
import { type Greeted, greet } from "./handshake.ts";
import { OutBuffer } from "./out-buffer.ts";
import type { SourceAccess, WireAuthenticator } from "./ports.ts";
import { loadParser } from "./sql-tree.ts";
import { pgError, wireErrorOf, writeError } from "./wire-errors.ts";
import { zoneOffset } from "./zone.ts";

export interface PgWireLimits {
  /** Clients that are served at a time; more get 53300. */
  readonly connections: number;
  /** From the first byte to the end of the login. */
  readonly handshakeMs: number;
  /** The largest message of a client that is logged in. */
  readonly messageBytes: number;
  /** How long a client may leave its socket full. */
  readonly stallMs: number;
  /** 0: no bound. */
  readonly idleMs: number;
  readonly idleInTransactionMs: number;
  readonly catalogMs: number;
}

export const PGWIRE_LIMITS: PgWireLimits = {
  connections: 1000,
  handshakeMs: 15_000,
  messageBytes: 64 << 20,
  stallMs: 600_000,
  idleMs: 0,
  idleInTransactionMs: 600_000,
  catalogMs: 30_000,
};

export interface PgWireOptions {
  readonly sessions: Sessions;
  readonly auth: WireAuthenticator;
  /** Null: nothing passes to a source. */
  readonly source: SourceAccess | null;
  /** PEM texts; null: TLS is not offered. */
  readonly tls: { readonly cert: string; readonly key: string } | null;
  /** Takes no login without TLS. */
  readonly requireTls: boolean;
  /** 32 bytes that all managers share: behind the salts of users who do not exist. */
  readonly secret: Buffer;
  readonly clock: Clock;
  readonly log: Logger;
  readonly metrics: Metrics;
  readonly limits?: Partial<PgWireLimits>;
  /** A cancel request whose key is not one of this manager's: another one may have it. */
  readonly forwardCancel?: (processId: number, key: Buffer) => void;
}

interface Served {
  readonly key: Buffer;
  readonly client: Client;
  readonly session: ServeSession;
}

const MAX_STARTUP_MESSAGE = 16 * 1024;

export class PgWireEdge {
  readonly #options: PgWireOptions;
  readonly #limits: PgWireLimits;
  readonly #served = new Map<number, Served>();
  readonly #sockets = new Set<Socket>();
  readonly #counted: ReturnType<Metrics["gauge"]>;
  #context: SecureContext | null = null;
  #draining = false;

  /** Throws `config_invalid` for a certificate that cannot be used. */
  constructor(options: PgWireOptions) {
    this.#options = options;
    this.#limits = { ...PGWIRE_LIMITS, ...options.limits };
    this.#counted = options.metrics.gauge("spillway_pgwire_connections", "Clients of the Postgres wire.");
    if (options.tls) this.reloadTls(options.tls);
  }

  get connections(): number {
    return this.#served.size;
  }

  /** For connections from now on. Throws `config_invalid` and keeps the old one when it cannot be used. */
  reloadTls(tls: { readonly cert: string; readonly key: string }): void {
    try {
      this.#context = createSecureContext({ cert: tls.cert, key: tls.key, minVersion: "TLSv1.2" });
    } catch (error) {
      throw new SpillwayError("config_invalid", `the TLS certificate or key cannot be used: ${messageOf(error)}`, {
        cause: error,
      });
    }
  }

  /** Serves one connection to its end. Never throws. */
  async accept(socket: Socket): Promise<void> {
    this.#sockets.add(socket);
    socket.on("error", () => {});
    socket.once("close", () => this.#sockets.delete(socket));
    socket.setNoDelay(true);
    socket.setKeepAlive(true, 60_000);
    const { clock, log } = this.#options;
    const reader = new FrontendReader(socket, MAX_STARTUP_MESSAGE);
    const out = new OutBuffer(socket, clock, this.#limits.stallMs);
    let secured: Socket = socket;
    try {
      const greeted = await this.#greet(socket, reader, out);
      if (greeted === null) return;
      secured = greeted.socket;
      await this.#serve(greeted, reader, out);
    } catch (error) {
      if (!isSpillwayError(error, "client_gone")) {
        log.debug("pgwire.ended", { error: messageOf(error) });
        writeError(out, wireErrorOf(error, "FATAL"));
        out.flush();
      }
    } finally {
      if (!secured.destroyed) secured.end();
      socket.end();
      // A client that does not close its side must not hold the socket.
      void clock.sleep(2_000).then(() => socket.destroy());
    }
  }

  async #greet(socket: Socket, reader: FrontendReader, out: OutBuffer): Promise<Greeted | null> {
    const { auth, clock, secret, requireTls } = this.#options;
    const over = new AbortController();
    void clock.sleep(this.#limits.handshakeMs, over.signal).then(() => {
      if (!over.signal.aborted) socket.destroy();
    });
    try {
      return await greet(socket, reader, out, {
        auth,
        secret,
        requireTls,
        tls: this.#context === null ? null : () => ({ context: this.#context as SecureContext }),
        address: socket.remoteAddress ?? "local",
        cancel: (processId, key) => this.cancel(processId, key),
      });
    } finally {
      over.abort();
    }
  }

  async #serve(greeted: Greeted, reader: FrontendReader, out: OutBuffer): Promise<void> {
    if (this.#draining) throw pgError("57P03", "the server is shutting down");
    if (this.#served.size >= this.#limits.connections) throw pgError("53300", "sorry, too many clients already");
    await loadParser();
    const { principal, database, parameters } = greeted;
    checkParameters(parameters);
    const settings = Object.fromEntries([...parameters].filter(([name]) => !STARTUP_ONLY.has(name)));
    const session = await this.#options.sessions.open(principal, {
      protocol: "pgwire",
      application: parameters.get("application_name") ?? "",
      address: greeted.socket.remoteAddress ?? "local",
      database,
      parameters: settings,
    });
    const processId = this.#freshId();
    const key = randomBytes(greeted.version >= 0x3_0002 ? 32 : 4);
    const { clock, log, source } = this.#options;
    const engines = new Engines({ session, source, out, settings, catalogTimeoutMs: this.#limits.catalogMs });
    try {
      const { serverVersion } = await engines.view();
      const reported = initialParameters(session, serverVersion);
      for (const [name, value] of reported) writeParameterStatus(out, name, value);
      writeBackendKey(out, processId, key);
      reader.maxBytes = this.#limits.messageBytes;
      const { idleMs, idleInTransactionMs } = this.#limits;
      const client = new Client({
        reader, out, engines, clock, log, processId, database: session.database, idleMs, idleInTransactionMs, reported,
      }); // prettier-ignore
      this.#served.set(processId, { key, client, session });
      this.#counted.set(this.#served.size);
      reader.onEnd = () => engines.cancel("client");
      await client.serve();
    } finally {
      this.#served.delete(processId);
      this.#counted.set(this.#served.size);
      await engines.close();
    }
  }

  /** Cancels what a client runs; nothing when the key is not its. */
  cancel(processId: number, key: Buffer): void {
    const served = this.#served.get(processId);
    if (!served) return this.#options.forwardCancel?.(processId, key);
    if (served.key.length === key.length && timingSafeEqual(served.key, key)) served.client.engines.cancel("client");
  }

  /** Ends the connections that `which` names: of a user whose login was revoked, or all. */
  disconnect(which: (session: ServeSession) => boolean, message: string): void {
    for (const { client, session } of this.#served.values()) {
      if (which(session)) client.end(pgError("57P01", message));
    }
  }

  /** Takes no more clients, waits up to `ms` for those that are inside a transaction, then ends all. */
  async drain(ms: number): Promise<void> {
    this.#draining = true;
    const message = "terminating connection due to administrator command";
    const { clock } = this.#options;
    const untilMs = clock.monotonicMs() + ms;
    while (this.#served.size > 0 && clock.monotonicMs() < untilMs) {
      for (const { client } of this.#served.values()) if (client.isIdle) client.end(pgError("57P01", message));
      await clock.sleep(20);
    }
    for (const { client } of this.#served.values()) client.end(pgError("57P01", message));
    await clock.sleep(50);
    for (const socket of this.#sockets) socket.destroy();
  }

  #freshId(): number {
    for (;;) {
      const id = randomBytes(4).readInt32BE(0) & 0x7fff_ffff;
      if (id > 0 && !this.#served.has(id)) return id;
    }
  }
}

/** Start-up parameters that are no settings. */
const STARTUP_ONLY = new Set(["user", "database", "replication", "client_encoding"]);

function checkParameters(parameters: ReadonlyMap<string, string>): void {
  const encoding = parameters.get("client_encoding") ?? "UTF8";
  if (!/^'?(utf-?8|unicode|sql_ascii|auto)'?$/i.test(encoding)) {
    throw pgError("22023", `invalid value for parameter "client_encoding": "${encoding}"`, { hint: "Use UTF8." });
  }
  for (const [name, value] of parameters) if (name.toLowerCase() === "timezone") zoneOffset(value);
}

function initialParameters(session: ServeSession, serverVersion: string): Map<string, string> {
  const of = (name: string, fallback: string): string => session.parameter(name) ?? fallback;
  return new Map([
    ["server_version", serverVersion],
    ["server_encoding", "UTF8"],
    ["client_encoding", "UTF8"],
    ["application_name", of("application_name", "")],
    ["default_transaction_read_only", of("default_transaction_read_only", "off")],
    ["in_hot_standby", "off"],
    ["is_superuser", "off"],
    ["session_authorization", session.principal.userName],
    ["DateStyle", of("DateStyle", "ISO, MDY")],
    ["IntervalStyle", of("IntervalStyle", "postgres")],
    ["TimeZone", of("TimeZone", "UTC")],
    ["integer_datetimes", "on"],
    ["standard_conforming_strings", "on"],
    ["search_path", of("search_path", '"$user", public')],
  ]);
}
