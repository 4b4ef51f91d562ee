/**
 * The control plane over HTTP, as values: sockets are the role's. Administrators of the installation do everything, those of a tenant what is
 * the tenant's, everybody what is his own (tokens). Every request that changes something, and every refusal, is audited.
 */
import { SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import { fromPgError, sqlstateOf } from "@spillway/pg/pg-error";
import type pg from "pg";
import {
  applyManifest,
  type AuditLog,
  type Control,
  type ControlObject,
  createAccessToken,
  createObject,
  deleteObject,
  diffManifest,
  exportManifest,
  getObject,
  labelOf,
  listObjects,
  parseManifest,
  pathToId,
  type Resource,
  resourceNamed,
  type Scope,
  updateObject,
} from "../../../control/control.ts";
import type { Authenticator } from "../../auth/auth.ts";
import { json, type RestRequest, type RestResponse, segments } from "../../rest-catalog/http.ts";
import type { Principal } from "../../session/session.ts";
import { isReadOnly, openApi } from "./openapi.ts";

export interface Health {
  readonly ok: boolean;
  /** What is not as it should be is named in it. */
  readonly body: Readonly<Record<string, unknown>>;
}

export interface AdminApiOptions {
  readonly control: Control;
  readonly auth: Authenticator;
  readonly audit: Pick<AuditLog, "record">;
  readonly log: Logger;
  readonly version: string;
  readonly health: () => Promise<Health>;
  readonly ready: () => Promise<Health>;
  /** Whether a policy's expression can be used: `AccessControl.checkPolicy`. */
  readonly checkPolicy: (text: string) => Promise<void>;
  readonly maxBodyBytes?: number;
}

export interface AdminApi {
  handle(request: RestRequest): Promise<RestResponse>;
}

interface Call {
  readonly request: RestRequest;
  readonly principal: Principal;
  readonly scope: Scope;
  readonly address: string;
}

const NO_CONTENT: RestResponse = { status: 204, headers: {}, body: "" };
const MAX_AUDIT = 1000;

export function createAdminApi(options: AdminApiOptions): AdminApi {
  return new Api(options);
}

class Api implements AdminApi {
  readonly #options: AdminApiOptions;
  readonly #control: Control;

  constructor(options: AdminApiOptions) {
    this.#options = options;
    this.#control = options.control;
  }

  async handle(request: RestRequest): Promise<RestResponse> {
    try {
      return (await this.#open(request)) ?? (await this.#known(request));
    } catch (error) {
      const typed = typedOf(error);
      if (typed.code === "internal") this.#options.log.error("admin.failed", { path: request.path, error });
      return errorResponse(typed);
    }
  }

  /** What needs no login. */
  async #open(request: RestRequest): Promise<RestResponse | null> {
    const { method, path } = request;
    if (method === "GET" && path === "/health") return healthResponse(await this.#options.health());
    if (method === "GET" && path === "/ready") return healthResponse(await this.#options.ready());
    if (method === "GET" && path === "/openapi.json") return json(200, openApi(this.#options.version));
    if (method === "POST" && path === "/v1/login") {
      const { user, password } = await this.#body(request);
      if (typeof user !== "string" || typeof password !== "string") {
        throw new SpillwayError("control_invalid", "a login has user and password");
      }
      const address = addressOf(request);
      const principal = await this.#options.auth.password(user, password, address);
      return json(200, { token: await this.#options.auth.mint(principal, "http", address) });
    }
    return null;
  }

  async #known(request: RestRequest): Promise<RestResponse> {
    const principal = await this.#principal(request);
    const scope = { tenantId: principal.tenantId === "" ? null : principal.tenantId };
    const call = { request, principal, scope, address: addressOf(request) };
    const [version, name = "", ...rest] = segments(request.path);
    if (version !== "v1") throw notFound(request.path);
    const id = rest.length > 0 ? rest.join("/") : null;
    switch (name) {
      case "logout":
        only(request, "POST");
        await this.#options.auth.logout(bearerOf(request) ?? "");
        return NO_CONTENT;
      case "me":
        only(request, "GET");
        return json(200, principal);
      case "manifest":
        return this.#manifest(call);
      case "audit":
        return this.#audit(call);
      default: {
        const resource = resourceNamed(name);
        if (resource === null || resource.name !== name) throw notFound(request.path);
        if (resource.name === "access-tokens" && !principal.isAdmin) return this.#ownTokens(call, id);
        return id === null ? this.#collection(call, resource) : this.#item(call, resource, id);
      }
    }
  }

  async #principal(request: RestRequest): Promise<Principal> {
    const key = request.headers["x-api-key"];
    if (key !== undefined) return this.#options.auth.apiKey(key, addressOf(request));
    const token = bearerOf(request);
    if (token === null) throw new SpillwayError("auth_failed", "the request has no X-API-Key and no bearer token");
    return (await this.#options.auth.bearer(token, addressOf(request))).principal;
  }

  async #collection(call: Call, resource: Resource): Promise<RestResponse> {
    const { method, query } = call.request;
    if (method === "GET") {
      this.#require(call, `list ${resource.name}`);
      const where = Object.fromEntries(query);
      return json(200, { items: await this.#control.read((db) => listObjects(db, resource, where, call.scope)) });
    }
    only(call.request, "POST");
    this.#requireChange(call, resource, "create");
    const body = await this.#body(call.request);
    await this.#checkPolicy(resource, body);
    const made = await this.#change(call, `create ${resource.singular}`, async (tx) => {
      if (resource.name !== "access-tokens") return createObject(tx, resource, body, call.scope);
      return this.#makeToken(tx, String(body["user"]), body, resource, call.scope);
    }, resource); // prettier-ignore
    return json(201, made);
  }

  async #item(call: Call, resource: Resource, id: string): Promise<RestResponse> {
    const { request, scope } = call;
    if (request.method === "GET") {
      this.#require(call, `show ${resource.singular}`);
      return json(200, await this.#control.read((db) => getObject(db, resource, id, scope)));
    }
    if (request.method === "DELETE" && resource.name !== "nodes") {
      this.#requireChange(call, resource, "delete");
      await this.#change(call, `delete ${resource.singular}`, (tx) => deleteObject(tx, resource, id, scope), resource);
      return NO_CONTENT;
    }
    only(request, "PATCH");
    this.#requireChange(call, resource, "update");
    const patch = await this.#body(request);
    await this.#checkPolicy(resource, patch);
    const update = (tx: pg.Client): Promise<ControlObject> => updateObject(tx, resource, id, patch, scope);
    return json(200, await this.#change(call, `update ${resource.singular}`, update, resource));
  }

  /** Everybody has his own. */
  async #ownTokens(call: Call, id: string | null): Promise<RestResponse> {
    const { request, principal } = call;
    const resource = resourceNamed("access-tokens") as Resource;
    const own = { user: principal.userName };
    const mine = await this.#control.read((db) => listObjects(db, resource, own));
    if (request.method === "GET" && id === null) return json(200, { items: mine });
    if (request.method === "POST" && id === null) {
      const body = await this.#body(request);
      const make = (tx: pg.Client) =>
        this.#makeToken(tx, principal.userName, { ...body, ...own }, resource, { tenantId: null });
      return json(201, await this.#change(call, "create access-token", make, resource));
    }
    const found = mine.find((token) => token["id"] === id);
    if (found === undefined) throw new SpillwayError("control_not_found", "there is no such token of yours");
    if (request.method === "GET") return json(200, found);
    only(request, "DELETE");
    await this.#change(call, "delete access-token", (tx) => deleteObject(tx, resource, String(id)), resource);
    return NO_CONTENT;
  }

  /** The answer has the token's text, once. */
  async #makeToken(
    tx: pg.Client,
    user: string,
    body: ControlObject,
    resource: Resource,
    scope: Scope,
  ): Promise<ControlObject> {
    const { name, expiresAt = null } = body;
    const unknown = Object.keys(body).find((key) => !["user", "name", "expiresAt"].includes(key));
    if (unknown !== undefined || typeof name !== "string" || !/^[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,62}$/.test(name)) {
      throw new SpillwayError(
        "control_invalid",
        `a token has user, name and expiresAt${unknown ? `, not ${unknown}` : ""}`,
      );
    }
    if (expiresAt !== null && (typeof expiresAt !== "string" || Number.isNaN(Date.parse(expiresAt)))) {
      throw new SpillwayError("control_invalid", "expiresAt must be a time in ISO 8601");
    }
    const { id, token } = await createAccessToken(tx, await pathToId(tx, "user", user), name, expiresAt);
    return { ...(await getObject(tx, resource, id, scope)), token };
  }

  async #manifest(call: Call): Promise<RestResponse> {
    const { request, scope } = call;
    this.#require(call, "use manifests");
    if (scope.tenantId !== null) throw forbidden("manifests are for administrators of the installation");
    if (request.method === "GET") return json(200, await this.#control.read((db) => exportManifest(db)));
    only(request, "POST");
    const manifest = parseManifest(await this.#body(request));
    const options = {
      prune: request.query.get("prune") === "true",
      validate: (resource: Resource, body: ControlObject) => this.#checkPolicy(resource, body),
    };
    if (request.query.get("dryRun") === "true") {
      return json(200, { changes: await this.#control.read((db) => diffManifest(db, manifest, options)) });
    }
    const changes = await this.#change(call, "apply manifest", (tx) => applyManifest(tx, manifest, options));
    return json(200, { changes });
  }

  async #audit(call: Call): Promise<RestResponse> {
    const { request, scope } = call;
    only(request, "GET");
    this.#require(call, "read the audit");
    const limit = Number(request.query.get("limit") ?? 100);
    if (!Number.isInteger(limit) || limit < 1 || limit > MAX_AUDIT) {
      throw new SpillwayError("control_invalid", `limit must be a whole number from 1 to ${MAX_AUDIT}`);
    }
    const tenant = scope.tenantId === null ? null : call.principal.tenantName;
    const given = [request.query.get("user"), request.query.get("action"), request.query.get("before"), tenant, limit];
    const { rows } = await this.#control.read((db) =>
      db.query(
        `SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS at, id, user_name AS "user",
           tenant_name AS tenant, database_name AS database, protocol, address, action, object, allowed, reason, details
         FROM spillway_control.audit
         WHERE ($1::text IS NULL OR user_name = $1) AND ($2::text IS NULL OR action = $2)
           AND ($3::timestamptz IS NULL OR at < $3) AND ($4::text IS NULL OR tenant_name = $4)
         ORDER BY at DESC, id LIMIT $5`,
        given,
      ),
    );
    return json(200, { items: rows });
  }

  #require(call: Call, what: string): void {
    if (call.principal.isAdmin) return;
    this.#record(call, what, false, "no administrator");
    throw forbidden(`${call.principal.userName} is no administrator`);
  }

  #requireChange(call: Call, resource: Resource, what: string): void {
    const action = `${what} ${resource.singular}`;
    this.#require(call, action);
    if (isReadOnly(resource) && what !== "delete")
      throw new SpillwayError("control_invalid", `${resource.name} are not made by hand`);
    if (resource.installation && call.scope.tenantId !== null) {
      this.#record(call, action, false, "no administrator of the installation");
      throw forbidden(`only administrators of the installation ${what} ${resource.name}`);
    }
  }

  /** The record is made before the commit: a change of which there can be none does not happen. */
  async #change<T>(
    call: Call,
    action: string,
    work: (tx: pg.Client) => Promise<T>,
    resource: Resource | null = null,
  ): Promise<T> {
    try {
      return await this.#control.change(async (tx) => {
        const done = await work(tx);
        this.#record(call, action, true, "", resource ? labelOf(resource, done as ControlObject) : "");
        return done;
      });
    } catch (error) {
      const typed = typedOf(error);
      if (typed.code !== "audit_unavailable") this.#record(call, action, false, `${typed.code}: ${typed.message}`);
      throw error;
    }
  }

  #record(call: Call, action: string, allowed: boolean, reason: string, object = ""): void {
    const { userId, userName, tenantName } = call.principal;
    const about = { action, allowed, reason, object, userId, userName, tenantName };
    this.#options.audit.record({ ...about, protocol: "http", address: call.address }, allowed);
  }

  async #checkPolicy(resource: Resource, body: ControlObject): Promise<void> {
    if (!resource.name.endsWith("-policies")) return;
    for (const name of ["predicate", "expression"]) {
      const value = body[name];
      if (typeof value === "string") await this.#options.checkPolicy(value);
    }
  }

  async #body(request: RestRequest): Promise<ControlObject> {
    const { maxBodyBytes = 8 << 20 } = this.#options;
    const text = await request.body();
    if (Buffer.byteLength(text) > maxBodyBytes)
      throw new SpillwayError("limit_exceeded", `a body has at most ${maxBodyBytes} bytes`);
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch (error) {
      throw new SpillwayError("control_invalid", "the body is not JSON", { cause: error });
    }
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      throw new SpillwayError("control_invalid", "the body is not an object");
    }
    return value as ControlObject;
  }
}

function bearerOf(request: RestRequest): string | null {
  return /^Bearer\s+(\S+)$/i.exec(request.headers["authorization"] ?? "")?.[1] ?? null;
}

/** Set by the role: where the connection comes from. */
function addressOf(request: RestRequest): string {
  return request.headers["x-spillway-address"] ?? "";
}

function only(request: RestRequest, method: string): void {
  if (request.method !== method) throw new SpillwayError("control_invalid", `${request.method} is not possible here`);
}

const notFound = (path: string): SpillwayError => new SpillwayError("control_not_found", `there is nothing at ${path}`);
const forbidden = (why: string): SpillwayError => new SpillwayError("control_forbidden", why);

function healthResponse({ ok, body }: Health): RestResponse {
  const made = json(ok ? 200 : 503, body);
  return ok ? made : { ...made, headers: { ...made.headers, "retry-after": "1" } };
}

function typedOf(error: unknown): SpillwayError {
  if (error instanceof SpillwayError) return error;
  if (sqlstateOf(error)?.startsWith("22")) {
    return new SpillwayError("control_invalid", "a value cannot be understood", { cause: error });
  }
  if (sqlstateOf(error) !== null) return fromPgError(error, "the control database");
  return new SpillwayError("internal", "the request failed; the log says why", { cause: error });
}

const STATUS: Readonly<Record<string, number>> = {
  control_not_found: 404,
  control_exists: 409,
  control_in_use: 409,
  auth_failed: 401,
  auth_expired: 401,
  auth_locked: 429,
  limit_exceeded: 413,
};
const STATUS_OF_KIND = { usage: 400, refused: 403, retry: 503, conflict: 409, unknown: 500, operator: 500 } as const;

function errorResponse(error: SpillwayError): RestResponse {
  const status = STATUS[error.code] ?? STATUS_OF_KIND[error.kind];
  const headers = {
    "content-type": "application/json",
    ...(status === 401 ? { "www-authenticate": "Bearer" } : {}),
    ...(status === 503 || status === 429 ? { "retry-after": "1" } : {}),
  };
  return { status, headers, body: JSON.stringify({ error: error.toJSON() }) };
}
