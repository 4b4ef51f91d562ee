/**
 * What the REST catalog answers from: the pointers in the source's `spillway` schema, and the metadata files in the store.
 * A namespace is a schema of the source. Lake tables of unregistered tables stay readable.
 */
import { gunzipSync } from "node:zlib";
import { SpillwayError } from "@spillway/base/errors";
import { formatLsn, type Lsn } from "@spillway/base/lsn";
import { parseMetadata, printMetadata } from "@spillway/lake/metadata";
import type { ObjectStore } from "@spillway/lake/store/store";
import type { Pool } from "@spillway/pg/pool";
import { loadLakeTableByName, loadLakeTables, requireSnapshotAtLsn } from "../../catalog/catalog.ts";
import { applyReplace, type ReplaceContext } from "./replace.ts";
import type { CatalogSource, CatalogTable } from "./rest-catalog.ts";
import { latestPosition, metadataAt, parseView, parseWarehouse, printView, viewTables } from "./views.ts";

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
    if (view !== null) return loadAt(namespace, name, requireView(view));
    const row = await pool.withClient((c) => loadLakeTableByName(c, namespace, name));
    if (row === null) return null;
    const { metadataLocation } = row;
    return { namespace, name, metadataLocation, metadataJson: await texts.get(metadataLocation) };
  };
  const loadAt = async (namespace: string, name: string, lsn: Lsn): Promise<CatalogTable | null> => {
    const tables = await pool.withClient((c) => viewTables(c, lsn));
    const table = tables.find((t) => t.namespace === namespace && t.name === name);
    if (!table) return null;
    const { metadataLocation, frontier } = table;
    const text = await texts.get(metadataLocation);
    const metadata = parseMetadata(text);
    // Without a snapshot it has been empty all the time.
    if (metadata.snapshots.length === 0) return { namespace, name, metadataLocation, metadataJson: text };
    const snapshot = requireSnapshotAtLsn(metadata, lsn, frontier, `${namespace}.${name}`);
    return { namespace, name, metadataLocation, metadataJson: printMetadata(metadataAt(metadata, snapshot)) };
  };
  return {
    resolveWarehouse: async (warehouse) => {
      const own = { location: options.warehouse, database: await pool.withClient(databaseName) };
      const view = parseWarehouse(own, warehouse);
      if (view.kind === "live") return { prefix: null };
      const latest = await pool.withClient(latestPosition);
      const lsn = view.kind === "lsn" ? view.lsn : latest;
      if (lsn > latest) {
        throw new SpillwayError(
          "as_of_lsn_ahead",
          `the lake has everything up to ${formatLsn(latest)}, not up to ${formatLsn(lsn)}`,
        );
      }
      return { prefix: printView(lsn) };
    },
    namespaces: async (view) => {
      if (view !== null) requireView(view);
      return pool.withClient(listNamespaces);
    },
    tables: async (namespace, view) => {
      const lsn = view === null ? null : requireView(view);
      return pool.withClient(async (client) => {
        const all = lsn === null ? await loadLakeTables(client) : await viewTables(client, lsn);
        const tables = all.filter((t) => t.namespace === namespace);
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

function requireView(prefix: string): Lsn {
  const lsn = parseView(prefix);
  if (lsn === null) throw new SpillwayError("warehouse_unknown", `there is no prefix ${JSON.stringify(prefix)} here`);
  return lsn;
}

type Client = Parameters<Parameters<Pool["withClient"]>[0]>[0];

async function databaseName(client: Client): Promise<string> {
  const { rows } = await client.query<{ name: string }>("select current_database() as name");
  return rows[0]?.name ?? "";
}

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
