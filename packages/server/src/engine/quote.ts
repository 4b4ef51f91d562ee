/**
 * Quoting for DuckDB's SQL, which differs from Postgres's: a backslash is never an escape and there is no
 * limit of 63 bytes. A NUL character cannot be written in either.
 */
import { assert } from "@spillway/base/assert";

/** An identifier, always quoted, so that neither case nor keywords matter. */
export function duckIdent(name: string): string {
  assert(!name.includes("\0"), "an identifier holds a NUL character");
  return `"${name.replaceAll('"', '""')}"`;
}

/** A string constant. */
export function duckLiteral(text: string): string {
  assert(!text.includes("\0"), "a string constant holds a NUL character");
  return `'${text.replaceAll("'", "''")}'`;
}

/** A LIST of string constants. */
export function duckList(texts: readonly string[]): string {
  return `[${texts.map(duckLiteral).join(", ")}]`;
}
