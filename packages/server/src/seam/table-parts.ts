/** Which tiers a statement needs of a table: decided by its mode, its cut-line and the statement's range of keys. */
import { must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import { quoteIdent } from "@spillway/pg/quote";
import { keyLiteral } from "../catalog/catalog.ts";
import { rangeOf, toPgCondition } from "./predicates.ts";
import type { AsOf, TableRequest } from "./table-read.ts";

/** What is to be read of a table. */
export interface Parts {
  /** Conditions of the heap's part; null when nothing of it can be in the answer. */
  readonly heap: readonly string[] | null;
  readonly lake: AsOf | null;
  /** T, when the delta below it counts. */
  readonly delta: bigint | null;
}

export function partsOf(request: TableRequest): Parts {
  const { relation, predicates, asOf } = request;
  const pushed = predicates.map((p) => toPgCondition(p)).filter((c) => c !== null);
  const { lake } = relation;
  if (asOf !== null) {
    if (!lake) throw new SpillwayError("as_of_unsupported", `${relation.sql} is no registered table and has no lake.`);
    return { heap: null, lake: asOf, delta: null };
  }
  const key = relation.columns.find((c) => c.attnum === lake?.keyAttnum);
  const whole = !lake || lake.state === "registering" || lake.t === null || !lake.keyKind || !key;
  // A mirrored table without heap retention has all its rows in the heap, fresher than the lake.
  if (whole || (lake.mode === "mirrored" && !lake.heapRetention)) return { heap: pushed, lake: null, delta: null };
  const t = must(lake.t, "T");
  const range = rangeOf(predicates, key.attnum);
  const below = range.low === null || range.low < t;
  const above = range.high === null || range.high >= t;
  const cut = `${quoteIdent(key.spec.name)} >= ${keyLiteral(must(lake.keyKind, "key kind"), t)}`;
  return {
    heap: above && request.coldOnly !== true ? [cut, ...pushed] : null,
    lake: below && lake.s !== null ? { snapshotId: lake.s } : null,
    delta: below ? t : null,
  };
}
