/**
 * What a filter is for the rows of a file or manifest, given what is known of its columns: never
 * true, always true, or undecided. The answer is the filter that is left: FALSE, TRUE, or the rest.
 */
import { hashValue } from "../transforms.ts";
import { compareBytes } from "../values.ts";
import {
  and,
  type BoundExpr,
  type Comparable,
  type Expr,
  FALSE,
  type Literal,
  or,
  type Predicate,
  TRUE,
} from "./expression.ts";

/** What is known of one column in a set of rows. All statements are safe: what is unknown may be. */
export interface Facts {
  readonly mayNull: boolean;
  readonly mayNan: boolean;
  /** May hold values that are neither null nor NaN. */
  readonly mayValue: boolean;
  /** Of those values; undefined where unknown. */
  readonly lower?: Comparable | undefined;
  readonly upper?: Comparable | undefined;
  /** The hash buckets that those values lie in. */
  readonly buckets?: Buckets | undefined;
}

export interface Buckets {
  readonly count: number;
  readonly from: number;
  readonly to: number;
}

/** Every independent statement about the column; none if nothing is known. */
export type FactsOf = (fieldId: number) => readonly Facts[];

const NEVER = 0;
const MAYBE = 1;
const ALWAYS = 2;
type Verdict = typeof NEVER | typeof MAYBE | typeof ALWAYS;

/** The filter that is left for these rows. */
export function reduce(expr: BoundExpr, factsOf: FactsOf): Expr {
  switch (expr.kind) {
    case "constant":
      return expr.source;
    case "predicate": {
      const verdict = decide(expr.predicate, factsOf(expr.predicate.fieldId));
      return verdict === NEVER ? FALSE : verdict === ALWAYS ? TRUE : expr.source;
    }
    default:
      return reduceJoined(expr, factsOf);
  }
}

function reduceJoined(expr: BoundExpr & { kind: "and" | "or" }, factsOf: FactsOf): Expr {
  const ends = expr.kind === "and" ? "false" : "true";
  let changed = false;
  const parts: Expr[] = [];
  for (const arg of expr.args) {
    const left = reduce(arg, factsOf);
    if (left.op === ends) return left;
    changed ||= left !== arg.source;
    parts.push(left);
  }
  if (!changed && parts.length > 0) return expr.source;
  return expr.kind === "and" ? and(...parts) : or(...parts);
}

function decide(predicate: Predicate, all: readonly Facts[]): Verdict {
  let verdict: Verdict = MAYBE;
  for (const facts of all) {
    const one = decideOne(predicate, facts);
    if (one === NEVER) return NEVER;
    if (one === ALWAYS) verdict = ALWAYS;
  }
  return verdict;
}

function decideOne(predicate: Predicate, facts: Facts): Verdict {
  const { mayNull, mayNan, mayValue } = facts;
  switch (predicate.op) {
    case "is-null":
      return !mayNull ? NEVER : mayNan || mayValue ? MAYBE : ALWAYS;
    case "not-null":
      return !mayNan && !mayValue ? NEVER : mayNull ? MAYBE : ALWAYS;
    case "is-nan":
      return !mayNan ? NEVER : mayNull || mayValue ? MAYBE : ALWAYS;
    case "not-nan":
      return mayNan && !mayNull && !mayValue ? NEVER : mayNan || mayNull ? MAYBE : ALWAYS;
    default:
      return decideValues(predicate, facts);
  }
}

/** Predicates that no null satisfies, and that look at values. */
function decideValues(predicate: Predicate, facts: Facts): Verdict {
  if (predicate.literals.some((literal) => Number.isNaN(literal.value))) return decideNan(predicate, facts);
  const values = facts.mayValue ? judge(predicate, facts) : null;
  // NaN is the greatest value here, and unordered elsewhere: only where both agree is it sure.
  const nan = facts.mayNan ? nanVerdict(predicate) : null;
  if ((values ?? NEVER) === NEVER && (nan ?? NEVER) === NEVER) return NEVER;
  const sure = !facts.mayNull && !predicate.inexact && (values ?? ALWAYS) === ALWAYS && (nan ?? ALWAYS) === ALWAYS;
  return sure ? ALWAYS : MAYBE;
}

function nanVerdict({ op }: Predicate): Verdict {
  if (op === "!=" || op === "not-in") return ALWAYS;
  return op === ">" || op === ">=" ? MAYBE : NEVER;
}

/** Compared with NaN. Only equality can be decided: it needs a NaN, unless another literal matches. */
function decideNan({ op, literals }: Predicate, facts: Facts): Verdict {
  if (!facts.mayNan && op === "=") return NEVER;
  if (!facts.mayNan && op === "in" && literals.length === 1) return NEVER;
  return facts.mayNan || facts.mayValue ? MAYBE : NEVER;
}

/** For the ordinary values alone. */
function judge(predicate: Predicate, facts: Facts): Verdict {
  const { lower, upper } = facts;
  switch (predicate.op) {
    case "=":
    case "in":
      return judgeIn(predicate.literals, facts);
    case "!=":
    case "not-in":
      // With a rounded literal beside the given one, equality to either says nothing of the other.
      return predicate.inexact ? MAYBE : flip(judgeIn(predicate.literals, facts));
    case "<":
      return judgeBelow(lower, upper, predicate.literals, -1);
    case "<=":
      return judgeBelow(lower, upper, predicate.literals, 0);
    case ">":
      return flip(judgeBelow(lower, upper, predicate.literals, 0));
    case ">=":
      return flip(judgeBelow(lower, upper, predicate.literals, -1));
    case "starts-with":
      return judgePrefix(predicate, facts);
    case "not-starts-with":
      return flip(judgePrefix(predicate, facts));
    default:
      return MAYBE;
  }
}

function flip(verdict: Verdict): Verdict {
  return verdict === NEVER ? ALWAYS : verdict === ALWAYS ? NEVER : MAYBE;
}

function judgeIn(literals: readonly Literal[], facts: Facts): Verdict {
  const { lower, upper } = facts;
  let some = false;
  for (const literal of literals) {
    if (lower !== undefined && compare(literal.compared, lower) < 0) continue;
    if (upper !== undefined && compare(literal.compared, upper) > 0) continue;
    if (facts.buckets && !inBuckets(literal, facts.buckets)) continue;
    if (lower !== undefined && upper !== undefined && compare(lower, upper) === 0) return ALWAYS;
    some = true;
  }
  return some ? MAYBE : NEVER;
}

/** `most` -1: every value strictly below the literal; 0: below or equal. Of several literals, all must agree. */
function judgeBelow(
  lower: Comparable | undefined,
  upper: Comparable | undefined,
  literals: readonly Literal[],
  most: -1 | 0,
): Verdict {
  let verdict: Verdict | undefined;
  for (const { compared } of literals) {
    const all = upper !== undefined && Math.sign(compare(upper, compared)) <= most;
    const none = lower !== undefined && Math.sign(compare(lower, compared)) > most;
    const one = none ? NEVER : all ? ALWAYS : MAYBE;
    if (verdict !== undefined && verdict !== one) return MAYBE;
    verdict = one;
  }
  return verdict ?? MAYBE;
}

function judgePrefix(predicate: Predicate, { lower, upper }: Facts): Verdict {
  const prefix = predicate.literals[0]?.compared as Uint8Array;
  const low = lower as Uint8Array | undefined;
  const high = upper as Uint8Array | undefined;
  if (high !== undefined && compareBytes(high, prefix) < 0) return NEVER;
  if (low !== undefined && compareBytes(low, prefix) > 0 && !startsWith(low, prefix)) return NEVER;
  const both = low !== undefined && high !== undefined && startsWith(low, prefix) && startsWith(high, prefix);
  return both ? ALWAYS : MAYBE;
}

function startsWith(bytes: Uint8Array, prefix: Uint8Array): boolean {
  return bytes.length >= prefix.length && compareBytes(bytes.subarray(0, prefix.length), prefix) === 0;
}

interface HashedLiteral extends Literal {
  readonly hashed?: number;
}

function inBuckets(literal: HashedLiteral, buckets: Buckets): boolean {
  if (literal.hashed === undefined) return true;
  const bucket = (literal.hashed & 0x7fffffff) % buckets.count;
  return bucket >= buckets.from && bucket <= buckets.to;
}

/** The same, each literal's hash computed once: a bucket is then a remainder. */
export function withHashes(expr: BoundExpr): BoundExpr {
  if (expr.kind === "constant") return expr;
  if (expr.kind !== "predicate") return { ...expr, args: expr.args.map(withHashes) };
  const { predicate } = expr;
  const { kind } = predicate.type;
  if (kind === "boolean" || kind === "float" || kind === "double") return expr;
  if (predicate.op !== "=" && predicate.op !== "in" && predicate.op !== "!=" && predicate.op !== "not-in") return expr;
  const literals = predicate.literals.map(({ value, compared }): HashedLiteral => ({
    value,
    compared,
    hashed: hashValue(predicate.type, value),
  }));
  return { ...expr, predicate: { ...predicate, literals } };
}

/** Plain order: -0 equals 0, numbers and bigints mix. */
export function compare(a: Comparable, b: Comparable): number {
  if (a instanceof Uint8Array) return compareBytes(a, b as Uint8Array);
  return a < b ? -1 : a > b ? 1 : 0;
}
