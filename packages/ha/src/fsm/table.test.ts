import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { renderStates } from "./diagram.ts";
import { isStopped, isWritable, LEASED, STATES, WRITABLE } from "./states.ts";
import { ACTIONS, edgeOf, TABLE } from "./table.ts";

test("the table is a function: no pair has two actions", () => {
  const pairs = TABLE.map((e) => `${e.current}>${e.assigned}`);
  expect(pairs.filter((p, i) => pairs.indexOf(p) !== i)).toEqual([]);
});

test("every action is used, every state can be told its own parameters anew, and every state can be left", () => {
  const used = new Set(TABLE.map((e) => e.action));
  expect(Object.keys(ACTIONS).filter((a) => !used.has(a as keyof typeof ACTIONS))).toEqual([]);
  for (const state of STATES) {
    expect(edgeOf(state, state), state).not.toBeNull();
    if (state !== "dropped") expect(edgeOf(state, "dropped")?.action, state).toBe("drop_node");
  }
});

test("whoever may write can be told to stop, in every way", () => {
  for (const state of WRITABLE) {
    for (const goal of ["draining", "demote_timeout", "demoted", "prepare_maintenance"] as const) {
      expect(["stop_postgres", "drain_for_maintenance"], `${state} > ${goal}`).toContain(edgeOf(state, goal)?.action);
    }
  }
});

test("a primary that fenced itself can go on to every goal that needs a lease", () => {
  for (const goal of LEASED) expect(edgeOf("demote_timeout", goal), goal).not.toBeNull();
});

test("no standby becomes writable except by a promotion, and a stopped one only where nobody else was promoted", () => {
  for (const { current, assigned, action } of TABLE) {
    if (!isWritable(assigned) || isWritable(current)) continue;
    const begins = ["init", "dropped", "wait_standby"].includes(current) && action === "init_primary";
    const opens = current === "stop_replication" && action === "open_writes";
    const resumes = isStopped(current) && ["start_writable", "set_ssn_and_wait"].includes(action);
    expect(begins || opens || resumes || action === "promote_and_open", `${current} > ${assigned}: ${action}`).toBe(
      true,
    );
  }
});

test("the generated page is what the table says (node scripts/gen-ha-states.mjs)", () => {
  const page = readFileSync(new URL("../../../../docs/reference/ha-states.md", import.meta.url), "utf8");
  expect(page).toBe(renderStates());
});
