/** A manager with nodes over a scratch source: a table in the lake, and a user whose rows and columns are restricted. */
import { join } from "node:path";
import { must } from "@spillway/base/assert";
import { connect, endClient } from "@spillway/pg/connect";
import { connectRaw } from "@spillway/pg/wire/connect-raw";
import type { RawConnection } from "@spillway/pg/wire/connection";
import { createObject, resourceNamed } from "@spillway/server/control/control";
import { waitUntil } from "./wait.ts";
import type { Child } from "./child.ts";
import { Scratch } from "./scratch.ts";

export const USER = "ann";
export const PASSWORD = "a password for benches";
const CONTROL = "spillway_control_bench";

export interface Served {
  readonly child: Child;
  readonly pgwire: number;
  readonly flight: number;
  readonly startedMs: number;
}

export class ServeScratch {
  readonly scratch: Scratch;
  readonly controlUrl: string;

  private constructor(scratch: Scratch, controlUrl: string) {
    this.scratch = scratch;
    this.controlUrl = controlUrl;
  }

  /** `points (id, at, customer, secret, amount)`, all but the newest day in the lake. */
  static async open(rows: number): Promise<ServeScratch> {
    const scratch = await Scratch.open({ env: { SPILLWAY_LOG_LEVEL: "warn" } });
    try {
      const { client } = scratch;
      await client.query(`CREATE TABLE points (id bigint, at timestamptz, customer int, secret text, amount numeric(12,2),
        PRIMARY KEY (id, at)) PARTITION BY RANGE (at)`);
      await client.query("CREATE TABLE points_a PARTITION OF points FOR VALUES FROM ('2024-01-01') TO ('2024-01-02')");
      await client.query("CREATE TABLE points_b PARTITION OF points FOR VALUES FROM ('2024-01-02') TO ('2024-01-03')");
      await client.query(
        `INSERT INTO points SELECT i, '2024-01-01'::timestamptz + i * interval '1 day' * 1.99 / $1::int, i % 1000, md5(i::text), i / 7.0
         FROM generate_series(0, $1::int - 1) i`,
        [rows],
      );
      await scratch.run(["register", "--table", "public.points", "--lag", "1h"]);
      await scratch.run(["worker", "--once"]);
      await client.query(`CREATE DATABASE ${CONTROL}`);
      return new ServeScratch(scratch, scratch.postgres.url(CONTROL));
    } catch (error) {
      await scratch.close();
      throw error;
    }
  }

  /** Starts a manager, and waits until it listens. */
  async serve(): Promise<Served> {
    const startedMs = performance.now();
    const child = this.scratch.spawn(["serve"], {
      SPILLWAY_CONTROL_URL: this.controlUrl,
      SPILLWAY_PGWIRE_LISTEN: "127.0.0.1:0",
      SPILLWAY_FLIGHT_LISTEN: "127.0.0.1:0",
      SPILLWAY_HTTP_LISTEN: "off",
      SPILLWAY_SERVE_STATE_DIR: join(this.scratch.home, "s"),
    });
    const found = await waitUntil("the manager to listen", 60_000, () => {
      if (child.isOver) throw new Error(`the manager ended: ${child.stderr}`);
      return /Serving: pgwire (\d+), flight (\d+)/.exec(child.stdout);
    });
    return { child, pgwire: Number(found[1]), flight: Number(found[2]), startedMs };
  }

  /** A user with a row policy and a masked column, and how many nodes the pool has. */
  async restrict(nodes: number): Promise<void> {
    const control = await connect(this.controlUrl, { applicationName: "spillway bench" });
    const make = (kind: string, body: Record<string, unknown>): Promise<unknown> =>
      createObject(control, must(resourceNamed(kind), kind), body as never);
    try {
      await make("user", { name: USER, tenant: "default", password: PASSWORD });
      await make("role", { tenant: "default", name: "reader" });
      await make("role-grant", { role: "default/reader", user: USER });
      await make("pool-grant", { pool: "default/main/main", role: "default/reader" });
      const table = { database: "default/main", schema: "public", table: "points" };
      await make("table-grant", { ...table, role: "default/reader", privileges: ["select"] });
      await make("row-policy", { ...table, name: "own", role: "default/reader", predicate: "customer < 900" });
      await make("column-policy", { ...table, name: "hide", column: "secret", action: "mask", expression: "'***'" });
      await control.query("UPDATE spillway_control.pool SET dual_nodes = $1, node_concurrency = 16", [nodes]);
    } finally {
      await endClient(control);
    }
  }

  async control(sql: string): Promise<readonly Record<string, unknown>[]> {
    const client = await connect(this.controlUrl, { applicationName: "spillway bench" });
    try {
      return (await client.query(sql)).rows as Record<string, unknown>[];
    } finally {
      await endClient(client);
    }
  }

  connect(served: Served): Promise<RawConnection> {
    const auth = `${encodeURIComponent(USER)}:${encodeURIComponent(PASSWORD)}`;
    return connectRaw(`postgres://${auth}@127.0.0.1:${served.pgwire}/main`);
  }

  close(): Promise<void> {
    return this.scratch.close();
  }
}
