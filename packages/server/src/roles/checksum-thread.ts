/**
 * Reading written files back in threads of their own: it is a third of the JavaScript that tiering takes, and depends on
 * nothing else of the process. A large file is read by two, each a half of it: for the last file of a partition the whole
 * machine waits. The threads have small engines of their own, are started by the first file, and need the built program:
 * from the source, where threads cannot load TypeScript, files are read on the caller's thread.
 */
import { availableParallelism } from "node:os";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { messageOf, isSpillwayError, SpillwayError, type ErrorCode } from "@spillway/base/errors";
import { Checksum } from "@spillway/base/rowhash";
import { Engine, type FileChecksum, fileChecksum, type FileChecksumRequest } from "../engine/engine.ts";

interface ThreadData {
  readonly role: "checksum";
  readonly tempDirectory: string;
}

interface Question {
  readonly id: number;
  readonly request: FileChecksumRequest;
}

interface Answer {
  readonly id: number;
  readonly checksum?: string;
  readonly error?: { readonly code: ErrorCode; readonly message: string };
}

const MEMORY_BYTES = 96 << 20;
/** Rows of a row group as files are written: a part begins with one. */
const GROUP_ROWS = 122_880;
/** Row groups from which on a file is read in two parts. */
const PARTED_GROUPS = 3;

/** The threads; `checksum` is what they do. */
export class ChecksumThreads {
  readonly checksum: FileChecksum;
  readonly #threads: readonly ChecksumThread[];

  constructor(tempDirectory: string) {
    const count = Math.min(2, availableParallelism());
    this.#threads = Array.from({ length: count }, () => new ChecksumThread(tempDirectory));
    this.checksum = (request) => this.#checksum(request);
  }

  /** Whether this program can have them. */
  static get isAvailable(): boolean {
    return import.meta.url.endsWith(".js");
  }

  async close(): Promise<void> {
    await Promise.all(this.#threads.map((thread) => thread.close()));
  }

  async #checksum(request: FileChecksumRequest): Promise<Checksum> {
    const parts = partsOf(Number(request.rows), this.#threads.length);
    const asked = parts.map((range, i) => this.#threads[i]?.checksum({ ...request, range }));
    // A thread is asked again when it has answered, not while it still reads for a file that has failed.
    await Promise.allSettled(asked);
    const whole = new Checksum();
    for (const answer of asked) {
      const part = await answer;
      if (part) whole.merge(part);
    }
    return whole;
  }
}

/** Ranges of rows that cover a file, the last without an end: rows that should not be there are counted, too. */
function partsOf(rows: number, threads: number): (readonly [number, number])[] {
  const groups = Math.ceil(rows / GROUP_ROWS);
  const middle = Math.ceil(groups / 2) * GROUP_ROWS;
  if (threads < 2 || groups < PARTED_GROUPS) return [[0, Number.MAX_SAFE_INTEGER]];
  return [
    [0, middle],
    [middle, Number.MAX_SAFE_INTEGER],
  ];
}

class ChecksumThread {
  readonly #tempDirectory: string;
  readonly #waiting = new Map<number, { resolve: (c: Checksum) => void; reject: (e: unknown) => void }>();
  #worker: Worker | null = null;
  #lastId = 0;

  constructor(tempDirectory: string) {
    this.#tempDirectory = tempDirectory;
  }

  readonly checksum = (request: FileChecksumRequest): Promise<Checksum> => {
    const worker = (this.#worker ??= this.#start());
    const id = (this.#lastId += 1);
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      // oxlint-disable-next-line unicorn/require-post-message-target-origin -- a thread, no window
      worker.postMessage({ id, request } satisfies Question);
    });
  };

  async close(): Promise<void> {
    await this.#worker?.terminate();
  }

  #start(): Worker {
    const data: ThreadData = { role: "checksum", tempDirectory: this.#tempDirectory };
    const worker = new Worker(new URL(import.meta.url), { workerData: data });
    worker.on("message", ({ id, checksum, error }: Answer) => {
      const waiter = this.#waiting.get(id);
      this.#waiting.delete(id);
      const found = checksum === undefined ? null : Checksum.parse(checksum);
      if (found) waiter?.resolve(found);
      else waiter?.reject(new SpillwayError(error?.code ?? "internal", error?.message ?? "no checksum was computed"));
    });
    const lost = (why: string): void => {
      if (this.#worker === worker) this.#worker = null;
      for (const { reject } of this.#waiting.values()) {
        reject(new SpillwayError("engine_failed", `the thread that reads files back ended: ${why}`));
      }
      this.#waiting.clear();
    };
    worker.on("error", (error) => lost(messageOf(error)));
    worker.on("exit", (code) => lost(`exit code ${code}`));
    worker.unref();
    return worker;
  }
}

async function serve(data: ThreadData): Promise<void> {
  const engine = await Engine.open({ memoryBytes: MEMORY_BYTES, threads: 1, tempDirectory: data.tempDirectory });
  const checksum = fileChecksum(engine);
  parentPort?.on("message", ({ id, request }: Question) => {
    const answer = (message: Omit<Answer, "id">): void => {
      // oxlint-disable-next-line unicorn/require-post-message-target-origin -- a thread, no window
      parentPort?.postMessage({ id, ...message });
    };
    checksum(request).then(
      (sum) => answer({ checksum: sum.toString() }),
      (error: unknown) =>
        answer({ error: { code: isSpillwayError(error) ? error.code : "internal", message: messageOf(error) } }),
    );
  });
}

const own = workerData as ThreadData | null;
if (!isMainThread && own?.role === "checksum") await serve(own);
