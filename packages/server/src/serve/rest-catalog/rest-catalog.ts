/**
 * The Iceberg REST catalog: how Spark, Trino, DuckDB and pyiceberg find the lake's tables. Reading is open to
 * every holder of the token. Writing is Spillway's: a table may allow `replace` commits by others (a compaction by an
 * external engine); every other commit, expiry, purge or DDL is answered by 403 with the reason.
 *
 * Source: apache/iceberg open-api/rest-catalog-open-api.yaml. `endpoints` is always in the configuration, because a
 * client that does not find it assumes the full set of writes.
 */
import { messageOf } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import {
  empty,
  forbidden,
  json,
  namespaceOf,
  notFound,
  paginate,
  rawJson,
  requireBearer,
  RestError,
  segments,
  toResponse,
  type RestRequest,
  type RestResponse,
} from "./http.ts";

export interface CatalogNamespace {
  readonly name: string;
  readonly properties: Readonly<Record<string, string>>;
}

export interface CatalogTable {
  readonly namespace: string;
  readonly name: string;
  readonly metadataLocation: string;
  /** The metadata file's text, as it stands in the store: 64-bit integers pass through untouched. */
  readonly metadataJson: string;
}

/** A commit that an external engine asks for: its body, as sent. */
export interface ForeignCommit {
  readonly namespace: string;
  readonly name: string;
  readonly requirements: readonly unknown[];
  readonly updates: readonly unknown[];
}

/** Where the answers come from. `view` is the consistent view that the prefix names, or null for the live tables. */
export interface CatalogSource {
  /** Refuses a warehouse name that this server does not have; returns the prefix its clients are to use. */
  resolveWarehouse(warehouse: string | null): Promise<{ prefix: string | null }>;
  namespaces(view: string | null): Promise<readonly CatalogNamespace[]>;
  /** Names only; null when the namespace does not exist. */
  tables(namespace: string, view: string | null): Promise<readonly string[] | null>;
  load(namespace: string, name: string, view: string | null): Promise<CatalogTable | null>;
  /** Verifies and applies a `replace`; refusals are SpillwayErrors. */
  replace(commit: ForeignCommit, body: string): Promise<CatalogTable>;
}

export interface RestCatalogOptions {
  readonly source: CatalogSource;
  /** null: no token is asked for (loopback only; the role decides). */
  readonly token: string | null;
  readonly log: Logger;
  readonly maxBodyBytes?: number;
}

export interface RestCatalog {
  handle(request: RestRequest): Promise<RestResponse>;
}

const ENDPOINTS = [
  "GET /v1/{prefix}/namespaces",
  "GET /v1/{prefix}/namespaces/{namespace}",
  "HEAD /v1/{prefix}/namespaces/{namespace}",
  "GET /v1/{prefix}/namespaces/{namespace}/tables",
  "GET /v1/{prefix}/namespaces/{namespace}/tables/{table}",
  "HEAD /v1/{prefix}/namespaces/{namespace}/tables/{table}",
  "POST /v1/{prefix}/namespaces/{namespace}/tables/{table}",
  "POST /v1/{prefix}/namespaces/{namespace}/tables/{table}/metrics",
] as const;

const READ_ONLY =
  "Spillway is the only writer of this catalog; tables are created by `spillway register` and changed through " +
  "`spillway sql`. An external engine may compact a table that allows it (operation `replace`).";

export function createRestCatalog(options: RestCatalogOptions): RestCatalog {
  return {
    handle: async (request) => {
      try {
        requireBearer(request, options.token);
        const response = await route(options, request);
        return request.method === "HEAD" ? { ...response, body: "" } : response;
      } catch (error) {
        const response = toResponse(error);
        const level = response.status >= 500 ? "error" : "debug";
        options.log[level]("rest catalog request failed", {
          path: request.path,
          status: response.status,
          error: messageOf(error),
        });
        return request.method === "HEAD" ? { ...response, body: "" } : response;
      }
    },
  };
}

async function route(options: RestCatalogOptions, request: RestRequest): Promise<RestResponse> {
  const parts = segments(request.path);
  if (parts[0] !== "v1") throw new RestError(404, "NotFoundException", `No such route: ${request.path}`);
  if (parts[1] === "config" && parts.length === 2) return config(options, request);
  // A prefix is present exactly when the second segment is not a collection of the specification.
  const prefixed = parts[1] !== "namespaces" && parts[1] !== "transactions";
  const view = prefixed ? (parts[1] ?? null) : null;
  const [collection, namespace, kind, table, action] = parts.slice(prefixed ? 2 : 1);
  if (collection !== "namespaces") return refuseOrMiss(request);
  if (namespace === undefined) return listNamespaces(options, request, view);
  if (kind === undefined) return oneNamespace(options, request, namespaceOf(namespace), view);
  if (kind !== "tables") return refuseOrMiss(request);
  if (table === undefined) return listTables(options, request, namespaceOf(namespace), view);
  if (action === undefined) return oneTable(options, request, namespaceOf(namespace), table, view);
  if (action === "metrics" && request.method === "POST")
    return acceptMetrics(options, request, namespaceOf(namespace), table, view);
  return refuseOrMiss(request);
}

async function config(options: RestCatalogOptions, request: RestRequest): Promise<RestResponse> {
  if (request.method !== "GET") return refuseOrMiss(request);
  const { prefix } = await options.source.resolveWarehouse(request.query.get("warehouse"));
  const overrides = prefix === null ? {} : { prefix };
  return json(200, { defaults: {}, overrides, endpoints: ENDPOINTS });
}

async function listNamespaces(
  options: RestCatalogOptions,
  request: RestRequest,
  view: string | null,
): Promise<RestResponse> {
  if (request.method !== "GET") return refuseOrMiss(request);
  const parent = request.query.get("parent");
  const all = await options.source.namespaces(view);
  if (parent !== null && parent !== "") {
    const name = namespaceOf(parent);
    if (!all.some((n) => n.name === name)) throw notFound("NoSuchNamespaceException", name);
    return json(200, { namespaces: [], "next-page-token": null });
  }
  const page = paginate(all, (n) => n.name, request.query);
  return json(200, { namespaces: page.items.map((n) => [n.name]), "next-page-token": page.nextPageToken });
}

async function oneNamespace(
  options: RestCatalogOptions,
  request: RestRequest,
  name: string,
  view: string | null,
): Promise<RestResponse> {
  if (request.method !== "GET" && request.method !== "HEAD") return refuseOrMiss(request);
  const found = (await options.source.namespaces(view)).find((n) => n.name === name);
  if (!found) throw notFound("NoSuchNamespaceException", name);
  return request.method === "HEAD" ? empty(204) : json(200, { namespace: [found.name], properties: found.properties });
}

async function listTables(
  options: RestCatalogOptions,
  request: RestRequest,
  namespace: string,
  view: string | null,
): Promise<RestResponse> {
  if (request.method !== "GET") return refuseOrMiss(request);
  const names = await options.source.tables(namespace, view);
  if (names === null) throw notFound("NoSuchNamespaceException", namespace);
  const page = paginate(names, (n) => n, request.query);
  const identifiers = page.items.map((name) => ({ namespace: [namespace], name }));
  return json(200, { identifiers, "next-page-token": page.nextPageToken });
}

async function oneTable(
  options: RestCatalogOptions,
  request: RestRequest,
  namespace: string,
  name: string,
  view: string | null,
): Promise<RestResponse> {
  if (request.method === "POST") return foreignCommit(options, request, namespace, name, view);
  if (request.method !== "GET" && request.method !== "HEAD") return refuseOrMiss(request);
  const table = await mustLoad(options, namespace, name, view);
  return request.method === "HEAD" ? empty(204) : rawJson(200, loadResult(table, true));
}

async function acceptMetrics(
  options: RestCatalogOptions,
  request: RestRequest,
  namespace: string,
  name: string,
  view: string | null,
): Promise<RestResponse> {
  await mustLoad(options, namespace, name, view);
  await readBody(request, options.maxBodyBytes ?? 1 << 20);
  return empty(204);
}

async function foreignCommit(
  options: RestCatalogOptions,
  request: RestRequest,
  namespace: string,
  name: string,
  view: string | null,
): Promise<RestResponse> {
  if (view !== null && view.includes("@")) throw forbidden("A consistent view is read-only.");
  const text = await readBody(request, options.maxBodyBytes ?? 8 << 20);
  const body = parseBody(text);
  await mustLoad(options, namespace, name, view);
  if (!isReplace(body.updates)) throw forbidden(READ_ONLY);
  const table = await options.source.replace({ namespace, name, ...body }, text);
  return rawJson(200, loadResult(table, false));
}

async function mustLoad(
  options: RestCatalogOptions,
  namespace: string,
  name: string,
  view: string | null,
): Promise<CatalogTable> {
  const table = await options.source.load(namespace, name, view);
  if (!table) throw notFound("NoSuchTableException", `${namespace}.${name}`);
  return table;
}

/** The metadata goes out as text: parsing it here would round 64-bit snapshot ids. */
function loadResult(table: CatalogTable, withConfig: boolean): string {
  const config = withConfig ? ',"config":{}' : "";
  return `{"metadata-location":${JSON.stringify(table.metadataLocation)},"metadata":${table.metadataJson}${config}}`;
}

/** One `replace` snapshot on main and nothing that removes, expires or changes the table's definition. */
function isReplace(updates: readonly unknown[]): boolean {
  const actions = updates.map((u) => (u as { action?: unknown }).action);
  const adds = updates.filter((u) => (u as { action?: unknown }).action === "add-snapshot");
  const operation = (adds[0] as { snapshot?: { summary?: { operation?: unknown } } } | undefined)?.snapshot?.summary
    ?.operation;
  const only = actions.every((a) => a === "add-snapshot" || a === "set-snapshot-ref");
  return only && adds.length === 1 && operation === "replace";
}

async function readBody(request: RestRequest, maxBytes: number): Promise<string> {
  const text = await request.body();
  if (Buffer.byteLength(text) > maxBytes) {
    throw new RestError(413, "BadRequestException", `The body is larger than ${maxBytes} bytes`);
  }
  return text;
}

function parseBody(text: string): { requirements: readonly unknown[]; updates: readonly unknown[] } {
  let body: unknown;
  try {
    body = JSON.parse(text);
  } catch {
    throw new RestError(400, "BadRequestException", "The body is not JSON");
  }
  const { requirements, updates } = (body ?? {}) as { requirements?: unknown; updates?: unknown };
  const valid = (list: unknown): list is unknown[] =>
    Array.isArray(list) && list.every((i) => typeof i === "object" && i !== null);
  if (!valid(requirements) || !valid(updates)) {
    throw new RestError(400, "BadRequestException", "The body needs `requirements` and `updates`");
  }
  return { requirements, updates };
}

function refuseOrMiss(request: RestRequest): never {
  if (request.method === "GET" || request.method === "HEAD") {
    throw new RestError(404, "NotFoundException", `No such route: ${request.path}`);
  }
  throw forbidden(READ_ONLY);
}
