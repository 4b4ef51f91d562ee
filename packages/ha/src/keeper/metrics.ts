/** What a keeper counts, for Prometheus. */
import type { Metrics } from "@spillway/base/metrics";
import { STATES, type State } from "../fsm/states.ts";
import type { Observation } from "./observe.ts";

export interface KeeperMetrics {
  observe(state: State, seen: Observation, leaseRemainingMs: number | null): void;
  fenced(): void;
  restarted(): void;
}

export function keeperMetrics(metrics: Metrics, labels: { formation: string; node: string }): KeeperMetrics {
  const state = metrics.gauge("spillway_ha_node_state", "1 for the state that the node is in.");
  const running = metrics.gauge("spillway_ha_postgres_running", "1 while Postgres answers queries.");
  const writable = metrics.gauge("spillway_ha_postgres_writable", "1 while Postgres is out of recovery.");
  const lease = metrics.gauge("spillway_ha_lease_remaining_seconds", "Until the lease runs out; absent without one.");
  const fences = metrics.counter(
    "spillway_ha_fences_total",
    "Times that Postgres was stopped because the lease ran out.",
  );
  const restarts = metrics.counter("spillway_ha_restarts_total", "Times that Postgres was restarted on the spot.");
  fences.inc(labels, 0);
  restarts.inc(labels, 0);
  let last: State | null = null;
  return {
    observe(now, seen, remainingMs) {
      if (now !== last) for (const s of STATES) state.set(s === now ? 1 : 0, { ...labels, state: s });
      last = now;
      running.set(seen.answers ? 1 : 0, labels);
      writable.set(seen.inRecovery === false ? 1 : 0, labels);
      if (remainingMs === null) lease.drop(labels);
      else lease.set(Math.max(0, remainingMs) / 1000, labels);
    },
    fenced: () => fences.inc(labels),
    restarted: () => restarts.inc(labels),
  };
}
