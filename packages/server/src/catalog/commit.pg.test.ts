/** The lake commit: all or nothing, only on its base, only by the leader, and its outcome is known even when the answer is lost. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { connect } from "@spillway/pg/connect";
import { migrate } from "@spillway/pg/migrate";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { type Proxy, startProxy } from "@spillway/testkit/proxy";
import type pg from "pg";
import {
  abandonOp,
  CATALOG_MIGRATIONS,
  commitLake,
  type CommitResult,
  type LakeCommit,
  lookUpOutcome,
  openOp,
  type PointerMove,
} from "./catalog.ts";

let db: TestDatabase;
let proxy: Proxy;
let client: pg.Client;
beforeAll(async () => {
  db = await createTestDatabase();
  proxy = await startProxy({ host: db.server.host, port: db.server.port });
  client = await connect(db.url);
  await migrate(client, { schema: "spillway", migrations: CATALOG_MIGRATIONS, log: silentLogger, clock: systemClock });
  await client.query(`
    insert into spillway.namespace (name) values ('public');
    insert into spillway.lake_table (namespace, name, table_uuid, location, metadata_location, metadata_version, format_version)
      select 'public', 't' || i, gen_random_uuid(), 'file:///t', 'm0', 0, 3 from generate_series(1, 2) i;
    insert into spillway.relation (relid, schema_name, table_name, mode, state, pk_attnums, lake_id)
      select lake_id::int, 'public', name, 'tiered', 'active', '{1}', lake_id from spillway.lake_table;
    insert into spillway.seam (relation_id, t) select relation_id, 10 from spillway.relation;
    insert into spillway.seam_guard (relation_id, t) select relation_id, 10 from spillway.relation;
    create table spillway.delta_1 (op "char", version bigint, key bigint, c1 int primary key, x jsonb)`);
});
beforeEach(async () => {
  await client.query("rollback");
  await client.query(`update spillway.lake_table set metadata_location = 'm0';
    set spillway.rewind = 'on'; update spillway.seam set t = 10, s = null; update spillway.seam_guard set t = 10; reset spillway.rewind;
    truncate spillway.delta_1, spillway.band; delete from spillway.doomed_file; delete from spillway.journal`);
});
afterAll(async () => {
  await client.end();
  await proxy.close();
  await db.drop();
});

function pointer(lakeId: bigint, base = "m0"): PointerMove {
  return {
    lakeId,
    base,
    metadataLocation: "m1",
    metadataVersion: 1,
    currentSnapshotId: 9223372036854775806n,
    sequenceNumber: 1n,
  };
}

async function newOp(): Promise<bigint> {
  return openOp(client, { kind: "tier", relationId: 1n, lakeId: 1n, epoch: 0n });
}

function commit(commitment: LakeCommit, on: pg.Client = client): Promise<CommitResult> {
  return commitLake({ db: on, reconnect: async (work) => withFresh(work), lockTimeoutMs: 200 }, commitment);
}

async function withFresh<T>(work: (fresh: pg.Client) => Promise<T>): Promise<T> {
  const fresh = await connect(db.url);
  try {
    return await work(fresh);
  } finally {
    await fresh.end();
  }
}

async function state(): Promise<unknown> {
  const { rows } = await client.query(
    `select l.metadata_location as m, l.current_snapshot_id as id, s.t, s.s, g.t as g,
       (select array_agg(phase order by op_id) from spillway.journal) as phases,
       (select count(*)::int from spillway.staged_file) as staged, (select count(*)::int from spillway.doomed_file) as doomed
     from spillway.lake_table l join spillway.relation using (lake_id) join spillway.seam s using (relation_id)
       join spillway.seam_guard g using (relation_id) order by lake_id`,
  );
  return rows;
}

const UNMOVED = { m: "m0", t: 10n, s: null, g: 10n };
const MOVED = { m: "m1", id: 9223372036854775806n, t: 20n, s: 9223372036854775806n, g: 20n };

test("moves pointers, cut-lines, bands, files and journal of several tables together", async () => {
  const opId = await newOp();
  await client.query("insert into spillway.staged_file values ('file:///a', $1)", [opId]);
  const result = await commit({
    opId,
    epoch: 0n,
    pointers: [pointer(2n), pointer(1n)],
    seams: [
      { relationId: 2n, t: 20n },
      { relationId: 1n, t: 20n },
    ],
    doomed: [{ lakeId: 1n, path: "file:///old" }],
    unused: ["file:///unused"],
  });
  expect(result).toEqual({ kind: "success" });
  const both = { phases: ["committed"], staged: 0, doomed: 2 };
  expect(await state()).toEqual([
    { ...MOVED, ...both },
    { ...MOVED, ...both },
  ]);
});

describe("changes nothing", () => {
  const cases: [string, (opId: bigint) => Promise<Partial<LakeCommit>>, Record<string, unknown>][] = [
    ["on another base", () => Promise.resolve({ pointers: [pointer(1n), pointer(2n, "m7")] }), { kind: "conflict", lakeId: 2n, current: "m0" }],
    ["of an operation that was abandoned", async (op) => (await abandonOp(client, op, "test"), {}), { code: "op_abandoned" }],
    ["of a leader whose epoch is over", () => Promise.resolve({ epoch: -1n }), { code: "leader_lost" }],
    ["when the cut-line would go back", () => Promise.resolve({ seams: [{ relationId: 1n, t: 5n }] }), { code: "pg_error" }],
    ["when the caller's part fails", () => Promise.resolve({ also: () => Promise.reject(new RangeError("no")) }), { message: "no" }],
  ]; // prettier-ignore
  for (const [label, change, expected] of cases) {
    test(label, async () => {
      const opId = await newOp();
      const commitment = { opId, epoch: 0n, pointers: [pointer(1n)], seams: [{ relationId: 1n, t: 20n }] };
      const outcome = await commit({ ...commitment, ...(await change(opId)) }).catch((e: unknown) => e);
      expect(outcome).toMatchObject(expected);
      const [first, second] = (await state()) as [object, object];
      expect(first).toMatchObject(UNMOVED);
      expect(second).toMatchObject(UNMOVED);
      expect(["open", "abandoned"]).toContain(await lookUpOutcome(client, opId));
    });
  }
});

describe("the answer to COMMIT is lost", () => {
  for (const [when, arrives] of [
    [300, true],
    [80, false],
  ] as const) {
    test(
      arrives
        ? "after the server committed: it is success"
        : "before the server had it: it is an error, and may be tried again",
      async () => {
        const through = await connect(proxy.through(db.url));
        const opId = await newOp();
        const query = through.query.bind(through) as (text: string, values?: unknown[]) => Promise<unknown>;
        (through as unknown as { query: typeof query }).query = (text, values) => {
          if (text === "COMMIT") {
            proxy.delayMs = 200;
            setTimeout(() => proxy.cut(), when);
          }
          return query(text, values);
        };
        const commitment: LakeCommit = {
          opId,
          epoch: 0n,
          pointers: [pointer(1n)],
          seams: [{ relationId: 1n, t: 20n }],
        };
        try {
          const outcome = await commit(commitment, through).catch((e: unknown) => e);
          proxy.delayMs = 0;
          expect(outcome).toMatchObject(arrives ? { kind: "success" } : { code: "pg_connection_lost" });
        } finally {
          proxy.delayMs = 0;
          await through.end().catch(() => {});
        }
        const again = arrives ? null : await commit(commitment);
        if (again) expect(again).toEqual({ kind: "success" });
        const [first] = (await state()) as [object];
        expect(first).toMatchObject({ ...MOVED, phases: ["committed"] });
      },
    );
  }
});

test("deletes exactly the versions that were absorbed, and leaves rows that a client holds", async () => {
  await client.query(`insert into spillway.delta_1 select 'U', i, i, i from generate_series(1, 6) i`);
  const other = await db.connect();
  await other.query("begin; update spillway.delta_1 set version = 100 where c1 = 2");
  await client.query("update spillway.delta_1 set version = 101 where c1 = 3");
  const started = performance.now();
  const opId = await newOp();
  await commit({ opId, epoch: 0n, pointers: [], absorbed: [{ relationId: 1n, versions: [1n, 2n, 3n, 4n] }] });
  expect(performance.now() - started).toBeLessThan(200);
  await other.query("commit");
  const { rows } = await client.query("select c1, version::int from spillway.delta_1 order by c1");
  expect(rows).toEqual([
    { c1: 2, version: 100 },
    { c1: 3, version: 101 },
    { c1: 5, version: 5 },
    { c1: 6, version: 6 },
  ]);
});

test("waits for a client that holds the cut-line only for its lock timeout, and a fold does not wait for it at all", async () => {
  const other = await db.connect();
  await other.query("begin; select t from spillway.seam_guard where relation_id = 1 for share");
  const opId = await newOp();
  const advance: LakeCommit = { opId, epoch: 0n, pointers: [pointer(1n)], seams: [{ relationId: 1n, t: 20n }] };
  await expect(commit(advance)).rejects.toMatchObject({ code: "pg_lock_timeout" });
  const fold = await newOp();
  expect(await commit({ opId: fold, epoch: 0n, pointers: [pointer(1n)] })).toEqual({ kind: "success" });
  await other.query("commit");
  expect(await commit({ ...advance, pointers: [pointer(1n, "m1")] })).toEqual({ kind: "success" });
});
