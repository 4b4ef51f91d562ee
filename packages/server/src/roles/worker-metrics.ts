/** The worker's metrics. Counters of movements are kept by the catalog's journal and this process; gauges are read after each cycle. */
import type { Logger } from "@spillway/base/log";
import type { Metrics } from "@spillway/base/metrics";
import { type Db, readStatus } from "../catalog/catalog.ts";
import type { PassResult } from "../movers/movers.ts";
import type { HttpSource } from "./metrics-http.ts";

/** At so many times the warning threshold a backlog is an error. */
const ERROR_FACTOR = 4;

export class WorkerMetrics implements HttpSource {
  readonly #metrics: Metrics;
  readonly #gauges;
  readonly #cycles;
  readonly #moved;
  readonly #errors;
  #leading = false;
  #lastCycleS: number | null = null;
  #tables = new Set<string>();

  constructor(metrics: Metrics) {
    this.#metrics = metrics;
    const gauge = (name: string, help: string) => metrics.gauge(`spillway_${name}`, help);
    this.#gauges = {
      leader: gauge("leader", "1 while this process leads."),
      last: gauge("last_cycle_timestamp_seconds", "When the last cycle ended."),
      cutLine: gauge("cutline_tier_key", "T in canonical units: integers, days, or microseconds since 1970."),
      snapshot: gauge("cutline_snapshot", "The sequence number of the lake snapshot that belongs to T."),
      backlog: gauge("delta_backlog_rows", "Corrections that wait to be folded."),
      stopped: gauge("table_stopped", "1 while the table is stopped with a reason."),
      waits: gauge("table_wait_attempts", "How often the step that the table waits in was tried."),
      lakeRows: gauge("lake_records", "Rows of the lake, as journaled."),
      lakeBytes: gauge("lake_bytes", "Bytes of the data files, as journaled."),
      heapBytes: gauge("heap_bytes", "Bytes of the table's partitions with their indexes."),
      pins: gauge("pins_live", "Pins of readers that have not lapsed."),
      doomed: gauge("doomed_files", "Files that wait to leave the store."),
      openOps: gauge("open_operations", "Movements that are journaled as open."),
    };
    this.#cycles = metrics.histogram("spillway_cycle_duration_seconds", "Duration of a cycle over all tables.");
    this.#moved = metrics.counter("spillway_movements_total", "Movements that this process has made.");
    this.#errors = metrics.counter("spillway_table_errors_total", "Failures of a table's step, by code.");
    this.leads(false);
  }

  leads(leading: boolean): void {
    this.#leading = leading;
    this.#gauges.leader.set(leading ? 1 : 0);
  }

  cycle(seconds: number, nowS: number, result: PassResult): void {
    this.#lastCycleS = nowS;
    this.#cycles.observe(seconds);
    this.#gauges.last.set(nowS);
    this.#moved.inc({}, result.moved);
    for (const [table, code] of Object.entries(result.failed)) this.#errors.inc({ table, code });
  }

  /** Reads the gauges, and warns of a backlog. */
  async refresh(db: Db, log: Logger, warnRows: number): Promise<void> {
    const status = await readStatus(db);
    const seen = new Set(status.tables.map((t) => t.table));
    const perTable = [
      "cutLine",
      "snapshot",
      "backlog",
      "stopped",
      "waits",
      "lakeRows",
      "lakeBytes",
      "heapBytes",
    ] as const;
    for (const table of this.#tables) {
      if (!seen.has(table)) for (const name of perTable) this.#gauges[name].drop({ table });
    }
    this.#tables = seen;
    for (const t of status.tables) {
      const labels = { table: t.table };
      if (t.cutLine !== null) this.#gauges.cutLine.set(Number(t.cutLine), labels);
      this.#gauges.snapshot.set(Number(t.snapshotSequence), labels);
      this.#gauges.backlog.set(t.deltaRows, labels);
      this.#gauges.stopped.set(t.state === "stopped" ? 1 : 0, { ...labels });
      this.#gauges.waits.set(t.waiting?.attempts ?? 0, labels);
      this.#gauges.lakeRows.set(Number(t.lakeRows), labels);
      this.#gauges.lakeBytes.set(Number(t.lakeBytes), labels);
      this.#gauges.heapBytes.set(Number(t.heapBytes), labels);
      if (t.deltaRows >= warnRows) {
        const blocker = t.stopReason ?? t.waiting?.reason ?? "nothing: the fold is behind";
        const fields = { table: t.table, rows: t.deltaRows, threshold: warnRows, blocked_by: blocker };
        if (t.deltaRows < warnRows * ERROR_FACTOR) log.warn("delta.backlog", fields);
        else log.error("delta.backlog", { ...fields, runbook: "docs/guides/operations.md, delta backlog" });
      }
    }
    this.#gauges.pins.set(status.pins.live);
    this.#gauges.doomed.set(status.doomedFiles);
    this.#gauges.openOps.set(status.openOps);
  }

  render(): string {
    return this.#metrics.render();
  }

  /** A standby is healthy too; a leader is, once it has ended a cycle. */
  health(): { ok: boolean; body: Readonly<Record<string, unknown>> } {
    return { ok: true, body: { status: "ok", leader: this.#leading, last_cycle: this.#lastCycleS } };
  }
}
