/** What the S3 client throws, as ours. */
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { notFound, taken } from "./store.ts";

const PASSING_STATUS = new Set([408, 429, 500, 502, 503, 504]);
const PASSING_NAMES = new Set([
  "AbortError",
  "ConditionalRequestConflict",
  "IncompleteBody",
  "InternalError",
  "OperationAborted",
  "RequestTimeout",
  "ServiceUnavailable",
  "SlowDown",
  "Throttling",
  "ThrottlingException",
  "TimeoutError",
]);
const PASSING_CODES = new Set([
  "EAI_AGAIN",
  "ECONNABORTED",
  "ECONNREFUSED",
  "ECONNRESET",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "EPIPE",
  "ETIMEDOUT",
  "ERR_STREAM_PREMATURE_CLOSE",
]);
const DENIED_NAMES = new Set(["AccessDenied", "CredentialsProviderError", "ExpiredToken", "InvalidAccessKeyId"]);

/** Whether a failure may pass, so that another try is worth it. */
export function isPassing(error: unknown): boolean {
  if (error instanceof SpillwayError) return false;
  const status = statusOf(error);
  if (status !== undefined && status >= 400) return PASSING_STATUS.has(status) || PASSING_NAMES.has(nameOf(error));
  if (PASSING_NAMES.has(nameOf(error)) || PASSING_CODES.has(codeOf(error))) return true;
  // An answer that broke off while it was parsed, or a socket that hung up.
  return status !== undefined || /socket hang up|aborted|premature/i.test(messageOf(error));
}

export function isStatus(error: unknown, ...statuses: number[]): boolean {
  return statuses.includes(statusOf(error) ?? 0);
}

export function translateS3(error: unknown, path: string): unknown {
  if (error instanceof SpillwayError) return error;
  const name = nameOf(error);
  const options = { cause: error, details: { path } };
  if (name === "NoSuchBucket") {
    return new SpillwayError("store_bucket_missing", `The bucket of ${path} does not exist.`, options);
  }
  if (isStatus(error, 404) || name === "NoSuchKey" || name === "NoSuchUpload" || name === "NotFound")
    return notFound(path, error);
  if (isStatus(error, 412) || name === "PreconditionFailed") return taken(path, error);
  if (isStatus(error, 401, 403) || DENIED_NAMES.has(name)) {
    return new SpillwayError("store_denied", `The store refuses access to ${path}: ${messageOf(error)}.`, options);
  }
  if (isStatus(error, 416)) {
    return new SpillwayError("store_corrupt", `The object ${path} ends before the range that was asked for.`, options);
  }
  if (isStatus(error, 507) || name === "XMinioStorageFull") {
    return new SpillwayError("disk_full", `The store has no space left to write ${path}.`, options);
  }
  return new SpillwayError("store_unreachable", `The store fails for ${path}: ${name}, ${messageOf(error)}.`, options);
}

function statusOf(error: unknown): number | undefined {
  if (typeof error !== "object" || error === null || !("$metadata" in error)) return undefined;
  return (error.$metadata as { httpStatusCode?: number }).httpStatusCode;
}

function nameOf(error: unknown): string {
  return error instanceof Error ? error.name : "";
}

function codeOf(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : "";
}
