/** The statement of `sql` and `explain`, its parameters and its time, as they are given on a command line. */
import { readFileSync } from "node:fs";
import { parseDuration } from "@spillway/base/config";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { parseLsn } from "@spillway/base/lsn";
import { SETTINGS } from "@spillway/base/settings";
import { parseJson } from "@spillway/lake/json";
import type { CommandContext } from "./context.ts";
import type { EngineParam } from "@spillway/server/engine/engine";
import { type AsOf, type Freshness, type QueryOptions, verbOf } from "@spillway/server/seam/seam";

const STDIN = 0;
const MAX_BYTES = 16 << 20;

/** From the argument, `--file`, or standard input (`-`): exactly one of them. */
export function readStatement(argument: string | undefined, file: unknown): string {
  if ((argument === undefined) === (file === undefined)) {
    throw new SpillwayError("usage", "give the statement as one argument, with --file, or as - for standard input");
  }
  const source = argument === "-" ? STDIN : typeof file === "string" ? (file === "-" ? STDIN : file) : null;
  const text = source === null ? (argument ?? "") : readText(source);
  if (text.trim() === "") throw new SpillwayError("usage", "the statement is empty");
  return text;
}

function readText(source: string | number): string {
  let bytes: Buffer;
  try {
    bytes = readFileSync(source);
  } catch (error) {
    throw new SpillwayError("usage", `the statement cannot be read: ${messageOf(error)}`, { cause: error });
  }
  if (bytes.length > MAX_BYTES) {
    throw new SpillwayError("limit_exceeded", `a statement has at most ${MAX_BYTES} bytes, this one ${bytes.length}`);
  }
  return bytes.toString("utf8");
}

/** A JSON array: `[42, "x", null, true]`. */
export function readParams(text: unknown): readonly EngineParam[] {
  if (text === undefined) return [];
  let parsed: unknown;
  try {
    parsed = parseJson(String(text));
  } catch (error) {
    throw new SpillwayError("usage", `--params is not JSON: ${messageOf(error)}`);
  }
  const isScalar = (v: unknown): v is EngineParam =>
    v === null || ["string", "number", "boolean", "bigint"].includes(typeof v);
  if (!Array.isArray(parsed) || !parsed.every(isScalar)) {
    throw new SpillwayError("usage", '--params is a JSON array of plain values, such as [42, "x", null]');
  }
  return parsed;
}

/** A snapshot id, or a time with a zone. */
export function readAsOf(value: unknown): AsOf | undefined {
  if (value === undefined) return undefined;
  const text = String(value);
  if (/^\d+$/.test(text)) return { snapshotId: BigInt(text) };
  const isTime = /^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d(:?\d\d)?)?)?$/.test(text);
  const zoned = /(Z|[+-]\d\d(:?\d\d)?)$/.test(text.slice(10))
    ? text
    : `${text}${text.length === 10 ? "T00:00:00" : ""}Z`;
  const timestampMs = isTime ? Date.parse(zoned.replace(" ", "T").replace(/([+-]\d\d)$/, "$1:00")) : Number.NaN;
  if (Number.isNaN(timestampMs)) {
    throw new SpillwayError("usage", `--as-of ${JSON.stringify(text)} is neither a snapshot id nor a time`, {
      remedy: "Give a snapshot id, or a time such as 2026-01-31T12:00:00Z (UTC unless it names a zone).",
    });
  }
  return { timestampMs };
}

/** The moment that is read: `--as-of`, `--as-of-lsn` or `--freshness`, at most one of them. */
export function readMoment(
  run: CommandContext,
  flags: Readonly<Record<string, unknown>>,
): Pick<QueryOptions, "asOf" | "freshness"> {
  const given = [flags["asOf"], flags["asOfLsn"], flags["freshness"]].filter((flag) => flag !== undefined);
  if (given.length > 1) throw new SpillwayError("usage", "--as-of, --as-of-lsn and --freshness exclude each other");
  const asOf = flags["asOfLsn"] === undefined ? readAsOf(flags["asOf"]) : readLsn(flags["asOfLsn"]);
  const freshness = readFreshness(flags["freshness"], run.get(SETTINGS.freshnessTimeout));
  return { ...(asOf ? { asOf } : {}), ...(freshness ? { freshness } : {}) };
}

function readLsn(value: unknown): AsOf {
  try {
    return { lsn: parseLsn(String(value)) };
  } catch {
    throw new SpillwayError("usage", `--as-of-lsn ${JSON.stringify(value)} is not a WAL position such as 16/B374D848`);
  }
}

function readFreshness(value: unknown, timeoutMs: number): Freshness | undefined {
  if (value === undefined) return undefined;
  if (value === "strict") return { kind: "strict", timeoutMs };
  const ms = parseDuration(String(value));
  if (ms === null) {
    throw new SpillwayError(
      "usage",
      `--freshness ${JSON.stringify(value)} is neither strict nor a duration such as 30s`,
    );
  }
  return { kind: "within", ms };
}

/** Whether it is an INSERT, UPDATE or DELETE (or MERGE, which is then refused by name), by its first word, or that after its WITH. */
export function isCorrection(statement: string): boolean {
  const comments = /^(?:\s+|--[^\n]*(?:\n|$)|\/\*[\s\S]*?\*\/)*/;
  const text = statement.replace(comments, "");
  const verb = /^with\b/i.test(text) ? verbOf(text) : (/^\w+/.exec(text)?.[0] ?? "").toLowerCase();
  return ["insert", "update", "delete", "merge"].includes(verb);
}
