/** Errors as gRPC statuses (https://grpc.io/docs/guides/status-codes/): what a client may do next decides, not the place of origin. */
import { CODES, type ErrorKind } from "@spillway/base/codes";
import { messageOf, oneLine, SpillwayError } from "@spillway/base/errors";

export const GRPC = {
  cancelled: 1,
  unknown: 2,
  invalidArgument: 3,
  deadlineExceeded: 4,
  notFound: 5,
  permissionDenied: 7,
  resourceExhausted: 8,
  failedPrecondition: 9,
  aborted: 10,
  unimplemented: 12,
  internal: 13,
  unavailable: 14,
  unauthenticated: 16,
} as const;

const BY_KIND: Readonly<Record<ErrorKind, number>> = {
  usage: GRPC.invalidArgument,
  refused: GRPC.failedPrecondition,
  retry: GRPC.unavailable,
  conflict: GRPC.aborted,
  unknown: GRPC.unknown,
  operator: GRPC.internal,
};

/** By SQLSTATE or its class (https://www.postgresql.org/docs/current/errcodes-appendix.html), which says more than the kind. */
const BY_STATE: Readonly<Record<string, number>> = {
  "28": GRPC.unauthenticated,
  "42501": GRPC.permissionDenied,
  "42P01": GRPC.notFound,
  "3F000": GRPC.notFound,
  "42": GRPC.invalidArgument,
  "22": GRPC.invalidArgument,
  "40": GRPC.aborted,
  "25P02": GRPC.aborted,
  "53": GRPC.resourceExhausted,
  "57014": GRPC.cancelled,
  "57P01": GRPC.unavailable,
  "08": GRPC.unavailable,
  "0A": GRPC.unimplemented,
};

const BY_CODE: Readonly<Record<string, number>> = {
  flight_unsupported: GRPC.unimplemented,
  flight_handle_invalid: GRPC.notFound,
  engine_interrupted: GRPC.cancelled,
  interrupted: GRPC.cancelled,
  deadline_exceeded: GRPC.deadlineExceeded,
  limit_exceeded: GRPC.resourceExhausted,
  disk_full: GRPC.resourceExhausted,
  table_unknown: GRPC.notFound,
};

export interface CallStatus {
  readonly status: number;
  /** Stable; `internal` for what no one foresaw. */
  readonly code: string;
  /** One line: code, cause, remedy. */
  readonly message: string;
  readonly sqlstate: string | null;
}

export function statusOf(error: unknown): CallStatus {
  if (!(error instanceof SpillwayError)) {
    return {
      status: GRPC.internal,
      code: "internal",
      message: `internal: ${oneLine(messageOf(error))}`,
      sqlstate: null,
    };
  }
  const state = error.details["sqlstate"];
  const sqlstate = typeof state === "string" ? state : null;
  const { kind } = CODES[error.code];
  const status =
    BY_CODE[error.code] ??
    (sqlstate === null ? undefined : (BY_STATE[sqlstate] ?? BY_STATE[sqlstate.slice(0, 2)])) ??
    (error.code.startsWith("auth_") ? GRPC.unauthenticated : BY_KIND[kind]);
  return { status, code: error.code, message: error.toLine(), sqlstate };
}
