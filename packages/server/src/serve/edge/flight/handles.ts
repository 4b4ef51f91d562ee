/**
 * Handles and tickets that any manager can redeem: JSON, signed with a key that the managers share, bound to the user that they were
 * made for. They say what is to be run; whether it may be is checked when it is.
 */
import { createHmac, timingSafeEqual } from "node:crypto";
import { SpillwayError } from "@spillway/base/errors";
import type { WireParam } from "../../session/session.ts";

export interface Handle {
  readonly kind: "statement" | "prepared" | "savepoint";
  /** The user that it is of. */
  readonly user: string;
  readonly sql: string;
  /** Hex; null: no transaction. */
  readonly transaction: string | null;
  /** Distinguishes two handles of one text. */
  readonly id: string;
  readonly params?: readonly WireParam[];
  /** The schema that was promised: the stream's is compared. */
  readonly schema?: string;
}

const MAC_BYTES = 16;

export class Handles {
  readonly #key: Buffer;

  /** `key`: at least 32 random bytes, the same at all managers. */
  constructor(key: Buffer) {
    this.#key = key;
  }

  seal(handle: Handle): Buffer {
    const body = Buffer.from(JSON.stringify(handle, encodeValue));
    return Buffer.concat([this.#mac(body), body]);
  }

  /** Throws `flight_handle_invalid`, also for a handle of another user. */
  open(bytes: Buffer, kind: Handle["kind"], user: string): Handle {
    const body = bytes.subarray(MAC_BYTES);
    if (bytes.length <= MAC_BYTES || !timingSafeEqual(this.#mac(body), bytes.subarray(0, MAC_BYTES))) throw invalid();
    const handle = JSON.parse(body.toString("utf8"), decodeValue) as Handle;
    if (handle.kind !== kind || handle.user !== user) throw invalid();
    return handle;
  }

  #mac(body: Buffer): Buffer {
    return createHmac("sha256", this.#key).update(body).digest().subarray(0, MAC_BYTES);
  }
}

function encodeValue(_key: string, value: unknown): unknown {
  if (typeof value === "bigint") return { $int: value.toString() };
  if (typeof value === "object" && value !== null && (value as { type?: unknown }).type === "Buffer") {
    return { $bytes: Buffer.from((value as unknown as { data: number[] }).data).toString("base64") };
  }
  return value;
}

function decodeValue(_key: string, value: unknown): unknown {
  if (typeof value !== "object" || value === null) return value;
  const { $int, $bytes } = value as { $int?: unknown; $bytes?: unknown };
  if (typeof $int === "string") return BigInt($int);
  if (typeof $bytes === "string") return Buffer.from($bytes, "base64");
  return value;
}

function invalid(): SpillwayError {
  return new SpillwayError("flight_handle_invalid", "The handle or ticket was not made here, or is another user's.");
}
