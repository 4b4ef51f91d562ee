/** The mirror's metrics: the slot, each table's lag and state, flushes. */
import type { Logger } from "@spillway/base/log";
import type { Labels, Metrics } from "@spillway/base/metrics";
import type { Db } from "../catalog/catalog.ts";
import { type FlushResult, guardSlot, type PumpStatus, readLags, readSlotReading } from "../movers/movers.ts";

export class MirrorMetrics {
  readonly #gauges;
  readonly #flushes;
  readonly #rows;
  readonly #tableRows;
  readonly #tableBytes;
  readonly #seconds;
  readonly #states = new Map<string, Labels>();
  #pump: () => PumpStatus | null = () => null;
  #tables = new Set<string>();
  #slot: string | null = null;

  constructor(metrics: Metrics) {
    const gauge = (name: string, help: string) => metrics.gauge(`spillway_${name}`, help);
    this.#gauges = {
      active: gauge("slot_active", "1 while the pump holds the slot."),
      retained: gauge("slot_retained_wal_bytes", "WAL that the slot keeps; absent when the slot is invalid."),
      invalid: gauge("slot_invalid", "1 when the slot is gone or was invalidated: an alarm."),
      bytes: gauge("mirror_lag_bytes", "WAL between F and now."),
      seconds: gauge("mirror_lag_seconds", "Age of F."),
      live: gauge("mirror_live", "1 while the table follows the stream; 0 while it is copied or stopped."),
      state: gauge("mirror_state", "1 for the state that the table is in, with the code of what stopped it."),
      transactions: gauge("mirror_lag_transactions", "Transactions that were received and are not published."),
      buffered: gauge("mirror_buffered_rows", "Changed rows that the pump has in memory."),
      staged: gauge("mirror_staged_bytes", "Files of transactions too large for memory that are not published."),
    };
    this.#flushes = metrics.counter("spillway_mirror_flushes_total", "Flushes that were committed.");
    this.#rows = metrics.counter("spillway_mirror_operations_total", "Row operations that were applied.");
    this.#tableRows = metrics.counter(
      "spillway_mirror_table_rows_total",
      "Row operations that were applied to the table.",
    );
    this.#tableBytes = metrics.counter(
      "spillway_mirror_table_bytes_total",
      "Data files that flushes wrote for the table.",
    );
    this.#seconds = metrics.histogram("spillway_mirror_flush_seconds", "Duration of a flush.");
  }

  /** Whose buffers are shown. */
  follow(pump: () => PumpStatus | null): void {
    this.#pump = pump;
  }

  flushed({ operations, ms, byTable }: FlushResult & { readonly ms: number }): void {
    for (const { table, ...of } of byTable) {
      this.#tableRows.inc({ table }, of.operations);
      this.#tableBytes.inc({ table }, of.bytes);
    }
    this.#flushes.inc();
    this.#rows.inc({}, operations);
    this.#seconds.observe(ms / 1000);
  }

  /** Reads the gauges, and says what the slot guard has to say. */
  async refresh(db: Db, log: Logger, warnBytes: number): Promise<void> {
    const slot = await readSlotReading(db);
    if (this.#slot !== null && this.#slot !== slot?.slot) {
      for (const name of ["active", "retained", "invalid"] as const) this.#gauges[name].drop({ slot: this.#slot });
    }
    this.#slot = slot?.slot ?? null;
    if (slot !== null) {
      const labels = { slot: slot.slot };
      this.#gauges.active.set(slot.active ? 1 : 0, labels);
      this.#gauges.invalid.set(slot.invalid === null ? 0 : 1, labels);
      if (slot.retained === null) this.#gauges.retained.drop(labels);
      else this.#gauges.retained.set(slot.retained, labels);
      guardSlot(slot, warnBytes, log);
    }
    const pump = this.#pump();
    this.#gauges.transactions.set(pump?.pending ?? 0);
    this.#gauges.buffered.set(pump?.bufferedRows ?? 0);
    this.#gauges.staged.set(pump?.stagedBytes ?? 0);
    const lags = await readLags(db);
    const seen = new Set(lags.map((l) => l.table));
    for (const table of this.#tables) {
      if (!seen.has(table))
        for (const name of ["bytes", "seconds", "live"] as const) this.#gauges[name].drop({ table });
    }
    this.#tables = seen;
    for (const [table, labels] of this.#states) {
      const lag = lags.find((l) => l.table === table);
      if (lag !== undefined && lag.phase === labels["state"] && (lag.stopCode ?? "") === labels["reason"]) continue;
      this.#gauges.state.drop(labels);
      this.#states.delete(table);
    }
    for (const { table, phase, stopCode, bytes, seconds } of lags) {
      const labels = { table, state: phase, reason: stopCode ?? "" };
      this.#states.set(table, labels);
      this.#gauges.state.set(1, labels);
      if (bytes !== null) this.#gauges.bytes.set(bytes, { table });
      if (seconds !== null) this.#gauges.seconds.set(seconds, { table });
      this.#gauges.live.set(phase === "live" ? 1 : 0, { table });
    }
  }
}
