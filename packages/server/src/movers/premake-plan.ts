/** Which partitions to make next, how wide, and what to call them: in the style of those that are there. Pure. */
import { civilFromDays, daysFromCivil, floorDiv } from "@spillway/lake/calendar";
import { type KeyKind, keyText, type Partition, truncateBytes } from "../catalog/catalog.ts";

export type Step =
  | { readonly kind: "fixed"; readonly width: bigint }
  | { readonly kind: "months"; readonly months: number };

export interface NewPartition {
  readonly lo: bigint;
  readonly hi: bigint;
  readonly name: string;
}

const US_PER_DAY = 86_400_000_000n;
const MAX_KEY = (1n << 63n) - 1n;

type Bounds = Pick<Partition, "lo" | "hi" | "unbounded" | "name">;

/** The width to go on with: as told, or that of the last partitions; null when they have no common one. */
export function stepOf(
  kind: KeyKind,
  told: { readonly width: bigint | null; readonly months: number | null },
  leaves: readonly Bounds[],
): Step | null {
  if (told.months !== null) return { kind: "months", months: told.months };
  if (told.width !== null) return { kind: "fixed", width: told.width };
  const last = leaves.filter((l) => !l.unbounded && l.lo > -(1n << 63n)).slice(-2);
  if (last.length === 0) return null;
  if (kind !== "int") {
    const months = last.map((l) => monthsBetween(kind, l.lo, l.hi));
    const [first] = months;
    if (first && months.every((m) => m === first)) return { kind: "months", months: first };
  }
  const widths = last.map((l) => l.hi - l.lo);
  const [width] = widths;
  return width !== undefined && widths.every((w) => w === width) ? { kind: "fixed", width } : null;
}

/** Whole months from one first of a month (UTC) to another; null when either is none. */
function monthsBetween(kind: KeyKind, lo: bigint, hi: bigint): number | null {
  const [a, b] = [monthOf(kind, lo), monthOf(kind, hi)];
  return a === null || b === null ? null : b - a;
}

function monthOf(kind: KeyKind, key: bigint): number | null {
  const days = kind === "date" ? key : floorDiv(key, US_PER_DAY);
  if (kind !== "date" && key !== days * US_PER_DAY) return null;
  const { year, month, day } = civilFromDays(Number(days));
  return day === 1 ? year * 12 + month - 1 : null;
}

function keyOfMonth(kind: KeyKind, month: number): bigint {
  const days = BigInt(daysFromCivil({ year: Math.floor(month / 12), month: (month % 12) + 1, day: 1 }));
  return kind === "date" ? days : days * US_PER_DAY;
}

/** The partition of the grid that holds `key`; the grid goes through `anchor`, a bound that exists. Null beyond the type's range. */
export function gridRange(kind: KeyKind, step: Step, anchor: bigint, key: bigint): { lo: bigint; hi: bigint } | null {
  if (step.kind === "fixed") {
    const lo = anchor + floorDiv(key - anchor, step.width) * step.width;
    const hi = lo + step.width;
    return hi > MAX_KEY ? null : { lo, hi };
  }
  const start = monthOf(kind, anchor);
  if (start === null) return null;
  const days = Number(kind === "date" ? key : floorDiv(key, US_PER_DAY));
  const { year, month } = civilFromDays(days);
  const index = Math.floor((year * 12 + month - 1 - start) / step.months);
  const first = start + index * step.months;
  return { lo: keyOfMonth(kind, first), hi: keyOfMonth(kind, first + step.months) };
}

export interface PremakeInput {
  readonly kind: KeyKind;
  readonly tableName: string;
  readonly step: Step;
  /** In key order, without the default. */
  readonly leaves: readonly Bounds[];
  /** How many of the highest leaves are empty. */
  readonly emptyAtTop: number;
  /** How many are wanted. */
  readonly wanted: number;
  /** Keys at or above the cut-line that rows in the landing have: each needs a partition. */
  readonly landed: readonly bigint[];
  /** The cut-line: nothing is made below it. */
  readonly t: bigint;
}

/** What to make, in key order. */
export function planPremake(input: PremakeInput): NewPartition[] {
  const { kind, step, leaves } = input;
  const top = leaves.at(-1);
  if (!top) return [];
  const anchor = top.unbounded ? top.lo : top.hi;
  const ranges = new Map<bigint, { lo: bigint; hi: bigint }>();
  const add = (key: bigint): void => {
    const range = gridRange(kind, step, anchor, key);
    const free = range && clip(range, leaves, input.t, key);
    if (free) ranges.set(free.lo, free);
  };
  for (const key of input.landed) add(key);
  if (!top.unbounded) {
    // New partitions with rows make the empty ones above them, if any, no fewer; only the top counts.
    const highest = [...ranges.values()].reduce((max, r) => (r.hi > max ? r.hi : max), top.hi);
    const missing = highest > top.hi ? input.wanted : input.wanted - input.emptyAtTop;
    let next = highest;
    for (let i = 0; i < missing; i++) {
      const range = gridRange(kind, step, anchor, next);
      if (!range) break;
      ranges.set(range.lo, range);
      next = range.hi;
    }
  }
  const sorted = [...ranges.values()].toSorted((a, b) => (a.lo < b.lo ? -1 : 1));
  return sorted.map((r) => ({ lo: r.lo, hi: r.hi, name: nameOf(input, r) }));
}

/** A grid range that meets partitions which do not follow the grid shrinks to the gap around the key. */
function clip(
  range: { lo: bigint; hi: bigint },
  leaves: readonly Bounds[],
  t: bigint,
  key: bigint,
): { lo: bigint; hi: bigint } | null {
  let { lo, hi } = range;
  if (lo < t) lo = t;
  for (const leaf of leaves) {
    if (key >= leaf.lo && (key < leaf.hi || leaf.unbounded)) return null;
    if (leaf.hi <= key && leaf.hi > lo) lo = leaf.hi;
    if (leaf.lo > key && leaf.lo < hi) hi = leaf.lo;
  }
  return lo <= key && key < hi ? { lo, hi } : null;
}

type Format = (kind: KeyKind, lo: bigint, hi: bigint) => string | null;

function dateParts(kind: KeyKind, key: bigint): { y: string; m: string; d: string; h: string } | null {
  if (kind === "int") return null;
  const text = keyText(kind, key);
  const match = /^(\d{4,})-(\d\d)-(\d\d)(?: (\d\d))?/.exec(text);
  return match && !text.endsWith("BC")
    ? { y: match[1] ?? "", m: match[2] ?? "", d: match[3] ?? "", h: match[4] ?? "00" }
    : null;
}

/** The styles that are recognized, the most exact first. */
const FORMATS: readonly Format[] = [
  ...["_", "-", ""].flatMap((sep): Format[] => [
    (kind, lo) => join(dateParts(kind, lo), ["y", "m", "d", "h"], sep),
    (kind, lo) => join(dateParts(kind, lo), ["y", "m", "d"], sep),
    (kind, lo) => join(dateParts(kind, lo), ["y", "m"], sep),
  ]),
  (kind, lo) => join(dateParts(kind, lo), ["y"], ""),
  (kind, lo, hi) => (kind === "int" ? `${lo}_${hi}` : null),
  (kind, lo) => (kind === "int" ? String(lo) : null),
  (kind, _lo, hi) => (kind === "int" ? String(hi) : null),
];

function join(
  parts: ReturnType<typeof dateParts>,
  keys: readonly ("y" | "m" | "d" | "h")[],
  sep: string,
): string | null {
  return parts && keys.map((k) => parts[k]).join(sep);
}

/** The name in the style of the last two partitions; else the table's name, `_p`, and the lower bound. */
function nameOf(input: PremakeInput, range: { lo: bigint; hi: bigint }): string {
  const { kind, leaves } = input;
  const samples = leaves.filter((l) => !l.unbounded).slice(-2);
  for (const format of FORMATS) {
    const around = samples.map((leaf) => split(leaf.name, format(kind, leaf.lo, leaf.hi)));
    const [first] = around;
    if (first && around.every((a) => a?.before === first.before && a.after === first.after)) {
      const text = format(kind, range.lo, range.hi);
      if (text !== null) return `${first.before}${text}${first.after}`;
    }
  }
  const lo = keyText(kind, range.lo)
    .replace(/\+00$/, "")
    .replace(/ 00:00:00$/, "");
  const suffix = `_p${lo.replace(/-/g, kind === "int" ? "minus" : "_").replace(/[^A-Za-z0-9_]/g, "_")}`;
  return `${truncateBytes(input.tableName, 63 - suffix.length)}${suffix}`;
}

/** Where the text stands in the name, as a number of its own; the last place counts. */
function split(name: string, text: string | null): { before: string; after: string } | null {
  if (text === null) return null;
  const at = name.lastIndexOf(text);
  if (at <= 0) return null;
  const before = name.slice(0, at);
  const after = name.slice(at + text.length);
  return /\d$/.test(before) || /^\d/.test(after) ? null : { before, after };
}
