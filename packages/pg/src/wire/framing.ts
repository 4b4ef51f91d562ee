/**
 * Cuts the server's byte stream into messages without copying: a message that lies whole inside one chunk is
 * handed out as a range of that chunk, and only one that spans chunks is put together in a buffer of its own.
 * Source: https://www.postgresql.org/docs/current/protocol-overview.html#PROTOCOL-MESSAGE-CONCEPTS
 */
import { SpillwayError } from "@spillway/base/errors";

/**
 * One message: its type byte and the range of its body in `buffer`. The bytes are valid only until the handler
 * returns: the socket reads its next chunk into the same memory.
 */
export type MessageHandler = (type: number, buffer: Buffer, start: number, end: number) => void;

/** Postgres itself refuses to build a message over 1 GiB - 1. */
const MAX_MESSAGE_BYTES = 0x3fffffff + 4;

export class MessageReader {
  readonly #handler: MessageHandler;
  /** The message that is being put together: type, length word, body; exactly its size. */
  #partial: Buffer | null = null;
  #filled = 0;
  /** Up to 5 bytes of a header that a chunk boundary cut. */
  readonly #head = Buffer.alloc(5);
  #headFilled = 0;

  constructor(handler: MessageHandler) {
    this.#handler = handler;
  }

  /** Hands every message that is complete with these bytes to the handler. */
  push(chunk: Buffer, length: number): void {
    let at = 0;
    if (this.#headFilled > 0 || this.#partial !== null) at = this.#finishPartial(chunk, length);
    while (length - at >= 5) {
      const size = readSize(chunk, at + 1);
      const next = at + 1 + size;
      if (next > length) break;
      this.#handler(chunk[at] ?? 0, chunk, at + 5, next);
      at = next;
    }
    if (at < length) this.#keepRest(chunk, at, length);
  }

  /** Fills the message that an earlier chunk began; returns where the next one starts. */
  #finishPartial(chunk: Buffer, length: number): number {
    let at = 0;
    if (this.#partial === null) {
      while (this.#headFilled < 5 && at < length) this.#head[this.#headFilled++] = chunk[at++] ?? 0;
      if (this.#headFilled < 5) return at;
      this.#partial = Buffer.allocUnsafe(1 + readSize(this.#head, 1));
      this.#partial.set(this.#head);
      this.#filled = 5;
      this.#headFilled = 0;
    }
    const partial = this.#partial;
    const take = Math.min(partial.length - this.#filled, length - at);
    chunk.copy(partial, this.#filled, at, at + take);
    this.#filled += take;
    if (this.#filled === partial.length) {
      this.#partial = null;
      this.#handler(partial[0] ?? 0, partial, 5, partial.length);
    }
    return at + take;
  }

  #keepRest(chunk: Buffer, at: number, length: number): void {
    const rest = length - at;
    if (rest < 5) {
      chunk.copy(this.#head, 0, at, length);
      this.#headFilled = rest;
      return;
    }
    this.#partial = Buffer.allocUnsafe(1 + readSize(chunk, at + 1));
    chunk.copy(this.#partial, 0, at, length);
    this.#filled = rest;
  }
}

function readSize(buffer: Buffer, at: number): number {
  const size = buffer.readInt32BE(at);
  if (size < 4 || size > MAX_MESSAGE_BYTES) {
    throw new SpillwayError("pg_protocol_error", `a message of ${size} bytes is not possible`);
  }
  return size;
}
