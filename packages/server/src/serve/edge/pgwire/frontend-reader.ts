/**
 * The bytes that a client sends, cut into messages. Reading stops while too much waits, so that a client that sends faster than
 * its statements run costs bounded memory.
 * Source: https://www.postgresql.org/docs/current/protocol-overview.html#PROTOCOL-MESSAGE-CONCEPTS
 */
import type { Socket } from "node:net";
import { SpillwayError } from "@spillway/base/errors";

export interface FrontendMessage {
  /** The type byte as a character. */
  readonly type: string;
  /** Without type and length; the reader keeps no claim on it. */
  readonly body: Buffer;
}

/** Waiting bytes above which the socket is paused. */
const HIGH_WATER_BYTES = 1 << 20;

export class FrontendReader {
  #socket: Socket;
  #chunks: Buffer[] = [];
  #waiting = 0;
  #ended = false;
  #wake: (() => void) | null = null;
  #need = 0;
  #peeked: FrontendMessage | null = null;
  readonly #onData = (chunk: Buffer): void => this.#data(chunk);
  readonly #onEnd = (): void => this.#end();
  /** The largest message that is taken, length word included. */
  maxBytes: number;
  /** Called once, when the client can send nothing more. */
  onEnd: () => void = () => {};

  constructor(socket: Socket, maxBytes: number) {
    this.#socket = socket;
    this.maxBytes = maxBytes;
    this.#attach();
  }

  /** Bytes that were read and not yet asked for. */
  get buffered(): number {
    return this.#waiting;
  }

  get ended(): boolean {
    return this.#ended;
  }

  /** The next typed message; null when the client is gone. Throws `pg_protocol_error` for one that is too large. */
  async next(): Promise<FrontendMessage | null> {
    const peeked = this.#peeked;
    if (peeked !== null) {
      this.#peeked = null;
      return peeked;
    }
    const head = await this.bytes(5);
    if (head === null) return null;
    const length = head.readInt32BE(1);
    if (length < 4) throw new SpillwayError("pg_protocol_error", `a message of ${length} bytes is not possible`);
    if (length > this.maxBytes) {
      throw new SpillwayError("pg_protocol_error", `a message of ${length} bytes is larger than ${this.maxBytes}`);
    }
    const body = length === 4 ? EMPTY : await this.bytes(length - 4);
    return body === null ? null : { type: String.fromCharCode(head[0] ?? 0), body };
  }

  /** The next message without taking it. */
  async peek(): Promise<FrontendMessage | null> {
    this.#peeked ??= await this.next();
    return this.#peeked;
  }

  /** Exactly `count` bytes, or null when the client went away before. */
  async bytes(count: number): Promise<Buffer | null> {
    while (this.#waiting < count) {
      if (this.#ended) return null;
      this.#need = count;
      this.#socket.resume();
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    this.#need = 0;
    return this.#take(count);
  }

  /** Lets go of the socket; what was read and not asked for is given back to it. */
  detach(): Socket {
    this.#socket.off("data", this.#onData);
    this.#socket.off("end", this.#onEnd);
    this.#socket.off("close", this.#onEnd);
    this.#socket.pause();
    const rest = Buffer.concat(this.#chunks);
    this.#chunks = [];
    this.#waiting = 0;
    if (rest.length > 0) this.#socket.unshift(rest);
    return this.#socket;
  }

  /** Goes on with another stream over the same connection. */
  attach(socket: Socket): void {
    this.#socket = socket;
    this.#attach();
  }

  #attach(): void {
    this.#socket.on("data", this.#onData);
    this.#socket.on("end", this.#onEnd);
    this.#socket.on("close", this.#onEnd);
    this.#socket.resume();
  }

  #take(count: number): Buffer {
    const first = this.#chunks[0] ?? EMPTY;
    this.#waiting -= count;
    if (first.length === count) {
      this.#chunks.shift();
      return first;
    }
    if (first.length > count) {
      this.#chunks[0] = first.subarray(count);
      return first.subarray(0, count);
    }
    const out = Buffer.allocUnsafe(count);
    let at = 0;
    while (at < count) {
      const chunk = this.#chunks[0] ?? EMPTY;
      const take = Math.min(chunk.length, count - at);
      chunk.copy(out, at, 0, take);
      at += take;
      if (take === chunk.length) this.#chunks.shift();
      else this.#chunks[0] = chunk.subarray(take);
    }
    return out;
  }

  #data(chunk: Buffer): void {
    this.#chunks.push(chunk);
    this.#waiting += chunk.length;
    if (this.#waiting >= this.#need) this.#notify();
    if (this.#waiting > Math.max(HIGH_WATER_BYTES, this.#need)) this.#socket.pause();
  }

  #end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#notify();
    this.onEnd();
  }

  #notify(): void {
    const wake = this.#wake;
    this.#wake = null;
    wake?.();
  }
}

const EMPTY = Buffer.alloc(0);

/** Reads the fields of one message's body in order. Throws `pg_protocol_error` when they do not fill it exactly. */
export class BodyReader {
  readonly #body: Buffer;
  #at = 0;

  constructor(body: Buffer) {
    this.#body = body;
  }

  get atEnd(): boolean {
    return this.#at >= this.#body.length;
  }

  byte(): number {
    return this.bytes(1)[0] ?? 0;
  }

  int16(): number {
    return this.bytes(2).readInt16BE(0);
  }

  /** A count: 16 bits without a sign. */
  count(): number {
    return this.bytes(2).readUInt16BE(0);
  }

  int32(): number {
    return this.bytes(4).readInt32BE(0);
  }

  uint32(): number {
    return this.bytes(4).readUInt32BE(0);
  }

  text(): string {
    const zero = this.#body.indexOf(0, this.#at);
    if (zero < 0) throw malformed();
    const text = utf8(this.#body.subarray(this.#at, zero));
    this.#at = zero + 1;
    return text;
  }

  bytes(count: number): Buffer {
    const end = this.#at + count;
    if (count < 0 || end > this.#body.length) throw malformed();
    const out = this.#body.subarray(this.#at, end);
    this.#at = end;
    return out;
  }

  rest(): Buffer {
    return this.bytes(this.#body.length - this.#at);
  }

  done(): void {
    if (this.#at !== this.#body.length) throw malformed();
  }
}

const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Strict UTF-8, as the server's encoding demands. */
export function utf8(bytes: Uint8Array): string {
  try {
    return decoder.decode(bytes);
  } catch (error) {
    throw new SpillwayError("pg_protocol_error", 'invalid byte sequence for encoding "UTF8"', {
      cause: error,
      details: { sqlstate: "22021" },
    });
  }
}

function malformed(): SpillwayError {
  return new SpillwayError("pg_protocol_error", "the message is malformed", { details: { sqlstate: "08P01" } });
}
