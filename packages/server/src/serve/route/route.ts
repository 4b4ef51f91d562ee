/** Which node runs a statement: pure, from what the pool knows at this moment. */

export type NodeRole = "READONLY" | "WRITEONLY" | "DUAL";

export interface Candidate {
  readonly id: string;
  readonly role: NodeRole;
  /** Answered its last probe, and is not being drained. */
  readonly isReady: boolean;
  /** Statements until their last byte. */
  readonly inFlight: number;
  readonly limit: number;
  /** Of its statements' times. */
  readonly ewmaMs: number;
}

/** Whether a node of this role takes reads or writes. */
export function accepts(role: NodeRole, writes: boolean): boolean {
  return role === "DUAL" || role === (writes ? "WRITEONLY" : "READONLY");
}

/**
 * The node with the least to do, among those of an acceptable role that have room; of equals, one that is for nothing else, then
 * the faster one. Null: all are busy, or there is none.
 */
export function pickNode<C extends Candidate>(
  candidates: readonly C[],
  writes: boolean,
  avoid: ReadonlySet<string> = new Set(),
): C | null {
  let best: C | null = null;
  for (const node of candidates) {
    if (!node.isReady || node.inFlight >= node.limit || !accepts(node.role, writes) || avoid.has(node.id)) continue;
    if (best === null || compare(node, best) < 0) best = node;
  }
  return best;
}

function compare(a: Candidate, b: Candidate): number {
  if (a.inFlight !== b.inFlight) return a.inFlight - b.inFlight;
  const shared = Number(a.role === "DUAL") - Number(b.role === "DUAL");
  return shared !== 0 ? shared : a.ewmaMs - b.ewmaMs;
}

/** Weight of the newest statement. */
const ALPHA = 0.3;

export function nextEwma(current: number, ms: number): number {
  return current === 0 ? ms : current + ALPHA * (ms - current);
}
