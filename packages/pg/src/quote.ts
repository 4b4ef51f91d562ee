/**
 * Names and text inside SQL: the one place that quotes them. Values are parameters wherever the statement takes
 * parameters; `quoteLiteral` is for those that do not (DDL, COPY, replication commands).
 * Rules: the "Lexical Structure" chapter of the Postgres documentation.
 */
import { SpillwayError } from "@spillway/base/errors";

/** `name` as a quoted identifier. Refuses the empty name and a NUL, which no identifier can hold. */
export function quoteIdent(name: string): string {
  if (name === "" || name.includes("\0")) {
    throw new SpillwayError("pg_bad_name", `${JSON.stringify(name)} cannot be the name of anything in Postgres`);
  }
  return `"${name.replaceAll('"', '""')}"`;
}

/** `"schema"."name"`. */
export function quoteQualified(schema: string, name: string): string {
  return `${quoteIdent(schema)}.${quoteIdent(name)}`;
}

/**
 * `text` as a string constant, whatever `standard_conforming_strings` says: with a backslash in it, the E'' form.
 * Refuses a NUL, which no text of Postgres can hold.
 */
export function quoteLiteral(text: string): string {
  if (text.includes("\0")) {
    throw new SpillwayError("pg_bad_name", "a text with a NUL character cannot be sent to Postgres");
  }
  const doubled = text.replaceAll("'", "''");
  // The space keeps the E apart from a word before it.
  return doubled.includes("\\") ? ` E'${doubled.replaceAll("\\", "\\\\")}'` : `'${doubled}'`;
}
