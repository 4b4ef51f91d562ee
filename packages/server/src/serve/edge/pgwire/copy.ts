/** COPY over tables of both tiers: out of a query of the session, into it by INSERTs of one transaction. */
import { scanSync } from "libpg-query";
import { quoteIdent } from "@spillway/pg/quote";
import type { Prepared, WireColumn } from "../../session/session.ts";
import { cellWriter, type Format, requireBinary } from "./cell-writers.ts";
import type { Client } from "./client.ts";
import { BINARY_HEADER, BINARY_TRAILER, BinaryCopyParser } from "./copy-binary.ts";
import { copyLine, CopyParser } from "./copy-format.ts";
import { type CopyOptions, copyOptions } from "./copy-options.ts";
import { OutBuffer } from "./out-buffer.ts";
import type { Plan } from "./plans.ts";
import { stringsOf } from "./sql-tree.ts";
import { type Outcome, plainOutcome, prepareBySession, runBySession } from "./statements.ts";
import { pgError } from "./wire-errors.ts";

export async function copyBySession(client: Client, plan: Plan): Promise<Outcome> {
  const options = copyOptions(plan.body["options"]);
  return plan.body["is_from"] === true ? copyIn(client, plan, options) : copyOut(client, plan, options);
}

async function copyOut(client: Client, plan: Plan, options: CopyOptions): Promise<Outcome> {
  const { engines, out } = client;
  const text = plan.body["query"] === undefined ? tableQuery(plan) : innerQuery(plan.text);
  const prepared = await prepareBySession(engines.session, { text, offset: 0, syntax: null });
  const { cursor } = await runBySession(engines, prepared);
  if (cursor === null) throw pgError("0A000", "COPY query must have a RETURNING clause or be a SELECT");
  const format: Format = options.format === "binary" ? 1 : 0;
  try {
    if (format === 1) for (const column of cursor.columns) requireBinary(column);
    writeCopyResponse(client, "H", format, cursor.columns.length);
    if (format === 1) out.begin("d").bytes(BINARY_HEADER).end();
    const names = cursor.columns.map(({ name }) => name);
    if (options.header !== "none") sendLine(client, copyLine(names, names, options));
    let rows = 0;
    for (;;) {
      const piece = await cursor.take(0);
      if (piece === null) break;
      const writers = cursor.columns.map((wire, i) => {
        const column = piece.batch.columns[i];
        if (!column) throw pgError("XX000", "a batch has fewer columns than were described");
        return cellWriter(column, wire, format, client.textSettings);
      });
      const scratch = new Scratch(client);
      for (let row = piece.from; row < piece.to; row++) {
        if (format === 1) {
          out.begin("d").int16(writers.length);
          for (const write of writers) write(row, out);
          out.end();
        } else {
          sendLine(
            client,
            copyLine(
              writers.map((write) => scratch.text(write, row)),
              names,
              options,
            ),
          );
        }
        if (out.full) await out.relieve();
      }
      rows += piece.to - piece.from;
    }
    if (format === 1) out.begin("d").bytes(BINARY_TRAILER).end();
    out.begin("c").end();
    return plainOutcome(`COPY ${rows}`);
  } finally {
    await cursor.close();
  }
}

/** Takes a value's text out of the form in which fields are written. */
class Scratch {
  readonly #out: OutBuffer;

  constructor(client: Client) {
    this.#out = client.out.scratch();
  }

  text(write: (row: number, out: OutBuffer) => void, row: number): string | null {
    this.#out.at = 0;
    write(row, this.#out);
    const size = this.#out.buffer.readInt32BE(0);
    return size < 0 ? null : this.#out.buffer.toString("utf8", 4, 4 + size);
  }
}

function sendLine({ out }: Client, line: string): void {
  out.begin("d").bytes(Buffer.from(line, "utf8")).end();
}

function writeCopyResponse({ out }: Client, type: "G" | "H", format: Format, columns: number): void {
  out.begin(type).byte(format).int16(columns);
  for (let i = 0; i < columns; i++) out.int16(format);
  out.end();
}

function tableName(plan: Plan): string {
  const relation = plan.body["relation"] as { schemaname?: string; relname?: string };
  const schema = relation.schemaname === undefined ? "" : `${quoteIdent(relation.schemaname)}.`;
  return schema + quoteIdent(relation.relname ?? "");
}

function tableQuery(plan: Plan): string {
  const columns = stringsOf(plan.body["attlist"]);
  return `SELECT ${columns.length === 0 ? "*" : columns.map(quoteIdent).join(", ")} FROM ${tableName(plan)}`;
}

/** The text between the parentheses of `COPY (…) TO`. */
function innerQuery(text: string): string {
  const bytes = Buffer.from(text, "utf8");
  const { tokens } = scanSync(text) as unknown as { tokens: readonly { start: number; end: number; text: string }[] };
  let depth = 0;
  let from = -1;
  for (const token of tokens) {
    if (token.text === "(" && depth++ === 0) from = token.end;
    if (token.text === ")" && --depth === 0) return bytes.toString("utf8", from, token.start);
  }
  throw pgError("42601", "the query of COPY cannot be found");
}

/** Parameters of one INSERT; Postgres's own bound is 65 535. */
const MAX_PARAMS = 16_000;
const MAX_ROWS = 1000;

async function copyIn(client: Client, plan: Plan, options: CopyOptions): Promise<Outcome> {
  const { engines } = client;
  if (plan.body["whereClause"] !== undefined) throw pgError("0A000", "COPY … WHERE is not served on this table");
  const shape = await prepareBySession(engines.session, { text: tableQuery(plan), offset: 0, syntax: null });
  const columns = shape.columns ?? [];
  const names = columns.map(({ name }) => name);
  const format: Format = options.format === "binary" ? 1 : 0;
  // What the INSERTs need is checked before the client is asked for a byte.
  const inserts = new Inserts(client, tableName(plan), columns);
  await inserts.prepare();
  engines.transaction.beginImplicit();
  writeCopyResponse(client, "G", format, columns.length);
  const parser = format === 1 ? new BinaryCopyParser(columns) : new CopyParser(options, names);
  for await (const chunk of client.copyData()) await inserts.add(parser.push(chunk));
  await inserts.add(parser.finish());
  return plainOutcome(`COPY ${await inserts.finish()}`);
}

class Inserts {
  readonly #client: Client;
  readonly #table: string;
  readonly #columns: readonly WireColumn[];
  readonly #rowsPerStatement: number;
  readonly #waiting: (string | null)[][] = [];
  #full: Prepared | null = null;
  #rows = 0;

  constructor(client: Client, table: string, columns: readonly WireColumn[]) {
    this.#client = client;
    this.#table = table;
    this.#columns = columns;
    this.#rowsPerStatement = Math.max(1, Math.min(MAX_ROWS, Math.floor(MAX_PARAMS / Math.max(1, columns.length))));
  }

  async prepare(): Promise<void> {
    await this.#statement(1);
  }

  async add(rows: readonly (string | null)[][]): Promise<void> {
    for (const row of rows) {
      this.#waiting.push(row);
      if (this.#waiting.length >= this.#rowsPerStatement) await this.#send();
    }
  }

  async finish(): Promise<number> {
    if (this.#waiting.length > 0) await this.#send();
    return this.#rows;
  }

  async #send(): Promise<void> {
    const rows = this.#waiting.splice(0);
    const isFull = rows.length === this.#rowsPerStatement;
    const prepared = (isFull ? this.#full : null) ?? (await this.#statement(rows.length));
    if (isFull) this.#full = prepared;
    await runBySession(this.#client.engines, prepared, rows.flat());
    this.#rows += rows.length;
  }

  #statement(rows: number): Promise<Prepared> {
    const names = this.#columns.map(({ name }) => quoteIdent(name)).join(", ");
    const width = this.#columns.length;
    const tuples = Array.from(
      { length: rows },
      (_, row) => `(${this.#columns.map((_c, i) => `$${row * width + i + 1}`).join(", ")})`,
    );
    const types = Array.from({ length: rows }, () => this.#columns.map(({ typeOid }) => typeOid)).flat();
    const text = `INSERT INTO ${this.#table} (${names}) VALUES ${tuples.join(", ")}`;
    return prepareBySession(this.#client.engines.session, { text, offset: 0, syntax: null }, types);
  }
}
