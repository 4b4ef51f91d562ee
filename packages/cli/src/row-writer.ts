/**
 * Column batches as text for people and programs, written as they come: memory does not grow with the result.
 * Every value is exact: a 64-bit integer or a decimal that a JSON number cannot carry through a double is a string.
 */
import { type Column, type ColumnBatch, type ColumnSpec, isVarColumn } from "@spillway/base/columns";
import { NATIVE_TYPES } from "@spillway/base/pg-types";
import { columnBuilder, planColumn } from "@spillway/pg/columns/plan";
import { textOf } from "@spillway/pg/columns/text-out";
import type { TextField } from "@spillway/pg/wire/query";

export type RowFormat = "table" | "csv" | "json" | "ndjson";
export const ROW_FORMATS: readonly RowFormat[] = ["table", "csv", "json", "ndjson"];

export interface RowWriter {
  /** Text for the batch; may be empty while widths are still being found. */
  batch(batch: ColumnBatch): string;
  /** What is left, after the last batch. `facts` go into the one line of `json`. */
  end(facts: Readonly<Record<string, unknown>>): string;
}

export function rowWriter(format: RowFormat, columns: readonly ColumnSpec[]): RowWriter {
  switch (format) {
    case "table":
      return new TableWriter(columns);
    case "csv":
      return new CsvWriter(columns);
    case "json":
      return new JsonWriter(columns);
    case "ndjson":
      return new NdjsonWriter(columns);
  }
}

/** Rows from which the widths of a table's columns are taken. */
const SAMPLE_ROWS = 500;
const WIDEST = 200;

class TableWriter implements RowWriter {
  readonly #columns: readonly ColumnSpec[];
  #sample: string[][] | null = [];
  #widths: number[] = [];

  constructor(columns: readonly ColumnSpec[]) {
    this.#columns = columns;
  }

  batch(batch: ColumnBatch): string {
    let text = "";
    for (let row = 0; row < batch.length; row++) {
      const cells = batch.columns.map((column) => cellOf(textOf(column, row)));
      if (this.#sample === null) text += this.#line(cells);
      else {
        this.#sample.push(cells);
        if (this.#sample.length >= SAMPLE_ROWS) text += this.#flush();
      }
    }
    return text;
  }

  end(): string {
    return this.#flush();
  }

  #flush(): string {
    const sample = this.#sample;
    if (sample === null) return "";
    this.#sample = null;
    const names = this.#columns.map((c) => cellOf(c.name));
    this.#widths = names.map((name, i) =>
      Math.min(WIDEST, Math.max(name.length, ...sample.map((r) => r[i]?.length ?? 0))),
    );
    const rule = this.#widths.map((width) => "-".repeat(width)).join("  ");
    return `${this.#line(names)}${rule}\n${sample.map((cells) => this.#line(cells)).join("")}`;
  }

  #line(cells: readonly string[]): string {
    const padded = cells.map((text, i) => {
      const width = this.#widths[i] ?? 0;
      return NUMBERS.has(this.#columns[i]?.kind ?? "text") ? text.padStart(width) : text.padEnd(width);
    });
    return `${padded.join("  ").trimEnd()}\n`;
  }
}

const NUMBERS = new Set(["int16", "int32", "int64", "float32", "float64", "decimal"]);

/** One line: control characters are shown as escapes. */
function cellOf(text: string | null): string {
  if (text === null) return "NULL";
  return text.replace(
    CONTROL,
    (c) => CONTROL_NAMES[c] ?? `\\x${(c.codePointAt(0) ?? 0).toString(16).padStart(2, "0")}`,
  );
}

const CONTROL = /\p{Cc}/gu;
const CONTROL_NAMES: Readonly<Record<string, string>> = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };

/** RFC 4180 with a header. NULL is empty, the empty text is `""`, as Postgres's COPY has it. */
class CsvWriter implements RowWriter {
  #head: string;

  constructor(columns: readonly ColumnSpec[]) {
    this.#head = `${columns.map((c) => csvCell(c.name)).join(",")}\n`;
  }

  batch(batch: ColumnBatch): string {
    let text = this.#takeHead();
    for (let row = 0; row < batch.length; row++) {
      text += `${batch.columns.map((column) => csvCell(textOf(column, row))).join(",")}\n`;
    }
    return text;
  }

  end(): string {
    return this.#takeHead();
  }

  #takeHead(): string {
    const head = this.#head;
    this.#head = "";
    return head;
  }
}

function csvCell(text: string | null): string {
  if (text === null) return "";
  return text === "" || /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** One line: `{"columns":[{"name","type"}],"rows":[[…]],…}`. */
class JsonWriter implements RowWriter {
  #text: string;
  #first = true;

  constructor(columns: readonly ColumnSpec[]) {
    const shapes = columns.map(({ name, kind }) => ({ name, type: kind }));
    this.#text = `{"columns":${JSON.stringify(shapes)},"rows":[`;
  }

  batch(batch: ColumnBatch): string {
    let text = this.#text;
    this.#text = "";
    for (let row = 0; row < batch.length; row++) {
      text += `${this.#first ? "" : ","}[${batch.columns.map((column) => jsonCell(column, row)).join(",")}]`;
      this.#first = false;
    }
    return text;
  }

  end(facts: Readonly<Record<string, unknown>>): string {
    const rest = Object.entries(facts).map(([key, value]) => `,${JSON.stringify(key)}:${JSON.stringify(value)}`);
    return `${this.#text}]${rest.join("")}}\n`;
  }
}

/** An object a line; of columns with the same name, the later ones get a number behind it. */
class NdjsonWriter implements RowWriter {
  readonly #keys: readonly string[];

  constructor(columns: readonly ColumnSpec[]) {
    const seen = new Map<string, number>();
    this.#keys = columns.map(({ name }) => {
      const times = (seen.get(name) ?? 0) + 1;
      seen.set(name, times);
      return JSON.stringify(times === 1 ? name : `${name}_${times}`);
    });
  }

  batch(batch: ColumnBatch): string {
    let text = "";
    for (let row = 0; row < batch.length; row++) {
      text += `{${batch.columns.map((column, i) => `${this.#keys[i]}:${jsonCell(column, row)}`).join(",")}}\n`;
    }
    return text;
  }

  end(): string {
    return "";
  }
}

/** Digits that every reader keeps when it reads a number as a double. */
const SAFE_DIGITS = 15;

function jsonCell(column: Column, row: number): string {
  const text = textOf(column, row);
  if (text === null) return "null";
  if (isVarColumn(column)) return JSON.stringify(text);
  switch (column.spec.kind) {
    case "bool":
    case "int16":
    case "int32":
      return text;
    case "int64":
      return Number.isSafeInteger(Number(text)) ? text : JSON.stringify(text);
    case "decimal":
      return text.replace(/[-.]/g, "").replace(/^0+/, "").length <= SAFE_DIGITS ? text : JSON.stringify(text);
    case "float32":
    case "float64":
      return Number.isFinite(Number(text)) && text !== "-0" ? text : JSON.stringify(text);
    default:
      return JSON.stringify(text);
  }
}

/** Rows that Postgres gave as text, as one batch. Types that have no form of their own stay text. */
export function batchOfTexts(
  fields: readonly TextField[],
  rows: readonly (readonly (string | null)[])[],
): ColumnBatch & { readonly specs: readonly ColumnSpec[] } {
  const columns = fields.map(({ name, typeOid, typmod }, i) => {
    const native = NATIVE_TYPES.some((t) => t.oid === typeOid);
    const type = {
      oid: native ? typeOid : TEXT_OID,
      typmod,
      name: "",
      typtype: "b",
      category: "",
      schema: "pg_catalog",
    };
    const builder = columnBuilder(planColumn(name, type));
    for (const row of rows) {
      const text = row[i] ?? null;
      const bytes = Buffer.from(text ?? "", "utf8");
      if (text === null) builder.appendNull();
      else builder.appendText(bytes, 0, bytes.length);
    }
    return builder.finish();
  });
  return { length: rows.length, columns, specs: columns.map((c) => c.spec) };
}

const TEXT_OID = 25;
