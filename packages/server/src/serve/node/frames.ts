/** Frames between manager and node: docs/internals/serving.md §3. */
import { SpillwayError } from "@spillway/base/errors";

/** Raised with every change of what is sent. Others are refused at the hello, naming both. */
export const PROTOCOL_VERSION = 1;

export const FRAME = {
  hello: 1,
  run: 2,
  schema: 3,
  batch: 4,
  done: 5,
  error: 6,
  credit: 7,
  cancel: 8,
  probe: 9,
  /** Ends the connections of a manager whose lease lapsed, and rolls back what they held. */
  evict: 10,
} as const;

/** What a node sends beyond what was taken of it. */
export const WINDOW_BYTES = 4 << 20;
const HEADER = 9;
const MAX_FRAME = 1 << 30;

export interface Frame {
  readonly type: number;
  readonly stream: number;
  readonly payload: Buffer;
}

export function frameHeader(type: number, stream: number, length: number): Buffer {
  const out = Buffer.allocUnsafe(HEADER);
  out.writeUInt32LE(length + 5, 0);
  out.writeUInt8(type, 4);
  out.writeUInt32LE(stream, 5);
  return out;
}

export function jsonFrame(type: number, stream: number, value: unknown): Buffer {
  const body = Buffer.from(JSON.stringify(value), "utf8");
  return Buffer.concat([frameHeader(type, stream, body.length), body]);
}

export function creditFrame(stream: number, bytes: number): Buffer {
  const body = Buffer.allocUnsafe(4);
  body.writeUInt32LE(bytes, 0);
  return Buffer.concat([frameHeader(FRAME.credit, stream, 4), body]);
}

/** The description of a result: JSON, and the Arrow schema behind it. */
export function schemaPayload(value: unknown, arrowSchema: Buffer | null): Buffer {
  const body = Buffer.from(JSON.stringify(value), "utf8");
  const lengths = Buffer.allocUnsafe(8);
  lengths.writeUInt32LE(body.length, 0);
  lengths.writeUInt32LE(arrowSchema?.length ?? 0, 4);
  return Buffer.concat([lengths.subarray(0, 4), body, lengths.subarray(4), arrowSchema ?? Buffer.alloc(0)]);
}

export function parseSchemaPayload(payload: Buffer): { value: unknown; arrowSchema: Buffer | null } {
  const length = payload.readUInt32LE(0);
  const value = JSON.parse(payload.toString("utf8", 4, 4 + length)) as unknown;
  const size = payload.readUInt32LE(4 + length);
  return { value, arrowSchema: size === 0 ? null : payload.subarray(8 + length, 8 + length + size) };
}

/** Puts frames together from what a socket gives. Payloads are views of the chunks, or copies where one spans several. */
export class FrameReader {
  #parts: Buffer[] = [];
  #length = 0;
  #limit: number;

  /** `limit`: bytes of the largest frame that is taken. */
  constructor(limit = MAX_FRAME) {
    this.#limit = limit;
  }

  /** After the hello. */
  raiseLimit(): void {
    this.#limit = MAX_FRAME;
  }

  /** Throws `node_protocol`. */
  *push(chunk: Buffer): Generator<Frame> {
    this.#parts.push(chunk);
    this.#length += chunk.length;
    while (this.#length >= HEADER) {
      const head = this.#peek(HEADER);
      const length = head.readUInt32LE(0);
      if (length < 5 || length > this.#limit) {
        throw new SpillwayError("node_protocol", `A frame of ${length} bytes was announced.`);
      }
      if (this.#length < 4 + length) return;
      const frame = this.#take(4 + length);
      yield { type: frame.readUInt8(4), stream: frame.readUInt32LE(5), payload: frame.subarray(HEADER) };
    }
  }

  #peek(count: number): Buffer {
    const [first] = this.#parts;
    if (first && first.length >= count) return first;
    return this.#join(count);
  }

  #join(count: number): Buffer {
    let have = 0;
    let parts = 0;
    while (have < count) have += this.#parts[parts++]?.length ?? count;
    const joined = Buffer.concat(this.#parts.slice(0, parts));
    this.#parts.splice(0, parts, joined);
    return joined;
  }

  #take(count: number): Buffer {
    const [first] = this.#parts;
    const whole = first && first.length >= count ? first : this.#join(count);
    this.#length -= count;
    if (whole.length === count) this.#parts.shift();
    else this.#parts[0] = whole.subarray(count);
    return whole.subarray(0, count);
  }
}
