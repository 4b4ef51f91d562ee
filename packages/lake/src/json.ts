/**
 * JSON without loss: integers that are not safe (2^53 and beyond: snapshot ids, row ids) survive as bigint both ways.
 * Smaller integers, and whatever is written with a fraction or an exponent, are numbers, as JSON.parse gives them.
 */
import { SpillwayError } from "@spillway/base/errors";

export type JsonValue = null | boolean | number | bigint | string | JsonValue[] | JsonObject;
export interface JsonObject {
  [key: string]: JsonValue;
}

const MAX_DEPTH = 200;

/** Parses a whole text. Throws SyntaxError with the offset. */
export function parseJson(text: string): JsonValue {
  // The usual text has no long run of digits: then the built-in parser is exact, and faster.
  if (!/\d{16}/.test(text)) return JSON.parse(text) as JsonValue;
  return new Parser(text).whole();
}

class Parser {
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
  }

  whole(): JsonValue {
    const value = this.#value(0);
    this.#space();
    if (this.#at !== this.#text.length) this.#fail("unexpected text after the value");
    return value;
  }

  #fail(what: string): never {
    throw new SyntaxError(`${what} at offset ${this.#at}`);
  }

  #space(): void {
    for (;;) {
      const c = this.#text.charCodeAt(this.#at);
      if (c === 32 || c === 10 || c === 13 || c === 9) this.#at += 1;
      else return;
    }
  }

  #value(depth: number): JsonValue {
    if (depth > MAX_DEPTH) this.#fail("nesting too deep");
    this.#space();
    const c = this.#text[this.#at];
    if (c === "{") return this.#object(depth);
    if (c === "[") return this.#array(depth);
    if (c === '"') return this.#string();
    if (c === "t") return this.#word("true", true);
    if (c === "f") return this.#word("false", false);
    if (c === "n") return this.#word("null", null);
    return this.#number();
  }

  #word<T extends JsonValue>(word: string, value: T): T {
    if (!this.#text.startsWith(word, this.#at)) this.#fail("unexpected character");
    this.#at += word.length;
    return value;
  }

  #object(depth: number): JsonObject {
    const entries: [string, JsonValue][] = [];
    this.#at += 1;
    this.#space();
    if (this.#take("}")) return {};
    do {
      this.#space();
      if (this.#text[this.#at] !== '"') this.#fail("expected a key");
      const key = this.#string();
      this.#space();
      if (!this.#take(":")) this.#fail("expected ':'");
      entries.push([key, this.#value(depth + 1)]);
      this.#space();
    } while (this.#take(","));
    if (!this.#take("}")) this.#fail("expected ',' or '}'");
    return Object.fromEntries(entries);
  }

  #array(depth: number): JsonValue[] {
    const items: JsonValue[] = [];
    this.#at += 1;
    this.#space();
    if (this.#take("]")) return items;
    do {
      items.push(this.#value(depth + 1));
      this.#space();
    } while (this.#take(","));
    if (!this.#take("]")) this.#fail("expected ',' or ']'");
    return items;
  }

  #take(char: string): boolean {
    if (this.#text[this.#at] !== char) return false;
    this.#at += 1;
    return true;
  }

  #string(): string {
    const start = this.#at;
    let at = start + 1;
    let plain = true;
    for (;;) {
      const c = this.#text.charCodeAt(at);
      if (Number.isNaN(c) || c < 32) this.#fail("bad string");
      if (c === 34) break;
      if (c === 92) {
        plain = false;
        at += 1;
      }
      at += 1;
    }
    this.#at = at + 1;
    return plain ? this.#text.slice(start + 1, at) : (JSON.parse(this.#text.slice(start, at + 1)) as string);
  }

  #number(): number | bigint {
    const pattern = /-?(?:0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?/y;
    pattern.lastIndex = this.#at;
    const match = pattern.exec(this.#text);
    if (!match) this.#fail("unexpected character");
    this.#at = pattern.lastIndex;
    const value = Number(match[0]);
    const integer = match[1] === undefined && match[2] === undefined;
    return integer && !Number.isSafeInteger(value) ? BigInt(match[0]) : value;
  }
}

/** Prints a value; bigints as plain integers. `undefined` members are left out, as JSON.stringify does. */
export function printJson(value: unknown, indent = 0): string {
  return print(value, indent, "\n") ?? "null";
}

function print(value: unknown, indent: number, lead: string): string | undefined {
  if (typeof value === "bigint") return value.toString();
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const inner = indent > 0 ? lead + " ".repeat(indent) : "";
  const outer = indent > 0 ? lead : "";
  if (Array.isArray(value)) {
    if (value.length === 0) return "[]";
    return `[${value.map((item) => inner + (print(item, indent, inner) ?? "null")).join(",")}${outer}]`;
  }
  const parts: string[] = [];
  for (const [key, item] of Object.entries(value)) {
    const text = print(item, indent, inner);
    if (text !== undefined) parts.push(`${inner}${JSON.stringify(key)}:${indent > 0 ? " " : ""}${text}`);
  }
  return parts.length === 0 ? "{}" : `{${parts.join(",")}${outer}}`;
}

/** Reads members of a JSON object with checks; what breaks the format throws `lake_metadata_invalid`. */
export class JsonReader {
  readonly #object: JsonObject;
  readonly #what: string;

  constructor(value: unknown, what: string) {
    if (value === null || typeof value !== "object" || Array.isArray(value)) invalid(`${what} is not an object`);
    this.#object = value as JsonObject;
    this.#what = what;
  }

  raw(key: string): JsonValue | undefined {
    return Object.hasOwn(this.#object, key) ? this.#object[key] : undefined;
  }

  has(key: string): boolean {
    const value = this.raw(key);
    return value !== undefined && value !== null;
  }

  text(key: string): string {
    const value = this.raw(key);
    return typeof value === "string" ? value : this.#bad(key, "a string");
  }

  textOr(key: string): string | undefined {
    return this.has(key) ? this.text(key) : undefined;
  }

  bool(key: string): boolean {
    const value = this.raw(key);
    return typeof value === "boolean" ? value : this.#bad(key, "a boolean");
  }

  /** An integer that a double holds exactly. */
  int(key: string): number {
    const value = this.raw(key);
    return Number.isSafeInteger(value) ? (value as number) : this.#bad(key, "an integer");
  }

  intOr(key: string): number | undefined {
    return this.has(key) ? this.int(key) : undefined;
  }

  long(key: string): bigint {
    const value = this.raw(key);
    if (typeof value === "bigint") return value;
    return Number.isSafeInteger(value) ? BigInt(value as number) : this.#bad(key, "an integer");
  }

  longOr(key: string): bigint | undefined {
    return this.has(key) ? this.long(key) : undefined;
  }

  list(key: string): JsonValue[] {
    const value = this.raw(key);
    return Array.isArray(value) ? value : this.#bad(key, "a list");
  }

  listOr(key: string): JsonValue[] {
    return this.has(key) ? this.list(key) : [];
  }

  longs(key: string): bigint[] {
    return this.list(key).map((value) => {
      if (typeof value === "bigint") return value;
      return Number.isSafeInteger(value) ? BigInt(value as number) : this.#bad(key, "a list of integers");
    });
  }

  ints(key: string): number[] {
    return this.list(key).map((v) => (Number.isSafeInteger(v) ? (v as number) : this.#bad(key, "a list of integers")));
  }

  child(key: string): JsonReader {
    return new JsonReader(this.raw(key) ?? null, `${this.#what}.${key}`);
  }

  /** A map from text to text; foreign writers put numbers and booleans there too. */
  texts(key: string): Record<string, string> {
    if (!this.has(key)) return {};
    return this.child(key).asTexts();
  }

  asTexts(): Record<string, string> {
    const entries = Object.entries(this.#object).filter(([, v]) => v !== null);
    return Object.fromEntries(entries.map(([k, v]) => [k, typeof v === "string" ? v : printJson(v)]));
  }

  keys(): string[] {
    return Object.keys(this.#object);
  }

  #bad(key: string, expected: string): never {
    return invalid(`${this.#what}.${key} is not ${expected}`);
  }
}

export function invalid(message: string): never {
  throw new SpillwayError("lake_metadata_invalid", message);
}
