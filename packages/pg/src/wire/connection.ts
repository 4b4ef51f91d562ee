/**
 * A raw connection to Postgres: one session, one operation at a time, messages handed out where they lie in the
 * read buffer. For COPY and replication, where a client library's row objects would cost more than the server does.
 * Source: https://www.postgresql.org/docs/current/protocol-flow.html
 */
import type { Socket } from "node:net";
import { assert } from "@spillway/base/assert";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { Startup } from "./startup.ts";
import { MessageReader } from "./framing.ts";
import { cancelRequestMessage, terminateMessage } from "./frontend.ts";
import { sqlstateOf } from "../pg-error.ts";
import { parseServerMessage, serverError, type ServerMessage } from "./server-error.ts";
import { runQuery, type QueryOptions, type TextResult } from "./query.ts";
import { encryptionsOf, openStream, type Encryption } from "./socket.ts";
import { DEFAULT_CONNECT_TIMEOUT_MS, describeTarget, type RawTarget } from "./target.ts";

/** What is being done on the connection. All three are called from the socket's callback and must not throw. */
export interface Operation {
  /** Every message but errors, notices, parameters and notifications; `Z` (ready) ends the operation. */
  message(type: number, buffer: Buffer, start: number, end: number): void;
  /** The server refused something; `Z` follows. */
  error(error: SpillwayError): void;
  /** The connection is gone; nothing follows. */
  fail(error: SpillwayError): void;
}

export interface OpenOptions {
  readonly signal?: AbortSignal | undefined;
  readonly onNotice?: ((notice: ServerMessage) => void) | undefined;
  readonly onNotification?: ((channel: string, payload: string) => void) | undefined;
  /** Sees every message after start-up first, errors too; true: it was taken, and nobody else sees it. For a relay. */
  readonly onMessage?: ((type: number, buffer: Buffer, start: number, end: number) => boolean) | undefined;
}

const CANCEL_TIMEOUT_MS = 5_000;
const [READY, ERROR, NOTICE, PARAMETER, NOTIFICATION] = [0x5a, 0x45, 0x4e, 0x53, 0x41];

export class RawConnection {
  readonly target: RawTarget;
  /** The server's ParameterStatus values: server_version, in_hot_standby, … */
  readonly parameters = new Map<string, string>();
  /** Resolves when the connection is over: null after `close`, else why. */
  readonly closed: Promise<SpillwayError | null>;
  processId = 0;
  secretKey: Buffer = Buffer.alloc(0);
  #transactionStatus = "I";
  #socket: Socket | null = null;
  #encryption: Encryption = "plain";
  #operation: Operation | null = null;
  #ended: { readonly error: SpillwayError | null } | null = null;
  #resolveClosed: (error: SpillwayError | null) => void = () => {};
  #lastByteMs = performance.now();
  #paused = false;
  #started = false;
  readonly #reader: MessageReader;
  readonly #options: OpenOptions;

  private constructor(target: RawTarget, options: OpenOptions) {
    this.target = target;
    this.#options = options;
    this.closed = new Promise((resolve) => (this.#resolveClosed = resolve));
    this.#reader = new MessageReader((type, buffer, start, end) => this.#dispatch(type, buffer, start, end));
  }

  /**
   * Connects and authenticates. Throws pg_unreachable, pg_tls_failed, pg_auth_failed, or the server's own refusal
   * (57P03 while it starts up).
   */
  static async open(target: RawTarget, options: OpenOptions = {}): Promise<RawConnection> {
    const encryptions = encryptionsOf(target);
    for (const [i, encryption] of encryptions.entries()) {
      const connection = new RawConnection(target, options);
      try {
        await connection.#open(encryption);
        return connection;
      } catch (error) {
        connection.destroy();
        const another = i + 1 < encryptions.length && sqlstateOf(error) === "28000";
        if (!another) throw error;
      }
    }
    throw new SpillwayError("pg_unreachable", `no way to connect to ${describeTarget(target)}`);
  }

  get transactionStatus(): "I" | "T" | "E" {
    return this.#transactionStatus as "I" | "T" | "E";
  }

  get isOpen(): boolean {
    return this.#ended === null;
  }

  get isBusy(): boolean {
    return this.#operation !== null;
  }

  /** Milliseconds since the server last sent anything, or 0 while reading is paused. */
  get silentMs(): number {
    return this.#paused ? 0 : performance.now() - this.#lastByteMs;
  }

  /** 150018 for 15.18, as `server_version_num`. */
  get serverVersion(): number {
    const [major = "0", minor = "0"] = (this.parameters.get("server_version") ?? "").split(/[^0-9]/);
    return Number(major) * 10_000 + Number(minor);
  }

  /**
   * Runs one or more statements by the simple protocol and returns their results as text.
   * Throws the server's error; on timeout or abort the statement is canceled first.
   */
  query(sql: string, options: QueryOptions = {}): Promise<TextResult[]> {
    return runQuery(this, sql, options);
  }

  /** Makes `operation` the receiver of all messages until `Z`. Throws when the connection is over. */
  begin(operation: Operation): void {
    this.#throwIfEnded();
    assert(this.#operation === null, "a raw connection runs one operation at a time");
    this.#operation = operation;
  }

  /** Sends bytes; false means that the kernel's buffer is full and `drained` should be awaited. */
  send(bytes: Buffer): boolean {
    return this.#socket !== null && this.#ended === null ? this.#socket.write(bytes) : true;
  }

  /** Resolves when what was sent has left, or the connection is over. */
  async drained(): Promise<void> {
    const socket = this.#socket;
    if (socket === null || this.#ended || !socket.writableNeedDrain) return;
    await new Promise<void>((resolve) => {
      const done = (): void => {
        socket.off("drain", done);
        socket.off("close", done);
        resolve();
      };
      socket.on("drain", done);
      socket.on("close", done);
    });
  }

  /** Stops reading until `resume` or the operation's end; what is already in the read buffer is still handed out. */
  pause(): void {
    this.#paused = true;
    this.#socket?.pause();
  }

  resume(): void {
    if (!this.#paused) return;
    this.#paused = false;
    this.#lastByteMs = performance.now();
    this.#socket?.resume();
  }

  /** Asks the server, over a connection of its own, to cancel what runs. Its success is not known. */
  async cancel(): Promise<void> {
    const signal = AbortSignal.timeout(CANCEL_TIMEOUT_MS);
    const { socket } = await openStream(this.target, this.#encryption, () => {}, signal);
    await new Promise<void>((resolve) => {
      const timer = setTimeout(() => socket.destroy(), CANCEL_TIMEOUT_MS);
      socket.on("close", () => {
        clearTimeout(timer);
        resolve();
      });
      socket.write(cancelRequestMessage(this.processId, this.secretKey));
    });
  }

  /** Says goodbye and closes. Never throws. */
  async close(): Promise<void> {
    if (this.#ended === null && this.#socket !== null) {
      const socket = this.#socket;
      socket.end(terminateMessage());
      const timer = setTimeout(() => socket.destroy(), 1_000);
      this.#end(null);
      socket.resume();
      await new Promise<void>((resolve) => (socket.closed ? resolve() : socket.once("close", () => resolve())));
      clearTimeout(timer);
    }
  }

  /** Cuts the connection at once; a running operation fails with `error`. */
  destroy(error: SpillwayError | null = null): void {
    this.#end(error);
    this.#socket?.destroy();
  }

  async #open(encryption: Encryption): Promise<void> {
    const { signal: given } = this.#options;
    const timeoutMs = this.target.connectTimeoutMs ?? DEFAULT_CONNECT_TIMEOUT_MS;
    const deadline = new AbortController();
    const tooLate = new SpillwayError("pg_unreachable", `${describeTarget(this.target)} did not answer in time`, {
      details: { target: describeTarget(this.target), timeout_ms: timeoutMs },
    });
    const timer = timeoutMs > 0 ? setTimeout(() => deadline.abort(tooLate), timeoutMs) : undefined;
    const abort = (): void => deadline.abort(new SpillwayError("pg_canceled", "connecting was given up"));
    if (given?.aborted) abort();
    given?.addEventListener("abort", abort, { once: true });
    try {
      const { socket, encrypted } = await openStream(this.target, encryption, this.#receive, deadline.signal);
      this.#attach(socket, encrypted);
      const startup = new Startup(this);
      this.begin(startup);
      const stop = (): void => this.destroy(deadline.signal.reason as SpillwayError);
      if (deadline.signal.aborted) stop();
      deadline.signal.addEventListener("abort", stop, { once: true });
      await startup.run();
      this.#started = true;
      deadline.signal.removeEventListener("abort", stop);
    } finally {
      clearTimeout(timer);
      given?.removeEventListener("abort", abort);
    }
  }

  #attach(socket: Socket, encrypted: boolean): void {
    this.#socket = socket;
    this.#encryption = encrypted ? "tls" : "plain";
    socket.on("error", (error) => this.#end(this.#lost(messageOf(error), error)));
    socket.on("close", () => this.#end(this.#lost("the server closed it")));
    if (socket.destroyed) this.#end(this.#lost("the server closed it"));
  }

  readonly #receive = (chunk: Buffer, length: number): void => {
    this.#lastByteMs = performance.now();
    if (this.#ended) return;
    try {
      this.#reader.push(chunk, length);
    } catch (error) {
      const known = error instanceof SpillwayError;
      this.destroy(known ? error : new SpillwayError("pg_protocol_error", messageOf(error), { cause: error }));
    }
  };

  #dispatch(type: number, buffer: Buffer, start: number, end: number): void {
    if (this.#ended) return;
    if (this.#started && this.#options.onMessage?.(type, buffer, start, end)) return;
    const operation = this.#operation;
    if (type === ERROR) return this.#serverError(parseServerMessage(buffer, start, end));
    if (type === NOTICE) return this.#options.onNotice?.(parseServerMessage(buffer, start, end));
    if (type === PARAMETER) {
      const [name = "", value = ""] = buffer.toString("utf8", start, end).split("\0");
      this.parameters.set(name, value);
      return;
    }
    if (type === NOTIFICATION) {
      const [channel = "", payload = ""] = buffer.toString("utf8", start + 4, end).split("\0");
      return this.#options.onNotification?.(channel, payload);
    }
    if (type === READY) {
      this.#transactionStatus = String.fromCharCode(buffer[start] ?? 0);
      this.#operation = null;
      // An operation that paused does not leave its successor deaf.
      this.resume();
    }
    operation?.message(type, buffer, start, end);
  }

  #serverError(fields: ServerMessage): void {
    const error = serverError(fields);
    if (fields.severity === "FATAL" || fields.severity === "PANIC") this.destroy(error);
    else this.#operation?.error(error);
  }

  #lost(why: string, cause?: unknown): SpillwayError {
    return new SpillwayError("pg_connection_lost", `the connection to ${describeTarget(this.target)} ended: ${why}`, {
      cause,
    });
  }

  #throwIfEnded(): void {
    if (this.#ended) throw this.#ended.error ?? this.#lost("it was closed on this side");
  }

  #end(error: SpillwayError | null): void {
    if (this.#ended) return;
    this.#ended = { error };
    const operation = this.#operation;
    this.#operation = null;
    this.#resolveClosed(error);
    operation?.fail(error ?? this.#lost("it was closed on this side"));
  }
}
