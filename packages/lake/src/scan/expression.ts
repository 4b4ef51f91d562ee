/**
 * Filters on columns by field id. SQL's three-valued logic: a row is in the result when the filter is
 * true for it. Strings compare by their UTF-8 bytes, uuid and binary by unsigned bytes, NaN equals
 * itself and is the greatest value. A database with another collation must not push down an order.
 */
import { SpillwayError } from "@spillway/base/errors";
import type { PrimitiveType, PrimitiveValue, Schema } from "../model.ts";
import { placeById } from "../schema.ts";
import { isPrimitive, printPrimitiveType } from "../types.ts";

export type CompareOp = "=" | "!=" | "<" | "<=" | ">" | ">=";
export type UnaryOp = "is-null" | "not-null" | "is-nan" | "not-nan";

export type Expr =
  | { readonly op: "true" | "false" }
  | { readonly op: "and" | "or"; readonly args: readonly Expr[] }
  | { readonly op: "not"; readonly arg: Expr }
  | { readonly op: CompareOp; readonly fieldId: number; readonly value: PrimitiveValue }
  | { readonly op: "in" | "not-in"; readonly fieldId: number; readonly values: readonly PrimitiveValue[] }
  | { readonly op: UnaryOp; readonly fieldId: number }
  | { readonly op: "starts-with" | "not-starts-with"; readonly fieldId: number; readonly value: string };

export const TRUE: Expr = { op: "true" };
export const FALSE: Expr = { op: "false" };

/** `a and b and …`, flattened; constants are taken out. */
export function and(...args: readonly Expr[]): Expr {
  return joined("and", args, FALSE, TRUE);
}

export function or(...args: readonly Expr[]): Expr {
  return joined("or", args, TRUE, FALSE);
}

function joined(op: "and" | "or", args: readonly Expr[], absorbing: Expr, neutral: Expr): Expr {
  const flat: Expr[] = [];
  for (const arg of args) {
    if (arg.op === absorbing.op) return absorbing;
    if (arg.op === neutral.op) continue;
    if (arg.op === op) flat.push(...(arg as { args: readonly Expr[] }).args);
    else flat.push(arg);
  }
  const [first] = flat;
  return first === undefined ? neutral : flat.length === 1 ? first : { op, args: flat };
}

const NEGATED = {
  "=": "!=",
  "!=": "=",
  "<": ">=",
  ">=": "<",
  "<=": ">",
  ">": "<=",
  in: "not-in",
  "not-in": "in",
  "is-null": "not-null",
  "not-null": "is-null",
  "is-nan": "not-nan",
  "not-nan": "is-nan",
  "starts-with": "not-starts-with",
  "not-starts-with": "starts-with",
} as const;

/** The same filter without `not`: pushed down to the predicates, which is exact in three-valued logic. */
export function withoutNot(expr: Expr, negate = false): Expr {
  switch (expr.op) {
    case "true":
    case "false":
      return negate ? (expr.op === "true" ? FALSE : TRUE) : expr;
    case "not":
      return withoutNot(expr.arg, !negate);
    case "and":
    case "or": {
      const args = expr.args.map((arg) => withoutNot(arg, negate));
      return (expr.op === "and") === negate ? or(...args) : and(...args);
    }
    default:
      return negate ? ({ ...expr, op: NEGATED[expr.op] } as Expr) : expr;
  }
}

/** A value in the form in which it is compared: bytes for text, uuid and binary; else as it is. */
export type Comparable = number | bigint | boolean | Uint8Array;

export interface Literal {
  readonly value: PrimitiveValue;
  readonly compared: Comparable;
}

/** A predicate bound to its column. */
export interface Predicate {
  readonly source: Expr;
  readonly fieldId: number;
  readonly type: PrimitiveType;
  readonly op: Exclude<Expr["op"], "true" | "false" | "and" | "or" | "not">;
  /** One for a comparison or a prefix, any number for a list, none otherwise. */
  readonly literals: readonly Literal[];
  /** The literal is not exactly a value of the column (0.1 for a float): it decides nothing for sure. */
  readonly inexact: boolean;
}

export type BoundExpr =
  | { readonly kind: "constant"; readonly source: Expr }
  | { readonly kind: "and" | "or"; readonly args: readonly BoundExpr[]; readonly source: Expr }
  | { readonly kind: "predicate"; readonly predicate: Predicate; readonly source: Expr };

/** Checks the filter against the schemas (the first that has a column decides). Throws `lake_expression_invalid`. */
export function bind(expr: Expr, schemas: readonly Schema[]): BoundExpr {
  return bindPlain(withoutNot(expr), schemas);
}

function bindPlain(expr: Expr, schemas: readonly Schema[]): BoundExpr {
  switch (expr.op) {
    case "true":
    case "false":
      return { kind: "constant", source: expr };
    case "and":
    case "or":
      return { kind: expr.op, args: expr.args.map((arg) => bindPlain(arg, schemas)), source: expr };
    case "not":
      return bindPlain(withoutNot(expr), schemas);
    default:
      return { kind: "predicate", predicate: bindPredicate(expr, schemas), source: expr };
  }
}

type PlainExpr = Exclude<Expr, { op: "true" | "false" | "and" | "or" | "not" }>;

function bindPredicate(expr: PlainExpr, schemas: readonly Schema[]): Predicate {
  const type = columnType(expr.fieldId, schemas);
  const values = "values" in expr ? expr.values : "value" in expr ? [expr.value] : [];
  const given = values.map((value) => literalOf(type, value));
  const rounded = type.kind === "float" ? given.flatMap(withFloat) : given;
  const prefix = expr.op === "starts-with" || expr.op === "not-starts-with";
  if (prefix && type.kind !== "string") throw invalid(`a prefix of ${printPrimitiveType(type)}`);
  const inexact = rounded.length !== given.length;
  return { source: expr, fieldId: expr.fieldId, type, op: expr.op, literals: rounded, inexact };
}

function columnType(fieldId: number, schemas: readonly Schema[]): PrimitiveType {
  for (const schema of schemas) {
    const place = placeById(schema, fieldId);
    if (!place) continue;
    if (place.repeated || !isPrimitive(place.field.type)) throw invalid(`${place.path}, which is no single value`);
    return place.field.type;
  }
  throw invalid(`the field id ${fieldId}, which the table does not have`);
}

const encoder = new TextEncoder();

function literalOf(type: PrimitiveType, value: PrimitiveValue): Literal {
  return { value, compared: comparable(type, value) };
}

/** The value in the form in which it is compared. Throws `lake_expression_invalid` for one of another type. */
export function comparable(type: PrimitiveType, value: PrimitiveValue): Comparable {
  switch (type.kind) {
    case "string":
      if (typeof value === "string") return encoder.encode(value);
      break;
    case "uuid":
    case "fixed":
    case "binary":
      if (value instanceof Uint8Array) return value;
      break;
    case "boolean":
      if (typeof value === "boolean") return value;
      break;
    case "float":
    case "double":
      if (typeof value === "number") return value;
      break;
    case "decimal":
      if (typeof value === "bigint") return value;
      break;
    default:
      // Integers and times: numbers and bigints compare with each other.
      if (typeof value === "bigint" || (typeof value === "number" && Number.isInteger(value))) return value;
  }
  throw invalid(`${printPrimitiveType(type)} compared with ${typeof value}`);
}

/** A double that is not exactly a float: engines may round either side, so both count. */
function withFloat(literal: Literal): Literal[] {
  const value = literal.value as number;
  const rounded = Math.fround(value);
  return Object.is(rounded, value) || Number.isNaN(value)
    ? [literal]
    : [literal, { value: rounded, compared: rounded }];
}

function invalid(what: string): SpillwayError {
  return new SpillwayError("lake_expression_invalid", `The filter names ${what}.`);
}
