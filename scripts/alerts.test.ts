/**
 * The alert rules of the docs: every series exists, every rule is fired by a test in `alerts.test.yml`, and those tests hold
 * where Prometheus's own `promtool` is installed.
 */
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { expect, test } from "vitest";

const ROOT = resolve(import.meta.dirname, "..");
const read = (path: string): string => readFileSync(join(ROOT, path), "utf8");
const rules = read("docs/guides/alerts.yml");
const alerts = [...rules.matchAll(/- alert: (\w+)/g)].map((m) => m[1]);

test("every series of the rules is one that is exported", () => {
  const known = new Set([...read("docs/reference/metrics.md").matchAll(/`(spillway_\w+)`/g)].map((m) => m[1]));
  const used = [...rules.matchAll(/\bspillway_\w+/g)].map((m) => m[0]);
  expect(used.length).toBeGreaterThan(0);
  expect(used.filter((name) => !known.has(name))).toEqual([]);
});

test("every rule is explained, and fired by a test", () => {
  const [page, cases] = [read("docs/guides/operations.md"), read("docs/guides/alerts.test.yml")];
  for (const alert of alerts) {
    expect(page).toContain(`\`${alert}\``);
    expect(cases).toMatch(new RegExp(`alertname: ${alert}\\n\\s+exp_alerts:\\n\\s+- exp_labels`));
  }
});

test.skipIf(spawnSync("promtool", ["--version"]).status !== 0)("promtool fires them", () => {
  const done = spawnSync("promtool", ["test", "rules", join(ROOT, "docs/guides/alerts.test.yml")], {
    encoding: "utf8",
  });
  expect([done.status, done.stderr]).toEqual([0, ""]);
});
