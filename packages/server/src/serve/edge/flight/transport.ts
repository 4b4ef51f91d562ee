/**
 * gRPC under Flight: bytes in, bytes out, nothing of Flight SQL. Messages pass as they are (identity serialisation), writes wait for slow
 * readers, an ended call ends its work, and every error is one status with the stable code.
 */
import {
  experimental,
  type handleBidiStreamingCall,
  type handleServerStreamingCall,
  type handleUnaryCall,
  Metadata,
  Server,
  ServerCredentials,
  type ServerDuplexStream,
  type ServerUnaryCall,
  type ServerWritableStream,
  type ServiceDefinition,
  type StatusObject,
  type UntypedServiceImplementation,
} from "@grpc/grpc-js";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import { statusOf } from "./status.ts";

/** What a call knows of its caller. */
export interface CallContext {
  /** The first value of a header; empty when it was not sent. */
  header(name: string): string;
  headerBytes(name: string): Buffer | null;
  /** `host:port` of the client. */
  readonly address: string;
  /** Aborts when the client is gone, has cancelled, or its deadline is over. */
  readonly signal: AbortSignal;
  /** Before the first message: headers of the answer. */
  reply(name: string, value: string): void;
}

export interface FlightService {
  handshake(call: CallContext, requests: AsyncIterable<Buffer>): AsyncIterable<Buffer>;
  getFlightInfo(call: CallContext, request: Buffer): Promise<Buffer>;
  pollFlightInfo(call: CallContext, request: Buffer): Promise<Buffer>;
  getSchema(call: CallContext, request: Buffer): Promise<Buffer>;
  doGet(call: CallContext, request: Buffer): AsyncIterable<Buffer>;
  doPut(call: CallContext, requests: AsyncIterable<Buffer>): AsyncIterable<Buffer>;
  doAction(call: CallContext, request: Buffer): AsyncIterable<Buffer>;
  listActions(call: CallContext): AsyncIterable<Buffer>;
}

export interface TransportOptions {
  readonly host: string;
  /** 0: a free one. */
  readonly port: number;
  /** Paths of PEM files; read again when they change. */
  readonly tls: { readonly certFile: string; readonly keyFile: string } | null;
  readonly log: Logger;
  /** Largest message that is taken. Default 64 MiB. */
  readonly maxMessageBytes?: number;
  /** Calls at a time on one connection. Default 256. */
  readonly maxStreams?: number;
}

export interface Transport {
  readonly port: number;
  /** Lets calls under way finish for at most `graceMs`. */
  stop(graceMs: number): Promise<void>;
}

const RELOAD_MS = 1000;

export async function startTransport(service: FlightService, options: TransportOptions): Promise<Transport> {
  const server = new Server({
    "grpc.max_receive_message_length": options.maxMessageBytes ?? 64 << 20,
    "grpc.max_send_message_length": -1,
    "grpc.max_concurrent_streams": options.maxStreams ?? 256,
    // Clients that are gone without a word are noticed.
    "grpc.keepalive_time_ms": 10_000,
    "grpc.keepalive_timeout_ms": 5_000,
  });
  server.addService(DEFINITION, implementation(service, options.log));
  const shown = options.host.includes(":") ? `[${options.host}]` : options.host;
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync(`${shown}:${options.port}`, credentialsOf(options.tls), (error, bound) => {
      if (error === null) resolve(bound);
      else {
        const text = `cannot listen on ${shown}:${options.port}: ${messageOf(error)}`;
        reject(new SpillwayError("serve_listen_failed", text, { cause: error }));
      }
    });
  });
  return { port, stop: (graceMs) => stopServer(server, graceMs) };
}

function credentialsOf(tls: TransportOptions["tls"]): ServerCredentials {
  if (tls === null) return ServerCredentials.createInsecure();
  const provider = new experimental.FileWatcherCertificateProvider({
    certificateFile: tls.certFile,
    privateKeyFile: tls.keyFile,
    refreshIntervalMs: RELOAD_MS,
  });
  return experimental.createCertificateProviderServerCredentials(provider, null, false);
}

function stopServer(server: Server, graceMs: number): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => server.forceShutdown(), graceMs);
    server.tryShutdown(() => {
      clearTimeout(timer);
      resolve();
    });
  });
}

const identity = (bytes: Buffer): Buffer => bytes;

function method(name: string, requestStream: boolean, responseStream: boolean): ServiceDefinition[string] {
  return {
    path: `/arrow.flight.protocol.FlightService/${name}`,
    requestStream,
    responseStream,
    requestSerialize: identity,
    requestDeserialize: identity,
    responseSerialize: identity,
    responseDeserialize: identity,
  };
}

const DEFINITION: ServiceDefinition = {
  handshake: method("Handshake", true, true),
  listFlights: method("ListFlights", false, true),
  getFlightInfo: method("GetFlightInfo", false, false),
  pollFlightInfo: method("PollFlightInfo", false, false),
  getSchema: method("GetSchema", false, false),
  doGet: method("DoGet", false, true),
  doPut: method("DoPut", true, true),
  doExchange: method("DoExchange", true, true),
  doAction: method("DoAction", false, true),
  listActions: method("ListActions", false, true),
};

function implementation(service: FlightService, log: Logger): UntypedServiceImplementation {
  const unary =
    (work: (call: CallContext, request: Buffer) => Promise<Buffer>): handleUnaryCall<Buffer, Buffer> =>
    (call, callback) => {
      const context = contextOf(call);
      work(context, call.request).then(
        (bytes) => callback(null, bytes),
        (error: unknown) => callback(failure(error, log)),
      );
    };
  const stream =
    (work: (call: CallContext, request: Buffer) => AsyncIterable<Buffer>): handleServerStreamingCall<Buffer, Buffer> =>
    (call) => {
      const context = contextOf(call);
      void pump(call, context, work(context, call.request), log);
    };
  const duplex =
    (
      work: (call: CallContext, requests: AsyncIterable<Buffer>) => AsyncIterable<Buffer>,
    ): handleBidiStreamingCall<Buffer, Buffer> =>
    (call) => {
      const context = contextOf(call);
      // The usual iterator destroys both sides when the client's has ended.
      const requests = call.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>;
      void pump(call, context, work(context, requests), log);
    };
  return {
    handshake: duplex((call, requests) => service.handshake(call, requests)),
    listFlights: stream(() => nothing()),
    getFlightInfo: unary((call, request) => service.getFlightInfo(call, request)),
    pollFlightInfo: unary((call, request) => service.pollFlightInfo(call, request)),
    getSchema: unary((call, request) => service.getSchema(call, request)),
    doGet: stream((call, request) => service.doGet(call, request)),
    doPut: duplex((call, requests) => service.doPut(call, requests)),
    doExchange: duplex(() => {
      throw new SpillwayError("flight_unsupported", "DoExchange is not offered.");
    }),
    doAction: stream((call, request) => service.doAction(call, request)),
    listActions: stream((call) => service.listActions(call)),
  };
}

async function* nothing(): AsyncIterable<Buffer> {}

type AnyCall =
  | ServerUnaryCall<Buffer, Buffer>
  | ServerWritableStream<Buffer, Buffer>
  | ServerDuplexStream<Buffer, Buffer>;

function contextOf(call: AnyCall): CallContext {
  const stop = new AbortController();
  (call as NodeJS.EventEmitter).on("cancelled", () => stop.abort());
  return {
    header: (name) => {
      const [value] = call.metadata.get(name);
      return typeof value === "string" ? value : "";
    },
    headerBytes: (name) => {
      const [value] = call.metadata.get(name);
      return Buffer.isBuffer(value) ? value : null;
    },
    address: call.getPeer(),
    signal: stop.signal,
    reply: (name, value) => {
      const metadata = new Metadata();
      metadata.set(name, value);
      call.sendMetadata(metadata);
    },
  };
}

/** Writes as fast as the client reads. */
async function pump(
  call: ServerWritableStream<Buffer, Buffer> | ServerDuplexStream<Buffer, Buffer>,
  { signal }: CallContext,
  messages: AsyncIterable<Buffer>,
  log: Logger,
): Promise<void> {
  call.on("error", () => {});
  try {
    for await (const message of messages) {
      if (signal.aborted) break;
      if (!call.write(message)) await drained(call, signal);
    }
    call.end();
  } catch (error) {
    call.emit("error", failure(error, log));
  }
}

function drained(call: ServerWritableStream<Buffer, Buffer> | ServerDuplexStream<Buffer, Buffer>, signal: AbortSignal) {
  return new Promise<void>((resolve) => {
    const done = (): void => {
      call.off("drain", done);
      call.off("close", done);
      signal.removeEventListener("abort", done);
      resolve();
    };
    call.once("drain", done);
    call.once("close", done);
    signal.addEventListener("abort", done, { once: true });
    if (signal.aborted) done();
  });
}

function failure(error: unknown, log: Logger): Partial<StatusObject> & Error {
  const { status, code, message, sqlstate } = statusOf(error);
  if (code === "internal") log.error("flight.call_failed", { error });
  const metadata = new Metadata();
  metadata.set("spillway-code", code);
  if (sqlstate !== null) metadata.set("spillway-sqlstate", sqlstate);
  return Object.assign(new Error(message), { code: status, details: message, metadata });
}
