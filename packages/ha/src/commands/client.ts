/** Operators' side of the conversation with the monitors: finds the one that leads, and asks it. */
import type { Clock } from "@spillway/base/clock";
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import { HttpClient } from "../keeper/http-client.ts";
import { errorBody } from "../protocol/http.ts";
import { parseMessage, type Validator } from "../protocol/validate.ts";

export interface MonitorAddress {
  readonly urls: readonly string[];
  /** '' when it was not in the address. */
  readonly token: string;
  readonly fingerprint: string | null;
}

/**
 * `http(s)://[TOKEN@]host:port[?fingerprint=HEX]`, several separated by commas; token and fingerprint count
 * for all. Throws `usage`.
 */
export function parseMonitorAddress(address: string): MonitorAddress {
  let token = "";
  let fingerprint: string | null = null;
  const urls = address.split(",").map((part) => {
    let url: URL;
    try {
      url = new URL(part.trim());
    } catch (cause) {
      throw new SpillwayError("usage", `${JSON.stringify(part)} is not a monitor's URL (http://host:port)`, { cause });
    }
    if (url.protocol !== "http:" && url.protocol !== "https:") {
      throw new SpillwayError("usage", `a monitor's URL begins with http:// or https://, not ${url.protocol}//`);
    }
    token = decodeURIComponent(url.username || url.password) || token;
    fingerprint = url.searchParams.get("fingerprint") ?? fingerprint;
    return `${url.protocol}//${url.host}`;
  });
  return { urls, token, fingerprint };
}

const CALL_TIMEOUT_MS = 5_000;
const ROUND_PAUSE_MS = 300;

export class AdminClient {
  readonly #address: MonitorAddress;
  readonly #clock: Clock;
  readonly #patienceMs: number;
  readonly #http = new HttpClient();

  /** `patienceMs`: how long to look for a monitor that leads. */
  constructor(address: MonitorAddress, clock: Clock, patienceMs: number) {
    this.#address = address;
    this.#clock = clock;
    this.#patienceMs = patienceMs;
  }

  get<T>(path: string, query: Readonly<Record<string, string>>, validator: Validator<T>): Promise<T> {
    return this.#ask("GET", `${path}?${new URLSearchParams(query).toString()}`, undefined, validator);
  }

  post<T>(path: string, body: unknown, validator: Validator<T>): Promise<T> {
    return this.#ask("POST", path, body, validator);
  }

  close(): void {
    this.#http.close();
  }

  async #ask<T>(method: "GET" | "POST", path: string, body: unknown, validator: Validator<T>): Promise<T> {
    const start = this.#clock.monotonicMs();
    for (;;) {
      let last: SpillwayError | null = null;
      for (const url of this.#address.urls) {
        try {
          return validator(
            JSON.parse(await this.#askOne(method, `${url}${path}`, body)) as unknown,
            "the monitor's answer",
          );
        } catch (error) {
          if (!isSpillwayError(error, "ha_unreachable", "ha_not_leader", "ha_store")) throw error;
          last = error;
        }
      }
      if (this.#clock.monotonicMs() - start >= this.#patienceMs) {
        throw new SpillwayError("ha_monitor_unreachable", last?.message ?? "no monitor was given", { cause: last });
      }
      await this.#clock.sleep(ROUND_PAUSE_MS);
    }
  }

  async #askOne(method: "GET" | "POST", url: string, body: unknown): Promise<string> {
    const { token, fingerprint } = this.#address;
    const result = await this.#http.call({ method, url, token, body, fingerprint, timeoutMs: CALL_TIMEOUT_MS });
    if (result.status === 200) return result.body;
    const { error } = parseMessage(errorBody, result.body, `the answer of ${url}`);
    throw refusal(result.status, error);
  }
}

function refusal(status: number, error: { code: string; message: string; remedy: string }): SpillwayError {
  const { message, remedy } = error;
  if (status === 421) return new SpillwayError("ha_not_leader", message, { remedy });
  if (status === 503) return new SpillwayError("ha_store", message, { remedy });
  if (status === 401) return new SpillwayError("ha_unauthorized", message, { remedy });
  if (status === 404) return new SpillwayError("ha_not_found", message, { remedy });
  if (status === 400) return new SpillwayError("ha_bad_message", message, { remedy });
  if (status === 500) return new SpillwayError("internal", message, { remedy });
  return new SpillwayError("ha_refused", message, { remedy });
}
