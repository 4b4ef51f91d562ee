/**
 * A node's side of the socket: the hello, then any number of statements at a time on one connection, each with a window of its
 * own. What a connection held (statements, transactions) ends with it.
 */
import { timingSafeEqual } from "node:crypto";
import type { Server, Socket } from "node:net";
import { chmodSync } from "node:fs";
import { must } from "@spillway/base/assert";
import { isSpillwayError, messageOf, SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import type { NodeExecutor } from "./executor.ts";
import {
  FRAME,
  type Frame,
  frameHeader,
  FrameReader,
  jsonFrame,
  PROTOCOL_VERSION,
  schemaPayload,
  WINDOW_BYTES,
} from "./frames.ts";
import type { NodeRequest } from "./request.ts";

export interface NodeServerOptions {
  /** Not listening yet. */
  readonly server: Server;
  readonly socketPath: string;
  readonly nodeId: string;
  readonly generation: string;
  readonly token: string;
  readonly build: string;
  readonly executor: NodeExecutor;
  readonly log: Logger;
  /** What a probe answers, besides what is active. */
  readonly health: () => Promise<Readonly<Record<string, number>>>;
}

interface Hello {
  readonly version: number;
  readonly build: string;
  readonly token: string;
  readonly generation: string;
  readonly manager: string;
}

const HELLO_BYTES = 64 << 10;
const HELLO_MS = 5000;

export class NodeServer {
  readonly #options: NodeServerOptions;
  readonly #server: Server;
  readonly #connections = new Set<Connection>();

  private constructor(options: NodeServerOptions) {
    this.#options = options;
    this.#server = options.server;
    this.#server.on("connection", (socket: Socket) => this.#accept(socket));
  }

  static async listen(options: NodeServerOptions): Promise<NodeServer> {
    const node = new NodeServer(options);
    await new Promise<void>((resolve, reject) => {
      node.#server.once("error", reject);
      node.#server.listen(options.socketPath, resolve);
    });
    chmodSync(options.socketPath, 0o600);
    return node;
  }

  get active(): number {
    let sum = 0;
    for (const connection of this.#connections) sum += connection.active;
    return sum;
  }

  /** Ends every running statement with an error. */
  interruptAll(error: SpillwayError): void {
    for (const connection of this.#connections) connection.interruptAll(error);
  }

  evict(manager: string): void {
    for (const connection of this.#connections) if (connection.manager === manager) connection.destroy();
  }

  async close(): Promise<void> {
    for (const connection of this.#connections) connection.destroy();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  #accept(socket: Socket): void {
    const connection = new Connection(socket, this.#options, this);
    this.#connections.add(connection);
    socket.once("close", () => this.#connections.delete(connection));
  }
}

interface Stream {
  readonly stop: AbortController;
  credit: number;
  wake: (() => void) | null;
  error: SpillwayError | null;
}

class Connection {
  readonly #socket: Socket;
  readonly #options: NodeServerOptions;
  readonly #server: NodeServer;
  readonly #reader = new FrameReader(HELLO_BYTES);
  readonly #streams = new Map<number, Stream>();
  readonly #transactions = new Set<string>();
  #drained: Promise<void> | null = null;
  manager: string | null = null;

  constructor(socket: Socket, options: NodeServerOptions, server: NodeServer) {
    this.#socket = socket;
    this.#options = options;
    this.#server = server;
    const timer = setTimeout(() => this.manager === null && socket.destroy(), HELLO_MS);
    socket.on("data", (chunk: Buffer) => this.#read(chunk));
    socket.on("error", () => {});
    socket.once("close", () => {
      clearTimeout(timer);
      this.#end();
    });
  }

  get active(): number {
    return this.#streams.size;
  }

  destroy(): void {
    this.#socket.destroy();
  }

  interruptAll(error: SpillwayError): void {
    for (const stream of this.#streams.values()) {
      stream.error = error;
      stream.stop.abort();
      stream.wake?.();
    }
  }

  #read(chunk: Buffer): void {
    try {
      for (const frame of this.#reader.push(chunk)) this.#frame(frame);
    } catch (error) {
      this.#options.log.warn("node.protocol", { error: messageOf(error) });
      this.#socket.destroy();
    }
  }

  #frame({ type, stream, payload }: Frame): void {
    if (this.manager === null) {
      if (type !== FRAME.hello) throw new SpillwayError("node_protocol", "The first frame is no hello.");
      this.#hello(JSON.parse(payload.toString("utf8")) as Hello);
      return;
    }
    const running = this.#streams.get(stream);
    switch (type) {
      case FRAME.run:
        if (running) throw new SpillwayError("node_protocol", `The stream ${stream} runs already.`);
        void this.#run(stream, JSON.parse(payload.toString("utf8")) as NodeRequest);
        return;
      case FRAME.credit:
        if (!running) return;
        running.credit += payload.readUInt32LE(0);
        running.wake?.();
        return;
      case FRAME.cancel:
        running?.stop.abort();
        running?.wake?.();
        return;
      case FRAME.probe:
        void this.#probe(stream);
        return;
      case FRAME.evict:
        this.#server.evict((JSON.parse(payload.toString("utf8")) as { manager: string }).manager);
        return;
      default:
        throw new SpillwayError("node_protocol", `There is no frame of type ${type}.`);
    }
  }

  #hello(hello: Hello): void {
    const { generation, token, nodeId, build } = this.#options;
    const why =
      hello.version !== PROTOCOL_VERSION || hello.build !== build
        ? `the manager is ${hello.build} (protocol ${hello.version}), the node ${build} (protocol ${PROTOCOL_VERSION})`
        : !same(hello.token, token)
          ? "the token is wrong"
          : hello.generation === generation
            ? null
            : `the manager means generation ${hello.generation}, the node is ${generation}`;
    if (why !== null) {
      this.#socket.end(
        jsonFrame(FRAME.error, 0, { code: "node_refused", message: `${why[0]?.toUpperCase()}${why.slice(1)}.` }),
      );
      return;
    }
    this.manager = hello.manager;
    this.#reader.raiseLimit();
    this.#socket.write(jsonFrame(FRAME.hello, 0, { version: PROTOCOL_VERSION, build, node: nodeId, pid: process.pid }));
  }

  async #probe(stream: number): Promise<void> {
    try {
      const health = await this.#options.health();
      this.#socket.write(jsonFrame(FRAME.probe, stream, { ...health, active: this.#server.active }));
    } catch (error) {
      this.#socket.write(jsonFrame(FRAME.error, stream, errorOf(error)));
    }
  }

  async #run(id: number, request: NodeRequest): Promise<void> {
    const stream: Stream = { stop: new AbortController(), credit: WINDOW_BYTES, wake: null, error: null };
    this.#streams.set(id, stream);
    const { executor } = this.#options;
    if (request.action === "begin" && request.transaction !== null) this.#transactions.add(request.transaction);
    try {
      const result = await executor.run(request, { signal: stream.stop.signal });
      try {
        const { command, columns, parameters } = result;
        const head = schemaPayload({ command, columns, parameters }, result.arrowSchema);
        await this.#write([frameHeader(FRAME.schema, id, head.length), head]);
        for await (const message of result.messages()) {
          await this.#room(stream, message.length);
          await this.#write([frameHeader(FRAME.batch, id, message.length), message]);
        }
        await this.#write([jsonFrame(FRAME.done, id, result.stats())]);
      } finally {
        await result.close();
      }
    } catch (error) {
      this.#socket.write(jsonFrame(FRAME.error, id, errorOf(stream.error ?? error)));
    } finally {
      this.#streams.delete(id);
      const over = request.action === "commit" || request.action === "rollback";
      if (over && request.transaction !== null) this.#transactions.delete(request.transaction);
    }
  }

  /** Waits until the receiver has taken enough. A message that is larger than the window goes alone. */
  async #room(stream: Stream, bytes: number): Promise<void> {
    while (stream.credit < Math.min(bytes, WINDOW_BYTES)) {
      if (stream.stop.signal.aborted) throw new SpillwayError("engine_interrupted", "The statement was interrupted.");
      await new Promise<void>((resolve) => (stream.wake = resolve));
      stream.wake = null;
    }
    if (stream.stop.signal.aborted) throw new SpillwayError("engine_interrupted", "The statement was interrupted.");
    stream.credit -= bytes;
  }

  async #write(parts: readonly Buffer[]): Promise<void> {
    if (this.#socket.destroyed) throw new SpillwayError("engine_interrupted", "The manager is gone.");
    this.#socket.cork();
    let flowing = true;
    for (const part of parts) flowing = this.#socket.write(part);
    this.#socket.uncork();
    if (flowing) return;
    this.#drained ??= new Promise<void>((resolve) => {
      const done = (): void => {
        this.#socket.off("drain", done);
        this.#socket.off("close", done);
        this.#drained = null;
        resolve();
      };
      this.#socket.once("drain", done);
      this.#socket.once("close", done);
    });
    await this.#drained;
  }

  #end(): void {
    this.interruptAll(new SpillwayError("engine_interrupted", "The manager is gone."));
    for (const id of this.#transactions) {
      this.#options.executor.abandon(id).catch((error: unknown) => {
        this.#options.log.warn("node.rollback_failed", { error: messageOf(error) });
      });
    }
    this.#transactions.clear();
  }
}

function same(a: string, b: string): boolean {
  const [x, y] = [Buffer.from(a, "utf8"), Buffer.from(b, "utf8")];
  return x.length === y.length && timingSafeEqual(x, y);
}

/** The error as it crosses: never its cause. */
export function errorOf(error: unknown): Readonly<Record<string, unknown>> {
  if (!isSpillwayError(error)) return { code: "internal", message: messageOf(error) };
  const { code, message, remedy, details } = error;
  must(code, "code");
  return { code, message, remedy, details };
}
