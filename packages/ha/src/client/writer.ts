/**
 * The client of every test, bench and demo: writes one row every so often through the multi-host URI,
 * reconnects as an application would, and remembers exactly which rows were acknowledged.
 *
 * Acknowledged means: the server said COMMIT and warned of nothing. A commit that carries a WARNING (the wait
 * for the standby was canceled) is not acknowledged; one whose connection broke or that took too long is
 * unknown, and may or may not be there.
 */
import type { Clock } from "@spillway/base/clock";
import { isSpillwayError, messageOf } from "@spillway/base/errors";
import { connect, destroyClient } from "@spillway/pg/connect";
import { quoteIdent } from "@spillway/pg/quote";

type Client = Awaited<ReturnType<typeof connect>>;

export interface WriterOptions {
  readonly uri: string;
  readonly clock: Clock;
  readonly everyMs: number;
  /** Tells this writer's rows from those of others. */
  readonly writer: number;
  readonly table?: string;
  /** A statement without an answer for so long is given up: unknown. */
  readonly timeoutMs?: number;
  readonly connectTimeoutMs?: number;
  readonly onAck?: ((ack: Ack) => void) | undefined;
}

/** Times in ms of the handed-in monotonic clock. */
export interface Ack {
  readonly id: number;
  readonly sentMs: number;
  readonly atMs: number;
  /** The server's address, port and timeline, by which two primaries are told apart. */
  readonly server: string;
  readonly timeline: number;
}

export const WRITES_TABLE = "spillway_ha_writes";

export function createTableSql(table = WRITES_TABLE): string {
  return `CREATE TABLE IF NOT EXISTS ${quoteIdent(table)} (writer int, id bigint, PRIMARY KEY (writer, id))`;
}

const RETRY_MS = 40;

export class Writer {
  readonly #options: WriterOptions;
  readonly acks: Ack[] = [];
  /** Sent, and neither acknowledged nor refused. */
  readonly unknown: number[] = [];
  /** Committed with a warning. */
  readonly warned: number[] = [];
  errors = 0;
  lastError = "";
  #next = 1;
  #client: Client | null = null;
  #server = "";
  #running: Promise<void> | null = null;
  #stop = new AbortController();
  #warning = false;

  constructor(options: WriterOptions) {
    this.#options = options;
  }

  start(): void {
    this.#stop = new AbortController();
    this.#running = this.#run();
  }

  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#running;
    if (this.#client) destroyClient(this.#client);
    this.#client = null;
  }

  get lastAckMs(): number | null {
    return this.acks.at(-1)?.atMs ?? null;
  }

  /** The longest time without an acknowledgement that overlaps [from, to]. */
  longestGapMs(fromMs: number, toMs: number): number {
    let longest = 0;
    let before = this.acks[0]?.atMs ?? fromMs;
    for (const { atMs } of this.acks) {
      if (atMs > fromMs && before < toMs) longest = Math.max(longest, atMs - before);
      before = atMs;
    }
    return longest;
  }

  /** Resolves with the first acknowledgement after `afterMs`; null when none comes in time. */
  async waitForAck(afterMs: number, timeoutMs: number): Promise<Ack | null> {
    const { clock } = this.#options;
    const deadline = clock.monotonicMs() + timeoutMs;
    for (;;) {
      const found = this.acks.findLast((ack) => ack.sentMs >= afterMs);
      if (found) return this.acks.find((ack) => ack.sentMs >= afterMs) ?? found;
      if (clock.monotonicMs() > deadline) return null;
      await clock.sleep(10);
    }
  }

  async #run(): Promise<void> {
    const { clock, everyMs } = this.#options;
    const { signal } = this.#stop;
    while (!signal.aborted) {
      const startedMs = clock.monotonicMs();
      try {
        const client = await this.#connected();
        await this.#writeOne(client);
        await clock.sleep(everyMs - (clock.monotonicMs() - startedMs), signal);
      } catch (error) {
        this.errors += 1;
        this.lastError = messageOf(error);
        this.#drop();
        await clock.sleep(RETRY_MS, signal);
      }
    }
  }

  async #connected(): Promise<Client> {
    if (this.#client) return this.#client;
    const connectTimeoutMs = this.#options.connectTimeoutMs ?? 1_000;
    const client = await connect(this.#options.uri, { applicationName: "spillway-ha-writer", connectTimeoutMs });
    client.on("error", () => {
      if (this.#client === client) this.#drop();
    });
    client.on("notice", (notice) => {
      if (notice.severity === "WARNING") this.#warning = true;
    });
    const { rows } = await this.#timed(
      client.query<{ server: string }>(
        `SELECT coalesce(host(inet_server_addr()), 'socket') || ':' || current_setting('port') || ' '
           || ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int AS server`,
      ),
      client,
    );
    this.#server = rows[0]?.server ?? "";
    this.#client = client;
    return client;
  }

  async #writeOne(client: Client): Promise<void> {
    const { clock, writer, table = WRITES_TABLE } = this.#options;
    const id = this.#next++;
    const sentMs = clock.monotonicMs();
    this.#warning = false;
    try {
      await this.#timed(
        client.query(`INSERT INTO ${quoteIdent(table)} (writer, id) VALUES ($1, $2)`, [writer, id]),
        client,
      );
    } catch (error) {
      // A server that answered with an error (read-only, say) has not committed; anything else is unknown.
      if (!refused(error)) this.unknown.push(id);
      throw error;
    }
    if (this.#warning) {
      this.warned.push(id);
      return;
    }
    const [server = "", timeline = "0"] = this.#server.split(" ");
    const ack = { id, sentMs, atMs: clock.monotonicMs(), server, timeline: Number(timeline) };
    this.acks.push(ack);
    this.#options.onAck?.(ack);
  }

  /** Bounds a query: a server that fell silent is left. */
  async #timed<T>(query: Promise<T>, client: Client): Promise<T> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        destroyClient(client);
        reject(new Error("no answer in time"));
      }, this.#options.timeoutMs ?? 2_000);
    });
    try {
      query.catch(() => {});
      return await Promise.race([query, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  #drop(): void {
    if (this.#client) destroyClient(this.#client);
    this.#client = null;
  }
}

/** An answer of the server that says that the statement did not run. Shutdown codes (57P0x) say nothing. */
function refused(error: unknown): boolean {
  const code = (error as { code?: unknown }).code;
  if (isSpillwayError(error) || typeof code !== "string") return false;
  return /^[0-9A-Z]{5}$/.test(code) && !code.startsWith("57P") && !code.startsWith("08");
}
