/**
 * S3, or a store that speaks its protocol, through the official client. Every request has its own
 * timeout, and failures that may pass are retried within a budget of attempts and of time. Big
 * bodies go up in parts; a conditional write uses `If-None-Match: *`
 * (https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html).
 *
 * An answer can be lost after the write was applied, and the retry then finds the place taken by
 * itself. So every object carries the id of the write that made it, and a "taken" after a retry is
 * looked up before it is believed.
 */
import {
  AbortMultipartUploadCommand,
  CompleteMultipartUploadCommand,
  CreateMultipartUploadCommand,
  DeleteObjectsCommand,
  GetObjectCommand,
  HeadObjectCommand,
  ListMultipartUploadsCommand,
  type ListMultipartUploadsCommandOutput,
  ListObjectsV2Command,
  PutObjectCommand,
  S3Client,
  type S3ClientConfig,
  UploadPartCommand,
} from "@aws-sdk/client-s3";
import type { Clock } from "@spillway/base/clock";
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import { newUuid } from "@spillway/base/ids";
import { retry, type RetryBudget } from "@spillway/base/retry";
import { isPassing, isStatus, translateS3 } from "./s3-errors.ts";
import {
  type Body,
  chunksOf,
  corrupt,
  invalidPath,
  isWithin,
  type ListedObject,
  normalizeLocation,
  type ObjectInfo,
  type ObjectStore,
  type PutOptions,
  taken,
} from "./store.ts";

/** The limit of S3's DeleteObjects. */
const DELETE_BATCH = 1000;
/** S3 takes at most 10 000 parts; they double in size every so many, so that 16 MiB reach 5 TB. */
const PARTS_BEFORE_DOUBLING = 1000;
const WRITE_ID = "spillway-write";

export interface S3StoreOptions {
  /** `s3://bucket` or `s3://bucket/prefix`. */
  readonly root: string;
  /** Null for Amazon's own. */
  readonly endpoint?: string | null;
  readonly region: string;
  readonly pathStyle?: boolean;
  /** Without it the client's default chain (environment, shared files, instance role). */
  readonly credentials?: S3ClientConfig["credentials"];
  readonly clock: Clock;
  readonly random: () => number;
  readonly retry?: RetryBudget;
  /** How long one request may take, its body included. Default 60 s. */
  readonly requestTimeoutMs?: number;
  /** Bytes of a part of a big body (S3 wants 5 MiB or more). Bodies up to this go up at once. Default 16 MiB. */
  readonly partBytes?: number;
  /** How many parts are under way at once; times `partBytes` is the memory of an upload. Default 4. */
  readonly parallelParts?: number;
}

const DEFAULT_BUDGET: RetryBudget = { attempts: 6, totalMs: 60_000, firstDelayMs: 100, maxDelayMs: 5_000 };

export class S3Store implements ObjectStore {
  readonly root: string;
  readonly #bucket: string;
  readonly #client: S3Client;
  readonly #options: Required<Omit<S3StoreOptions, "endpoint" | "credentials" | "pathStyle">>;

  constructor(options: S3StoreOptions) {
    this.root = normalizeLocation(options.root);
    const bucket = /^s3:\/\/([^/]+)/.exec(this.root)?.[1];
    if (bucket === undefined) throw invalidPath(options.root, "is not an s3:// location");
    this.#bucket = bucket;
    this.#options = {
      retry: DEFAULT_BUDGET,
      requestTimeoutMs: 60_000,
      partBytes: 16 << 20,
      parallelParts: 4,
      ...options,
    };
    // The client's advice about Node versions is no message for the users of a command line.
    process.env["AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED"] ??= "true";
    this.#client = new S3Client({
      region: options.region,
      forcePathStyle: options.pathStyle ?? false,
      ...(options.endpoint ? { endpoint: options.endpoint } : {}),
      ...(options.credentials ? { credentials: options.credentials } : {}),
      // Trailing checksums are stored as part of the object by some S3-compatible stores.
      requestChecksumCalculation: "WHEN_REQUIRED",
      responseChecksumValidation: "WHEN_REQUIRED",
      // One budget decides, ours.
      maxAttempts: 1,
      requestHandler: { connectionTimeout: 5_000, socketTimeout: this.#options.requestTimeoutMs },
    });
  }

  /** Closes the connections. */
  close(): void {
    this.#client.destroy();
  }

  async get(path: string): Promise<Uint8Array> {
    return this.#read(path, undefined);
  }

  async getRange(path: string, offset: number, length: number): Promise<Uint8Array> {
    if (length === 0) return new Uint8Array(0);
    const bytes = await this.#read(path, { offset, length });
    if (bytes.length !== length) throw corrupt(path, `ends at byte ${offset + bytes.length}, not ${offset + length}`);
    return bytes;
  }

  async put(path: string, data: Body, options: PutOptions = {}): Promise<{ size: number }> {
    const parts = partsOf(data, this.#options.partBytes)[Symbol.asyncIterator]();
    const first = await parts.next();
    const head = first.done ? new Uint8Array(0) : first.value;
    const second = head.length < this.#options.partBytes ? null : await parts.next();
    if (second === null || second.done) return this.#putWhole(path, head, options);
    return this.#putParts(path, [head, second.value], parts, options);
  }

  async head(path: string): Promise<ObjectInfo | null> {
    const found = await this.#headRaw(path);
    if (found === null) return null;
    return { size: found.ContentLength ?? 0, ...(found.ETag === undefined ? {} : { etag: found.ETag }) };
  }

  async *list(prefix: string): AsyncIterable<ListedObject> {
    const location = normalizeLocation(prefix);
    const Prefix = prefix.endsWith("/") || location === this.root ? `${this.#keyOf(location)}/` : this.#keyOf(location);
    let token: string | undefined;
    do {
      const input = { Bucket: this.#bucket, Prefix: Prefix === "/" ? "" : Prefix, ContinuationToken: token };
      const page = await this.#attempt(prefix, (signal) =>
        this.#client.send(new ListObjectsV2Command(input), { abortSignal: signal }),
      );
      for (const { Key, Size, LastModified } of page.Contents ?? []) {
        if (Key === undefined) continue;
        yield { path: `s3://${this.#bucket}/${Key}`, size: Size ?? 0, modifiedMs: LastModified?.getTime() ?? 0 };
      }
      token = page.IsTruncated ? page.NextContinuationToken : undefined;
    } while (token !== undefined);
  }

  async delete(paths: readonly string[]): Promise<void> {
    const keys = paths.map((path) => this.#keyOf(normalizeLocation(path), true));
    for (let at = 0; at < keys.length; at += DELETE_BATCH) {
      await this.#deleteBatch(keys.slice(at, at + DELETE_BATCH));
    }
  }

  /** Uploads of parts that nobody finished: they cost as objects do, and no listing of objects shows them. */
  async sweepTemporary(olderThanMs: number, nowMs: number): Promise<number> {
    let removed = 0;
    const Prefix = this.#keyOf(this.root) === "" ? "" : `${this.#keyOf(this.root)}/`;
    let KeyMarker: string | undefined;
    let UploadIdMarker: string | undefined;
    for (let more = true; more;) {
      const input = { Bucket: this.#bucket, Prefix, KeyMarker, UploadIdMarker };
      const page: ListMultipartUploadsCommandOutput = await this.#attempt(this.root, (signal) =>
        this.#client.send(new ListMultipartUploadsCommand(input), { abortSignal: signal }),
      );
      for (const { Key, UploadId, Initiated } of page.Uploads ?? []) {
        if (Key === undefined || UploadId === undefined || Initiated === undefined) continue;
        if (!Key.startsWith(Prefix) || Initiated.getTime() > nowMs - olderThanMs) continue;
        const abort = new AbortMultipartUploadCommand({ Bucket: this.#bucket, Key, UploadId });
        const path = `s3://${this.#bucket}/${Key}`;
        try {
          await this.#attempt(path, (signal) => this.#client.send(abort, { abortSignal: signal }));
          removed += 1;
        } catch (error) {
          // It was finished, or somebody else gave it up.
          if (!isSpillwayError(error, "store_not_found")) throw error;
        }
      }
      more = page.IsTruncated === true;
      KeyMarker = page.NextKeyMarker;
      UploadIdMarker = page.NextUploadIdMarker;
    }
    return removed;
  }

  async #deleteBatch(keys: readonly string[]): Promise<void> {
    let left = keys;
    const path = `s3://${this.#bucket}/${keys[0]}`;
    await this.#attempt(path, async (signal) => {
      const Delete = { Objects: left.map((Key) => ({ Key })), Quiet: true };
      const command = new DeleteObjectsCommand({ Bucket: this.#bucket, Delete });
      const answer = await this.#client.send(command, { abortSignal: signal });
      const failed = (answer.Errors ?? []).filter((error) => error.Code !== "NoSuchKey");
      left = failed.flatMap((error) => (error.Key === undefined ? [] : [error.Key]));
      const worst = failed.find((error) => error.Code === "AccessDenied") ?? failed[0];
      if (worst === undefined) return;
      throw Object.assign(new Error(worst.Message ?? "an object could not be deleted"), {
        name: worst.Code ?? "Error",
      });
    });
  }

  async #read(path: string, range: { offset: number; length: number } | undefined): Promise<Uint8Array> {
    const Key = this.#keyOf(normalizeLocation(path), true);
    const Range = range === undefined ? undefined : `bytes=${range.offset}-${range.offset + range.length - 1}`;
    return this.#attempt(path, async (signal) => {
      const command = new GetObjectCommand({ Bucket: this.#bucket, Key, Range });
      const answer = await this.#client.send(command, { abortSignal: signal });
      const bytes = await answer.Body?.transformToByteArray();
      if (bytes === undefined) throw corrupt(path, "came without a body");
      if (answer.ContentLength !== undefined && bytes.length !== answer.ContentLength) {
        throw Object.assign(new Error("the body was cut off"), { name: "IncompleteBody" });
      }
      // A store that ignores Range answers 200 with everything.
      const whole = range !== undefined && answer.ContentRange === undefined && bytes.length > range.length;
      return whole ? bytes.subarray(range.offset, range.offset + range.length) : bytes;
    });
  }

  async #headRaw(path: string) {
    const Key = this.#keyOf(normalizeLocation(path), true);
    try {
      return await this.#attempt(path, (signal) =>
        this.#client.send(new HeadObjectCommand({ Bucket: this.#bucket, Key }), { abortSignal: signal }),
      );
    } catch (error) {
      if (isSpillwayError(error, "store_not_found")) return null;
      throw error;
    }
  }

  async #putWhole(path: string, body: Uint8Array, options: PutOptions): Promise<{ size: number }> {
    const Key = this.#keyOf(normalizeLocation(path), true);
    const writeId = newUuid();
    const input = {
      Bucket: this.#bucket,
      Key,
      Body: body,
      ContentLength: body.length,
      Metadata: { [WRITE_ID]: writeId },
      ...(options.ifNoneMatch ? { IfNoneMatch: "*" } : {}),
    };
    await this.#conditional(path, writeId, options, (signal) =>
      this.#client.send(new PutObjectCommand(input), { abortSignal: signal }),
    );
    return { size: body.length };
  }

  /** Uploads parts, `parallelParts` at a time, and publishes them by one request; on failure none stay. */
  async #putParts(
    path: string,
    begun: readonly Uint8Array[],
    rest: AsyncIterator<Uint8Array>,
    options: PutOptions,
  ): Promise<{ size: number }> {
    const target = { Bucket: this.#bucket, Key: this.#keyOf(normalizeLocation(path), true) };
    const writeId = newUuid();
    const create = new CreateMultipartUploadCommand({ ...target, Metadata: { [WRITE_ID]: writeId } });
    const { UploadId } = await this.#attempt(path, (signal) => this.#client.send(create, { abortSignal: signal }));
    try {
      const { parts, size } = await this.#uploadParts(path, { ...target, UploadId }, begun, rest);
      const complete = {
        ...target,
        UploadId,
        MultipartUpload: { Parts: parts },
        ...(options.ifNoneMatch ? { IfNoneMatch: "*" } : {}),
      };
      await this.#conditional(path, writeId, options, (signal) =>
        this.#client.send(new CompleteMultipartUploadCommand(complete), { abortSignal: signal }),
      );
      return { size };
    } catch (error) {
      await rest.return?.().catch(() => {});
      const abort = new AbortMultipartUploadCommand({ ...target, UploadId });
      await this.#attempt(path, (signal) => this.#client.send(abort, { abortSignal: signal })).catch(() => {});
      throw error;
    }
  }

  async #uploadParts(
    path: string,
    target: { Bucket: string; Key: string; UploadId: string | undefined },
    begun: readonly Uint8Array[],
    rest: AsyncIterator<Uint8Array>,
  ): Promise<{ parts: { PartNumber: number; ETag: string | undefined }[]; size: number }> {
    const parts: { PartNumber: number; ETag: string | undefined }[] = [];
    const pending = [...begun];
    let size = 0;
    let failed: unknown = null;
    const next = serialize(async () => pending.shift() ?? (await rest.next().then((r) => (r.done ? null : r.value))));
    const lane = async (): Promise<void> => {
      for (;;) {
        const taken = failed === null ? await next() : null;
        if (taken === null) return;
        const part = { PartNumber: taken.index + 1, ETag: undefined as string | undefined };
        parts.push(part);
        size += taken.value.length;
        const input = { ...target, PartNumber: part.PartNumber, Body: taken.value, ContentLength: taken.value.length };
        const sent = await this.#attempt(path, (signal) =>
          this.#client.send(new UploadPartCommand(input), { abortSignal: signal }),
        );
        part.ETag = sent.ETag;
      }
    };
    const guarded = Array.from({ length: this.#options.parallelParts }, () =>
      lane().catch((error: unknown) => {
        failed ??= error;
      }),
    );
    await Promise.all(guarded);
    if (failed !== null) throw failed;
    parts.sort((a, b) => a.PartNumber - b.PartNumber);
    return { parts, size };
  }

  /** A write of which an earlier attempt may have been applied although its answer was lost. */
  async #conditional(
    path: string,
    writeId: string,
    options: PutOptions,
    send: (signal: AbortSignal) => Promise<unknown>,
  ): Promise<void> {
    let doubtful = false;
    try {
      await this.#attempt(path, async (signal) => {
        try {
          await send(signal);
        } catch (error) {
          if (!isDoubtful(error)) throw error;
          doubtful = true;
          throw error;
        }
      });
    } catch (error) {
      if (doubtful && (await this.#isOurs(path, writeId, options))) return;
      if (isSpillwayError(error, "store_precondition")) throw taken(path, error);
      throw error;
    }
  }

  /** Whether the object that is there now is this very write's. */
  async #isOurs(path: string, writeId: string, options: PutOptions): Promise<boolean> {
    try {
      return (await this.#headRaw(path))?.Metadata?.[WRITE_ID] === writeId;
    } catch (error) {
      if (!options.ifNoneMatch) return false;
      const message = `The answer to writing ${path} was lost, and the store cannot be asked.`;
      throw new SpillwayError("store_outcome_unknown", message, { cause: error, details: { path } });
    }
  }

  /** One request with its timeout, retried within the budget; errors as ours. */
  async #attempt<T>(path: string, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const { clock, random, requestTimeoutMs } = this.#options;
    try {
      return await retry({ ...this.#options.retry, clock, random, retryable: isPassing }, () =>
        work(AbortSignal.timeout(requestTimeoutMs)),
      );
    } catch (error) {
      throw translateS3(error, path);
    }
  }

  #keyOf(location: string, isObject = false): string {
    if (!isWithin(this.root, location)) throw invalidPath(location, "leads outside the store's root");
    const key = location.slice(`s3://${this.#bucket}/`.length);
    if (isObject && (key === "" || location === this.root)) throw invalidPath(location, "names no object");
    return key;
  }
}

/** Whether the request may have been applied although it failed. */
function isDoubtful(error: unknown): boolean {
  return isPassing(error) && !isStatus(error, 429, 503);
}

/** Calls `pull` one at a time, numbering what it gives; null at the end. */
function serialize<T>(pull: () => Promise<T | null>): () => Promise<{ value: T; index: number } | null> {
  let index = 0;
  let ended = false;
  let last: Promise<unknown> = Promise.resolve();
  return () => {
    const turn = last.then(async () => {
      const value = ended ? null : await pull();
      if (value === null) {
        ended = true;
        return null;
      }
      return { value, index: index++ };
    });
    last = turn.catch(() => {});
    return turn;
  };
}

/** The body in parts of `bytes`, the last one shorter; later parts of very long bodies are bigger. */
async function* partsOf(data: Body, bytes: number): AsyncGenerator<Uint8Array> {
  let pieces: Uint8Array[] = [];
  let have = 0;
  let count = 0;
  const wanted = (): number => bytes * 2 ** Math.floor(count / PARTS_BEFORE_DOUBLING);
  for await (const chunk of chunksOf(data)) {
    for (let at = 0; at < chunk.length;) {
      const take = Math.min(wanted() - have, chunk.length - at);
      // A stream may use its buffer again once we ask for the next chunk.
      pieces.push(data instanceof Uint8Array ? chunk.subarray(at, at + take) : chunk.slice(at, at + take));
      have += take;
      at += take;
      if (have < wanted()) continue;
      yield join(pieces, have);
      count++;
      pieces = [];
      have = 0;
    }
  }
  if (have > 0) yield join(pieces, have);
}

function join(pieces: readonly Uint8Array[], length: number): Uint8Array {
  const [only] = pieces;
  if (only !== undefined && pieces.length === 1) return only;
  const whole = new Uint8Array(length);
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}
