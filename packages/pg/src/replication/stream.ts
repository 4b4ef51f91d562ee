/**
 * A running logical replication stream: frames in, status out. The position that is reported to the server is only
 * ever the one that the consumer has confirmed, and a timer of its own reports it, also while reading is paused: a
 * consumer may be busy for longer than the server's patience.
 * Source: https://www.postgresql.org/docs/current/protocol-replication.html (START_REPLICATION … LOGICAL)
 */
import { assert } from "@spillway/base/assert";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { formatLsn, type Lsn } from "@spillway/base/lsn";
import { sqlstateOf } from "../pg-error.ts";
import { quoteIdent, quoteLiteral } from "../quote.ts";
import type { Operation, RawConnection } from "../wire/connection.ts";
import { copyDataMessage, copyDoneMessage, queryMessage } from "../wire/frontend.ts";

export interface StreamOptions {
  readonly slot: string;
  /** Where to go on; the slot's own confirmed position when it is further. 0 means the slot's. */
  readonly startLsn: Lsn;
  readonly publications: readonly string[];
  /** Values in binary. Only when every column of every published table can be read so (`canReadBinary`). */
  readonly binary?: boolean;
  /** Large transactions in blocks while they run. Default true. */
  readonly streaming?: boolean;
  /** pg_logical_emit_message. Default true. */
  readonly messages?: boolean;
  /** `none`: only changes that were made on this server, not those replicated to it (16+). Default `any`. */
  readonly origin?: "any" | "none";
  /** How often status is sent. Default 1 000, a third of the server's timeout of `DEFAULT_REPLICATION_TIMEOUTS`. */
  readonly statusIntervalMs?: number;
  /** With no byte from the server for so long the connection is given up. Default 10 000; 0 waits for ever. */
  readonly silenceTimeoutMs?: number;
}

/** Receives the stream. Called from the socket's callback: what it throws ends the stream with that error. */
export interface StreamConsumer {
  /** One message of the output plugin, in [start, end); valid until this returns. */
  onChange(buffer: Buffer, start: number, end: number): void;
  /**
   * Everything up to `walEnd` was looked at and what concerns us was sent. Between transactions a consumer may
   * confirm it, which is how a slot advances on an idle database. The first one may come before `start` has returned.
   */
  onKeepalive(walEnd: Lsn, stream: ReplicationStream): void;
}

const DEFAULT_STATUS_INTERVAL_MS = 1_000;
const DEFAULT_SILENCE_TIMEOUT_MS = 10_000;
const STOP_TIMEOUT_MS = 5_000;
const XLOG_DATA_HEADER = 25;
/** ms from 1970 to 2000. */
const EPOCH_MS = 946_684_800_000;

export class ReplicationStream implements Operation {
  readonly #connection: RawConnection;
  readonly #consumer: StreamConsumer;
  readonly #options: StreamOptions;
  /** Resolves after `stop`; rejects with the reason when the stream ends in any other way. */
  readonly ended: Promise<void>;
  #resolveEnded: () => void = () => {};
  #rejectEnded: (error: SpillwayError) => void = () => {};
  #started: { resolve: () => void; reject: (error: SpillwayError) => void } | null = null;
  #timer: NodeJS.Timeout | null = null;
  #confirmed: Lsn = 0n;
  #receivedHigh = 0;
  #receivedLow = 0;
  #stopping = false;
  #error: SpillwayError | null = null;
  #bytes = 0;

  private constructor(connection: RawConnection, options: StreamOptions, consumer: StreamConsumer) {
    this.#connection = connection;
    this.#consumer = consumer;
    this.#options = options;
    this.ended = new Promise((resolve, reject) => {
      this.#resolveEnded = resolve;
      this.#rejectEnded = reject;
    });
    // Whoever only uses `stop` must not be ended by an unhandled rejection.
    this.ended.catch(() => {});
  }

  /** Starts streaming. Throws pg_slot_active (another session has the slot), pg_slot_invalid, or the server's error. */
  static async start(
    connection: RawConnection,
    options: StreamOptions,
    consumer: StreamConsumer,
  ): Promise<ReplicationStream> {
    const stream = new ReplicationStream(connection, options, consumer);
    const started = new Promise<void>((resolve, reject) => (stream.#started = { resolve, reject }));
    connection.begin(stream);
    connection.send(queryMessage(startSql(connection.serverVersion, options)));
    await started;
    return stream;
  }

  /** The position up to which the server has been told that everything is safe; 0 before the first `confirm`. */
  get confirmedLsn(): Lsn {
    return this.#confirmed;
  }

  /** The furthest position that the server has spoken of. */
  get receivedLsn(): Lsn {
    return (BigInt(this.#receivedHigh) << 32n) | BigInt(this.#receivedLow);
  }

  /** Bytes of plugin messages so far. */
  get receivedBytes(): number {
    return this.#bytes;
  }

  /**
   * Tells the server, at once and from now on, that everything up to `lsn` is safe. Never goes back. An orderly
   * shutdown of the server waits until all that it has sent was confirmed: keepalives have to be confirmed too.
   */
  confirm(lsn: Lsn): void {
    if (lsn <= this.#confirmed) return;
    this.#confirmed = lsn;
    this.#sendStatus(false);
  }

  /** Stops reading; up to one read buffer of messages still comes. Status goes on. */
  pause(): void {
    this.#connection.pause();
  }

  resume(): void {
    this.#connection.resume();
  }

  /** Ends the stream in order; the connection can be used again then. What is still on its way is dropped. */
  async stop(): Promise<void> {
    if (this.#stopping || this.#timer === null) return this.ended.catch(() => {});
    this.#stopping = true;
    this.#sendStatus(false);
    this.#connection.send(copyDoneMessage());
    this.#connection.resume();
    const cut = setTimeout(() => this.#connection.destroy(), STOP_TIMEOUT_MS);
    await this.ended.catch(() => {});
    clearTimeout(cut);
  }

  message(type: number, buffer: Buffer, start: number, end: number): void {
    if (type === 0x64) {
      if (!this.#stopping) this.#frame(buffer, start, end);
      return;
    }
    switch (String.fromCharCode(type)) {
      case "W":
        return this.#begin();
      case "c":
        // The server ends the stream by itself only when it shuts down or the timeline ends.
        if (!this.#stopping) this.#connection.send(copyDoneMessage());
        return;
      case "Z":
        return this.#finish();
      default:
        return;
    }
  }

  error(error: SpillwayError): void {
    this.#error ??= slotError(error, this.#options.slot);
  }

  fail(error: SpillwayError): void {
    this.#error ??= error;
    this.#finish();
  }

  #begin(): void {
    const everyMs = this.#options.statusIntervalMs ?? DEFAULT_STATUS_INTERVAL_MS;
    this.#timer = setInterval(() => this.#tick(), everyMs);
    this.#started?.resolve();
    this.#started = null;
  }

  #tick(): void {
    const silenceMs = this.#options.silenceTimeoutMs ?? DEFAULT_SILENCE_TIMEOUT_MS;
    const silent = this.#connection.silentMs;
    if (silenceMs > 0 && silent > silenceMs) {
      const text = `the server has sent nothing for ${Math.round(silent)} ms`;
      this.#connection.destroy(new SpillwayError("pg_connection_lost", text));
      return;
    }
    // Half way to giving up, the server is asked for a sign of life.
    this.#sendStatus(silenceMs > 0 && silent > silenceMs / 2);
  }

  #finish(): void {
    if (this.#timer) clearInterval(this.#timer);
    this.#timer = null;
    const error =
      this.#error ??
      (this.#stopping ? null : new SpillwayError("pg_connection_lost", "the server ended the replication stream"));
    this.#started?.reject(error ?? new SpillwayError("pg_protocol_error", "the server did not start to stream"));
    this.#started = null;
    if (error) this.#rejectEnded(error);
    else this.#resolveEnded();
  }

  #frame(buffer: Buffer, start: number, end: number): void {
    try {
      const type = buffer[start];
      if (type === 0x77) {
        assert(end - start >= XLOG_DATA_HEADER, "a frame of WAL data has its header");
        this.#saw(buffer, start + 1);
        this.#bytes += end - start - XLOG_DATA_HEADER;
        this.#consumer.onChange(buffer, start + XLOG_DATA_HEADER, end);
      } else if (type === 0x6b) {
        this.#saw(buffer, start + 1);
        this.#consumer.onKeepalive(buffer.readBigUInt64BE(start + 1), this);
        if (buffer[start + 17] === 1) this.#sendStatus(false);
      }
    } catch (error) {
      const known = error instanceof SpillwayError;
      const own = known ? error : new SpillwayError("internal", messageOf(error), { cause: error });
      this.#connection.destroy(own);
    }
  }

  #saw(buffer: Buffer, at: number): void {
    const high = buffer.readUInt32BE(at);
    const low = buffer.readUInt32BE(at + 4);
    if (high < this.#receivedHigh || (high === this.#receivedHigh && low <= this.#receivedLow)) return;
    this.#receivedHigh = high;
    this.#receivedLow = low;
  }

  #sendStatus(askForReply: boolean): void {
    const body = Buffer.allocUnsafe(34);
    body[0] = 0x72;
    body.writeBigUInt64BE(this.#confirmed, 1);
    body.writeBigUInt64BE(this.#confirmed, 9);
    body.writeBigUInt64BE(this.#confirmed, 17);
    body.writeBigInt64BE(BigInt(Date.now() - EPOCH_MS) * 1000n, 25);
    body[33] = askForReply ? 1 : 0;
    this.#connection.send(copyDataMessage(body));
  }
}

/** The highest protocol version that the server's pgoutput speaks, of those that we do. */
export function pgoutputVersion(serverVersion: number): number {
  if (serverVersion >= 160_000) return 4;
  if (serverVersion >= 150_000) return 3;
  return serverVersion >= 140_000 ? 2 : 1;
}

function startSql(serverVersion: number, options: StreamOptions): string {
  const plugin: Record<string, string> = {
    proto_version: String(pgoutputVersion(serverVersion)),
    publication_names: options.publications.map(quoteIdent).join(","),
  };
  if (options.binary) plugin["binary"] = "true";
  if (options.streaming ?? true) plugin["streaming"] = "true";
  if (options.messages ?? true) plugin["messages"] = "true";
  if (serverVersion >= 160_000) plugin["origin"] = options.origin ?? "any";
  // The replication grammar knows only '' strings: no E'', no escapes but the doubled quote.
  const list = Object.entries(plugin).map(([name, value]) => `${name} '${value.replaceAll("'", "''")}'`);
  const at = formatLsn(options.startLsn);
  return `START_REPLICATION SLOT ${quoteIdent(options.slot)} LOGICAL ${at} (${list.join(", ")})`;
}

/** Gives the server's refusals about slots codes of their own. */
function slotError(error: SpillwayError, slot: string): SpillwayError {
  const sqlstate = sqlstateOf(error);
  const lost = sqlstate === "42704" || sqlstate === "55000" || sqlstate === "58P01";
  if (!lost) return error;
  return new SpillwayError("pg_slot_invalid", `slot ${quoteLiteral(slot).trim()}: ${error.message}`, {
    cause: error,
    details: { ...error.details, slot },
  });
}
