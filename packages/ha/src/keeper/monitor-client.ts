/** The keeper's side of the conversation with the monitors: whichever leads is found, and kept. */
import { SpillwayError } from "@spillway/base/errors";
import { errorBody, MONITOR_PATHS } from "../protocol/http.ts";
import {
  nodeResponse,
  registerResponse,
  type NodeReport,
  type NodeResponse,
  type RegisterRequest,
  type RegisterResponse,
} from "../protocol/messages.ts";
import { int, object, parseMessage } from "../protocol/validate.ts";
import type { CallResult, HttpClient } from "./http-client.ts";

export interface MonitorClientOptions {
  readonly monitors: readonly string[];
  readonly token: string;
  readonly fingerprint: string | null;
}

const versionBody = object({ version: int() });

export class MonitorClient {
  readonly #http: HttpClient;
  readonly #options: MonitorClientOptions;
  #current = 0;

  constructor(http: HttpClient, options: MonitorClientOptions) {
    this.#http = http;
    this.#options = options;
  }

  /** Which monitor answered last. */
  get url(): string {
    return this.#options.monitors[this.#current] ?? "";
  }

  /** Asks one monitor; one that does not lead or does not answer makes the next call go to another. */
  async report(report: NodeReport, timeoutMs: number): Promise<NodeResponse> {
    const result = await this.#call("POST", MONITOR_PATHS.nodeActive, timeoutMs, report);
    return parseMessage(nodeResponse, result.body, "the monitor's answer");
  }

  /** Returns when the assignment has another version, or at the end of the long poll. */
  async watch(
    formation: string,
    nodeId: number,
    version: number,
    timeoutMs: number,
    signal: AbortSignal,
  ): Promise<number> {
    const query = new URLSearchParams({
      formation,
      node: String(nodeId),
      version: String(version),
      timeoutMs: String(timeoutMs),
    });
    const path = `${MONITOR_PATHS.watch}?${query.toString()}`;
    const result = await this.#call("GET", path, timeoutMs + 2_000, undefined, signal);
    return parseMessage(versionBody, result.body, "the monitor's answer").version;
  }

  /** Registers with the first monitor that will have it; tries each one once. */
  async register(request: RegisterRequest, timeoutMs: number): Promise<RegisterResponse> {
    let last: unknown = new SpillwayError("ha_unreachable", "no monitor was given");
    for (let i = 0; i < this.#options.monitors.length; i++) {
      try {
        const result = await this.#call("POST", MONITOR_PATHS.register, timeoutMs, request);
        return parseMessage(registerResponse, result.body, "the monitor's answer");
      } catch (error) {
        last = error;
        if (!(error instanceof SpillwayError && error.code === "ha_unreachable")) throw error;
      }
    }
    throw last;
  }

  async #call(
    method: "GET" | "POST",
    path: string,
    timeoutMs: number,
    body?: unknown,
    signal?: AbortSignal,
  ): Promise<CallResult> {
    const asked = this.#current;
    const { token, fingerprint } = this.#options;
    const url = new URL(path, this.url).toString();
    try {
      const result = await this.#http.call({ method, url, token, body, timeoutMs, fingerprint, signal });
      if (result.status === 200) return result;
      throw refusal(result, this.url);
    } catch (error) {
      if (error instanceof SpillwayError && error.code === "ha_unreachable" && !signal?.aborted) this.#next(asked);
      throw error;
    }
  }

  #next(asked: number): void {
    if (asked === this.#current) this.#current = (asked + 1) % Math.max(1, this.#options.monitors.length);
  }
}

function refusal(result: CallResult, url: string): SpillwayError {
  const passing = result.status === 421 || result.status === 503;
  try {
    const { error } = parseMessage(errorBody, result.body, "the monitor's answer");
    const code = passing ? "ha_unreachable" : "ha_monitor_refused";
    return new SpillwayError(code, error.message, { remedy: error.remedy, details: { code: error.code, url } });
  } catch {
    return new SpillwayError(passing ? "ha_unreachable" : "ha_monitor_refused", `${url} answered ${result.status}`);
  }
}
