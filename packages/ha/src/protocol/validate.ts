/**
 * Small validators for JSON that comes from outside. A validator takes a value and the path to it, and
 * returns the typed value or throws `ha_bad_message` naming the path. Unknown fields are dropped, so that
 * a newer peer may add some; missing ones are an error unless the field is `optional`.
 */
import { SpillwayError } from "@spillway/base/errors";

export type Validator<T> = (value: unknown, path: string) => T;
export type Infer<V> = V extends Validator<infer T> ? T : never;

function bad(path: string, expected: string): never {
  throw new SpillwayError("ha_bad_message", `${path}: expected ${expected}`);
}

export function text(maxLength = 4096): Validator<string> {
  return (v, path) =>
    typeof v === "string" && v.length <= maxLength ? v : bad(path, `a text up to ${maxLength} long`);
}

export const bool: Validator<boolean> = (v, path) => (typeof v === "boolean" ? v : bad(path, "true or false"));

/** A finite number, by default not negative. */
export function number(min = 0, max = Number.MAX_SAFE_INTEGER): Validator<number> {
  return (v, path) =>
    typeof v === "number" && Number.isFinite(v) && v >= min && v <= max
      ? v
      : bad(path, `a number from ${min} to ${max}`);
}

export function int(min = 0, max = Number.MAX_SAFE_INTEGER): Validator<number> {
  return (v, path) =>
    typeof v === "number" && Number.isSafeInteger(v) && v >= min && v <= max
      ? v
      : bad(path, `a whole number from ${min} to ${max}`);
}

export function oneOf<const T extends string>(values: readonly T[]): Validator<T> {
  return (v, path) => values.find((known) => known === v) ?? bad(path, `one of ${values.join(", ")}`);
}

/** A WAL position in its text form. */
export const lsnText: Validator<string> = (v, path) =>
  typeof v === "string" && /^[0-9A-F]{1,8}\/[0-9A-F]{1,8}$/i.test(v)
    ? v
    : bad(path, "a WAL position such as 0/3000060");

/** A formation's or node's name, safe in file names, URLs and labels. */
export const nameText: Validator<string> = (v, path) =>
  typeof v === "string" && /^[a-z0-9][a-z0-9_-]{0,62}$/.test(v)
    ? v
    : bad(path, "a name of lower-case letters, digits, _ and -, at most 63 long");

/** A host name or address; no spaces, no shell or URL syntax. */
export const hostText: Validator<string> = (v, path) =>
  typeof v === "string" && /^[A-Za-z0-9][A-Za-z0-9._:-]{0,254}$/.test(v) ? v : bad(path, "a host name or an address");

export function nullable<T>(inner: Validator<T>): Validator<T | null> {
  return (v, path) => (v === null || v === undefined ? null : inner(v, path));
}

export function optional<T>(inner: Validator<T>, fallback: T): Validator<T> {
  return (v, path) => (v === undefined ? fallback : inner(v, path));
}

export function list<T>(inner: Validator<T>, maxLength = 256): Validator<readonly T[]> {
  return (v, path) =>
    Array.isArray(v) && v.length <= maxLength
      ? v.map((item, i) => inner(item, `${path}[${i}]`))
      : bad(path, `a list of at most ${maxLength}`);
}

type Shape = Readonly<Record<string, Validator<unknown>>>;
type Shaped<S extends Shape> = { readonly [K in keyof S]: Infer<S[K]> };

export function object<S extends Shape>(shape: S): Validator<Shaped<S>> {
  const fields = Object.entries(shape);
  return (v, path) => {
    if (typeof v !== "object" || v === null || Array.isArray(v)) return bad(path, "an object");
    const from = v as Record<string, unknown>;
    return Object.fromEntries(fields.map(([key, inner]) => [key, inner(from[key], `${path}.${key}`)])) as Shaped<S>;
  };
}

/** Parses and validates a body. Throws `ha_bad_message` also for what is no JSON. */
export function parseMessage<T>(validator: Validator<T>, body: string, what: string): T {
  let value: unknown;
  try {
    value = JSON.parse(body);
  } catch (cause) {
    throw new SpillwayError("ha_bad_message", `${what} is not JSON`, { cause });
  }
  return validator(value, what);
}
