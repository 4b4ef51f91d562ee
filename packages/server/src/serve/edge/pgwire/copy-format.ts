/**
 * COPY's text and csv lines. Source: https://www.postgresql.org/docs/current/sql-copy.html (File Formats)
 */
import type { CopyOptions } from "./copy-options.ts";
import { pgError } from "./wire-errors.ts";

const ESCAPES: Readonly<Record<string, string>> = {
  "\\": "\\\\",
  "\b": "\\b",
  "\f": "\\f",
  "\n": "\\n",
  "\r": "\\r",
  "\t": "\\t",
  "\v": "\\v",
};

/** One line of COPY TO, with its end. */
export function copyLine(values: readonly (string | null)[], names: readonly string[], options: CopyOptions): string {
  const { format, delimiter } = options;
  const fields = values.map((value, i) => {
    if (format === "csv") return csvField(value, names[i] ?? "", values.length === 1, options);
    return value === null ? options.nullText : textField(value, delimiter);
  });
  return `${fields.join(delimiter)}\n`;
}

function textField(value: string, delimiter: string): string {
  const escaped = value.replace(/[\\\b\f\n\r\t\v]/g, (c) => ESCAPES[c] ?? c);
  // A tab is escaped already.
  return delimiter === "\t" ? escaped : escaped.replaceAll(delimiter, `\\${delimiter}`);
}

function csvField(value: string | null, name: string, alone: boolean, options: CopyOptions): string {
  const { quote, escape, delimiter, nullText, forceQuote } = options;
  if (value === null) return nullText;
  const forced = forceQuote === "all" || forceQuote.has(name);
  const special = value === nullText || value.includes(delimiter) || value.includes(quote) || /[\r\n]/.test(value);
  // A line that is only \. would end the data for older clients.
  if (!forced && !special && !(alone && value === "\\.")) return value;
  const inner =
    escape === quote
      ? value.replaceAll(quote, quote + quote)
      : value.replaceAll(escape, escape + escape).replaceAll(quote, escape + quote);
  return quote + inner + quote;
}

/** Cuts the bytes of COPY FROM into rows. Chunks may end anywhere. */
export class CopyParser {
  readonly #options: CopyOptions;
  readonly #names: readonly string[];
  readonly #decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  #rest = "";
  #line = 0;
  #over = false;

  constructor(options: CopyOptions, names: readonly string[]) {
    this.#options = options;
    this.#names = names;
  }

  /** Rows that are complete with these bytes. */
  push(chunk: Uint8Array): (string | null)[][] {
    return this.#rows(this.#decode(chunk, true), false);
  }

  /** The last row, which may have no line end. */
  finish(): (string | null)[][] {
    return this.#rows(this.#decode(new Uint8Array(0), false), true);
  }

  #decode(chunk: Uint8Array, stream: boolean): string {
    try {
      return this.#decoder.decode(chunk, { stream });
    } catch {
      throw this.#error("22021", 'invalid byte sequence for encoding "UTF8"');
    }
  }

  #rows(text: string, last: boolean): (string | null)[][] {
    const rows: (string | null)[][] = [];
    const all = this.#rest + text;
    let at = 0;
    while (!this.#over && at < all.length) {
      const end = this.#options.format === "csv" ? this.#csvLineEnd(all, at) : lineEnd(all, at);
      // A CR at the very end may be half of CRLF.
      if (end < 0 || (all[end] === "\r" && end + 1 === all.length && !last)) {
        if (!last) break;
        if (end < 0) {
          this.#take(all.slice(at), rows);
          at = all.length;
          break;
        }
      }
      this.#take(all.slice(at, end), rows);
      at = end + (all[end] === "\r" && all[end + 1] === "\n" ? 2 : 1);
    }
    this.#rest = this.#over ? "" : all.slice(at);
    if (this.#rest.length > MAX_LINE) throw this.#error("54000", "a line is too long");
    return rows;
  }

  #take(line: string, rows: (string | null)[][]): void {
    this.#line += 1;
    if (line === "\\.") {
      this.#over = true;
      return;
    }
    const { format, header } = this.#options;
    const fields = format === "csv" ? this.#csvFields(line) : this.#textFields(line);
    if (this.#line === 1 && header !== "none") {
      if (header === "match") this.#checkHeader(fields);
      return;
    }
    if (fields.length < this.#names.length) {
      throw this.#error("22P04", `missing data for column "${this.#names[fields.length] ?? ""}"`);
    }
    if (fields.length > this.#names.length) throw this.#error("22P04", "extra data after last expected column");
    rows.push(fields);
  }

  #checkHeader(fields: readonly (string | null)[]): void {
    if (fields.length !== this.#names.length) {
      throw this.#error(
        "22P04",
        `wrong number of fields in header line: got ${fields.length}, expected ${this.#names.length}`,
      );
    }
    for (const [i, name] of this.#names.entries()) {
      if (fields[i] !== name) {
        throw this.#error(
          "22P04",
          `column name mismatch in header line field ${i + 1}: got "${fields[i]}", expected "${name}"`,
        );
      }
    }
  }

  #textFields(line: string): (string | null)[] {
    const { delimiter, nullText } = this.#options;
    const fields: (string | null)[] = [];
    let from = 0;
    for (let at = 0; at <= line.length; at++) {
      if (line[at] === "\\" && at < line.length) {
        at += 1;
        continue;
      }
      if (at < line.length && line[at] !== delimiter) continue;
      const raw = line.slice(from, at);
      fields.push(raw === nullText ? null : unescapeText(raw));
      from = at + 1;
    }
    return fields;
  }

  #csvFields(line: string): (string | null)[] {
    const { delimiter, quote, escape, nullText, forceNotNull, forceNull } = this.#options;
    const fields: (string | null)[] = [];
    let value = "";
    let wasQuoted = false;
    let inQuotes = false;
    for (let at = 0; at <= line.length; at++) {
      const c = line[at];
      if (inQuotes) {
        if (c === undefined) throw this.#error("22P04", "unterminated CSV quoted field");
        const next = line[at + 1];
        if (c === escape && (next === quote || next === escape) && next !== undefined) {
          value += next;
          at += 1;
        } else if (c === quote) inQuotes = false;
        else value += c;
      } else if (c === undefined || c === delimiter) {
        const name = this.#names[fields.length] ?? "";
        const maybe = value === nullText && (!wasQuoted || holds(forceNull, name));
        fields.push(maybe && !(holds(forceNotNull, name) && !wasQuoted) ? null : value);
        value = "";
        wasQuoted = false;
      } else if (c === quote) {
        inQuotes = true;
        wasQuoted = true;
      } else value += c;
    }
    return fields;
  }

  /** Where the line ends, line ends in quotes left out; -1: not yet. */
  #csvLineEnd(text: string, from: number): number {
    const { quote, escape } = this.#options;
    let inQuotes = false;
    for (let at = from; at < text.length; at++) {
      const c = text[at];
      if (inQuotes && c === escape && escape !== quote) at += 1;
      else if (c === quote) inQuotes = !inQuotes;
      else if (!inQuotes && (c === "\n" || c === "\r")) return at;
    }
    return -1;
  }

  #error(sqlstate: string, message: string): Error {
    return pgError(sqlstate, message, { detail: `COPY line ${this.#line}` });
  }
}

const MAX_LINE = 64 << 20;

function holds(names: "all" | ReadonlySet<string>, name: string): boolean {
  return names === "all" || names.has(name);
}

/** A line end of the text format: an escaped one is data. */
function lineEnd(text: string, from: number): number {
  for (let at = from; at < text.length; at++) {
    const c = text[at];
    if (c === "\\") at += 1;
    else if (c === "\n" || c === "\r") return at;
  }
  return -1;
}

const UNESCAPES: Readonly<Record<string, string>> = { b: "\b", f: "\f", n: "\n", r: "\r", t: "\t", v: "\v" };

function unescapeText(raw: string): string {
  if (!raw.includes("\\")) return raw;
  // Octal and hexadecimal escapes are bytes, which may be parts of one character.
  if (!/\\(?:[0-7]|x[0-9a-fA-F])/.test(raw)) return raw.replace(/\\([\s\S])/g, (_, c: string) => UNESCAPES[c] ?? c);
  const parts: Buffer[] = [];
  for (const [whole, octal, hex, plain] of raw.matchAll(/\\([0-7]{1,3})|\\x([0-9a-fA-F]{1,2})|\\([\s\S])|[^\\]+/g)) {
    if (octal !== undefined) parts.push(Buffer.of(Number.parseInt(octal, 8) & 0xff));
    else if (hex !== undefined) parts.push(Buffer.of(Number.parseInt(hex, 16)));
    else parts.push(Buffer.from(plain === undefined ? whole : (UNESCAPES[plain] ?? plain), "utf8"));
  }
  return Buffer.concat(parts).toString("utf8");
}
