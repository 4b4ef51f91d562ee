/**
 * A small S3 server in memory, for tests: conditional puts, multipart uploads, ranges, paged
 * listing, batch deletes, and faults on demand. It honors `If-None-Match` and `If-Match`, which the
 * ready-made ones do not. Requests must carry a signature; its value is not verified.
 */
import { createHash, randomUUID } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { decodeBody, S3Error } from "./s3-body.ts";
import {
  deleteResult,
  errorXml,
  initiateResult,
  listXml,
  parseDelete,
  parseParts,
  completeResult,
  uploadsXml,
} from "./s3-xml.ts";

export interface StoredObject {
  readonly body: Buffer;
  readonly etag: string;
  readonly modifiedMs: number;
  readonly metadata: Readonly<Record<string, string>>;
}

/**
 * What the matching requests suffer. `lost`: applied, then the connection is cut without an answer;
 * `half-body`: cut in the middle of the answer; `stall`: silence there, the connection left open.
 */
export type FaultKind =
  | { status: number; code?: string }
  | "lost"
  | "cut"
  | "half-body"
  | "stall"
  | { delayMs: number };

export interface Fault {
  readonly kind: FaultKind;
  /** How many matching requests it hits. */
  readonly times: number;
  /** Which requests; default all. */
  readonly when?: (request: { operation: string; key: string }) => boolean;
}

interface Upload {
  readonly key: string;
  readonly metadata: Record<string, string>;
  readonly parts: Map<number, { body: Buffer; etag: string }>;
  readonly begunMs: number;
}

interface Call {
  readonly request: IncomingMessage;
  readonly bucket: string;
  readonly key: string;
  readonly query: URLSearchParams;
  readonly body: Buffer;
}

interface Answer {
  readonly status: number;
  readonly headers?: Record<string, string>;
  readonly body?: Buffer | string;
}

const MIN_PART_BYTES = 5 << 20;

export interface S3ServerOptions {
  readonly buckets?: readonly string[];
  /** Keys in one listing page. Default 1000. */
  readonly pageSize?: number;
  /** The least size of a part but the last. Default 5 MiB, as on S3; tests may lower it. */
  readonly minPartBytes?: number;
}

export class S3Server {
  readonly buckets = new Map<string, Map<string, StoredObject>>();
  /** `<operation> <key>` of every request that came in. */
  readonly requests: string[] = [];
  readonly #uploads = new Map<string, Upload>();
  readonly #faults: { fault: Fault; left: number }[] = [];
  readonly #sockets = new Set<Socket>();
  readonly #options: Required<S3ServerOptions>;
  readonly #server: Server;

  private constructor(options: S3ServerOptions) {
    this.#options = { buckets: ["test"], pageSize: 1000, minPartBytes: MIN_PART_BYTES, ...options };
    for (const bucket of this.#options.buckets) this.buckets.set(bucket, new Map());
    this.#server = createServer((request, response) => void this.#serve(request, response));
    this.#server.on("connection", (socket) => {
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket));
    });
  }

  static async start(options: S3ServerOptions = {}): Promise<S3Server> {
    const server = new S3Server(options);
    await new Promise<void>((resolve) => server.#server.listen(0, "127.0.0.1", resolve));
    return server;
  }

  get endpoint(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** Uploads begun and neither completed nor aborted. */
  get openUploads(): number {
    return this.#uploads.size;
  }

  objects(bucket = "test"): Map<string, StoredObject> {
    const found = this.buckets.get(bucket);
    if (!found) throw new RangeError(`no bucket ${bucket}`);
    return found;
  }

  inject(fault: Fault): void {
    this.#faults.push({ fault, left: fault.times });
  }

  clearFaults(): void {
    this.#faults.length = 0;
  }

  async stop(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    try {
      const call = await readCall(request);
      const operation = operationOf(call);
      this.requests.push(`${operation} ${call.key}`);
      const kind = this.#faultFor(operation, call.key);
      if (kind === "cut") return void request.socket.destroy();
      if (kind !== null && typeof kind === "object" && "delayMs" in kind) await sleep(kind.delayMs);
      const failing = kind !== null && typeof kind === "object" && "status" in kind;
      const answer = failing
        ? errorAnswer(new S3Error(kind.status, kind.code ?? "InternalError", "injected"))
        : this.#answer(operation, call);
      if (kind === "lost") return void request.socket.destroy();
      send(response, request, answer, kind === "half-body" || kind === "stall" ? kind : null);
    } catch {
      request.socket.destroy();
    }
  }

  #faultFor(operation: string, key: string): FaultKind | null {
    const hit = this.#faults.find((f) => f.left > 0 && (f.fault.when?.({ operation, key }) ?? true));
    if (!hit) return null;
    hit.left--;
    return hit.fault.kind;
  }

  #answer(operation: string, call: Call): Answer {
    try {
      if (!/^AWS4-HMAC-SHA256 Credential=.+Signature=[0-9a-f]{64}/.test(call.request.headers.authorization ?? "")) {
        throw new S3Error(403, "AccessDenied", "the request is not signed");
      }
      const objects = this.buckets.get(call.bucket);
      if (!objects) throw new S3Error(404, "NoSuchBucket", "no such bucket");
      return this.#dispatch(operation, call, objects);
    } catch (error) {
      if (error instanceof S3Error) return errorAnswer(error);
      throw error;
    }
  }

  #dispatch(operation: string, call: Call, objects: Map<string, StoredObject>): Answer {
    switch (operation) {
      case "GetObject":
      case "HeadObject":
        return read(call, objects);
      case "PutObject":
        return put(call, objects, decodeBody(call.body, call.request.headers), metadataOf(call));
      case "DeleteObject":
        objects.delete(call.key);
        return { status: 204 };
      case "DeleteObjects":
        return removeMany(call, objects);
      case "ListObjectsV2":
        return this.#list(call, objects);
      case "ListMultipartUploads":
        return { status: 200, body: uploadsXml(call.bucket, this.#uploadsBelow(call.query.get("prefix") ?? "")) };
      case "CreateMultipartUpload":
        return this.#create(call);
      case "UploadPart":
        return this.#part(call);
      case "CompleteMultipartUpload":
        return this.#complete(call, objects);
      case "AbortMultipartUpload":
        this.#uploads.delete(call.query.get("uploadId") ?? "");
        return { status: 204 };
      default:
        throw new S3Error(501, "NotImplemented", operation);
    }
  }

  #list(call: Call, objects: Map<string, StoredObject>): Answer {
    const prefix = call.query.get("prefix") ?? "";
    const after = call.query.get("continuation-token") ?? call.query.get("start-after") ?? "";
    const size = Math.min(Number(call.query.get("max-keys") ?? 1000), this.#options.pageSize);
    const all = [...objects].filter(([key]) => key.startsWith(prefix)).toSorted(([a], [b]) => (a < b ? -1 : 1));
    const left = all.filter(([key]) => key > after);
    const page = left.slice(0, size);
    const token = left.length > size ? (page.at(-1)?.[0] ?? null) : null;
    return { status: 200, body: listXml(call.bucket, prefix, page, token) };
  }

  #create(call: Call): Answer {
    const id = randomUUID();
    this.#uploads.set(id, { key: call.key, metadata: metadataOf(call), parts: new Map(), begunMs: Date.now() });
    return { status: 200, body: initiateResult(call.bucket, call.key, id) };
  }

  #uploadsBelow(prefix: string): { key: string; id: string; begunMs: number }[] {
    return [...this.#uploads].flatMap(([id, { key, begunMs }]) =>
      key.startsWith(prefix) ? [{ key, id, begunMs }] : [],
    );
  }

  #part(call: Call): Answer {
    const upload = this.#upload(call);
    const body = decodeBody(call.body, call.request.headers);
    const etag = etagOf(body);
    upload.parts.set(Number(call.query.get("partNumber")), { body, etag });
    return { status: 200, headers: { etag } };
  }

  #complete(call: Call, objects: Map<string, StoredObject>): Answer {
    const upload = this.#upload(call);
    const wanted = parseParts(call.body.toString("utf8"));
    const bodies = wanted.map(({ number, etag }, index) => {
      const part = upload.parts.get(number);
      const previous = wanted[index - 1];
      if (previous && previous.number >= number) throw new S3Error(400, "InvalidPartOrder", "parts out of order");
      if (!part || part.etag !== etag) throw new S3Error(400, "InvalidPart", `part ${number}`);
      const small = part.body.length < this.#options.minPartBytes && index < wanted.length - 1;
      if (small) throw new S3Error(400, "EntityTooSmall", `part ${number} has ${part.body.length} bytes`);
      return part.body;
    });
    const answer = put(call, objects, Buffer.concat(bodies), upload.metadata);
    this.#uploads.delete(call.query.get("uploadId") ?? "");
    return { status: 200, body: completeResult(call.bucket, call.key, answer.headers?.["etag"] ?? "") };
  }

  #upload(call: Call): Upload {
    const upload = this.#uploads.get(call.query.get("uploadId") ?? "");
    if (!upload || upload.key !== call.key) throw new S3Error(404, "NoSuchUpload", "no such upload");
    return upload;
  }
}

async function readCall(request: IncomingMessage): Promise<Call> {
  const pieces: Buffer[] = [];
  for await (const piece of request) pieces.push(piece as Buffer);
  const url = new URL(request.url ?? "/", "http://127.0.0.1");
  const [bucket = "", ...rest] = url.pathname.slice(1).split("/");
  const key = rest.map(decodeURIComponent).join("/");
  return { request, bucket, key, query: url.searchParams, body: Buffer.concat(pieces) };
}

function operationOf({ request, key, query }: Call): string {
  const uploading = query.has("uploadId");
  if (request.method === "GET" && query.has("uploads")) return "ListMultipartUploads";
  if (request.method === "GET") return key === "" ? "ListObjectsV2" : "GetObject";
  if (request.method === "HEAD") return "HeadObject";
  if (request.method === "PUT") return uploading ? "UploadPart" : "PutObject";
  if (request.method === "DELETE") return uploading ? "AbortMultipartUpload" : "DeleteObject";
  if (query.has("delete")) return "DeleteObjects";
  if (query.has("uploads")) return "CreateMultipartUpload";
  return uploading ? "CompleteMultipartUpload" : `unknown ${request.method}`;
}

function read(call: Call, objects: Map<string, StoredObject>): Answer {
  const found = objects.get(call.key);
  if (!found) throw new S3Error(404, "NoSuchKey", "no such key");
  const headers: Record<string, string> = {
    etag: found.etag,
    "last-modified": new Date(found.modifiedMs).toUTCString(),
  };
  for (const [name, value] of Object.entries(found.metadata)) headers[`x-amz-meta-${name}`] = value;
  const match = call.request.headers["if-match"];
  if (match !== undefined && match !== found.etag) throw new S3Error(412, "PreconditionFailed", "If-Match");
  const range = /^bytes=(\d+)-(\d*)$/.exec(call.request.headers.range ?? "");
  if (!range) return { status: 200, headers, body: found.body };
  const start = Number(range[1]);
  if (start >= found.body.length) throw new S3Error(416, "InvalidRange", "range");
  const end = Math.min(range[2] ? Number(range[2]) : Infinity, found.body.length - 1);
  headers["content-range"] = `bytes ${start}-${end}/${found.body.length}`;
  return { status: 206, headers, body: found.body.subarray(start, end + 1) };
}

function put(call: Call, objects: Map<string, StoredObject>, body: Buffer, metadata: Record<string, string>): Answer {
  const existing = objects.get(call.key);
  const { "if-none-match": none, "if-match": match } = call.request.headers;
  if (none === "*" && existing) throw new S3Error(412, "PreconditionFailed", "If-None-Match");
  if (match !== undefined && existing?.etag !== match) throw new S3Error(412, "PreconditionFailed", "If-Match");
  const etag = etagOf(body);
  objects.set(call.key, { body, etag, modifiedMs: Date.now(), metadata });
  return { status: 200, headers: { etag } };
}

function removeMany(call: Call, objects: Map<string, StoredObject>): Answer {
  const keys = parseDelete(decodeBody(call.body, call.request.headers).toString("utf8"));
  const { headers } = call.request;
  const summed = Object.keys(headers).some((name) => name === "content-md5" || name.startsWith("x-amz-checksum-"));
  if (!summed) throw new S3Error(400, "InvalidRequest", "DeleteObjects needs a checksum");
  if (keys.length > 1000) throw new S3Error(400, "MalformedXML", "more than 1000 keys");
  for (const key of keys) objects.delete(key);
  return { status: 200, body: deleteResult() };
}

function metadataOf(call: Call): Record<string, string> {
  const entries = Object.entries(call.request.headers).filter(([name]) => name.startsWith("x-amz-meta-"));
  return Object.fromEntries(entries.map(([name, value]) => [name.slice("x-amz-meta-".length), String(value)]));
}

function etagOf(body: Buffer): string {
  return `"${createHash("md5").update(body).digest("hex")}"`;
}

function errorAnswer(error: S3Error): Answer {
  return { status: error.status, body: errorXml(error.code, error.message) };
}

function send(
  response: ServerResponse,
  request: IncomingMessage,
  answer: Answer,
  broken: "half-body" | "stall" | null,
): void {
  const body = Buffer.from(answer.body ?? "");
  const length = request.method === "HEAD" && answer.status >= 400 ? 0 : body.length;
  response.writeHead(answer.status, {
    "x-amz-request-id": randomUUID(),
    ...(typeof answer.body === "string" ? { "content-type": "application/xml" } : {}),
    ...answer.headers,
    ...(answer.status === 204 ? {} : { "content-length": String(length) }),
  });
  if (request.method === "HEAD" || answer.status === 204) return void response.end();
  if (broken === null) return void response.end(body);
  response.write(body.subarray(0, body.length >> 1), () => {
    if (broken === "half-body") request.socket.destroy();
  });
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
