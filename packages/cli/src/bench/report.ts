/** The one form in which every bench and chaos command reports: one JSON line, exit code 1 if a bar fails. */

export interface Bar {
  readonly value: number;
  readonly limit: number;
  readonly ok: boolean;
}

export interface BenchReport {
  readonly bench: string;
  readonly ok: boolean;
  readonly bars: Readonly<Record<string, Bar>>;
  /** The raw figures beside. */
  readonly [raw: string]: unknown;
}

/** What a bench is handed. */
export interface BenchRun {
  /** Scale everything down to under 50 seconds. */
  readonly quick: boolean;
  readonly signal: AbortSignal;
  /** The value of `--name`, or the default. */
  readonly option: (name: string, fallback: number) => number;
  /** What is going on, for people. */
  readonly say: (text: string) => void;
}

export type Bench = (run: BenchRun) => Promise<BenchReport>;

export function atMost(value: number, limit: number): Bar {
  return { value: round(value), limit, ok: value <= limit };
}

export function atLeast(value: number, limit: number): Bar {
  return { value: round(value), limit, ok: value >= limit };
}

export function report(bench: string, bars: Record<string, Bar>, raw: Record<string, unknown>): BenchReport {
  return { bench, ok: Object.values(bars).every((b) => b.ok), bars, ...raw };
}

export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}

/** The q-quantile, linearly interpolated. */
export function quantile(values: readonly number[], q: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  const at = (sorted.length - 1) * q;
  const [low, high] = [sorted[Math.floor(at)], sorted[Math.ceil(at)]];
  if (low === undefined || high === undefined) return Number.NaN;
  return low + (high - low) * (at - Math.floor(at));
}

export function geometricMean(values: readonly number[]): number {
  return Math.exp(values.reduce((sum, v) => sum + Math.log(v), 0) / values.length);
}

function round(value: number): number {
  return Number(value.toPrecision(4));
}
