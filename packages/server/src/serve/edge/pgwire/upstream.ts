/**
 * A connection to the source whose answers go to the client as they came: rows, errors, notices and all. One exchange at a time; a
 * client that does not read stops the reading here too.
 * Source: https://www.postgresql.org/docs/current/protocol-flow.html
 */
import { SpillwayError } from "@spillway/base/errors";
import type { Conninfo } from "@spillway/pg/conninfo";
import { connectRaw } from "@spillway/pg/connect-raw";
import type { RawConnection } from "@spillway/pg/wire/connection";
import { parseServerMessage } from "@spillway/pg/wire/server-error";
import type { TransactionStatus } from "./backend.ts";
import type { OutBuffer } from "./out-buffer.ts";
import { pgError } from "./wire-errors.ts";

export interface Answer {
  /** The message that ended the exchange. */
  readonly type: string;
  /** The tag of the last CommandComplete. */
  readonly tag: string;
  /** Set when the source refused; it was relayed or not as asked. */
  readonly error: SpillwayError | null;
}

export interface ExchangeOptions {
  /** Message types that end the exchange, besides an error (`E`) when nothing else follows one. */
  readonly until: string;
  /** Whether an error ends the exchange: so in the extended protocol, where the source waits for a Sync. */
  readonly errorEnds: boolean;
  /** Types that are kept from the client; `*` keeps everything but notices and parameters. */
  readonly hide: string;
}

/** The source refused, and the client has read why. */
export class Relayed extends Error {}

const STATUS = new Set(["S", "N", "A"]);

export class Upstream {
  readonly #connection: RawConnection;
  readonly #out: OutBuffer;
  #current: { readonly options: ExchangeOptions; resolve(answer: Answer): void; reject(error: unknown): void } | null =
    null;
  #tag = "";
  #error: SpillwayError | null = null;
  status: TransactionStatus = "I";
  /** Whether the source has extended messages that no Sync followed yet. */
  unsynced = false;
  /** Called for each parameter that the source reports. */
  onParameter: (name: string, value: string) => void = () => {};

  private constructor(connection: RawConnection, out: OutBuffer) {
    this.#connection = connection;
    this.#out = out;
    void connection.closed.then((error) => {
      this.#current?.reject(error ?? new SpillwayError("pg_connection_lost", "the connection to the source ended"));
      this.#current = null;
    });
  }

  /** `settings` are those of the client's start-up. */
  static async open(
    login: Conninfo | string,
    out: OutBuffer,
    settings: Readonly<Record<string, string>>,
  ): Promise<Upstream> {
    let upstream: Upstream | null = null;
    const connection = await connectRaw(login, {
      applicationName: settings["application_name"] ?? "spillway",
      settings: Object.fromEntries(Object.entries(settings).filter(([name]) => name !== "application_name")),
      canonical: false,
      open: { onMessage: (type, buffer, start, end) => upstream?.relay(type, buffer, start, end) ?? false },
    });
    upstream = new Upstream(connection, out);
    return upstream;
  }

  get parameters(): ReadonlyMap<string, string> {
    return this.#connection.parameters;
  }

  get isOpen(): boolean {
    return this.#connection.isOpen;
  }

  /** Sends, and relays what comes back until the exchange ends. Rejects only when the connection is lost. */
  exchange(bytes: Buffer | null, options: ExchangeOptions): Promise<Answer> {
    if (!this.#connection.isOpen) {
      return Promise.reject(new SpillwayError("pg_connection_lost", "the connection to the source ended"));
    }
    const done = new Promise<Answer>((resolve, reject) => (this.#current = { options, resolve, reject }));
    this.#error = null;
    if (bytes !== null) this.#connection.send(bytes);
    return done;
  }

  /** Sends without waiting: rows of a COPY. Resolves when there is room for more. */
  async push(bytes: Buffer): Promise<void> {
    if (!this.#connection.send(bytes)) await this.#connection.drained();
  }

  /** A statement of the edge's own. Throws the source's error; nothing is relayed but notices. */
  async run(sql: string): Promise<Answer> {
    const answer = await this.exchange(messageOf("Q", Buffer.from(`${sql}\0`, "utf8")), HIDDEN_QUERY);
    if (answer.error) throw answer.error;
    return answer;
  }

  /** The first value of a query of the edge's own. */
  async value(sql: string): Promise<string | null> {
    const first: { text: string | null } = { text: null };
    this.#onRow = (buffer, start) => {
      const size = buffer.readInt32BE(start + 2);
      first.text = size < 0 ? null : buffer.toString("utf8", start + 6, start + 6 + size);
    };
    try {
      await this.run(sql);
    } finally {
      this.#onRow = null;
    }
    return first.text;
  }

  #onRow: ((buffer: Buffer, start: number) => void) | null = null;

  /** Ends the extended exchange: the source's transaction, if it began one by itself, ends with it. */
  async sync(): Promise<Answer> {
    const answer = await this.exchange(messageOf("S"), { until: "Z", errorEnds: false, hide: "Z" });
    this.unsynced = false;
    return answer;
  }

  async cancel(): Promise<void> {
    await this.#connection.cancel().catch(() => {});
  }

  destroy(): void {
    this.#connection.destroy();
  }

  close(): Promise<void> {
    return this.#connection.close();
  }

  /** Sees every message. The bytes are valid only until it returns. */
  relay(typeByte: number, buffer: Buffer, start: number, end: number): boolean {
    const type = String.fromCharCode(typeByte);
    const current = this.#current;
    if (type === "Z") this.status = String.fromCharCode(buffer[start] ?? 73) as TransactionStatus;
    if (type === "S") {
      const [name = "", value = ""] = buffer.toString("utf8", start, end).split("\0");
      this.onParameter(name, value);
      return false;
    }
    if (type === "D" && this.#onRow) this.#onRow(buffer, start);
    if (type === "E") this.#error = errorOf(buffer, start, end);
    // An error that nobody waits for ends the connection; the raw connection knows that.
    if (current === null) return type !== "E";
    if (type === "C") this.#tag = buffer.toString("utf8", start, end - 1);
    const { hide, until, errorEnds } = current.options;
    if (STATUS.has(type) || !(hide === "*" || hide.includes(type))) this.#forward(buffer, start, end, typeByte);
    if (until.includes(type) || (type === "E" && errorEnds)) {
      this.#current = null;
      const tag = this.#tag;
      this.#tag = "";
      current.resolve({ type, tag, error: this.#error });
    }
    // Fatal errors are followed by the end of the connection.
    return true;
  }

  #forward(buffer: Buffer, start: number, end: number, type: number): void {
    const out = this.#out;
    out.room(end - start + 5);
    out.buffer[out.at] = type;
    out.buffer.writeInt32BE(end - start + 4, out.at + 1);
    buffer.copy(out.buffer, out.at + 5, start, end);
    out.at += end - start + 5;
    if (!out.full) return;
    out.flush();
    if (!out.isClogged) return;
    this.#connection.pause();
    out.relieve().then(
      () => this.#connection.resume(),
      () => this.#connection.destroy(),
    );
  }
}

const HIDDEN_QUERY: ExchangeOptions = { until: "Z", errorEnds: false, hide: "*" };

function errorOf(buffer: Buffer, start: number, end: number): SpillwayError {
  const { sqlstate, message, ...rest } = parseServerMessage(buffer, start, end);
  return pgError(sqlstate, message, { ...rest, detail: rest.detail ?? "" });
}

/** A frontend message. */
export function messageOf(type: string, ...parts: readonly Buffer[]): Buffer {
  const size = parts.reduce((sum, part) => sum + part.length, 0);
  const out = Buffer.allocUnsafe(5 + size);
  out.write(type, 0, "latin1");
  out.writeInt32BE(4 + size, 1);
  let at = 5;
  for (const part of parts) at += part.copy(out, at);
  return out;
}
