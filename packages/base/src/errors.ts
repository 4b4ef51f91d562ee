/**
 * Errors are part of the interface. Every error that can reach a person has a code from the
 * catalogue (`codes.ts`), one line that names the cause, and a remedy. The `kind` tells the calling
 * code what to do; only edges translate it to an exit code, SQLSTATE, gRPC status or HTTP status.
 */
import { CODES, type ErrorCode, type ErrorKind } from "./codes.ts";

export type { ErrorCode, ErrorKind } from "./codes.ts";

export interface ErrorOptions {
  /** What to do about it, when the catalogue's remedy can be made more exact. */
  readonly remedy?: string;
  /** The error underneath. Its text is never printed unless the log level is debug. */
  readonly cause?: unknown;
  /** Structured facts for `--json` and the log: names and numbers, never secrets or row values. */
  readonly details?: Readonly<Record<string, unknown>>;
}

/** An operating error: expected in principle, named in the catalogue, answered with one line. */
export class SpillwayError extends Error {
  override readonly name = "SpillwayError";
  readonly code: ErrorCode;
  readonly kind: ErrorKind;
  readonly remedy: string;
  readonly details: Readonly<Record<string, unknown>>;

  constructor(code: ErrorCode, message: string, options: ErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    const entry = CODES[code];
    this.code = code;
    this.kind = entry.kind;
    this.remedy = options.remedy ?? entry.remedy;
    this.details = options.details ?? {};
  }

  /** `CODE: cause. Remedy.` on one line. */
  toLine(): string {
    return `${this.code}: ${oneLine(this.message)} ${oneLine(this.remedy)}`;
  }

  toJSON(): { code: ErrorCode; kind: ErrorKind; message: string; remedy: string; details: unknown } {
    return {
      code: this.code,
      kind: this.kind,
      message: oneLine(this.message),
      remedy: oneLine(this.remedy),
      details: this.details,
    };
  }
}

/** A broken invariant: a bug in Spillway. Never caught to continue; the process reports it and ends. */
export class BugError extends Error {
  override readonly name = "BugError";
}

/** True for a SpillwayError, optionally with one of the given codes. */
export function isSpillwayError(error: unknown, ...codes: ErrorCode[]): error is SpillwayError {
  return error instanceof SpillwayError && (codes.length === 0 || codes.includes(error.code));
}

/** The text of anything that was thrown. */
export function messageOf(error: unknown): string {
  if (error instanceof AggregateError && error.message === "") {
    return error.errors.map(messageOf).join("; ");
  }
  return error instanceof Error ? error.message : String(error);
}

/** Ends with a full stop and holds no line break, so that sentences can be joined. */
export function oneLine(text: string): string {
  const flat = text.replace(/\s*[\r\n]+\s*/g, " ").trim();
  return flat === "" || /[.!?]$/.test(flat) ? flat : `${flat}.`;
}
