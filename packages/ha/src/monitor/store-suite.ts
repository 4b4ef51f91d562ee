/** What every store of the monitor must do; run by each implementation's tests. */
import assert from "node:assert/strict";
import { DEFAULT_TIMINGS } from "../fsm/model.ts";
import { newFormation } from "../fsm/rows.ts";
import type { Commit, MonitorStore, StoredEvent } from "./store.ts";

export function formationNamed(name: string, version: number): Commit["formation"] {
  const secrets = { peerToken: "p", replicationUser: "u", replicationPassword: "w" };
  return { ...newFormation(name, DEFAULT_TIMINGS, secrets), version };
}

export function eventNumber(seq: number): StoredEvent {
  return {
    seq,
    atMs: seq,
    formation: "f",
    nodeId: 1,
    node: "n1",
    kind: "note",
    from: "",
    to: "",
    reason: `event ${seq}`,
  };
}

export interface StoreCase {
  readonly name: string;
  /** `open` gives a store over the same durable state each time; the one before is closed. */
  readonly run: (open: () => Promise<MonitorStore>) => Promise<void>;
}

const never = new AbortController().signal;

export const STORE_SUITE: readonly StoreCase[] = [
  {
    name: "what was committed is there after a reopen, and nothing else",
    run: async (open) => {
      const first = await open();
      assert.deepEqual((await first.lead(never)).formations, []);
      assert.equal(first.leads(), true);
      await first.commit({ formation: formationNamed("a", 1), events: [eventNumber(1), eventNumber(2)] });
      await first.commit({ formation: formationNamed("b", 7), events: [] });
      await first.commit({ formation: formationNamed("a", 2), events: [eventNumber(3)] });
      await first.close();
      const second = await open();
      const state = await second.lead(never);
      const byName = state.formations.toSorted((x, y) => x.name.localeCompare(y.name));
      assert.deepEqual(byName, [formationNamed("a", 2), formationNamed("b", 7)]);
      const seqs = state.events.map((e) => e.seq);
      assert.deepEqual(seqs, [1, 2, 3]);
      await second.close();
    },
  },
  {
    name: "many commits at once all become durable, in order",
    run: async (open) => {
      const first = await open();
      await first.lead(never);
      const commits = Array.from({ length: 50 }, (_, i) => ({ formation: formationNamed("c", i + 1), events: [] }));
      await Promise.all(commits.map((c) => first.commit(c)));
      await first.close();
      const second = await open();
      const state = await second.lead(never);
      assert.equal(state.formations.find((f) => f.name === "c")?.version, 50);
      await second.close();
    },
  },
];
