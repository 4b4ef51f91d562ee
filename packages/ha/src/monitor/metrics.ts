/** What the monitor measures: spillway_ha_*. Rendered from the present state, so nothing lags. */
import { Metrics } from "@spillway/base/metrics";
import type { Brain } from "./brain.ts";
import { stateOf } from "./views.ts";

export function renderMonitorMetrics(brain: Brain, counts: MonitorCounts): string {
  const metrics = new Metrics();
  const gauge = (name: string, help: string): ReturnType<Metrics["gauge"]> =>
    metrics.gauge(`spillway_ha_${name}`, help);
  gauge("monitor_leading", "1 when this monitor decides.").set(brain.leading ? 1 : 0);
  gauge("monitor_lag_seconds", "How late the monitor's timer is.").set(brain.lagMs() / 1000);
  const requests = metrics.counter("spillway_ha_monitor_requests_total", "Requests answered, by status.");
  for (const [status, n] of counts.requests) requests.inc({ status: String(status) }, n);
  if (!brain.leading) return metrics.render();
  const synchronous = gauge("synchronous", "1 when no acknowledged commit can be lost.");
  const blocked = gauge("writes_blocked", "1 when commits wait for standbys that are not there.");
  const moving = gauge("failover_in_progress", "1 during a change of the primary.");
  const healthy = gauge("node_healthy", "1 when the keeper reports and Postgres runs.");
  const primary = gauge("node_is_primary", "1 for the node that may write.");
  const settled = gauge("node_settled", "1 when the reported state is the assigned one.");
  const lag = gauge("node_lag_bytes", "WAL behind the primary.");
  const contact = gauge("node_last_contact_seconds", "Since the last report.");
  const slots = gauge("node_slots_ready", "1 when all slots are there and usable.");
  for (const live of brain.formations()) {
    const state = stateOf(brain.look(live));
    const { formation } = state;
    synchronous.set(state.synchronous ? 1 : 0, { formation });
    blocked.set(state.writesBlocked ? 1 : 0, { formation });
    moving.set(state.failover === null ? 0 : 1, { formation });
    for (const node of state.nodes) {
      const labels = { formation, node: node.name };
      healthy.set(node.healthy ? 1 : 0, labels);
      primary.set(node.isPrimary ? 1 : 0, labels);
      settled.set(node.reported === node.assigned ? 1 : 0, labels);
      if (node.lagBytes !== null) lag.set(node.lagBytes, labels);
      if (node.lastContactMs !== null) contact.set(node.lastContactMs / 1000, labels);
      if (node.slotsReady !== null) slots.set(node.slotsReady ? 1 : 0, labels);
    }
  }
  return metrics.render();
}

export interface MonitorCounts {
  readonly requests: Map<number, number>;
}
