/**
 * What the REST catalog answers from: the pointers in the source's `spillway` schema, and the metadata files in the store.
 * A namespace is a schema of the source. Lake tables of unregistered tables stay readable.
 */
import { gunzipSync } from "node:zlib";
import { SpillwayError } from "@spillway/base/errors";
import { normalizeLocation, type ObjectStore } from "@spillway/lake/store/store";
import type { Pool } from "@spillway/pg/pool";
import { loadLakeTableByName, loadLakeTables } from "../../catalog/catalog.ts";
import { applyReplace, type ReplaceContext } from "./replace.ts";
import type { CatalogSource, CatalogTable } from "./rest-catalog.ts";

export interface CatalogSourceOptions extends ReplaceContext {
  /** Bytes of metadata text that are kept. Default 64 MiB. */
  readonly metadataCacheBytes?: number;
}

const DEFAULT_CACHE_BYTES = 64 << 20;

export function createCatalogSource(options: CatalogSourceOptions): CatalogSource {
  const { pool, store } = options;
  const texts = new MetadataTexts(store, options.metadataCacheBytes ?? DEFAULT_CACHE_BYTES);
  // One at a time: each reads and hashes all rows that it exchanges.
  let replacing = false;
  const load: CatalogSource["load"] = async (namespace, name, view) => {
    requireLive(view);
    const row = await pool.withClient((c) => loadLakeTableByName(c, namespace, name));
    if (row === null) return null;
    const { metadataLocation } = row;
    return { namespace, name, metadataLocation, metadataJson: await texts.get(metadataLocation) };
  };
  return {
    resolveWarehouse: async (warehouse) => {
      requireWarehouse(options.warehouse, warehouse);
      return { prefix: null };
    },
    namespaces: async (view) => {
      requireLive(view);
      return pool.withClient(listNamespaces);
    },
    tables: async (namespace, view) => {
      requireLive(view);
      return pool.withClient(async (client) => {
        const tables = (await loadLakeTables(client)).filter((t) => t.namespace === namespace);
        if (tables.length > 0) return tables.map((t) => t.name);
        const known = await listNamespaces(client);
        return known.some((n) => n.name === namespace) ? [] : null;
      });
    },
    load,
    replace: async ({ namespace, name }, body): Promise<CatalogTable> => {
      if (replacing) throw new SpillwayError("mover_busy", "another replace commit is being checked");
      replacing = true;
      try {
        await applyReplace(options, namespace, name, body);
      } finally {
        replacing = false;
      }
      const table = await load(namespace, name, null);
      if (table === null) throw new SpillwayError("table_unknown", `${namespace}.${name} is gone`);
      return table;
    },
  };
}

/** The one warehouse, by its location in any spelling, or none. */
function requireWarehouse(own: string, given: string | null): void {
  if (given === null || given === "" || given === own) return;
  try {
    if (normalizeLocation(given) === own) return;
  } catch {
    // No location at all: answered below.
  }
  throw new SpillwayError("warehouse_unknown", `there is no warehouse ${JSON.stringify(given)} here`);
}

function requireLive(view: string | null): void {
  if (view !== null) throw new SpillwayError("warehouse_unknown", `there is no prefix ${JSON.stringify(view)} here`);
}

type Client = Parameters<Parameters<Pool["withClient"]>[0]>[0];

async function listNamespaces(client: Client): Promise<{ name: string; properties: Record<string, string> }[]> {
  const { rows } = await client.query<{ name: string; properties: Record<string, unknown> }>(
    "select name, properties from spillway.namespace order by name",
  );
  return rows.map(({ name, properties }) => ({
    name,
    properties: Object.fromEntries(Object.entries(properties).map(([k, v]) => [k, String(v)])),
  }));
}

/** Metadata files as text, the least recently used dropped first: a file is never changed, so what is kept stays right. */
class MetadataTexts {
  readonly #store: ObjectStore;
  readonly #maxBytes: number;
  readonly #texts = new Map<string, Promise<string>>();
  readonly #sizes = new Map<string, number>();
  #bytes = 0;

  constructor(store: ObjectStore, maxBytes: number) {
    this.#store = store;
    this.#maxBytes = maxBytes;
  }

  get(location: string): Promise<string> {
    const found = this.#texts.get(location) ?? this.#read(location);
    this.#texts.delete(location);
    this.#texts.set(location, found);
    return found;
  }

  async #read(location: string): Promise<string> {
    try {
      const bytes = await this.#store.get(location);
      const plain = bytes[0] === 0x1f && bytes[1] === 0x8b ? gunzipSync(bytes) : bytes;
      this.#sizes.set(location, plain.length);
      this.#bytes += plain.length;
      this.#evict();
      return Buffer.from(plain).toString("utf8");
    } catch (error) {
      this.#texts.delete(location);
      throw error;
    }
  }

  #evict(): void {
    for (const location of this.#texts.keys()) {
      if (this.#bytes <= this.#maxBytes) return;
      const size = this.#sizes.get(location);
      // Still being read: its size is not known yet.
      if (size === undefined) continue;
      this.#bytes -= size;
      this.#sizes.delete(location);
      this.#texts.delete(location);
    }
  }
}
