/**
 * The store over etcd v3, for several monitors of which one leads.
 *
 * The lead is a key that only one can create, tied to an etcd lease that its owner keeps alive. Every
 * commit is a transaction on the condition that this very key still exists, so a monitor that was paused
 * and replaced can write nothing. It also stops granting primary leases by its own clock, before etcd's
 * lease can have run out: the next leader counts possible grants from its own beginning.
 */
import type { Clock } from "@spillway/base/clock";
import { isSpillwayError, messageOf, SpillwayError } from "@spillway/base/errors";
import { randomHex } from "@spillway/base/ids";
import type { Logger } from "@spillway/base/log";
import type { Formation } from "../fsm/model.ts";
import { EtcdClient, type EtcdLogin, type Write } from "./etcd-client.ts";
import { MAX_EVENTS, type Commit, type MonitorStore, type StoredEvent, type StoredState } from "./store.ts";

export interface EtcdOptions {
  readonly endpoints: readonly string[];
  /** Keys begin with `/spillway-ha/<cluster>/`. */
  readonly cluster: string;
  /** URL of this monitor, for the others to name. */
  readonly url: string;
  readonly clock: Clock;
  readonly log: Logger;
  readonly ttlSeconds?: number;
  readonly login?: EtcdLogin | null;
}

const CALL_TIMEOUT_MS = 1000;
const DEFAULT_TTL_S = 3;
/** The lead is given up this much before etcd's lease can end: clocks run at different rates. */
const MARGIN = 0.25;
const CAMPAIGN_MS = 300;
const COMMIT_TRIES = 5;
const TRIM_EVERY = 200;

interface Lead {
  readonly leaseId: string;
  readonly ttlMs: number;
  readonly revision: bigint;
  validUntilMs: number;
}

export class EtcdStore implements MonitorStore {
  readonly #o: EtcdOptions;
  readonly #etcd: EtcdClient;
  readonly #prefix: string;
  readonly #id = randomHex(16);
  #lead: Lead | null = null;
  #leader: string | null = null;
  #sinceTrim = 0;
  #closed = false;
  #turn: Promise<unknown> = Promise.resolve();
  /** The revision at which each formation's key was last written. */
  readonly #revisions = new Map<string, bigint>();

  constructor(options: EtcdOptions) {
    this.#o = options;
    this.#etcd = new EtcdClient(options.endpoints, CALL_TIMEOUT_MS, options.login ?? null);
    this.#prefix = `/spillway-ha/${options.cluster}/`;
  }

  /** A text that all monitors of the cluster share (tokens): the first one's value wins. */
  async shared(name: string, mine: string): Promise<string> {
    const key = `${this.#prefix}shared/${name}`;
    await this.#etcd.transact([{ key, createRevision: 0n }], [{ put: key, value: mine }]);
    const found = (await this.#etcd.range(key)).find((item) => item.key === key);
    if (!found) throw new SpillwayError("ha_store", `etcd lost ${key} as it was written`);
    return found.value;
  }

  async lead(signal: AbortSignal): Promise<StoredState> {
    while (!signal.aborted && !this.#closed) {
      try {
        const lead = await this.#campaign();
        if (lead !== null) {
          this.#lead = lead;
          void this.#keepLead(lead);
          return await this.#read();
        }
      } catch (error) {
        this.#o.log.warn("etcd", { error: messageOf(error) });
        await this.#resign();
      }
      await this.#o.clock.sleep(CAMPAIGN_MS, signal);
    }
    throw new SpillwayError("interrupted", "the monitor was stopped");
  }

  leads(): boolean {
    return this.#lead !== null && this.#o.clock.monotonicMs() < this.#lead.validUntilMs;
  }

  leaderUrl(): string | null {
    return this.leads() ? null : this.#leader;
  }

  /** One after the other: a repeated call must not overtake, nor be overtaken by, another one. */
  commit(commit: Commit): Promise<void> {
    const work = this.#turn.then(() => this.#commit(commit));
    this.#turn = work.catch(() => {});
    return work;
  }

  async #commit(commit: Commit): Promise<void> {
    const lead = this.#lead;
    if (lead === null || !this.leads()) throw lost();
    const key = `${this.#prefix}formation/${commit.formation.name}`;
    const value = JSON.stringify(commit.formation);
    const conditions = [
      { key: this.#leaderKey(), createRevision: lead.revision },
      { key, modRevision: this.#revisions.get(key) ?? 0n },
    ];
    const events = commit.events.map((e) => ({ put: this.#eventKey(e.seq), value: JSON.stringify(e) }));
    const writes: Write[] = [{ put: key, value }, ...events, ...this.#trim(commit)];
    // A call whose answer was lost is repeated under the same conditions: it goes through at most once.
    for (let attempt = 1; attempt <= COMMIT_TRIES && this.#lead === lead && this.leads(); attempt++) {
      try {
        const revision = (await this.#etcd.transact(conditions, writes)) ?? (await this.#wentThrough(lead, key, value));
        if (revision === null) break;
        this.#revisions.set(key, revision);
        return;
      } catch (error) {
        if (!isSpillwayError(error, "ha_store")) throw error;
        this.#o.log.warn("etcd commit failed", { attempt, error });
      }
    }
    await this.#resign();
    throw lost();
  }

  /** A condition did not hold: because an earlier try of this very commit went through, or because the lead is lost? */
  async #wentThrough(lead: Lead, key: string, value: string): Promise<bigint | null> {
    const leader = (await this.#etcd.range(this.#leaderKey())).find((item) => item.key === this.#leaderKey());
    if (leader?.createRevision !== lead.revision) return null;
    const stored = (await this.#etcd.range(key)).find((item) => item.key === key);
    return stored?.value === value ? stored.modRevision : null;
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.#resign();
  }

  // ------------------------------------------------------------------ the lead

  #leaderKey(): string {
    return `${this.#prefix}leader`;
  }

  #eventKey(seq: number): string {
    return `${this.#prefix}event/${String(seq).padStart(15, "0")}`;
  }

  async #campaign(): Promise<Lead | null> {
    const key = this.#leaderKey();
    const current = (await this.#etcd.range(key)).find((item) => item.key === key);
    if (current) {
      this.#leader = leaderUrlOf(current.value);
      return null;
    }
    const sentMs = this.#o.clock.monotonicMs();
    const { id, ttlMs } = await this.#etcd.grantLease(this.#o.ttlSeconds ?? DEFAULT_TTL_S);
    const value = JSON.stringify({ id: this.#id, url: this.#o.url });
    const revision = await this.#etcd.transact([{ key, createRevision: 0n }], [{ put: key, value, lease: id }]);
    if (revision === null) {
      await this.#etcd.revokeLease(id);
      return null;
    }
    return { leaseId: id, ttlMs, revision, validUntilMs: sentMs + ttlMs * (1 - MARGIN) };
  }

  async #keepLead(lead: Lead): Promise<void> {
    while (this.#lead === lead) {
      await this.#o.clock.sleep(lead.ttlMs / 6);
      const sentMs = this.#o.clock.monotonicMs();
      try {
        if (this.#lead !== lead) return;
        if (!(await this.#etcd.keepAlive(lead.leaseId))) return void (await this.#resign());
        lead.validUntilMs = sentMs + lead.ttlMs * (1 - MARGIN);
      } catch (error) {
        this.#o.log.warn("etcd lease not renewed", { error });
        if (this.#o.clock.monotonicMs() >= lead.validUntilMs) return void (await this.#resign());
      }
    }
  }

  async #resign(): Promise<void> {
    const lead = this.#lead;
    this.#lead = null;
    if (lead === null) return;
    await this.#etcd.revokeLease(lead.leaseId).catch(() => {});
  }

  // ------------------------------------------------------------------ state

  async #read(): Promise<StoredState> {
    const formations = await this.#etcd.range(`${this.#prefix}formation/`);
    const events = await this.#etcd.range(`${this.#prefix}event/`);
    this.#revisions.clear();
    for (const item of formations) this.#revisions.set(item.key, item.modRevision);
    return {
      formations: formations.map((item) => JSON.parse(item.value) as Formation),
      events: events.map((item) => JSON.parse(item.value) as StoredEvent).slice(-MAX_EVENTS),
    };
  }

  /** From time to time, removes the events that nobody will be shown any more. */
  #trim(commit: Commit): Write[] {
    this.#sinceTrim += commit.events.length;
    const newest = commit.events.at(-1)?.seq ?? 0;
    if (this.#sinceTrim < TRIM_EVERY || newest <= MAX_EVENTS) return [];
    this.#sinceTrim = 0;
    return [{ remove: this.#eventKey(0), end: this.#eventKey(newest - MAX_EVENTS) }];
  }
}

function leaderUrlOf(value: string): string | null {
  try {
    return (JSON.parse(value) as { url?: string }).url ?? null;
  } catch {
    return null;
  }
}

function lost(): SpillwayError {
  return new SpillwayError("ha_not_leader", "the lead was lost");
}
