/**
 * Reading written files back in a thread of its own: it is a third of the JavaScript that tiering takes, and depends on
 * nothing else of the process. The thread has a small engine of its own, is started by the first file, and needs the built
 * program: from the source, where threads cannot load TypeScript, files are read on the caller's thread.
 */
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

export class ChecksumThread {
  readonly #tempDirectory: string;
  readonly #waiting = new Map<number, { resolve: (c: Checksum) => void; reject: (e: unknown) => void }>();
  #worker: Worker | null = null;
  #lastId = 0;

  constructor(tempDirectory: string) {
    this.#tempDirectory = tempDirectory;
  }

  /** Whether this program can have one. */
  static get isAvailable(): boolean {
    return import.meta.url.endsWith(".js");
  }

  readonly checksum: FileChecksum = (request) => {
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
