/**
 * One stream from the slot, until it ends: changes into logs, a flush whenever it is time, the slot confirmed when that
 * is safe. It keeps nothing that the next session could not read again.
 */
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { faultPoint } from "@spillway/base/fault";
import { formatLsn, type Lsn, minLsn } from "@spillway/base/lsn";
import { PgOutputDecoder } from "@spillway/pg/replication/pgoutput";
import { identifySystem } from "@spillway/pg/replication/session";
import { ReplicationStream } from "@spillway/pg/replication/stream";
import type { RawConnection } from "@spillway/pg/wire/connection";
import type { MoverContext } from "../context.ts";
import { Confirmations, flushedEverywhere, walPosition } from "./confirm.ts";
import { Cuts } from "./cut.ts";
import { Flusher, type FlushPart, type FlushResult } from "./flush.ts";
import { FrontierTimes } from "./frontier-time.ts";
import { DDL_PREFIX, parseDdl } from "./ddl-facts.ts";
import { StreamSchema } from "./stream-schema.ts";
import { changedLeaves, watchLeaves } from "./watch.ts";
import { type MirrorTable, withoutApplied } from "./mirror-table.ts";
import { canStreamBinary, gapFaults, openReplication, timelineFaults } from "./preflight.ts";
import { type FeedState, MirrorSink, type SinkHost } from "./sink.ts";
import { abandonStaged, logsOf, memoryRows, stagedBytes, stageLogs } from "./staging.ts";
import type { MirrorRow } from "./state.ts";
import { stopTable, TableSet } from "./table-set.ts";
import { Underway } from "./underway.ts";

export interface PumpSettings {
  readonly flushIntervalMs: number;
  readonly maxBufferedRows: number;
  readonly indexBytes: number;
  /** How often F moves when nothing of ours has changed. */
  readonly idleIntervalMs: number;
}

export interface PumpStatus {
  readonly f: Lsn;
  readonly received: Lsn;
  readonly confirmed: Lsn;
  readonly transactions: number;
  /** Transactions that were received and are not published. */
  readonly pending: number;
  /** Changed rows in memory, and the size of those that were staged in files. */
  readonly bufferedRows: number;
  readonly stagedBytes: number;
}

export interface SessionEvents {
  onFlush?(stats: FlushResult & { readonly ms: number }): void;
}

/** Not a failure: another session is to begin at once. */
export class SessionRestart extends Error {}

const TICK_MS = 20;
/** Reading stops when so much came since the logs were last cut or staged. */
const MAX_BYTES = 64 << 20;
/** Transactions between two looks at how much is buffered. */
const LOOK_EVERY = 64;
/** Rows that do not wait for the next flush once the server has sent nothing for so long: a burst is over. */
const BURST = { rows: 10_000, quietMs: 100 };
const [RELOAD_EVERY_MS, CONFIRM_EVERY_MS] = [1000, 200];

export class MirrorSession {
  readonly #ctx: MoverContext;
  readonly #settings: PumpSettings;
  readonly #mirror: MirrorRow;
  readonly #events: SessionEvents;
  readonly #tables = new TableSet((feed) => this.#sink.drop(feed));
  readonly #schema: StreamSchema;
  readonly #flusher: Flusher;
  readonly #confirmations = new Confirmations();
  readonly #cuts: Cuts;
  #sink: MirrorSink;
  #decoder: PgOutputDecoder<FeedState>;
  #stream: ReplicationStream | null = null;
  #timeline = 0;
  #binary = false;
  #f: Lsn = 0n;
  /** Messages that came while a relation is being looked up. */
  readonly #held: Buffer[] = [];
  /** Operations whose staged files nobody wants any more. */
  readonly #discarded: bigint[] = [];
  #isBlocked = false;
  #error: unknown = null;
  readonly #pauses = new Set<string>();
  /** Of the transactions received. */
  #published = 0;
  readonly #underway = new Underway();
  #flushWanted = false;
  /** Somebody waits for F to pass this moment, whether or not anything of ours has changed. */
  #flushAsked = false;
  readonly #times = new FrontierTimes();
  /** Of messages since the logs were last cut or staged. */
  #bytes = 0;
  #quiet = { bytes: 0, sinceMs: 0 };
  #lastFlushMs = 0;
  #lastIdleMs = 0;
  #lastConfirmMs = 0;
  #lastReloadMs = 0;
  #lastWatchMs = 0;
  #lastPollMs = 0;
  #cutTime: bigint | null = null;

  constructor(ctx: MoverContext, mirror: MirrorRow, settings: PumpSettings, events: SessionEvents = {}) {
    this.#ctx = ctx;
    this.#mirror = mirror;
    this.#settings = settings;
    this.#events = events;
    this.#flusher = new Flusher(ctx, settings.indexBytes);
    this.#cuts = new Cuts(ctx);
    this.#schema = new StreamSchema(ctx, {
      sink: () => this.#sink,
      tables: this.#tables,
      reload: () => this.#reload(),
      stop: (table, error) => this.#stop(table, error),
      needsText: () => (this.#binary ? new SessionRestart() : null),
    });
    this.#sink = new MirrorSink(this.#host(), 0n);
    this.#decoder = new PgOutputDecoder(this.#sink);
  }

  get status(): PumpStatus {
    return {
      f: this.#f,
      received: this.#stream?.receivedLsn ?? 0n,
      confirmed: this.#stream?.confirmedLsn ?? 0n,
      transactions: this.#sink.transactions,
      pending: this.#sink.transactions - this.#published,
      bufferedRows: this.#bufferedRows(),
      stagedBytes: logsOf(this.#tables.all, this.#sink.openLogs()).reduce((sum, { log }) => sum + stagedBytes(log), 0),
    };
  }

  /** Streams until the signal ends it (what was received is flushed first) or something fails, which is thrown. */
  async run(signal: AbortSignal): Promise<void> {
    const connection = await openReplication(this.#ctx, this.#mirror, signal);
    try {
      await this.#start(connection);
      await this.#loop(signal);
    } finally {
      await this.#stream?.stop();
      await connection.close();
    }
  }

  async #start(connection: RawConnection): Promise<void> {
    const { systemId, timeline } = await identifySystem(connection);
    if (systemId !== this.#mirror.systemId) {
      throw new SpillwayError("mirror_gap", `the server has another system identifier than the one that was mirrored`);
    }
    this.#timeline = timeline;
    await this.#reload();
    const tables = this.#tables.all;
    const faults = [
      ...(await timelineFaults(connection, tables, timeline)),
      ...(await gapFaults(connection, this.#mirror, tables)),
    ];
    for (const { table, error } of faults) if (table.failure === null) await this.#stop(table, error);
    const binary = (this.#binary = await canStreamBinary(this.#ctx, tables));
    this.#f = this.#tables.frontier() ?? this.#mirror.startLsn;
    this.#sink = new MirrorSink(this.#host(), this.#f);
    this.#decoder = new PgOutputDecoder(this.#sink);
    this.#stream = await ReplicationStream.start(
      connection,
      { slot: this.#mirror.slotName, startLsn: 0n, publications: [this.#mirror.publicationName], binary },
      {
        onChange: (buffer, start, end) => this.#change(buffer, start, end),
        onKeepalive: (walEnd) => {
          if (this.#isBlocked || this.#held.length > 0) return;
          this.#cuts.sawUpTo(walEnd);
          this.#sink.sawUpTo(minLsn(walEnd, this.#cuts.at ?? walEnd));
        },
      },
    );
    this.#stream.ended.catch((error: unknown) => (this.#error ??= error));
    this.#lastFlushMs = this.#ctx.clock.monotonicMs();
    this.#ctx.log.info("mirror.streaming", { slot: this.#mirror.slotName, from: formatLsn(this.#f), binary });
  }

  async #reload(): Promise<void> {
    this.#lastReloadMs = this.#ctx.clock.monotonicMs();
    if (await this.#tables.reload(this.#ctx)) this.#error ??= new SessionRestart();
  }

  async #stop(table: MirrorTable, error: SpillwayError): Promise<void> {
    this.#sink.drop(table.feed);
    await this.#underway.over();
    await stopTable(this.#ctx, table, error);
  }

  #host(): SinkHost {
    return {
      stateOf: (relation) => {
        const state = this.#schema.known(relation);
        if (state === null) {
          this.#hold(async () => {
            relation.state = await this.#schema.resolve(relation);
          });
        }
        return state;
      },
      failed: (feed, error, commit) => {
        const table = this.#tables.get(feed.oid);
        if (table?.isPast(commit)) return;
        feed.log = null;
        if (table) this.#underway.fail(table, error);
      },
      discarded: (operations) => this.#discarded.push(...operations),
      message: (transactional, _lsn, prefix, content) => {
        if (prefix === DDL_PREFIX && transactional) this.#hold(() => this.#schema.ddl(parseDdl(content)));
        if (prefix === "spillway.flush") this.#flushWanted = this.#flushAsked = true;
      },
      committed: () => {
        if (this.#sink.transactions % LOOK_EVERY === 0 && this.#bufferedRows() > this.#settings.maxBufferedRows)
          this.#flushWanted = true;
      },
    };
  }

  /** Holds the stream back while the catalog is asked. */
  #hold(work: () => Promise<void>): void {
    this.#isBlocked = true;
    this.#pause("schema");
    void work()
      .then(() => {
        this.#isBlocked = false;
        this.#drain();
      })
      .catch((error: unknown) => {
        this.#error ??= error;
      });
  }

  #change(buffer: Buffer, start: number, end: number): void {
    this.#bytes += end - start;
    if (this.#bytes > MAX_BYTES) this.#pause("memory");
    if (this.#isBlocked || this.#held.length > 0 || this.#cuts.stops(buffer, start)) {
      this.#held.push(Buffer.from(buffer.subarray(start, end)));
      if (this.#cuts.isReached) this.#pause("cut");
    } else this.#decoder.decode(buffer, start, end);
  }

  #drain(): void {
    while (this.#held.length > 0 && !this.#isBlocked) {
      const [next] = this.#held;
      if (next && this.#cuts.stops(next, 0)) break;
      const message = this.#held.shift();
      if (message) this.#decoder.decode(message, 0, message.length);
    }
    if (!this.#isBlocked) this.#resume("schema");
  }

  #pause(why: string): void {
    this.#pauses.add(why);
    this.#stream?.pause();
  }

  #resume(why: string): void {
    if (this.#pauses.delete(why) && this.#pauses.size === 0) this.#stream?.resume();
  }

  /** There is room again. */
  #drained(): void {
    this.#bytes = 0;
    this.#resume("memory");
  }

  #isDue(nowMs: number): boolean {
    const bytes = this.#stream?.receivedBytes ?? 0;
    if (bytes !== this.#quiet.bytes) this.#quiet = { bytes, sinceMs: nowMs };
    const isBurstOver = nowMs - this.#quiet.sinceMs >= BURST.quietMs && this.#bufferedRows() >= BURST.rows;
    const isTime = nowMs - this.#lastFlushMs >= this.#settings.flushIntervalMs;
    return this.#flushWanted || this.#pauses.has("memory") || isTime || isBurstOver;
  }

  /** Rows in memory that no flush has taken. */
  #bufferedRows(): number {
    let rows = 0;
    for (const { feed } of this.#tables.all) rows += feed.log === null ? 0 : memoryRows(feed.log);
    for (const log of this.#sink.openLogs()) rows += memoryRows(log);
    return rows;
  }

  async #loop(signal: AbortSignal): Promise<void> {
    const { clock } = this.#ctx;
    for (;;) {
      if (this.#error !== null) throw this.#failure();
      const nowMs = clock.monotonicMs();
      await this.#serveCuts(nowMs);
      const due = this.#isDue(nowMs);
      const canCut = this.#sink.isAtCommit && !this.#isBlocked && this.#held.length === 0;
      if (signal.aborted) {
        if (canCut) await this.#flush(true);
        await this.#giveUpDiscarded();
        return;
      }
      if (due && canCut) await this.#flush(false);
      if (this.#pauses.has("memory") || this.#bufferedRows() > this.#settings.maxBufferedRows) await this.#stage();
      await this.#giveUpDiscarded();
      if (nowMs - this.#lastConfirmMs >= CONFIRM_EVERY_MS) await this.#confirm();
      if (nowMs - this.#lastReloadMs >= RELOAD_EVERY_MS) await this.#reload().then(() => this.#look());
      if (nowMs - this.#lastWatchMs >= RELOAD_EVERY_MS) {
        this.#lastWatchMs = nowMs;
        const strange = await watchLeaves(this.#ctx, this.#tables.all, this.#f);
        for (const { table, error } of strange) await this.#stop(table, error);
      }
      await clock.sleep(TICK_MS, signal);
    }
  }

  /** Flushes where `verify` wants it: see `cut.ts`. */
  async #serveCuts(nowMs: number): Promise<void> {
    if (this.#cuts.isWaiting || nowMs - this.#lastPollMs >= RELOAD_EVERY_MS) {
      this.#lastPollMs = nowMs;
      await this.#cuts.poll();
      if (this.#cuts.isWaiting) this.#pause("cut");
      else if (!this.#cuts.isReached) this.#resume("cut");
    }
    const { at } = this.#cuts;
    if (at === null || !this.#cuts.isReached || !this.#sink.isAtCommit || this.#isBlocked) return;
    this.#sink.sawUpTo(at);
    await this.#flush(true);
    await this.#cuts.answer(this.#tables.all);
    this.#resume("cut");
    this.#drain();
  }

  #failure(): unknown {
    if (this.#error instanceof SpillwayError || this.#error instanceof SessionRestart) return this.#error;
    return new SpillwayError("internal", messageOf(this.#error), { cause: this.#error });
  }

  async #flush(last: boolean): Promise<void> {
    const { clock } = this.#ctx;
    const startMs = clock.monotonicMs();
    this.#flushWanted = false;
    this.#lastFlushMs = startMs;
    const asked = this.#flushAsked;
    this.#flushAsked = false;
    const { transactions, last: end } = this.#sink;
    const { lsn } = end;
    const parts = this.#cut();
    this.#drained();
    const tables = this.#tables.all;
    const joining = tables.filter((t) => this.#isJoining(t));
    for (const t of tables) if (t.failure !== null && t.phase !== "needs_copy") await this.#stop(t, t.failure);
    const hasWork =
      parts.length > 0 || joining.length > 0 || tables.some((t) => t.pending !== null && t.phase === "live");
    const live = tables.filter((t) => t.phase === "live" && t.failure === null);
    const isIdleDue = startMs - this.#lastIdleMs >= this.#settings.idleIntervalMs || last || asked;
    if (!hasWork && (lsn <= this.#f || !isIdleDue || live.length === 0)) {
      if (live.length === 0 && lsn > this.#f && isIdleDue) this.#idleWithoutTables(lsn, startMs);
      this.#published = transactions;
      return;
    }
    this.#lastIdleMs = startMs;
    for (const table of joining.concat(tables.filter((t) => t.pending !== null && t.isFed && t.phase === "live")))
      if (!parts.some((p) => p.table === table)) parts.push({ table, segments: [], pending: table.pending });
    if (joining.length > 0) faultPoint("mirror.before_join");
    this.#cutTime = end.time ?? this.#cutTime;
    const flush = this.#flusher.flush({
      parts,
      leaves: changedLeaves(tables),
      live,
      lsn,
      timeline: this.#timeline,
      commitTime: this.#cutTime,
      ageMs: () => this.#times.ageMs(lsn, clock.monotonicMs()),
    });
    const result = await this.#underway.run(flush);
    this.#f = lsn;
    this.#published = transactions;
    this.#confirmations.add(lsn, await this.#look());
    for (const table of tables) if (table.failure !== null) this.#sink.drop(table.feed);
    await this.#confirm();
    this.#events.onFlush?.({ ...result, ms: clock.monotonicMs() - startMs });
  }

  /** The end of the WAL, which also tells how old F is. */
  #look(): Promise<Lsn> {
    return this.#times.look(this.#ctx.clock, () => this.#ctx.pool.withClient((c) => walPosition(c)));
  }

  /** With no live table there is no F: the slot goes on by itself, unless a copy holds it. */
  #idleWithoutTables(lsn: Lsn, nowMs: number): void {
    this.#lastIdleMs = nowMs;
    this.#f = lsn;
    this.#confirmations.add(lsn, 0n);
  }

  /** A copy joins at F, so the stream must have passed both its snapshots and F as this session found it. */
  #isJoining(table: MirrorTable): boolean {
    const { seen } = this.#sink;
    return seen >= this.#f && table.isJoinable(seen);
  }

  /** Takes what is committed out of the logs. */
  #cut(): FlushPart[] {
    return this.#tables.all.flatMap((table) => {
      const { log } = table.feed;
      if (log === null || log.isEmpty || table.failure !== null || (table.phase !== "live" && !this.#isJoining(table)))
        return [];
      const taken = log.take();
      const segments = withoutApplied(taken, table.phase === "live" ? table.f : null);
      const kept = new Set(segments);
      this.#discarded.push(...taken.flatMap((s) => (kept.has(s) ? [] : (s.stageOp ?? []))));
      return segments.length === 0 ? [] : [{ table, segments, pending: table.pending }];
    });
  }

  /**
   * Tells the slot what is safe, as far as no copy still needs what comes before. The catalog is read first: a table that was
   * registered since has its snapshot later than everything that was cut before this.
   */
  async #confirm(): Promise<void> {
    this.#lastConfirmMs = this.#ctx.clock.monotonicMs();
    if (this.#confirmations.waiting === 0) return;
    await this.#reload();
    // Another session is due, which knows tables that this one does not: it will confirm.
    if (this.#error !== null) return;
    const flushed = await this.#ctx.pool.withClient((c) => flushedEverywhere(c));
    const safe = this.#confirmations.take(flushed);
    if (safe === null) return;
    const holds = this.#tables.all.flatMap((t) =>
      t.phase === "copying" || t.phase === "copied" ? (t.holdLsn ?? []) : [],
    );
    this.#stream?.confirm(holds.reduce(minLsn, safe));
    faultPoint("mirror.confirmed");
  }

  async #giveUpDiscarded(): Promise<void> {
    if (this.#discarded.length > 0) await abandonStaged(this.#ctx, this.#discarded.splice(0));
  }

  /** Writes rows that are too many for memory into files that nothing refers to. */
  async #stage(): Promise<void> {
    this.#pause("staging");
    try {
      await stageLogs(this.#ctx, logsOf(this.#tables.all, this.#sink.openLogs()));
      faultPoint("mirror.staged");
    } finally {
      this.#drained();
      this.#resume("staging");
    }
  }
}
