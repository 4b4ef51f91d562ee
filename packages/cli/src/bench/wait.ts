/** Asks until there is an answer. */
export async function waitUntil<T>(what: string, ms: number, look: () => T | null | Promise<T | null>): Promise<T> {
  const endMs = performance.now() + ms;
  for (;;) {
    const found = await look();
    if (found !== null) return found;
    if (performance.now() > endMs) throw new Error(`waited ${ms} ms for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
