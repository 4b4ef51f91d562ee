/** Statements under way at this manager, by the id of their handle, so that an action can end them. */
export class Running {
  readonly #stops = new Map<string, Set<AbortController>>();

  /** `signal` aborts with `call`'s, or when somebody cancels. */
  start(user: string, id: string, call: AbortSignal): { readonly signal: AbortSignal; done(): void } {
    const key = `${user}\0${id}`;
    const stop = new AbortController();
    const all = this.#stops.get(key) ?? new Set();
    all.add(stop);
    this.#stops.set(key, all);
    return {
      signal: AbortSignal.any([call, stop.signal]),
      done: () => {
        all.delete(stop);
        if (all.size === 0) this.#stops.delete(key);
      },
    };
  }

  /** False: nothing of that id runs here. */
  cancel(user: string, id: string): boolean {
    const all = this.#stops.get(`${user}\0${id}`);
    for (const stop of all ?? []) stop.abort();
    return all !== undefined;
  }
}
