/**
 * One writing client. It alone writes its pairs, one transaction at a time, each on a pair of one table and on the plain
 * table beside it, by every way that a client has: plain INSERT, COPY, UPDATE and DELETE, the SQL functions, moves of the
 * tier key; under every isolation level, with savepoints, prepared transactions, and as a replication's apply worker would.
 */
import { isSpillwayError, type SpillwayError } from "@spillway/base/errors";
import { sharedClock as clock } from "@spillway/ha/client/shared-clock";
import { copyIn } from "@spillway/pg/copy/copy-in";
import type { RawConnection } from "@spillway/pg/wire/connection";
import { connectRaw } from "@spillway/pg/wire/connect-raw";
import type { Seam } from "@spillway/server/seam/seam";
import { Random } from "./random.ts";
import type { Model, PairState } from "./seam-model.ts";
import { statementOutcome, statementSql } from "./seam-statements.ts";
import { type ChaosTable, keySql, LAG, rowJson, rowValues, textBatch } from "./seam-tables.ts";

export interface ClientOptions {
  readonly number: number;
  readonly seed: number;
  readonly url: string;
  readonly seam: Seam;
  readonly models: ReadonlyMap<ChaosTable, Model>;
  /** The newest key now. */
  readonly head: () => number;
  readonly count: (what: string) => void;
  readonly pauseMs: number;
}

type Way = "insert" | "copy" | "upsert" | "update" | "over" | "delete" | "sdelete" | "move";
const NEW = { insert: 5, copy: 2, upsert: 2 } as const satisfies Partial<Record<Way, number>>;
const KNOWN = { update: 4, upsert: 3, over: 1, delete: 1, sdelete: 1, move: 2 } as const satisfies Partial<
  Record<Way, number>
>;
const NEW_BY_STATEMENT = { insert: 1 } as const satisfies Partial<Record<Way, number>>;
const KNOWN_BY_STATEMENT = { update: 5, delete: 1, move: 2 } as const satisfies Partial<Record<Way, number>>;
const ISOLATION = { "read committed": 6, "repeatable read": 2, serializable: 2 } as const;
/** Pairs of one client in one table. */
const PAIRS = 10;

interface Step {
  readonly tx: number;
  readonly table: ChaosTable;
  readonly pair: number;
  readonly way: Way;
  readonly before: PairState;
  readonly after: PairState;
  readonly prepare: boolean;
}

/** A step that finds its rows elsewhere than it can reach them. */
class OutOfReach extends Error {}

export class ChaosClient {
  readonly #options: ClientOptions;
  readonly #random: Random;
  #connection: RawConnection | null = null;
  #counter = 0;

  constructor(options: ClientOptions) {
    this.#options = options;
    this.#random = new Random(options.seed, `client ${options.number}`);
  }

  async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      await this.#step(this.#choose());
      await clock.sleep(this.#random.next() * 2 * this.#options.pauseMs, signal).catch(() => {});
    }
  }

  async close(): Promise<void> {
    await this.#connection?.close().catch(() => {});
  }

  #choose(): Step {
    const [random, { number, models }] = [this.#random, this.#options];
    const table = random.pick([...models.keys()]);
    const pair = number * 1000 + random.int(0, PAIRS);
    const before = models.get(table)?.current(pair) ?? null;
    const plain = table.writes === "plain";
    const way: Way =
      before === null
        ? random.weighted<Way>(plain ? NEW : NEW_BY_STATEMENT)
        : random.weighted<Way>(plain ? KNOWN : KNOWN_BY_STATEMENT);
    const tx = number * 1_000_000 + (this.#counter += 1);
    const keys: readonly [number, number] =
      before === null ? [this.#newKey(table), this.#newKey(table)] : [before.keys[0], before.keys[1]];
    const moved: readonly [number, number] = [keys[0], way === "move" ? this.#newKey(table) : keys[1]];
    const gone = way === "delete" || way === "sdelete";
    const after = gone ? null : { stamp: tx, keys: moved };
    return { tx, table, pair, way, before, after, prepare: random.chance(0.05) };
  }

  /** Near the newest, or somewhere in history. Direct tables take no plain write there. */
  #newKey(table: ChaosTable): number {
    const head = Math.floor(this.#options.head());
    const recent = (table.mode === "direct" && table.writes === "plain") || this.#random.chance(0.5);
    return recent ? head + 5 - this.#random.int(0, LAG / 2) : this.#random.int(0, Math.max(1, head));
  }

  /** By the library: the statement is the transaction. */
  async #statement(step: Step): Promise<void> {
    const { models, count, seam } = this.#options;
    const startMs = clock.monotonicMs();
    let committed = true;
    try {
      const { rowCount } = await seam.execute(statementSql(step));
      count(rowCount === 2 ? `stated ${step.way}` : `stated ${step.way}: ${rowCount} rows`);
    } catch (error) {
      count(`refused ${reasonOf(error)}`);
      committed = await statementOutcome(seam, step);
    }
    if (committed)
      models.get(step.table)?.commit(step.pair, { state: step.after, startMs, endMs: clock.monotonicMs() });
  }

  async #step(step: Step): Promise<void> {
    if (step.table.writes === "statements") return this.#statement(step);
    const { models, count } = this.#options;
    let startMs = clock.monotonicMs();
    let committed: boolean;
    try {
      const connection = await this.#connect();
      await this.#transaction(connection, step, () => (startMs = clock.monotonicMs()));
      committed = true;
      count(step.way);
    } catch (error) {
      count(error instanceof OutOfReach ? "out_of_reach" : `refused ${reasonOf(error)}`);
      committed = await this.#outcome(step);
    }
    if (committed)
      models.get(step.table)?.commit(step.pair, { state: step.after, startMs, endMs: clock.monotonicMs() });
  }

  async #connect(): Promise<RawConnection> {
    if (this.#connection?.isOpen && this.#connection.transactionStatus === "I") return this.#connection;
    this.#connection?.destroy();
    this.#connection = await connectRaw(this.#options.url, {
      applicationName: `chaos client ${this.#options.number}`,
      connectTimeoutMs: 2000,
      settings: { idle_in_transaction_session_timeout: 20_000, statement_timeout: 20_000 },
    });
    return this.#connection;
  }

  async #transaction(connection: RawConnection, step: Step, onCommit: () => void): Promise<void> {
    const random = this.#random;
    const isolation = random.weighted(ISOLATION);
    await connection.query(`begin isolation level ${isolation}`);
    try {
      if (random.chance(0.1)) await connection.query("set local session_replication_role = replica");
      // The snapshot is taken here, and may be old when the rows are written.
      await connection.query(`select pg_advisory_xact_lock(${step.tx}); insert into chaos_tx values (${step.tx})`);
      if (random.chance(0.15)) await clock.sleep(random.next() * 1500);
      if (random.chance(0.1)) await this.#detour(connection, step);
      await this.#apply(connection, step);
      await connection.query(shadowSql(step));
      if (random.chance(0.1)) await clock.sleep(random.next() * 1000);
      if (step.prepare) await connection.query(`prepare transaction 'chaos ${step.tx}'`);
    } catch (error) {
      if (connection.isOpen) await connection.query("rollback").catch(() => {});
      throw error;
    }
    if (step.prepare) await clock.sleep(random.next() * 500);
    onCommit();
    const [result] = await connection.query(step.prepare ? `commit prepared 'chaos ${step.tx}'` : "commit");
    // A transaction that failed before answers COMMIT with ROLLBACK.
    if (result?.tag === "ROLLBACK") throw new OutOfReach("rolled back");
  }

  /** Changes that a savepoint takes back. */
  async #detour(connection: RawConnection, step: Step): Promise<void> {
    const { table, pair } = step;
    await connection.query("savepoint detour");
    const id = 2 * pair;
    const key = step.before?.keys[0] ?? this.#newKey(table);
    const sql = this.#random.pick([
      `select spillway.upsert('${table.name}', '${rowJson(table, id, key, -step.tx)}')`,
      `select spillway.delete('${table.name}', '${rowJson(table, id, key, -step.tx)}')`,
      `update ${table.name} set s = -1 where id = ${id} and k = ${keySql(table, key)}`,
      `insert into ${table.name} values ${rowValues(table, id, key, -step.tx)}`,
    ]);
    await connection.query(sql).catch((error: unknown) => {
      if (!connection.isOpen) throw error;
    });
    await connection.query("rollback to savepoint detour");
  }

  async #apply(connection: RawConnection, step: Step): Promise<void> {
    for (const i of this.#random.chance(0.5) ? ([0, 1] as const) : ([1, 0] as const)) {
      if (step.way === "insert" || step.way === "copy") break;
      await this.#applyRow(connection, step, i);
    }
    const { table, after, pair } = step;
    if (after === null) return;
    const rows = [0, 1].map((i) => rowValues(table, 2 * pair + i, after.keys[i as 0 | 1], after.stamp));
    if (step.way === "insert") await connection.query(`insert into ${table.name} values ${rows.join(", ")}`);
    if (step.way === "copy") await copyRows(connection, step, after);
  }

  async #applyRow(connection: RawConnection, step: Step, i: 0 | 1): Promise<void> {
    const { table, before, after, pair, way } = step;
    const id = 2 * pair + i;
    const name = table.name;
    const [oldKey, newKey] = [before?.keys[i] ?? 0, after?.keys[i] ?? 0];
    const at = `where id = ${id} and k = ${keySql(table, oldKey)}`;
    const upsert = `select spillway.upsert('${name}', '${rowJson(table, id, newKey, step.tx)}')`;
    const remove = `select spillway.delete('${name}', '${rowJson(table, id, oldKey, step.tx)}')`;
    const values = rowValues(table, id, newKey, step.tx);
    switch (way) {
      case "upsert":
        return void (await connection.query(upsert));
      case "sdelete":
        return void (await connection.query(remove));
      case "over":
        return void (await connection.query(`insert into ${name} values ${values}`));
      case "delete":
        return this.#orElse(connection, step, `delete from ${name} ${at}`, [remove]);
      default: {
        const update = `update ${name} set (id, k, s, d, v) = (select * from (values ${values}) x) ${at}`;
        return this.#orElse(connection, step, update, newKey === oldKey ? [upsert] : [remove, upsert]);
      }
    }
  }

  /** Plain SQL reaches what is in the heap; the functions reach the rest. */
  async #orElse(connection: RawConnection, step: Step, plain: string, otherwise: readonly string[]): Promise<void> {
    const [result] = await connection.query(plain);
    if (result?.tag.endsWith(" 1") === true) return;
    if (step.table.mode === "direct") throw new OutOfReach("in the lake");
    for (const sql of otherwise) await connection.query(sql);
  }

  /** Whether a transaction that ended in an error was committed after all. Asks until the answer is final. */
  async #outcome(step: Step): Promise<boolean> {
    for (;;) {
      try {
        const connection = await this.#connect();
        const gid = `chaos ${step.tx}`;
        const [prepared] = await connection.query(`select 1 from pg_prepared_xacts where gid = '${gid}'`);
        if ((prepared?.rows.length ?? 0) > 0) await connection.query(`commit prepared '${gid}'`);
        // Whoever still works on the transaction holds its lock.
        await connection.query(`select pg_advisory_lock(${step.tx}); select pg_advisory_unlock(${step.tx})`);
        const [row] = await connection.query(`select 1 from chaos_tx where n = ${step.tx}`);
        if ((row?.rows.length ?? 0) > 0) return true;
        const [again] = await connection.query(`select 1 from pg_prepared_xacts where gid = '${gid}'`);
        if ((again?.rows.length ?? 0) === 0) return false;
      } catch {
        await clock.sleep(100);
      }
    }
  }
}

/** What the plain table beside gets. */
function shadowSql({ table, pair, after }: Step): string {
  const ids = `${2 * pair}, ${2 * pair + 1}`;
  const remove = `delete from ${table.name}_shadow where id in (${ids})`;
  if (after === null) return remove;
  const rows = [0, 1].map((i) => rowValues(table, 2 * pair + i, after.keys[i as 0 | 1], after.stamp));
  return `${remove}; insert into ${table.name}_shadow values ${rows.join(", ")}`;
}

async function copyRows(connection: RawConnection, step: Step, after: NonNullable<PairState>): Promise<void> {
  const rows = [0, 1].map((i) => {
    const { k, s, d, v } = JSON.parse(rowJson(step.table, 2 * step.pair + i, after.keys[i as 0 | 1], after.stamp)) as {
      k: number | string;
      s: number;
      d: number;
      v: string;
    };
    return [2 * step.pair + i, k, s, d, v].map(String);
  });
  const batch = textBatch(["id", "k", "s", "d", "v"], rows);
  await copyIn({ connection, into: `${step.table.name} (id, k, s, d, v)`, batches: [batch] });
}

export function reasonOf(error: unknown): string {
  if (!isSpillwayError(error)) return error instanceof Error ? error.message.slice(0, 80) : "unknown";
  const { sqlstate } = (error as SpillwayError).details as { sqlstate?: string };
  return sqlstate ?? error.code;
}
