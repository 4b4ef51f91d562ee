/** Names derived from a relation: the one place that makes them. All in schema `spillway` unless told otherwise. */
import { quoteIdent, quoteQualified } from "@spillway/pg/quote";
import { CATALOG_SCHEMA } from "./migrations.ts";

/** Triggers on the user's tables. */
export const CAPTURE_TRIGGER = "spillway_capture";
export const TRUNCATE_TRIGGER = "spillway_truncate";
export const PARENT_TRUNCATE_TRIGGER = "spillway_no_truncate";

/** Where the worker listens for work: `NOTIFY spillway_worker`. */
export const WORKER_CHANNEL = "spillway_worker";

export function deltaName(relationId: bigint): string {
  return `delta_${relationId}`;
}

/** Quoted and qualified. */
export function deltaTable(relationId: bigint): string {
  return quoteQualified(CATALOG_SCHEMA, deltaName(relationId));
}

/** The capture function of one partition, by its oid. */
export function captureFunction(relationId: bigint, oid: number): string {
  return quoteQualified(CATALOG_SCHEMA, `capture_${relationId}_${oid}`);
}

export function truncateFunction(relationId: bigint): string {
  return quoteQualified(CATALOG_SCHEMA, `capture_truncate_${relationId}`);
}

/** The delta's column of a table's column. */
export function deltaColumn(attnum: number): string {
  return quoteIdent(`c${attnum}`);
}

/** The name of a new landing: within 63 bytes, whatever the table is called. */
export function landingName(tableName: string): string {
  return `${truncateBytes(tableName, 63 - "_landing".length)}_landing`;
}

/** The longest prefix of whole characters that takes at most `limit` bytes of UTF-8. */
export function truncateBytes(text: string, limit: number): string {
  let bytes = 0;
  let result = "";
  for (const char of text) {
    bytes += Buffer.byteLength(char);
    if (bytes > limit) break;
    result += char;
  }
  return result;
}
