/**
 * One client after its login: takes messages in order, runs simple queries, hands extended ones on, and keeps the promises of the
 * protocol about errors and transactions.
 * Source: https://www.postgresql.org/docs/current/protocol-flow.html
 */
import type { Clock } from "@spillway/base/clock";
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import { writeBare, writeComplete, writeParameterStatus, writeReady, writeRowDescription } from "./backend.ts";
import type { TextSettings } from "./cell-writers.ts";
import { Commands } from "./commands.ts";
import { copyBySession } from "./copy.ts";
import type { Engines } from "./engines.ts";
import { ExtendedQuery } from "./extended.ts";
import { BodyReader, type FrontendMessage, type FrontendReader } from "./frontend-reader.ts";
import type { OutBuffer } from "./out-buffer.ts";
import { type Plan, planText } from "./plans.ts";
import { type Outcome, requireAlive, runTextBySession } from "./statements.ts";
import { type ExchangeOptions, messageOf, Relayed, type Upstream } from "./upstream.ts";
import { pgError, wireErrorOf, writeError } from "./wire-errors.ts";

export interface ClientOptions {
  readonly reader: FrontendReader;
  readonly out: OutBuffer;
  readonly engines: Engines;
  readonly clock: Clock;
  readonly log: Logger;
  readonly processId: number;
  readonly database: string;
  /** 0: no bound. */
  readonly idleMs: number;
  readonly idleInTransactionMs: number;
  /** What was reported at start-up. */
  readonly reported: Map<string, string>;
}

/** Parameters that a client is told of when they change. */
export const REPORTED = [
  "application_name", "client_encoding", "DateStyle", "IntervalStyle", "TimeZone", "search_path", "standard_conforming_strings",
  "default_transaction_read_only",
] as const; // prettier-ignore

/** Where a COPY into the source asks for its rows. */
const SIMPLE: ExchangeOptions = { until: "ZG", errorEnds: false, hide: "Z" };

export class Client {
  readonly #options: ClientOptions;
  readonly #reader: FrontendReader;
  readonly #out: OutBuffer;
  readonly engines: Engines;
  readonly commands: Commands;
  readonly #extended: ExtendedQuery;
  #skipping = false;
  #ended: SpillwayError | null = null;

  constructor(options: ClientOptions) {
    this.#options = options;
    this.#reader = options.reader;
    this.#out = options.out;
    this.engines = options.engines;
    this.engines.onParameter = (name, value) => this.#reportOne(name, value);
    this.commands = new Commands({
      engines: this.engines,
      relay: (plan) => this.#relayStatement(plan),
      plan: async (text) => this.#single(await this.plan(text)),
      copy: (plan) => copyBySession(this, plan),
      warn: (sqlstate, message) => this.warn(sqlstate, message),
      forget: () => this.#extended.forget(),
      report: () => this.report(),
    });
    this.#extended = new ExtendedQuery(this);
  }

  get out(): OutBuffer {
    return this.#out;
  }

  get reader(): FrontendReader {
    return this.#reader;
  }

  get textSettings(): TextSettings {
    return { timeZone: this.#options.reported.get("TimeZone") ?? "UTC" };
  }

  /** Until the client leaves. Throws what the client is to be told as a FATAL error. */
  async serve(): Promise<void> {
    this.#ready();
    for (;;) {
      const message = await this.#next();
      if (message === null || message.type === "X") return;
      if (this.#skipping && message.type !== "S") continue;
      try {
        await this.#dispatch(message);
      } catch (error) {
        await this.#failed(error, message.type);
      }
    }
  }

  /** Ends the connection at its next message, or now when it waits for one: an administrator's doing, or a revoked grant. */
  end(error: SpillwayError): void {
    this.#ended = error;
    this.engines.cancel("killed");
    this.#wake();
  }

  /** Between statements, outside of a transaction. */
  get isIdle(): boolean {
    return this.#waits && this.engines.transaction.status === "I";
  }

  #wake: () => void = () => {};
  #waits = false;

  async #next(): Promise<FrontendMessage | null> {
    if (this.#ended) throw this.#ended;
    const inBlock = this.engines.transaction.status !== "I";
    const limitMs = inBlock ? this.#options.idleInTransactionMs : this.#options.idleMs;
    const over = new AbortController();
    const ended = new Promise<"ended">((resolve) => (this.#wake = () => resolve("ended")));
    const waits: Promise<FrontendMessage | null | "ended" | "late">[] = [this.#reader.next(), ended];
    if (limitMs > 0 && this.#reader.buffered < 5) {
      waits.push(
        this.#options.clock.sleep(limitMs, over.signal).then(() => (over.signal.aborted ? ended : ("late" as const))),
      );
    }
    this.#waits = true;
    const first = await Promise.race(waits);
    this.#waits = false;
    over.abort();
    if (first === "ended") throw this.#ended ?? new SpillwayError("interrupted", "the connection was ended");
    if (first !== "late") return first;
    throw inBlock
      ? pgError("25P03", "terminating connection due to idle-in-transaction timeout")
      : pgError("57P05", "terminating connection due to idle-session timeout");
  }

  async #dispatch(message: FrontendMessage): Promise<void> {
    switch (message.type) {
      case "Q": {
        const fields = new BodyReader(message.body);
        const sql = fields.text();
        fields.done();
        await this.#extended.abandon();
        await this.#simple(sql);
        return this.#ready();
      }
      case "S":
        this.#skipping = false;
        await this.#extended.sync();
        return this.#ready();
      case "H":
        return this.#out.flush();
      case "F":
        throw pgError("0A000", "function calls by the protocol are not served here");
      case "d":
      case "c":
      case "f":
        // What is left of a COPY that failed.
        return;
      default:
        return this.#extended.handle(message);
    }
  }

  async #failed(error: unknown, type: string): Promise<void> {
    if (isSpillwayError(error, "client_gone")) throw error;
    const { transaction } = this.engines;
    if (!(error instanceof Relayed)) {
      const shown = wireErrorOf(error);
      if (shown.sqlstate === "XX000") this.#options.log.error("pgwire.internal", { error });
      writeError(this.#out, shown);
    }
    const isFatal = isSpillwayError(error, "pg_connection_lost") && this.engines.mapped?.isOpen === false;
    if (isFatal) throw error;
    if (transaction.implicit || transaction.status === "I") {
      await this.commands.endWith("ROLLBACK");
    } else {
      transaction.fail();
    }
    if (type === "Q" || type === "F") this.#ready();
    else if (type === "S") this.#ready();
    else this.#skipping = true;
  }

  #ready(): void {
    const { status, implicit } = this.engines.transaction;
    writeReady(this.#out, implicit ? "I" : status);
    this.#out.flush();
  }

  plan(sql: string): Promise<Plan[]> {
    const { engines } = this;
    return planText(sql, {
      session: engines.session,
      database: this.#options.database,
      processId: this.#options.processId,
      searchPath:
        this.#options.reported.get("search_path") ?? engines.session.parameter("search_path") ?? '"$user", public',
      view: () => engines.view(),
    });
  }

  #single(plans: readonly Plan[]): Plan {
    const [plan, ...more] = plans;
    if (!plan || more.length > 0) throw pgError("42601", "one statement is expected here");
    return plan;
  }

  async #simple(sql: string): Promise<void> {
    const plans = await this.plan(sql);
    if (plans.length === 0) return writeBare(this.#out, "I");
    for (const plan of plans) requireAlive(this.engines, plan);
    if (plans.every((plan) => plan.way === "mapped")) {
      await this.#relayQuery("mapped", sql);
      return;
    }
    const { transaction } = this.engines;
    if (plans.length > 1) transaction.beginImplicit();
    for (const plan of plans) {
      requireAlive(this.engines, plan);
      await this.#runOne(plan);
      if (plans.length > 1) transaction.beginImplicit();
    }
    if (transaction.implicit) await this.commands.endWith("COMMIT");
  }

  async #runOne(plan: Plan): Promise<void> {
    if (plan.way === "mapped" || plan.way === "catalog") {
      await this.#relayQuery(plan.way, plan.sourceText);
      return;
    }
    const outcome = plan.way === "edge" ? await this.commands.run(plan) : await runTextBySession(this.engines, plan);
    if (outcome !== null) await this.#sendAll(outcome);
  }

  async #sendAll({ cursor, tag }: Outcome): Promise<void> {
    let rows = 0;
    if (cursor !== null) {
      try {
        if (cursor.columns.length > 0) writeRowDescription(this.#out, cursor.columns, []);
        rows = (await cursor.send(this.#out, [], this.textSettings, 0)).rows;
      } finally {
        await cursor.close();
      }
    }
    writeComplete(this.#out, tag(rows));
  }

  /** A statement to the source in the simple protocol, whatever protocol it came by. */
  async #relayStatement(plan: Plan): Promise<void> {
    const upstream = await this.engines.joinMapped();
    if (upstream.unsynced) await upstream.sync();
    await this.#relayQuery("mapped", plan.sourceText);
  }

  async #relayQuery(way: "mapped" | "catalog", sql: string): Promise<void> {
    const upstream = await this.engines.upstream(way);
    await this.engines.during(upstream, async () => {
      const query = messageOf("Q", Buffer.from(`${sql}\0`, "utf8"));
      let answer = await upstream.exchange(query, SIMPLE);
      while (answer.type === "G") answer = await this.feedCopy(upstream, SIMPLE);
      if (answer.error) throw new Relayed(answer.error.message);
    });
    await this.#out.relieve();
  }

  /** The client's rows to a source that asked for them; then the answer. */
  async feedCopy(upstream: Upstream, options: ExchangeOptions): Promise<Awaited<ReturnType<Upstream["exchange"]>>> {
    this.#out.flush();
    const answered = upstream.exchange(null, options);
    let refused = false;
    answered.then(
      () => (refused = true),
      () => (refused = true),
    );
    for (;;) {
      const message = await this.#copyMessage();
      if (message.type === "c" || message.type === "f") {
        // In the extended protocol the source keeps its answer back until it is asked to flush.
        if (!refused) await upstream.push(Buffer.concat([messageOf(message.type, message.body), messageOf("H")]));
        return answered;
      }
      if (!refused) await upstream.push(messageOf("d", message.body));
    }
  }

  async #copyMessage(): Promise<FrontendMessage> {
    for (;;) {
      const message = await this.#reader.next();
      if (message === null) throw new SpillwayError("client_gone", "the client left in the middle of a COPY");
      // libpq sends a Sync behind its Execute before it knows of the COPY.
      if (message.type === "H" || message.type === "S") continue;
      if (message.type === "d" || message.type === "c" || message.type === "f") return message;
      throw pgError(
        "08P01",
        `unexpected message type 0x${message.type.charCodeAt(0).toString(16)} during COPY from stdin`,
      );
    }
  }

  /** The rows of a COPY that runs here. Throws 57014 when the client gives it up. */
  async *copyData(): AsyncGenerator<Buffer, void, void> {
    this.#out.flush();
    for (;;) {
      const message = await this.#copyMessage();
      if (message.type === "c") return;
      if (message.type === "f") {
        throw pgError("57014", `COPY from stdin failed: ${new BodyReader(message.body).text()}`);
      }
      yield message.body;
    }
  }

  warn(sqlstate: string, message: string): void {
    writeError(this.#out, { severity: "ERROR", sqlstate, message }, "N", "WARNING");
  }

  /** Tells the client of parameters that are others now. */
  report(): void {
    const { mapped, session } = this.engines;
    for (const name of REPORTED) {
      const value = mapped?.parameters.get(name) ?? session.parameter(name);
      if (value !== null) this.#reportOne(name, value);
    }
  }

  #reportOne(name: string, value: string): void {
    const { reported } = this.#options;
    if (!reported.has(name) || reported.get(name) === value || OWN.has(name)) return;
    reported.set(name, value);
    writeParameterStatus(this.#out, name, value);
  }
}

/** Parameters that describe this edge, not the source behind it. */
const OWN = new Set(["session_authorization", "is_superuser", "server_version", "server_encoding"]);
