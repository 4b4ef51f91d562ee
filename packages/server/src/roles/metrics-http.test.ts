import { silentLogger } from "@spillway/base/log";
import { Metrics } from "@spillway/base/metrics";
import { expect, test } from "vitest";
import { startMetricsHttp } from "./metrics-http.ts";
import { WorkerMetrics } from "./worker-metrics.ts";

test("/metrics and /health answer, everything else is refused", async () => {
  const metrics = new WorkerMetrics(new Metrics());
  const http = await startMetricsHttp("127.0.0.1:0", metrics, silentLogger);
  if (!http) throw new Error("it does not listen");
  try {
    const base = `http://127.0.0.1:${http.port}`;
    metrics.leads(true);
    metrics.cycle(0.5, 1_700_000_000, { tables: 1, moved: 2, failed: { "public.t": "verify_failed" }, waiting: 0 });
    const text = await (await fetch(`${base}/metrics`)).text();
    expect(text).toContain("spillway_leader 1\n");
    expect(text).toContain("spillway_movements_total 2\n");
    expect(text).toContain('spillway_table_errors_total{code="verify_failed",table="public.t"} 1\n');
    const health = await fetch(`${base}/health`);
    expect([health.status, await health.json()]).toEqual([
      200,
      { status: "ok", leader: true, last_cycle: 1_700_000_000 },
    ]);
    expect((await fetch(`${base}/else`)).status).toBe(404);
    expect((await fetch(`${base}/metrics`, { method: "POST" })).status).toBe(405);
    await expect(startMetricsHttp(`127.0.0.1:${http.port}`, metrics, silentLogger)).rejects.toMatchObject({
      code: "config_invalid",
    });
  } finally {
    await http.close();
  }
  await expect(startMetricsHttp("nowhere", metrics, silentLogger)).rejects.toMatchObject({ code: "config_invalid" });
  expect(await startMetricsHttp("off", metrics, silentLogger)).toBeNull();
});
