/** One HTTP(S) exchange with JSON in and out, bounded in time and size; connections are kept and reused. */
import { Agent as HttpAgent, request as httpRequest, type IncomingMessage } from "node:http";
import { Agent as HttpsAgent, request as httpsRequest } from "node:https";
import type { TLSSocket } from "node:tls";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { MAX_BODY_BYTES } from "../protocol/http.ts";

export interface CallOptions {
  readonly method: "GET" | "POST";
  readonly url: string;
  readonly token: string;
  readonly body?: unknown;
  readonly timeoutMs: number;
  /** SHA-256 of the only certificate that is accepted; null = the usual authorities. */
  readonly fingerprint: string | null;
  readonly signal?: AbortSignal | undefined;
}

export interface CallResult {
  readonly status: number;
  readonly body: string;
}

/** The connections of one process. Closed with it. */
export class HttpClient {
  readonly #http = new HttpAgent({ keepAlive: true, maxSockets: 8, keepAliveMsecs: 1000 });
  readonly #https = new HttpsAgent({ keepAlive: true, maxSockets: 8, keepAliveMsecs: 1000 });

  /** Throws `ha_unreachable` when there is no complete answer in time; any status is a result. */
  call(options: CallOptions): Promise<CallResult> {
    const url = new URL(options.url);
    const payload = options.body === undefined ? null : JSON.stringify(options.body);
    const secure = url.protocol === "https:";
    return new Promise((resolve, reject) => {
      const fail = (error: unknown): void => {
        const why = `${url.host} does not answer: ${messageOf(error)}`;
        reject(error instanceof SpillwayError ? error : new SpillwayError("ha_unreachable", why, { cause: error }));
      };
      const common = {
        method: options.method,
        headers: {
          authorization: `Bearer ${options.token}`,
          ...(payload === null
            ? {}
            : { "content-type": "application/json", "content-length": Buffer.byteLength(payload) }),
        },
      };
      const onResponse = (response: IncomingMessage): void => {
        readBody(response).then((body) => resolve({ status: response.statusCode ?? 0, body }), fail);
      };
      const request = secure
        ? httpsRequest(
            url,
            { ...common, agent: this.#https, rejectUnauthorized: options.fingerprint === null },
            onResponse,
          )
        : httpRequest(url, { ...common, agent: this.#http }, onResponse);
      const timer = setTimeout(
        () => request.destroy(new Error(`no answer in ${options.timeoutMs} ms`)),
        options.timeoutMs,
      );
      const abort = (): void => void request.destroy(new Error("given up"));
      options.signal?.addEventListener("abort", abort, { once: true });
      request.on("error", fail);
      request.on("close", () => {
        clearTimeout(timer);
        options.signal?.removeEventListener("abort", abort);
      });
      const send = (): void => void request.end(payload ?? undefined);
      if (secure && options.fingerprint !== null) pinCertificate(request, options.fingerprint, send);
      else send();
    });
  }

  close(): void {
    this.#http.destroy();
    this.#https.destroy();
  }
}

/** Checks the certificate before a byte of the request (the token!) is sent. */
function pinCertificate(request: ReturnType<typeof httpsRequest>, fingerprint: string, send: () => void): void {
  const expected = fingerprint.replaceAll(":", "").toLowerCase();
  request.on("socket", (socket) => {
    const secure = socket as TLSSocket;
    const check = (): void => {
      const actual = secure.getPeerCertificate().fingerprint256?.replaceAll(":", "").toLowerCase();
      if (actual === expected) send();
      else request.destroy(new Error("its certificate is not the pinned one"));
    };
    if (secure.getCipher?.()?.version !== undefined) check();
    else secure.once("secureConnect", check);
  });
}

function readBody(response: IncomingMessage): Promise<string> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let size = 0;
    response.on("data", (chunk: Buffer) => {
      size += chunk.length;
      if (size > MAX_BODY_BYTES) response.destroy(new Error("the answer is too large"));
      else chunks.push(chunk);
    });
    response.on("error", reject);
    response.on("end", () => resolve(Buffer.concat(chunks).toString("utf8")));
    response.on("aborted", () => reject(new Error("the answer was cut off")));
  });
}
