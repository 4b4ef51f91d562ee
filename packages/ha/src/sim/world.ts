/** The simulator's machinery: seeded randomness, virtual time, an event queue, and a network that misbehaves. */

/** mulberry32: small, fast, good enough to explore with. Returns [0, 1). */
export function seededRandom(seed: number): () => number {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = a;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

interface Timed {
  readonly atMs: number;
  readonly order: number;
  readonly run: () => void;
}

/** Who can talk to whom: node ids, and 0 for the monitor. */
export const MONITOR = 0;

export class World {
  nowMs = 0;
  readonly random: () => number;
  readonly trace: string[] = [];
  readonly #queue: Timed[] = [];
  #order = 0;
  readonly #cut = new Set<string>();
  /** Chance that a message is lost, and that it is late by seconds. */
  lossRate = 0;
  lateRate = 0;

  constructor(seed: number) {
    this.random = seededRandom(seed);
  }

  between(low: number, high: number): number {
    return low + this.random() * (high - low);
  }

  chance(p: number): boolean {
    return this.random() < p;
  }

  after(ms: number, run: () => void): void {
    const item = { atMs: this.nowMs + ms, order: this.#order++, run };
    let i = this.#queue.length;
    this.#queue.push(item);
    while (i > 0) {
      const up = (i - 1) >> 1;
      const parent = this.#queue[up] as Timed;
      if (!before(item, parent)) break;
      this.#queue[i] = parent;
      i = up;
    }
    this.#queue[i] = item;
  }

  runUntil(endMs: number): void {
    for (;;) {
      const next = this.#queue[0];
      if (next === undefined || next.atMs > endMs) break;
      this.#pop();
      this.nowMs = next.atMs;
      next.run();
    }
    this.nowMs = endMs;
  }

  log(text: string): void {
    this.trace.push(`${this.nowMs.toFixed(0).padStart(7)} ${text}`);
  }

  /** A datagram-like message: may be lost, late or doubled, and is lost across a cut. */
  send(from: number, to: number, deliver: () => void): void {
    if (this.isCut(from, to) || this.chance(this.lossRate)) return;
    const delays = [this.chance(this.lateRate) ? this.between(100, 4000) : this.between(1, 15)];
    if (this.chance(this.lossRate)) delays.push(this.between(1, 3000));
    for (const ms of delays) this.after(ms, deliver);
  }

  cut(a: number, b: number): void {
    this.#cut.add(`${a}-${b}`).add(`${b}-${a}`);
  }

  cutOneWay(from: number, to: number): void {
    this.#cut.add(`${from}-${to}`);
  }

  healAll(): void {
    this.#cut.clear();
  }

  isCut(from: number, to: number): boolean {
    return this.#cut.has(`${from}-${to}`);
  }

  #pop(): void {
    const last = this.#queue.pop() as Timed;
    const size = this.#queue.length;
    if (size === 0) return;
    let i = 0;
    for (;;) {
      let child = 2 * i + 1;
      if (child >= size) break;
      if (child + 1 < size && before(this.#queue[child + 1] as Timed, this.#queue[child] as Timed)) child++;
      if (!before(this.#queue[child] as Timed, last)) break;
      this.#queue[i] = this.#queue[child] as Timed;
      i = child;
    }
    this.#queue[i] = last;
  }
}

function before(a: Timed, b: Timed): boolean {
  return a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order);
}
