import { afterEach, expect, test } from "vitest";
import pg from "pg";
import { sharedServer, withDatabase } from "./database.ts";
import { type Proxy, startProxy } from "./proxy.ts";
import { fetchRows } from "./rows.ts";
import { sleep } from "./wait.ts";

let proxy: Proxy | null = null;
afterEach(() => proxy?.close());

async function client(port: number, timeoutMs = 2000): Promise<pg.Client> {
  const c = new pg.Client({ host: "127.0.0.1", port, user: "postgres", connectionTimeoutMillis: timeoutMs });
  c.on("error", () => {});
  await c.connect();
  return c;
}

test("passes, delays, holds back and cuts", async () => {
  const server = await sharedServer();
  proxy = await startProxy(server);
  expect(proxy.through(server.url("a b"))).toBe(`postgres://postgres@127.0.0.1:${proxy.port}/a%20b`);
  const c = await client(proxy.port);
  expect((await c.query("SELECT 1 AS one")).rows).toEqual([{ one: 1 }]);

  proxy.delayMs = 100;
  const start = performance.now();
  await c.query("SELECT 1");
  expect(performance.now() - start).toBeGreaterThanOrEqual(195);
  proxy.delayMs = 0;

  await proxy.setMode("hold");
  let answered = false;
  const late = c.query("SELECT 2 AS two").then((r) => ((answered = true), r));
  await sleep(150);
  expect(answered).toBe(false);
  await proxy.setMode("pass");
  expect((await late).rows).toEqual([{ two: 2 }]);

  const cut = c.query("SELECT pg_sleep(10)");
  setTimeout(() => proxy?.cut(), 50);
  await expect(cut).rejects.toThrow(/ECONNRESET|terminated/);
});

test("a black hole swallows open and new connections, for good; a refusal is immediate", async () => {
  const server = await sharedServer();
  proxy = await startProxy(server);
  const c = await client(proxy.port);
  await proxy.setMode("blackhole");
  const lost = c.query("SELECT 1").then(
    () => "answered",
    () => "failed",
  );
  await expect(client(proxy.port, 300)).rejects.toThrow(/timeout/);
  await proxy.setMode("pass");
  expect(await Promise.race([lost, sleep(200).then(() => "silence")])).toBe("silence");
  expect(await (await client(proxy.port)).end()).toBeUndefined();
  await proxy.setMode("refuse");
  await expect(client(proxy.port)).rejects.toMatchObject({ code: "ECONNREFUSED" });
});

test("the oracle reads any name and orders by the key's own type", async () => {
  await withDatabase(async (db) => {
    await db.client.query(`CREATE TABLE "Odd, ""name" ("the, key" int PRIMARY KEY, v numeric, w text)`);
    await db.client.query(`INSERT INTO "Odd, ""name" VALUES (10, 1.50, NULL), (9, NULL, 'x')`);
    const set = await fetchRows(db.client, { table: 'Odd, "name', key: ["the, key"] });
    expect(set).toEqual({
      columns: ["the, key", "v", "w"],
      key: ["the, key"],
      rows: [
        ["9", null, "x"],
        ["10", "1.50", null],
      ],
    });
  });
});
