/**
 * What goes to a client: messages built in one growing buffer and handed to the socket in pieces of 64 KiB. Whoever writes many
 * rows awaits `relieve` between them, which waits while the client does not read.
 * Source: https://www.postgresql.org/docs/current/protocol-message-formats.html
 */
import type { Socket } from "node:net";
import type { Clock } from "@spillway/base/clock";
import { SpillwayError } from "@spillway/base/errors";

const FLUSH_BYTES = 64 * 1024;

export class OutBuffer {
  #socket: Socket;
  readonly #clock: Clock;
  readonly #stallMs: number;
  buffer = Buffer.allocUnsafe(FLUSH_BYTES + 8192);
  at = 0;
  #start = 0;

  /** `stallMs`: how long the client may leave the socket full before it is given up. */
  constructor(socket: Socket, clock: Clock, stallMs: number) {
    this.#socket = socket;
    this.#clock = clock;
    this.#stallMs = stallMs;
  }

  use(socket: Socket): void {
    this.#socket = socket;
  }

  /** Makes room for `count` more bytes. */
  room(count: number): void {
    if (this.at + count <= this.buffer.length) return;
    const grown = Buffer.allocUnsafe(Math.max(this.buffer.length * 2, this.at + count));
    this.buffer.copy(grown, 0, 0, this.at);
    this.buffer = grown;
  }

  begin(type: string): this {
    this.room(5);
    this.#start = this.at;
    this.buffer[this.at] = type.charCodeAt(0);
    this.at += 5;
    return this;
  }

  end(): this {
    this.buffer.writeInt32BE(this.at - this.#start - 1, this.#start + 1);
    return this;
  }

  byte(value: number): this {
    this.room(1);
    this.buffer[this.at++] = value;
    return this;
  }

  int16(value: number): this {
    this.room(2);
    this.buffer.writeInt16BE(value, this.at);
    this.at += 2;
    return this;
  }

  int32(value: number): this {
    this.room(4);
    this.buffer.writeInt32BE(value | 0, this.at);
    this.at += 4;
    return this;
  }

  int64(value: bigint): this {
    this.room(8);
    this.buffer.writeBigInt64BE(value, this.at);
    this.at += 8;
    return this;
  }

  zeroed(text: string): this {
    // A NUL would end the field early.
    const clean = text.includes("\0") ? text.replaceAll("\0", "") : text;
    const size = Buffer.byteLength(clean);
    this.room(size + 1);
    this.buffer.write(clean, this.at, "utf8");
    this.at += size;
    this.buffer[this.at++] = 0;
    return this;
  }

  bytes(value: Uint8Array): this {
    this.room(value.length);
    this.buffer.set(value, this.at);
    this.at += value.length;
    return this;
  }

  /** Length and text of a value; ASCII only. */
  ascii(text: string): void {
    const { length } = text;
    this.room(4 + length);
    this.buffer.writeInt32BE(length, this.at);
    this.buffer.write(text, this.at + 4, "latin1");
    this.at += 4 + length;
  }

  /** Length and text of a value. */
  value(text: string): void {
    const size = Buffer.byteLength(text);
    this.room(4 + size);
    this.buffer.writeInt32BE(size, this.at);
    this.buffer.write(text, this.at + 4, "utf8");
    this.at += 4 + size;
  }

  null(): void {
    this.int32(-1);
  }

  /** Hands everything to the socket. */
  flush(): void {
    if (this.at === 0) return;
    const out = this.buffer.subarray(0, this.at);
    this.buffer = Buffer.allocUnsafe(FLUSH_BYTES + 8192);
    this.at = 0;
    if (!this.#socket.destroyed) this.#socket.write(out);
  }

  /** A buffer of its own, for values that are not sent as they are. */
  scratch(): OutBuffer {
    return new OutBuffer(this.#socket, this.#clock, this.#stallMs);
  }

  /** Whether the client has not taken what was sent. */
  get isClogged(): boolean {
    return this.#socket.writableNeedDrain;
  }

  get full(): boolean {
    return this.at >= FLUSH_BYTES;
  }

  /** Sends when there is much, and waits until the client has taken it. Throws `client_gone`. */
  async relieve(): Promise<void> {
    if (this.at >= FLUSH_BYTES) this.flush();
    if (this.#socket.destroyed) throw clientGone("it closed the connection");
    if (this.#socket.writableNeedDrain) await this.#drained();
  }

  async #drained(): Promise<void> {
    const socket = this.#socket;
    const over = new AbortController();
    let stalled = false;
    await new Promise<void>((resolve) => {
      const done = (): void => {
        socket.off("drain", done);
        socket.off("close", done);
        over.abort();
        resolve();
      };
      socket.on("drain", done);
      socket.on("close", done);
      void this.#clock.sleep(this.#stallMs, over.signal).then(() => {
        if (over.signal.aborted) return;
        stalled = true;
        done();
      });
    });
    if (stalled) {
      socket.destroy();
      throw clientGone(`it read nothing for ${this.#stallMs} ms`);
    }
    if (socket.destroyed) throw clientGone("it closed the connection");
  }
}

function clientGone(why: string): SpillwayError {
  return new SpillwayError("client_gone", `the client is gone: ${why}`, { details: { sqlstate: "08006" } });
}
