/** Metrics of the lake tables' shape, and the catalog's own counters, which go on where a former process left them. */
import type { Metrics } from "@spillway/base/metrics";
import { type Db, loadRelations } from "../catalog/catalog.ts";
import { healthWarnings, type LakeHealth, lakeHealth, type MoverContext } from "../movers/movers.ts";

const EVERY_MS = 60_000;
const GAUGES = {
  lake_files: ["Data files of the current snapshot.", (h) => h.files],
  lake_delete_files: ["Delete files and deletion vectors of the current snapshot.", (h) => h.deleteFiles],
  lake_file_bytes: ["Bytes of the current snapshot's files.", (h) => h.bytes],
  lake_snapshots: ["Snapshots that the table keeps.", (h) => h.snapshots],
  lake_manifests: ["Manifests of the current snapshot.", (h) => h.manifests],
  lake_delete_ratio: ["Deleted rows of the rows in the data files.", (h) => h.deleteRatio],
  lake_warnings: ["What is wrong with the table's shape: how many things.", (h) => healthWarnings(h).length],
} as const satisfies Record<string, readonly [string, (health: LakeHealth) => number]>;

export class LakeMetrics {
  readonly #metrics: Metrics;
  /** What was shown of each counter so far. */
  readonly #shown = new Map<string, number>();
  #tables = new Set<string>();
  #lastMs = Number.NEGATIVE_INFINITY;

  constructor(metrics: Metrics) {
    this.#metrics = metrics;
  }

  async refresh(ctx: MoverContext): Promise<void> {
    await ctx.pool.withClient((c) => this.#counters(c));
    const nowMs = ctx.clock.monotonicMs();
    if (nowMs - this.#lastMs < EVERY_MS) return;
    this.#lastMs = nowMs;
    const all = await lakeHealth(ctx);
    for (const health of all) {
      const warnings = healthWarnings(health);
      if (warnings.length > 0) ctx.log.warn("lake.shape", { table: health.table, reason: warnings.join("; ") });
    }
    this.#show(all);
  }

  #show(all: readonly LakeHealth[]): void {
    const tables = new Set(all.map((h) => h.table));
    for (const [name, [help, value]] of Object.entries(GAUGES)) {
      const gauge = this.#metrics.gauge(`spillway_${name}`, help);
      for (const health of all) gauge.set(value(health), { table: health.table });
      for (const table of this.#tables) if (!tables.has(table)) gauge.drop({ table });
    }
    this.#tables = tables;
  }

  async #counters(db: Db): Promise<void> {
    const names = new Map(
      (await loadRelations(db)).map((r) => [r.relationId.toString(), `${r.schemaName}.${r.tableName}`]),
    );
    const { rows } = await db.query<{ name: string; relation_id: string; value: string }>(
      "select name, relation_id, value from spillway.counter",
    );
    for (const row of rows) {
      const id = row.relation_id.toString();
      const key = `${row.name}:${id}`;
      const by = Number(row.value) - (this.#shown.get(key) ?? 0);
      if (by < 0) continue;
      const table = names.get(id);
      const counter = this.#metrics.counter(`spillway_${row.name}`, HELP[row.name] ?? "A counter of the catalog.");
      counter.inc(id === "0" ? {} : { table: table ?? `unregistered ${id}` }, by);
      this.#shown.set(key, Number(row.value));
    }
  }
}

const HELP: Readonly<Record<string, string>> = {
  fold_passes_total: "Folds that were committed.",
  fold_delta_rows_total: "Corrections that went from the delta into the lake.",
  fold_upserts_total: "Of these, rows that were written.",
  fold_lake_rows_replaced_total: "Rows of the lake that folds replaced or deleted.",
  compactions_total: "Compactions that were committed.",
  compacted_files_total: "Data files that compactions rewrote.",
  compacted_bytes_total: "Bytes of the data files that compactions rewrote.",
  manifest_rewrites_total: "Merges of manifests.",
  snapshots_expired_total: "Snapshots that were expired.",
  retained_rows_expired_total: "Rows that lake retention removed.",
  retained_bands_expired_total: "Bands that lake retention removed.",
  files_removed_total: "Files that were removed from the store.",
  orphans_removed_total: "Files that only the store's log knew, and that were removed.",
  expired_pins_deleted_total: "Pins of readers that lapsed.",
  verify_differences_total: "Differences that verify found.",
  lake_commits_total: "Snapshots that folds, retention and maintenance committed.",
};
