/**
 * A client that never stops writing: new flights, late ones, corrections and deletions, each in one transaction to the tiered
 * table and to its plain copy. It knows nothing of where the cut-line is.
 */
import { connect } from "@spillway/pg/connect";
import type pg from "pg";

export interface Written {
  transactions: number;
  inserted: number;
  late: number;
  corrected: number;
  deleted: number;
}

interface Flight {
  readonly flight_id: string;
  readonly departed: string;
}

/** Rows of the months that go to the lake, and of those that stay. */
const OLD = { from: "2001-01-01", days: 151 };
const RECENT = { from: "2001-06-01", days: 30 };
const LATE_IDS = 1_000_000_000;

export class Writer {
  readonly written: Written = { transactions: 0, inserted: 0, late: 0, corrected: 0, deleted: 0 };
  readonly #client: pg.Client;
  #pauseMs: number;
  #nextId = LATE_IDS;
  #going: Promise<void> | null = null;
  #stopped = true;

  private constructor(client: pg.Client, pauseMs: number) {
    this.#client = client;
    this.#pauseMs = pauseMs;
  }

  static async open(url: string, pauseMs: number): Promise<Writer> {
    return new Writer(await connect(url, { applicationName: "spillway demo writer" }), pauseMs);
  }

  set pauseMs(value: number) {
    this.#pauseMs = value;
  }

  start(): void {
    this.#stopped = false;
    this.#going = this.#run();
    this.#going.catch(() => {});
  }

  /** After the transaction under way. Throws what made it stop by itself. */
  async pause(): Promise<void> {
    this.#stopped = true;
    await this.#going;
    this.#going = null;
  }

  async close(): Promise<void> {
    this.#stopped = true;
    await this.#going?.catch(() => {});
    await this.#client.end().catch(() => {});
  }

  async #run(): Promise<void> {
    const work = [
      () => this.#newFlights(),
      () => this.#lateFlights(),
      () => this.#correctOld(),
      () => this.#deleteOld(),
      () => this.#changeRecent(),
    ];
    for (let i = 0; !this.#stopped; i++) {
      await this.#transaction(work[i % work.length] ?? (() => this.#newFlights()));
      this.written.transactions += 1;
      await new Promise((resolve) => setTimeout(resolve, this.#pauseMs));
    }
  }

  async #transaction(work: () => Promise<void>): Promise<void> {
    await this.#client.query("BEGIN");
    try {
      await work();
      await this.#client.query("COMMIT");
    } catch (error) {
      await this.#client.query("ROLLBACK").catch(() => {});
      throw error;
    }
  }

  /** Plain INSERT into both: the same rows, made once. */
  async #insert(count: number, from: string, days: number): Promise<void> {
    const values = Array.from({ length: count }, () => {
      this.#nextId += 1;
      const minute = Math.floor(Math.random() * days * 1440);
      return `(${this.#nextId}, timestamp '${from}' + interval '${minute} minutes', ${Math.floor(Math.random() * 200) - 20}, ${Math.floor(Math.random() * 2500)}, 'SFO', 'JFK')`;
    }).join(", ");
    for (const table of ["flights", "flights_plain"]) {
      const columns = "(flight_id, departed, delay, distance, origin, destination)";
      await this.#client.query(`INSERT INTO ${table} ${columns} VALUES ${values}`);
    }
  }

  async #newFlights(): Promise<void> {
    await this.#insert(20, "2001-07-01", 2);
    this.written.inserted += 20;
  }

  /** Historical rows, by plain INSERT: the ones whose partition is gone arrive in the lake by way of the delta. */
  async #lateFlights(): Promise<void> {
    await this.#insert(10, OLD.from, OLD.days);
    this.written.late += 10;
  }

  async #some(range: { from: string; days: number }, count: number): Promise<Flight[]> {
    const minute = Math.floor(Math.random() * range.days * 1440);
    const { rows } = await this.#client.query<Flight>(
      `SELECT flight_id, departed::text FROM flights_plain WHERE departed >= timestamp '${range.from}' + interval '${minute} minutes'
       AND departed < timestamp '${range.from}' + interval '${range.days} days' ORDER BY departed, flight_id LIMIT ${count}`,
    );
    return rows;
  }

  /** Plain UPDATE reaches what the heap has; for the rest there is `spillway.upsert`, in the same transaction. */
  async #correctOld(): Promise<void> {
    for (const { flight_id, departed } of await this.#some(OLD, 5)) {
      const delay = Math.floor(Math.random() * 1000);
      const where = "WHERE departed = $2::timestamp AND flight_id = $3";
      const done = await this.#client.query(`UPDATE flights SET delay = $1 ${where}`, [delay, departed, flight_id]);
      await this.#client.query(`UPDATE flights_plain SET delay = $1 ${where}`, [delay, departed, flight_id]);
      if (done.rowCount === 0) {
        await this.#client.query(
          `SELECT spillway.upsert('flights', to_jsonb(p)) FROM flights_plain p WHERE departed = $1::timestamp AND flight_id = $2`,
          [departed, flight_id],
        );
      }
      this.written.corrected += 1;
    }
  }

  async #deleteOld(): Promise<void> {
    for (const { flight_id, departed } of await this.#some(OLD, 2)) {
      await this.#client.query(
        `SELECT spillway.delete('flights', jsonb_build_object('flight_id', $1::bigint, 'departed', $2::timestamp))`,
        [flight_id, departed],
      );
      await this.#client.query("DELETE FROM flights_plain WHERE departed = $1::timestamp AND flight_id = $2", [
        departed,
        flight_id,
      ]);
      this.written.deleted += 1;
    }
  }

  async #changeRecent(): Promise<void> {
    for (const [i, { flight_id, departed }] of (await this.#some(RECENT, 5)).entries()) {
      for (const table of ["flights", "flights_plain"]) {
        const where = "WHERE departed = $1::timestamp AND flight_id = $2";
        const change =
          i === 0 ? `DELETE FROM ${table} ${where}` : `UPDATE ${table} SET delay = coalesce(delay, 0) + 1 ${where}`;
        await this.#client.query(change, [departed, flight_id]);
      }
      if (i === 0) this.written.deleted += 1;
      else this.written.corrected += 1;
    }
  }
}
