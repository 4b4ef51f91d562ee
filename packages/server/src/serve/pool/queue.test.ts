import { expect, test } from "vitest";
import { FairQueue } from "./queue.ts";

const never = new AbortController().signal;
const options = { limit: 100, timeoutMs: 10_000 };

test("users take turns", async () => {
  const queue = new FairQueue<number>();
  const order: string[] = [];
  const enter = (user: string): Promise<void> =>
    queue.wait({ user, writes: false, signal: never }, options).then(() => void order.push(user));
  const all = [...Array.from({ length: 6 }, () => enter("greedy")), enter("ann"), enter("bob"), enter("ann")];
  for (let i = 0; i < 9; i++) {
    let given = false;
    queue.serve(() => (given ? null : ((given = true), i)));
    await Promise.resolve();
  }
  await Promise.all(all);
  expect(order.slice(0, 5)).toEqual(["greedy", "ann", "bob", "greedy", "ann"]);
});

test("a read is not held up by a write that no node takes", async () => {
  const queue = new FairQueue<number>();
  const stop = new AbortController();
  const write = queue.wait({ user: "a", writes: true, signal: stop.signal }, options);
  const read = queue.wait({ user: "b", writes: false, signal: never }, options);
  queue.serve((writes) => (writes ? null : 1));
  expect(await read).toBe(1);
  expect(queue.length).toBe(1);
  stop.abort();
  await expect(write).rejects.toMatchObject({ code: "engine_interrupted" });
  expect(queue.length).toBe(0);
});

test("it is bounded, and nobody waits longer than the deadline", async () => {
  const queue = new FairQueue<number>();
  const positions: number[] = [];
  const first = queue.wait(
    { user: "a", writes: false, signal: never, onQueued: (p) => positions.push(p) },
    { limit: 1, timeoutMs: 50 },
  );
  expect(() => queue.wait({ user: "b", writes: false, signal: never }, { limit: 1, timeoutMs: 50 })).toThrow(/wait/);
  await expect(first).rejects.toMatchObject({ code: "queue_timeout" });
  expect(positions).toEqual([1]);
  queue.serve(() => 1);
});
