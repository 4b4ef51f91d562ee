/** A client of the chaos run: random transactions over the tables, some rolled back, with DDL in between. */
import { sharedClock as clock } from "@spillway/ha/client/shared-clock";
import { connect, endClient } from "@spillway/pg/connect";
import type { Client } from "../bench/scratch.ts";
import { Random } from "./random.ts";

const ACTS = {
  transfer: 10,
  open: 5,
  close: 4,
  change: 10,
  insert: 8,
  remove: 4,
  rekey: 3,
  undo: 4,
  large: 1,
  truncate: 0.2,
  ddl: 0.3,
} as const;
type Act = keyof typeof ACTS;

export const MIRROR_TABLES = ["acct_a", "acct_b", "things"] as const;

export async function makeMirrorTables(client: Client): Promise<void> {
  await client.query(`
    create table acct_a (id int primary key, v bigint);
    create table acct_b (id int primary key, v bigint);
    create table things (id int primary key, n bigint, t text);
    alter table things alter t set storage external`);
}

export async function fillMirrorTables(client: Client): Promise<void> {
  await client.query(`
    insert into acct_a select g, 0 from generate_series(1, 100) g;
    insert into acct_b select g, 0 from generate_series(1, 100) g;
    insert into things select g, g, 't' || g from generate_series(1, 2500) g`);
}

export interface MirrorClientOptions {
  readonly number: number;
  readonly seed: number;
  readonly url: string;
  readonly count: (what: string) => void;
}

export class MirrorClient {
  readonly #options: MirrorClientOptions;
  readonly #random: Random;
  #client: Client | null = null;
  #next: number;
  #columns = 0;
  readonly #added: string[] = [];

  constructor(options: MirrorClientOptions) {
    this.#options = options;
    this.#random = new Random(options.seed, `client ${options.number}`);
    this.#next = options.number * 10_000_000;
  }

  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      const act = this.#random.weighted(ACTS);
      try {
        this.#client ??= await connect(this.#options.url, { applicationName: "chaos", connectTimeoutMs: 1000 });
        await this.#act(act);
        this.#options.count(act);
      } catch {
        // The server is going down, or this client was in another's way.
        await this.#client?.query("rollback").catch(() => {});
        const old = this.#client;
        this.#client = null;
        if (old) await endClient(old).catch(() => {});
        this.#options.count("failed");
      }
      await clock.sleep(this.#random.int(2, 25), signal).catch(() => {});
    }
    if (this.#client) await endClient(this.#client).catch(() => {});
  }

  async #act(act: Act): Promise<void> {
    const r = this.#random;
    const id = (): number => r.int(1, 101);
    const amount = r.int(1, 1000);
    switch (act) {
      case "transfer":
        return this.#transaction([
          `with x as (update acct_a set v = v - ${amount} where id = ${id()} returning 1)
           update acct_b set v = v + ${amount} where id = 1 and exists (select from x)`,
        ]);
      case "open": {
        const key = this.#next++;
        return this.#transaction([
          `insert into acct_a values (${key}, ${amount})`,
          `insert into acct_b values (${key}, ${-amount})`,
        ]);
      }
      case "close": {
        const key = this.#options.number * 10_000_000 + r.int(0, Math.max(1, this.#next % 10_000_000));
        return this.#transaction([
          `with x as (delete from acct_a where id = ${key} returning v) update acct_b b set v = b.v + x.v from x where b.id = 1`,
          `with x as (delete from acct_b where id = ${key} returning v) update acct_b b set v = b.v + x.v from x where b.id = 2`,
        ]);
      }
      case "change":
        return this.#transaction([`update things set n = n + 1 where id % 40 = ${r.int(0, 40)}`]);
      case "insert": {
        const big = r.chance(0.2) ? `repeat(md5('${r.int(0, 1e9)}'), 200)` : `'s${r.int(0, 1e6)}'`;
        return this.#transaction([
          `insert into things (id, n, t) values (${r.int(1, 4000)}, ${r.int(0, 1e6)}, ${big}) on conflict (id) do update set n = excluded.n, t = excluded.t`,
        ]);
      }
      case "remove":
        return this.#transaction([`delete from things where id = ${r.int(1, 4000)}`]);
      case "rekey":
        return this.#transaction([
          `update things set id = -id where id = ${r.int(1, 4000)} and not exists (select from things o where o.id = -things.id)`,
        ]);
      case "undo":
        return this.#transaction([
          "savepoint s",
          `update things set n = -1 where id % 10 = ${r.int(0, 10)}`,
          `update acct_a set v = v + 1 where id = ${id()}`,
          "rollback to s",
          `update things set n = n + 3 where id = ${r.int(1, 4000)}`,
        ]);
      case "large":
        return this.#transaction(["update things set n = n + 1", "update things set n = n + 1 where id % 2 = 0"]);
      case "truncate":
        return this.#transaction([
          "truncate things",
          "insert into things (id, n, t) select g, g, 'again' from generate_series(1, 1500) g",
        ]);
      case "ddl":
        return this.#ddl();
    }
  }

  /** Columns come and go; now and then every old value becomes another one without a row in the stream. */
  async #ddl(): Promise<void> {
    const r = this.#random;
    if (this.#options.number !== 1) return;
    const note = (op: string, column: string, row: string): string =>
      `insert into chaos_history (tab, op, k, row) values ('things', '${op}', '${column}', ${row})`;
    const last = this.#added.at(-1);
    if (r.chance(0.25)) {
      return this.#transaction(["alter table things alter n type bigint using n + 1000000", note("bump", "n", "null")]);
    }
    if (last !== undefined && r.chance(0.5)) {
      await this.#transaction([`alter table things drop column if exists ${last}`, note("drop", last, "null")]);
      this.#added.pop();
      return;
    }
    const column = `x${this.#options.seed % 1000}_${this.#columns++}`;
    const value = r.int(0, 100);
    await this.#transaction([
      "update things set n = n + 5 where id % 100 = 3",
      `alter table things add column ${column} int default ${value}`,
      note("add", column, `'"${value}"'`),
      `update things set ${column} = 0 where id % 50 = 7`,
    ]);
    this.#added.push(column);
  }

  async #transaction(statements: readonly string[]): Promise<void> {
    const client = this.#client;
    if (client === null) return;
    await client.query("begin");
    for (const sql of statements) await client.query(sql);
    await client.query(this.#random.chance(0.07) ? "rollback" : "commit");
  }
}
