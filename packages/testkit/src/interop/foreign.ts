/**
 * pyiceberg and DuckDB's Iceberg extension, for tests: a Python process that reads and writes tables
 * and Parquet files, and knows nothing of Spillway. `npm run interop` makes its environment.
 */
import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Schema } from "@spillway/lake/model";
import { schemaToJson } from "@spillway/lake/schema";

/** A value in the form in which it travels: see foreign.py. */
export type Canonical = string | null | readonly Canonical[];
export type CanonicalRow = readonly Canonical[];

export interface ForeignRows {
  readonly names: readonly string[];
  readonly rows: readonly CanonicalRow[];
  /** pyiceberg: how many files its scan read. */
  readonly files?: number;
}

export type Reader = "pyiceberg" | "duckdb";

export interface ReadOptions {
  readonly snapshot?: bigint;
  /** pyiceberg only. */
  readonly ref?: string;
  /** In the reader's own language. */
  readonly where?: string;
}

/** What the foreign side threw: its type and message on one line. */
export class ForeignError extends Error {
  override readonly name = "ForeignError";
}

export class Foreign {
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #waiting: { resolve: (line: string) => void; reject: (error: Error) => void }[] = [];

  private constructor(child: ChildProcessWithoutNullStreams) {
    this.#child = child;
    createInterface({ input: child.stdout }).on("line", (line) => this.#waiting.shift()?.resolve(line));
    child.on("close", (code) => {
      for (const { reject } of this.#waiting.splice(0)) reject(new Error(`the foreign process ended with ${code}`));
    });
  }

  /** Starts the process with the Python that `SPILLWAY_INTEROP` names. */
  static start(): Foreign {
    const python = process.env["SPILLWAY_INTEROP"];
    if (!python) throw new Error("SPILLWAY_INTEROP is not set: run `npm run interop`");
    const child = spawn(python, [join(import.meta.dirname, "foreign.py")], { stdio: ["pipe", "pipe", "pipe"] });
    child.stderr.resume();
    return new Foreign(child);
  }

  async stop(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#child.on("close", () => resolve()));
    this.#child.stdin.end();
    await closed;
  }

  async ask<T>(request: Readonly<Record<string, unknown>>): Promise<T> {
    const answer = new Promise<string>((resolve, reject) => this.#waiting.push({ resolve, reject }));
    this.#child.stdin.write(`${JSON.stringify(request, (_, v: unknown) => (typeof v === "bigint" ? String(v) : v))}\n`);
    const { ok, error } = JSON.parse(await answer) as { ok?: T; error?: string };
    if (error !== undefined) throw new ForeignError(error.replace(/\s+/g, " "));
    return ok as T;
  }

  /** The rows of a table as the reader gives them. */
  read(reader: Reader, metadata: string, options: ReadOptions = {}): Promise<ForeignRows> {
    return this.ask({ op: reader, metadata: metadata.replace(/^file:\/\//, ""), ...options });
  }

  /** Writes a Parquet file with the schema's field ids; gives its size. */
  async writeParquet(path: string, schema: Schema, rows: readonly CanonicalRow[]): Promise<bigint> {
    const local = path.replace(/^file:\/\//, "");
    const { fields } = schemaToJson(schema) as unknown as { fields: unknown };
    const { size } = await this.ask<{ size: number }>({ op: "write-parquet", path: local, fields, rows });
    return BigInt(size);
  }
}
