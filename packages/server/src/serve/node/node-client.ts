/** A manager's side of the socket to one node: a Runner whose statements end with `node_lost` when the node does. */
import { connect, type Socket } from "node:net";
import { CODES, type ErrorCode } from "@spillway/base/codes";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import type { WireColumn } from "../session/session.ts";
import {
  creditFrame,
  FRAME,
  type Frame,
  FrameReader,
  jsonFrame,
  parseSchemaPayload,
  PROTOCOL_VERSION,
} from "./frames.ts";
import type { NodeRequest, NodeResult, NodeStats, Runner } from "./request.ts";

export interface NodeClientOptions {
  readonly socketPath: string;
  readonly token: string;
  readonly generation: string;
  readonly build: string;
  /** Named at the hello, so that a successor can end what this manager left. */
  readonly manager: string;
  readonly timeoutMs?: number;
}

export interface NodeHealth {
  readonly memoryBytes: number;
  readonly tempBytes: number;
  readonly rss: number;
  readonly active: number;
}

interface Receiver {
  frame(frame: Frame): void;
  lost(error: SpillwayError): void;
}

export class NodeClient implements Runner {
  readonly #socket: Socket;
  readonly #receivers = new Map<number, Receiver>();
  /** Resolves when the connection is over. */
  readonly closed: Promise<SpillwayError>;
  #end: (error: SpillwayError) => void = () => {};
  #next = 1;
  #over: SpillwayError | null = null;

  private constructor(socket: Socket, reader: FrameReader) {
    this.#socket = socket;
    this.closed = new Promise((resolve) => (this.#end = resolve));
    socket.on("data", (chunk: Buffer) => {
      try {
        for (const frame of reader.push(chunk)) this.#receivers.get(frame.stream)?.frame(frame);
      } catch (error) {
        this.#fail(new SpillwayError("node_protocol", messageOf(error), { cause: error }));
      }
    });
    socket.on("error", (error) => this.#fail(lost(messageOf(error))));
    socket.on("close", () => this.#fail(lost("its connection ended")));
  }

  /** Throws `node_lost` when there is no node, `node_refused` when it does not take the manager. */
  static async connect(options: NodeClientOptions): Promise<NodeClient> {
    const { socketPath, timeoutMs = 1000, token, generation, build, manager } = options;
    const socket = connect(socketPath);
    const reader = new FrameReader();
    try {
      await new Promise<void>((resolve, reject) => {
        const timer = setTimeout(() => reject(lost(`no answer in ${timeoutMs} ms`)), timeoutMs);
        const settle = (error: unknown): void => {
          clearTimeout(timer);
          socket.removeAllListeners();
          if (error === null) resolve();
          else reject(error instanceof SpillwayError ? error : lost(messageOf(error)));
        };
        socket.once("error", settle);
        socket.once("close", () => settle(lost("it closed the connection")));
        socket.once("connect", () => {
          socket.write(jsonFrame(FRAME.hello, 0, { version: PROTOCOL_VERSION, build, token, generation, manager }));
        });
        socket.on("data", (chunk: Buffer) => {
          for (const frame of reader.push(chunk)) {
            settle(frame.type === FRAME.hello ? null : parseError(frame.payload));
            return;
          }
        });
      });
      return new NodeClient(socket, reader);
    } catch (error) {
      socket.on("error", () => {});
      socket.destroy();
      throw error;
    }
  }

  get isOpen(): boolean {
    return this.#over === null;
  }

  run(request: NodeRequest, { signal }: { readonly signal: AbortSignal }): Promise<NodeResult> {
    if (this.#over) return Promise.reject(this.#over);
    if (signal.aborted) {
      return Promise.reject(new SpillwayError("engine_interrupted", "The statement was interrupted before it began."));
    }
    const stream = this.#open();
    const running = new RunningStream(
      {
        send: (bytes) => this.#send(bytes),
        forget: () => this.#receivers.delete(stream),
      },
      stream,
      signal,
    );
    this.#receivers.set(stream, running);
    this.#send(jsonFrame(FRAME.run, stream, request));
    return running.result;
  }

  /** Throws `node_lost` when there is no answer in time. */
  probe(timeoutMs = 1000): Promise<NodeHealth> {
    if (this.#over) return Promise.reject(this.#over);
    const stream = this.#open();
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => done(() => reject(lost(`no answer to a probe in ${timeoutMs} ms`))), timeoutMs);
      const done = (settle: () => void): void => {
        clearTimeout(timer);
        this.#receivers.delete(stream);
        settle();
      };
      this.#receivers.set(stream, {
        frame: ({ type, payload }) => {
          if (type === FRAME.probe) done(() => resolve(JSON.parse(payload.toString("utf8")) as NodeHealth));
          else done(() => reject(parseError(payload)));
        },
        lost: (error) => done(() => reject(error)),
      });
      this.#send(jsonFrame(FRAME.probe, stream, {}));
    });
  }

  /** Ends what a manager left whose lease is over. */
  evict(manager: string): void {
    if (!this.#over) this.#send(jsonFrame(FRAME.evict, 0, { manager }));
  }

  close(): void {
    this.#fail(lost("the manager let it go"));
  }

  #open(): number {
    const stream = this.#next;
    this.#next = stream >= 0xfffffffe ? 1 : stream + 1;
    return stream;
  }

  #send(bytes: Buffer): void {
    if (!this.#over) this.#socket.write(bytes);
  }

  #fail(error: SpillwayError): void {
    if (this.#over) return;
    this.#over = error;
    this.#socket.destroy();
    for (const receiver of this.#receivers.values()) receiver.lost(error);
    this.#receivers.clear();
    this.#end(error);
  }
}

const CANCEL_MS = 900;

interface Link {
  send(bytes: Buffer): void;
  forget(): void;
}

class RunningStream implements Receiver {
  readonly result: Promise<NodeResult>;
  readonly #link: Link;
  readonly #stream: number;
  readonly #signal: AbortSignal;
  readonly #queue: Buffer[] = [];
  readonly #abort = (): void => this.#cancel();
  #begin: { resolve: (result: NodeResult) => void; reject: (error: unknown) => void } = {
    resolve: () => {},
    reject: () => {},
  };
  #error: unknown = null;
  #stats: NodeStats | null = null;
  #whole: NodeResult | null = null;
  #wake: (() => void) | null = null;

  constructor(link: Link, stream: number, signal: AbortSignal) {
    this.#link = link;
    this.#stream = stream;
    this.#signal = signal;
    this.result = new Promise((resolve, reject) => (this.#begin = { resolve, reject }));
    signal.addEventListener("abort", this.#abort, { once: true });
  }

  frame({ type, payload }: Frame): void {
    switch (type) {
      case FRAME.schema: {
        const result = this.#resultOf(payload);
        // One without rows is there when it is done.
        if (result.columns === null) this.#whole = result;
        else this.#begin.resolve(result);
        return;
      }
      case FRAME.batch:
        this.#queue.push(payload);
        break;
      case FRAME.done:
        this.#stats = JSON.parse(payload.toString("utf8")) as NodeStats;
        this.#finish();
        if (this.#whole) this.#begin.resolve(this.#whole);
        break;
      default:
        this.lost(parseError(payload));
        return;
    }
    this.#wake?.();
  }

  lost(error: SpillwayError): void {
    this.#error ??= error;
    this.#finish();
    this.#begin.reject(error);
    this.#wake?.();
  }

  #finish(): void {
    this.#signal.removeEventListener("abort", this.#abort);
    this.#link.forget();
  }

  #cancel(): void {
    if (this.#stats === null && this.#error === null) {
      const empty = Buffer.alloc(9);
      empty.writeUInt32LE(5, 0);
      empty.writeUInt8(FRAME.cancel, 4);
      empty.writeUInt32LE(this.#stream, 5);
      this.#link.send(empty);
      // One that does not answer in time is given up on this side.
      setTimeout(() => {
        if (this.#stats === null) this.lost(new SpillwayError("engine_interrupted", "The statement was given up."));
      }, CANCEL_MS).unref();
    }
  }

  #resultOf(payload: Buffer): NodeResult {
    const { value, arrowSchema } = parseSchemaPayload(payload);
    const head = value as Pick<NodeResult, "command" | "columns" | "parameters">;
    return {
      command: head.command,
      columns: head.columns as readonly WireColumn[] | null,
      parameters: head.parameters,
      arrowSchema,
      messages: () => this.#messages(),
      stats: () => this.#stats ?? { rows: 0, bytes: 0, engineMs: 0 },
      close: () => {
        this.#cancel();
        // Nobody takes what still comes.
        this.#error ??= new SpillwayError("statement_canceled", "The result was given up.");
        this.#queue.length = 0;
        this.#finish();
        return Promise.resolve();
      },
    };
  }

  async *#messages(): AsyncIterable<Buffer> {
    for (;;) {
      const message = this.#queue.shift();
      if (message) {
        this.#link.send(creditFrame(this.#stream, message.length));
        yield message;
      } else if (this.#error !== null) throw this.#error;
      else if (this.#stats !== null) return;
      else {
        await new Promise<void>((resolve) => (this.#wake = resolve));
        this.#wake = null;
      }
    }
  }
}

function lost(why: string): SpillwayError {
  return new SpillwayError("node_lost", `The node is gone: ${why}.`, { details: { sqlstate: "08006" } });
}

function parseError(payload: Buffer): SpillwayError {
  const sent = JSON.parse(payload.toString("utf8")) as {
    code: string;
    message: string;
    remedy?: string;
    details?: Record<string, unknown>;
  };
  const code = (sent.code in CODES ? sent.code : "internal") as ErrorCode;
  return new SpillwayError(code, sent.message, {
    ...(sent.remedy === undefined ? {} : { remedy: sent.remedy }),
    ...(sent.details === undefined ? {} : { details: sent.details }),
  });
}
