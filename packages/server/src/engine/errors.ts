/** DuckDB's errors are text; this gives each the code that says what to do about it. */
import { isSpillwayError, messageOf, SpillwayError, type ErrorCode } from "@spillway/base/errors";

const RULES: readonly (readonly [RegExp, ErrorCode])[] = [
  [/^INTERRUPT Error|^Interrupted!/i, "engine_interrupted"],
  [/No space left on device|Disk quota exceeded|max_temp_directory_size/i, "disk_full"],
  [/^Out of Memory Error|failed to (pin|allocate)|could not allocate/i, "engine_out_of_memory"],
  [/No files found that match|Cannot open file "[^"]*\.parquet".*No such file/is, "engine_file_missing"],
  [
    /magic bytes|too small to be a Parquet|TProtocolException|Failed to read Parquet|Invalid Parquet|corrupt|^Serialization Error|thrift|Parquet.*(?:invalid|page|footer)|ZSTD|Snappy decompression|Could not read enough bytes/i,
    "engine_file_corrupt",
  ],
  [/^(IO|FATAL|INTERNAL) Error/i, "engine_failed"],
];

/** A SpillwayError for whatever the bindings threw. `files` says that the statement read lake files. */
export function engineError(error: unknown): SpillwayError {
  if (isSpillwayError(error)) return error;
  const text = messageOf(error);
  const code = RULES.find(([pattern]) => pattern.test(text))?.[1] ?? "engine_sql_error";
  return new SpillwayError(code, firstLine(text), { cause: error });
}

/** DuckDB adds hints and the statement with a caret under its first line. */
function firstLine(text: string): string {
  const line = text.split(/\n\s*(?:LINE \d+:|Candidate|\n)/)[0] ?? text;
  return line.length > 600 ? `${line.slice(0, 600)}…` : line;
}
