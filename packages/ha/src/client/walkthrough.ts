/** Checks of what happened, in the words of the monitor's events. Pure. */

export interface Step {
  readonly node: string | null;
  readonly kind: string;
  readonly from: string;
  readonly to: string;
}

/** The states that a node's keeper reported, in order, without repetitions. */
export function reportedStates(events: readonly Step[], node: string): string[] {
  const states: string[] = [];
  for (const event of events) {
    if (event.node !== node || event.kind !== "reported") continue;
    if (states.at(-1) !== event.to) states.push(event.to);
  }
  return states;
}

/** Whether `wanted` occurs in `seen` in this order, with anything in between. */
export function inOrder(seen: readonly string[], wanted: readonly string[]): boolean {
  let at = 0;
  for (const state of seen) if (state === wanted[at]) at += 1;
  return at === wanted.length;
}
