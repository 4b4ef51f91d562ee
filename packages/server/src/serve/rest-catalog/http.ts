/** Requests and responses as values, so that routing is a pure function; sockets are the role's. */
import { timingSafeEqual, createHash } from "node:crypto";
import { SpillwayError } from "@spillway/base/errors";

export interface RestRequest {
  readonly method: string;
  /** The path as sent, still percent-encoded, without the query. */
  readonly path: string;
  readonly query: URLSearchParams;
  readonly headers: Readonly<Record<string, string | undefined>>;
  readonly body: () => Promise<string>;
}

export interface RestResponse {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  /** JSON text, or empty. */
  readonly body: string;
}

/**
 * Iceberg's error body: `{"error": {"message", "type", "code"}}`.
 * Source: Iceberg REST catalog specification, `IcebergErrorResponse`.
 */
export class RestError extends Error {
  readonly status: number;
  readonly type: string;

  constructor(status: number, type: string, message: string) {
    super(message);
    this.status = status;
    this.type = type;
  }

  toResponse(): RestResponse {
    const headers: Record<string, string> = { "content-type": "application/json" };
    if (this.status === 401) headers["www-authenticate"] = "Bearer";
    if (this.status === 503) headers["retry-after"] = "1";
    const body = { error: { message: this.message, type: this.type, code: this.status } };
    return { status: this.status, headers, body: JSON.stringify(body) };
  }
}

export const notFound = (type: "NoSuchTableException" | "NoSuchNamespaceException", what: string): RestError =>
  new RestError(404, type, `${type === "NoSuchTableException" ? "Table" : "Namespace"} does not exist: ${what}`);

export const forbidden = (why: string): RestError => new RestError(403, "ForbiddenException", why);

export function json(status: number, value: unknown): RestResponse {
  return { status, headers: { "content-type": "application/json" }, body: JSON.stringify(value) };
}

export function rawJson(status: number, text: string): RestResponse {
  return { status, headers: { "content-type": "application/json" }, body: text };
}

export const empty = (status: number): RestResponse => ({ status, headers: {}, body: "" });

/** Compares digests, so that neither the length nor the first differing byte can be timed. */
export function tokenMatches(given: string, expected: string): boolean {
  const digest = (text: string): Buffer => createHash("sha256").update(text).digest();
  return timingSafeEqual(digest(given), digest(expected));
}

export function requireBearer(request: RestRequest, token: string | null): void {
  if (token === null) return;
  const header = request.headers["authorization"] ?? "";
  const match = /^Bearer\s+(.+)$/i.exec(header);
  if (!match?.[1] || !tokenMatches(match[1], token)) {
    throw new RestError(401, "NotAuthorizedException", "A valid bearer token is required");
  }
}

/** Splits a path into decoded segments; a malformed escape is the client's error. */
export function segments(path: string): string[] {
  try {
    return path
      .split("/")
      .filter((s) => s !== "")
      .map(decodeURIComponent);
  } catch {
    throw new RestError(400, "BadRequestException", "The path is not valid percent-encoding");
  }
}

/** A namespace travels as its levels joined by the unit separator (%1F). Ours have one level: the schema. */
export function namespaceOf(segment: string): string {
  const levels = segment.split("\u001f");
  if (levels.length !== 1 || levels[0] === "") throw notFound("NoSuchNamespaceException", levels.join("."));
  return levels[0] ?? "";
}

export interface Page<T> {
  readonly items: readonly T[];
  readonly nextPageToken: string | null;
}

const MAX_PAGE = 1000;

/** Pages by name: a token is the last name of the page before, so a page is right under concurrent changes. */
export function paginate<T>(items: readonly T[], nameOf: (item: T) => string, query: URLSearchParams): Page<T> {
  const size = query.get("pageSize");
  const token = query.get("pageToken");
  if (size !== null && !/^[1-9]\d*$/.test(size)) {
    throw new RestError(400, "BadRequestException", "pageSize must be a positive whole number");
  }
  const sorted = items.toSorted((a, b) => (nameOf(a) < nameOf(b) ? -1 : 1));
  const after = token === null || token === "" ? sorted : sorted.filter((i) => nameOf(i) > decodeToken(token));
  if (size === null && token === null) return { items: after, nextPageToken: null };
  const page = after.slice(0, Math.min(Number(size ?? MAX_PAGE), MAX_PAGE));
  const last = page.at(-1);
  const more = last !== undefined && page.length < after.length;
  return { items: page, nextPageToken: more ? Buffer.from(nameOf(last)).toString("base64url") : null };
}

function decodeToken(token: string): string {
  return Buffer.from(token, "base64url").toString("utf8");
}

/** What went wrong, in the words of the protocol. The text of unexpected errors stays in the log. */
export function toResponse(error: unknown): RestResponse {
  if (error instanceof RestError) return error.toResponse();
  if (error instanceof SpillwayError) {
    const status = { usage: 400, refused: 403, retry: 503, conflict: 409, unknown: 500, operator: 500 }[error.kind];
    const type = {
      usage: "BadRequestException",
      refused: "ForbiddenException",
      retry: "ServiceUnavailableException",
      conflict: "CommitFailedException",
      unknown: "CommitStateUnknownException",
      operator: "ServerErrorException",
    }[error.kind];
    return new RestError(status, type, `${error.code}: ${error.message}`).toResponse();
  }
  return new RestError(500, "ServerErrorException", "The server failed; its log says why").toResponse();
}
