/** What goes wrong, and when: a schedule that the seed determines, and the processes that it is done to. */
import { appendFileSync, mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { FAULT_POINTS } from "@spillway/base/fault";
import { sharedClock as clock } from "@spillway/ha/client/shared-clock";
import { connect, endClient } from "@spillway/pg/connect";
import { Child, type ChildEnv } from "../bench/child.ts";
import { type EmbeddedPostgres, startEmbedded } from "../embedded/server.ts";
import { Random } from "./random.ts";

export const FAULTS = {
  kill_worker: 4,
  stop_worker: 3,
  kill_reader: 2,
  terminate: 5,
  kill_backend: 1,
  restart: 1,
} as const;
export type FaultName = keyof typeof FAULTS;

export interface Fault {
  readonly atMs: number;
  readonly name: FaultName;
  /** Which of several. */
  readonly choice: number;
  readonly forMs: number;
}

/** Pure: the faults of a run, in their order. The first comes after two seconds. */
export function schedule(seed: number, totalMs: number): Fault[] {
  const random = new Random(seed, "faults");
  const faults: Fault[] = [];
  for (let atMs = 2000; atMs < totalMs; atMs += 300 + random.next() * 3400) {
    const fault = { name: random.weighted(FAULTS), choice: random.int(0, 1000), forMs: 200 + random.next() * 3000 };
    faults.push({ atMs, ...fault });
  }
  return faults;
}

/** Where a worker of this number ends itself, or null: at a fault point of what it does all the time. */
export function faultOfWorker(seed: number, number: number): string | null {
  const random = new Random(seed, `worker ${number}`);
  const points = FAULT_POINTS.filter((p) => /^(tier|fold|compact|expire|remove)\./.test(p));
  const [point, action, visit] = [random.pick(points), random.pick(["kill", "kill", "stop"]), random.int(1, 4)];
  return random.chance(0.3) ? `${point}:${action}:${visit}` : null;
}

const HOLD_MS = 4000;

/** The processes of a run, which are replaced when they die. */
export class Victims {
  readonly #env: ChildEnv;
  readonly #seed: number;
  readonly #log: string;
  readonly #home: string;
  readonly #workers: Child[] = [];
  readonly #readers: Child[] = [];
  #postgres: EmbeddedPostgres;
  #started = 0;
  #over = false;
  #waking: Promise<void>[] = [];

  private constructor(postgres: EmbeddedPostgres, home: string, env: ChildEnv, seed: number, log: string) {
    this.#postgres = postgres;
    this.#home = home;
    this.#env = env;
    this.#seed = seed;
    this.#log = log;
  }

  static async open(parent: string, env: (url: string) => ChildEnv, seed: number, log: string): Promise<Victims> {
    const home = mkdtempSync(join(parent, "spillway-chaos-pg-"));
    const postgres = await startEmbedded({ dir: home });
    return new Victims(postgres, home, env(postgres.url()), seed, log);
  }

  get url(): string {
    return this.#postgres.url();
  }

  get env(): ChildEnv {
    return this.#env;
  }

  /** Keeps so many of each alive until `stopAll`. */
  async keepAlive(workers: number, readers: number, signal: AbortSignal): Promise<void> {
    while (!this.#over && !signal.aborted) {
      this.#fill(this.#workers, workers, () => this.#worker());
      this.#fill(this.#readers, readers, () => this.#reader());
      await clock.sleep(50, signal).catch(() => {});
    }
  }

  async strike(fault: Fault): Promise<void> {
    switch (fault.name) {
      case "kill_worker":
        return this.#one(this.#workers.filter(isAtWork), fault)?.signal("SIGKILL");
      case "stop_worker":
        return this.#stop(this.#one(this.#workers, fault), fault.forMs);
      case "kill_reader":
        return this.#one(this.#readers.filter(isAtWork), fault)?.signal("SIGKILL");
      case "terminate":
        return this.#backend(fault, false);
      case "kill_backend":
        return this.#backend(fault, true);
      default:
        return this.restart();
    }
  }

  /** An immediate shutdown, which is a crash to the next start. */
  async restart(): Promise<void> {
    const old = this.#postgres;
    process.kill(old.pid, "SIGQUIT");
    while (isAlive(old.pid)) await clock.sleep(20);
    await old.stop();
    this.#postgres = await startEmbedded({ dir: this.#home, port: old.port });
  }

  /** Ends workers and readers; what stood still is woken up first. */
  async stopAll(): Promise<void> {
    this.#over = true;
    await Promise.all(this.#waking);
    const ended = [...this.#workers, ...this.#readers].map(async (child) => {
      child.signal("SIGCONT");
      const done = await Promise.race([child.end("SIGTERM"), clock.sleep(HOLD_MS).then(() => null)]);
      if (done === null) await child.end("SIGKILL");
    });
    await Promise.all(ended);
  }

  async close(): Promise<void> {
    await this.stopAll();
    await this.#postgres.stop();
    rmSync(this.#home, { recursive: true, force: true });
  }

  #fill(list: Child[], wanted: number, start: () => Child): void {
    for (let i = list.length - 1; i >= 0; i--) if (list[i]?.isOver) list.splice(i, 1);
    while (list.length < wanted) list.push(start());
  }

  #worker(): Child {
    this.#started += 1;
    const fault = faultOfWorker(this.#seed, this.#started);
    const child = new Child(["worker"], { ...this.#env, ...(fault === null ? {} : { SPILLWAY_FAULT: fault }) });
    // One that stopped itself comes back, as one that was paused would.
    if (fault?.includes(":stop:")) void this.#wakeAgain(child);
    const name = `worker ${this.#started} (${fault ?? "no fault"})`;
    void child.ended.then((how) => appendFileSync(`${this.#log}.workers`, `== ${name}: ${how}\n${child.stderr}`));
    return child;
  }

  async #wakeAgain(child: Child): Promise<void> {
    while (!child.isOver && !this.#over) {
      await clock.sleep(3000);
      child.signal("SIGCONT");
    }
  }

  #reader(): Child {
    return new Child(["chaos", "seam-reader", "--seed", String(this.#seed)], {
      ...this.#env,
      SPILLWAY_CHAOS_LOG: this.#log,
    });
  }

  #one(list: readonly Child[], fault: Fault): Child | undefined {
    return list[fault.choice % Math.max(1, list.length)];
  }

  #stop(child: Child | undefined, forMs: number): void {
    if (!child) return;
    child.signal("SIGSTOP");
    this.#waking.push(clock.sleep(forMs).then(() => child.signal("SIGCONT")));
  }

  /** One session of clients, workers or readers: ended, or its process killed, upon which Postgres restarts all. */
  async #backend(fault: Fault, kill: boolean): Promise<void> {
    const client = await connect(this.url, { applicationName: "chaos", connectTimeoutMs: 2000 }).catch(() => null);
    if (client === null) return;
    try {
      const { rows } = await client.query<{ pid: number }>(
        `select pid from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid() order by pid`,
      );
      const victim = rows[fault.choice % Math.max(1, rows.length)];
      if (!victim) return;
      if (kill) process.kill(victim.pid, "SIGKILL");
      else await client.query("select pg_terminate_backend($1)", [victim.pid]);
    } catch {
      // Postgres may be down at this moment: then something worse is happening anyway.
    } finally {
      await endClient(client);
    }
  }
}

/** It has said something: one that is still starting would learn nothing from being killed. */
function isAtWork(child: Child): boolean {
  return child.stdout !== "";
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
