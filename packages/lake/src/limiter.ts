/** Runs at most `parallel` pieces of work at once, in the order in which they were asked for. */
export type Limiter = <T>(work: () => Promise<T>) => Promise<T>;

export function limiter(parallel: number): Limiter {
  let running = 0;
  const waiting: (() => void)[] = [];
  return async (work) => {
    if (running >= parallel) await new Promise<void>((resolve) => waiting.push(resolve));
    else running++;
    try {
      return await work();
    } finally {
      const next = waiting.shift();
      if (next) next();
      else running--;
    }
  };
}
