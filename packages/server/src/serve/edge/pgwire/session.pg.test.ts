/** The edge as a client sees it, by node-postgres. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import pg from "pg";
import { startTestEdge, type TestEdge } from "./test-edge.ts";

let edge: TestEdge;
beforeAll(async () => {
  edge = await startTestEdge();
});
afterAll(() => edge.close());

describe("statements over both tiers", () => {
  test("simple and extended give the same", async () => {
    const client = await edge.connect();
    const simple = await client.query("SELECT count(*) AS n, min(k) AS lo, max(label) AS l FROM items");
    expect(simple.rows).toEqual([{ n: "3000", lo: "0", l: "label 6" }]);
    const extended = await client.query("SELECT id, label, price FROM items WHERE k = $1", [2500]);
    expect(extended.rows).toEqual([{ id: 2500, label: "label 1", price: "625.00" }]);
  });

  test("plain tables and expressions are the source's own", async () => {
    const client = await edge.connect();
    expect((await client.query("SELECT 7 / 2 AS a, pg_typeof(1)::text AS t")).rows).toEqual([{ a: 3, t: "integer" }]);
    expect((await client.query("SELECT b FROM plain WHERE a = $1", [3])).rows).toEqual([{ b: "b3" }]);
  });
});

test("a wrong password and an unknown user are the same", async () => {
  const attempt = (user: string): Promise<unknown> =>
    edge.connect(user, "wrong").then(
      () => null,
      (error: unknown) => error,
    );
  const [known, unknown] = [await attempt("owner"), await attempt("nobody")];
  expect(known).toMatchObject({ code: "28P01", message: 'password authentication failed for user "owner"' });
  expect(unknown).toMatchObject({ code: "28P01", message: 'password authentication failed for user "nobody"' });
});

test("cancel", async () => {
  const client = await edge.connect();
  const { processID, secretKey } = client as unknown as { processID: number; secretKey: number };
  const started = Date.now();
  const slow = client.query("SELECT pg_sleep(30)").catch((error: unknown) => error);
  const heavy = await edge.connect();
  const slow2 = heavy.query("SELECT count(*) FROM items a, items b, items c, items d").catch((error: unknown) => error);
  setTimeout(() => {
    for (const target of [client, heavy]) {
      const canceler = new pg.Connection() as unknown as {
        connect(port: number, host: string): void;
        on(event: string, listener: () => void): void;
        cancel(pid: number, key: number): void;
      };
      const ids = target as unknown as { processID: number; secretKey: number };
      canceler.on("connect", () => canceler.cancel(ids.processID, ids.secretKey));
      canceler.connect(edge.port, "127.0.0.1");
    }
  }, 300);
  expect(await slow).toMatchObject({ code: "57014" });
  expect(await slow2).toMatchObject({ code: "57014" });
  expect(Date.now() - started).toBeLessThan(3000);
  expect(processID).toBeGreaterThan(0);
  expect(secretKey).not.toBe(0);
  expect((await client.query("SELECT 1 AS a")).rows).toEqual([{ a: 1 }]);
  expect((await heavy.query("SELECT count(*) AS n FROM items")).rows).toEqual([{ n: "3000" }]);
});
