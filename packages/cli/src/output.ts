/** What people and scripts see: lines, tables, JSON and progress. Colors only on a terminal. */
import { type Column, type ColumnBatch } from "@spillway/base/columns";

export type { Column, ColumnBatch };

export interface Streams {
  readonly out: (text: string) => void;
  readonly err: (text: string) => void;
  /** Resolves when what was written has left this process, or nearly. */
  readonly outDrained?: () => Promise<void>;
  /** Whether the stream is a terminal that wants colors and moving lines. */
  readonly outIsTerminal: boolean;
  readonly errIsTerminal: boolean;
  readonly columns: number;
}

export class Output {
  readonly #streams: Streams;
  readonly json: boolean;
  readonly quiet: boolean;
  #progressShown = false;
  #lastProgressMs = 0;

  constructor(streams: Streams, options: { json: boolean; quiet: boolean }) {
    this.#streams = streams;
    this.json = options.json;
    this.quiet = options.quiet;
  }

  get isTerminal(): boolean {
    return this.#streams.outIsTerminal;
  }

  /** A line for people; nothing with `--json`. */
  line(text = ""): void {
    if (this.json || this.quiet) return;
    this.#endProgress();
    this.#streams.out(`${text}\n`);
  }

  /** The result for scripts: one JSON line; nothing without `--json`. */
  result(value: unknown): void {
    if (this.json) this.#streams.out(`${toJson(value)}\n`);
  }

  /** A line that is printed whether or not `--json` was given. */
  raw(text: string): void {
    this.#endProgress();
    this.#streams.out(text);
  }

  /** Rows of a result: waits while whoever reads them is slower. */
  async stream(text: string): Promise<void> {
    if (text === "") return;
    this.#endProgress();
    this.#streams.out(text);
    await this.#streams.outDrained?.();
  }

  /** A line for people beside the result: on standard error, in no color; nothing with `--json`. */
  note(text: string): void {
    if (this.json || this.quiet) return;
    this.#endProgress();
    this.#streams.err(`${text}\n`);
  }

  error(text: string): void {
    this.#endProgress();
    this.#streams.err(`${this.#streams.errIsTerminal ? `\u001b[31m${text}\u001b[0m` : text}\n`);
  }

  warn(text: string): void {
    this.#endProgress();
    this.#streams.err(`${this.#streams.errIsTerminal ? `\u001b[33m${text}\u001b[0m` : text}\n`);
  }

  /** One moving line on a terminal; a line every five seconds elsewhere. */
  progress(text: string, nowMs: number): void {
    if (this.json || this.quiet) return;
    if (this.#streams.errIsTerminal) {
      this.#streams.err(`\r\u001b[K${text.slice(0, this.#streams.columns - 1)}`);
      this.#progressShown = true;
    } else if (nowMs - this.#lastProgressMs >= 5000) {
      this.#lastProgressMs = nowMs;
      this.#streams.err(`${text}\n`);
    }
  }

  /** A table with a header, columns aligned; numbers to the right. */
  table(header: readonly string[], rows: readonly (readonly string[])[]): void {
    this.line(formatTable(header, rows));
  }

  #endProgress(): void {
    if (!this.#progressShown) return;
    this.#progressShown = false;
    this.#streams.err("\r\u001b[K");
  }
}

export function formatTable(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = header.map((h, i) => Math.max(h.length, ...rows.map((r) => (r[i] ?? "").length)));
  const numeric = header.map((_, i) => rows.length > 0 && rows.every((r) => /^(-?[\d.,]+.?|)$/.test(r[i] ?? "")));
  const cell = (text: string, i: number): string =>
    numeric[i] ? text.padStart(widths[i] ?? 0) : text.padEnd(widths[i] ?? 0);
  const line = (cells: readonly string[]): string => cells.map(cell).join("  ").trimEnd();
  return [line(header), line(widths.map((w) => "-".repeat(w))), ...rows.map(line)].join("\n");
}

/** JSON in which a 64-bit integer stays exact: a number while it is safe, else a string. */
export function toJson(value: unknown): string {
  return JSON.stringify(value, (_key, v: unknown) => {
    if (typeof v !== "bigint") return v;
    const n = Number(v);
    return Number.isSafeInteger(n) ? n : v.toString();
  });
}

export function formatBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}

export function formatCount(count: number | bigint): string {
  return count.toLocaleString("en-US");
}
