/**
 * The few calls of etcd v3 that the store needs, over its JSON gateway: range, transaction, lease.
 * Keys and values travel as base64, 64-bit numbers as text.
 * Source: https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/
 */
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { int, list, nullable, object, optional, text, type Validator } from "../protocol/validate.ts";

export interface KeyValue {
  readonly key: string;
  readonly value: string;
  readonly createRevision: bigint;
  readonly modRevision: bigint;
}

/** A put, or a removal of all keys from `key` to before `end`. */
export type Write =
  | { readonly put: string; readonly value: string; readonly lease?: string }
  | { readonly remove: string; readonly end: string };

/** The key was created, or last changed, at this revision (0 = does not exist). */
export type Condition =
  | { readonly key: string; readonly createRevision: bigint }
  | { readonly key: string; readonly modRevision: bigint };

const longText: Validator<string> = (v, path) => (typeof v === "number" ? String(v) : text(64)(v, path));
const bytes = optional(text(64 * 1024 * 1024), "");
const kv = object({
  key: bytes,
  value: bytes,
  create_revision: optional(longText, "0"),
  mod_revision: optional(longText, "0"),
});
const rangeAnswer = object({ kvs: optional(list(kv, 100_000), []) });
const txnAnswer = object({
  succeeded: optional((v: unknown) => v === true, false),
  header: object({ revision: longText }),
});
const grantAnswer = object({ ID: longText, TTL: optional(longText, "0"), error: optional(text(), "") });
const keepAliveAnswer = object({ result: nullable(object({ TTL: optional(longText, "0") })) });
const authAnswer = object({ token: text(4096) });
const anything = object({});
const gatewayError = object({ error: optional(text(), ""), message: optional(text(), ""), code: optional(int(0), 0) });

/** For an etcd with authentication enabled. */
export interface EtcdLogin {
  readonly user: string;
  readonly password: string;
}

export class EtcdClient {
  readonly #endpoints: readonly string[];
  readonly #timeoutMs: number;
  readonly #login: EtcdLogin | null;
  #current = 0;
  /** Of the last login; etcd forgets it after a while (`--auth-token-ttl`), or with the member that gave it. */
  #token: string | null = null;

  constructor(endpoints: readonly string[], timeoutMs: number, login: EtcdLogin | null = null) {
    this.#endpoints = endpoints;
    this.#timeoutMs = timeoutMs;
    this.#login = login;
  }

  /** All keys with the prefix, in order. */
  async range(prefix: string): Promise<readonly KeyValue[]> {
    const body = { key: encode(prefix), range_end: encode(endOf(prefix)), sort_target: "KEY", sort_order: "ASCEND" };
    const answer = await this.#call("/v3/kv/range", body, rangeAnswer);
    return answer.kvs.map((item) => ({
      key: decode(item.key),
      value: decode(item.value),
      createRevision: BigInt(item.create_revision),
      modRevision: BigInt(item.mod_revision),
    }));
  }

  /** All writes or none. Returns the revision, or null when a condition did not hold. */
  async transact(conditions: readonly Condition[], writes: readonly Write[]): Promise<bigint | null> {
    const compare = conditions.map((c) => {
      const head = { key: encode(c.key), result: "EQUAL" };
      return "createRevision" in c
        ? { ...head, target: "CREATE", create_revision: String(c.createRevision) }
        : { ...head, target: "MOD", mod_revision: String(c.modRevision) };
    });
    const success = writes.map((w) =>
      "put" in w
        ? { request_put: { key: encode(w.put), value: encode(w.value), ...(w.lease ? { lease: w.lease } : {}) } }
        : { request_delete_range: { key: encode(w.remove), range_end: encode(w.end) } },
    );
    const answer = await this.#call("/v3/kv/txn", { compare, success, failure: [] }, txnAnswer);
    return answer.succeeded ? BigInt(answer.header.revision) : null;
  }

  async grantLease(ttlSeconds: number): Promise<{ readonly id: string; readonly ttlMs: number }> {
    const answer = await this.#call("/v3/lease/grant", { TTL: String(ttlSeconds), ID: "0" }, grantAnswer);
    if (answer.error !== "") throw new SpillwayError("ha_store", `etcd refuses a lease: ${answer.error}`);
    return { id: answer.ID, ttlMs: Number(answer.TTL) * 1000 };
  }

  /** False when the lease is gone. */
  async keepAlive(id: string): Promise<boolean> {
    const answer = await this.#call("/v3/lease/keepalive", { ID: id }, keepAliveAnswer);
    return Number(answer.result?.TTL ?? 0) > 0;
  }

  async revokeLease(id: string): Promise<void> {
    await this.#call("/v3/lease/revoke", { ID: id }, anything);
  }

  /** One endpoint after the other, each once. Throws `ha_store` when none answers. */
  async #call<T>(path: string, body: unknown, validator: Validator<T>): Promise<T> {
    let last: unknown = null;
    for (let i = 0; i < this.#endpoints.length; i++) {
      const asked = this.#current;
      try {
        return await this.#callOne(this.#endpoints[asked] ?? "", path, body, validator);
      } catch (error) {
        last = error;
        if (asked === this.#current) this.#current = (asked + 1) % this.#endpoints.length;
      }
    }
    throw new SpillwayError("ha_store", `etcd does not answer (${this.#endpoints.join(", ")}): ${messageOf(last)}`, {
      cause: last,
    });
  }

  async #callOne<T>(endpoint: string, path: string, body: unknown, validator: Validator<T>): Promise<T> {
    if (this.#login !== null) this.#token ??= await this.#authenticate(endpoint, this.#login);
    let answer = await this.#post(endpoint, path, body);
    if (this.#login !== null && isTokenRefused(answer)) {
      this.#token = await this.#authenticate(endpoint, this.#login);
      answer = await this.#post(endpoint, path, body);
    }
    if (answer.ok) return validator(answer.payload, `etcd ${path}`);
    throw new Error(`${answer.status} ${wordsOf(answer)}`);
  }

  /** Source: https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/ (authentication). */
  async #authenticate(endpoint: string, login: EtcdLogin): Promise<string> {
    this.#token = null;
    const answer = await this.#post(endpoint, "/v3/auth/authenticate", { name: login.user, password: login.password });
    if (answer.ok) return authAnswer(answer.payload, "etcd authenticate").token;
    throw new Error(`etcd refuses the login of ${login.user}: ${wordsOf(answer)}`);
  }

  async #post(endpoint: string, path: string, body: unknown): Promise<Answer> {
    const response = await fetch(new URL(path, endpoint), {
      method: "POST",
      body: JSON.stringify(body),
      headers: { "content-type": "application/json", ...(this.#token === null ? {} : { authorization: this.#token }) },
      signal: AbortSignal.timeout(this.#timeoutMs),
    });
    return { ok: response.ok, status: response.status, payload: (await response.json()) as unknown };
  }
}

interface Answer {
  readonly ok: boolean;
  readonly status: number;
  readonly payload: unknown;
}

function wordsOf(answer: Answer): string {
  const { error, message } = gatewayError(answer.payload, "etcd's answer");
  return error || message;
}

/** The token ran out, or the members restarted, or the permissions were changed meanwhile. */
function isTokenRefused(answer: Answer): boolean {
  return !answer.ok && /invalid auth token|revision of auth store is old|user name is empty/.test(wordsOf(answer));
}

function encode(value: string): string {
  return Buffer.from(value, "utf8").toString("base64");
}

function decode(value: string): string {
  return Buffer.from(value, "base64").toString("utf8");
}

/** The first key after all that begin with the prefix (which ends in an ASCII character). */
export function endOf(prefix: string): string {
  return prefix.slice(0, -1) + String.fromCharCode(prefix.charCodeAt(prefix.length - 1) + 1);
}
