/**
 * How old F is: the newest moment of which it is sure that everything acknowledged before it is at or before F. A flush's own time
 * says nothing of that, as the stream may be far behind. So the WAL's end is looked at every now and then: when F has
 * passed an end that was seen, it has everything from before that look.
 */
import type { Clock } from "@spillway/base/clock";
import type { Lsn } from "@spillway/base/lsn";

/** Of looks a second apart; beyond it every other one is forgotten. */
const MAX_LOOKS = 1024;

export class FrontierTimes {
  #looks: { readonly end: Lsn; readonly ms: number }[] = [];

  /** Looks, and says what was seen. */
  async look(clock: Clock, readEnd: () => Promise<Lsn>): Promise<Lsn> {
    const ms = clock.monotonicMs();
    const end = await readEnd();
    this.looked(end, ms);
    return end;
  }

  /** How long before `nowMs` the moment was. */
  ageMs(f: Lsn, nowMs: number): number | null {
    const ms = this.of(f);
    return ms === null ? null : nowMs - ms;
  }

  /** `end`: the end of the WAL as seen by a look that began at `ms`. */
  looked(end: Lsn, ms: number): void {
    this.#looks.push({ end, ms });
    if (this.#looks.length > MAX_LOOKS) this.#looks = this.#looks.filter((_, i) => i % 2 === 1);
  }

  /** The moment; null before F has passed the first look. */
  of(f: Lsn): number | null {
    const at = this.#looks.findLastIndex((look) => look.end <= f);
    // Older ones are not asked for again: F does not go back.
    if (at > 0) this.#looks.splice(0, at);
    return at < 0 ? null : (this.#looks[0]?.ms ?? null);
  }
}
