/** What the event triggers say in the stream: see `catalog/sql/0005-mirror-ddl.ts`. */
import { type RawColumn, type RawType, type TableColumn, tableColumnsOf } from "../../catalog/catalog.ts";
import type { Leaves } from "./leaves.ts";

export const DDL_PREFIX = "spillway.ddl";

/** A mirrored table as it is at this place of the stream. */
export interface DdlFacts {
  readonly schema: string;
  readonly table: string;
  readonly columns: readonly TableColumn[];
  /** What rows from before a column read in it, by attnum. */
  readonly missing: ReadonlyMap<number, string>;
  readonly leaves: Leaves;
  /** Leaves that came with rows, of those that were not written down yet. */
  readonly filled: readonly number[];
  /** Neither unlogged nor temporary. */
  readonly logged: boolean;
}

/** A command is about to write the rows anew. */
export interface DdlRewrite {
  /** Bits: 1 persistence, 2 a default that differs from row to row, 4 a column's type, 8 the access method. */
  readonly reason: number;
  /** No value was changed but by its type. */
  readonly plain: boolean;
}

export type DdlMessage =
  /** The triggers could not say it: every table may have changed. */
  | { readonly kind: "failed"; readonly reason: string }
  | { readonly kind: "rewrite"; readonly relationId: bigint; readonly rewrite: DdlRewrite }
  | { readonly kind: "dropped"; readonly relationId: bigint }
  | { readonly kind: "facts"; readonly relationId: bigint; readonly facts: DdlFacts };

interface Raw {
  readonly failed?: string;
  readonly relation?: number | string;
  readonly rewrite?: number;
  readonly plain?: boolean;
  readonly facts?: {
    readonly schema: string;
    readonly table: string;
    readonly logged: boolean;
    readonly leaves: Readonly<Record<string, number>>;
    readonly filled: readonly number[];
    readonly columns: readonly RawColumn[];
    readonly types: readonly RawType[];
  } | null;
}

export function parseDdl(content: Buffer): DdlMessage {
  const raw = JSON.parse(content.toString("utf8")) as Raw;
  if (raw.failed !== undefined || raw.relation === undefined)
    return { kind: "failed", reason: raw.failed ?? "no table" };
  const relationId = BigInt(raw.relation);
  if (raw.rewrite !== undefined) {
    return { kind: "rewrite", relationId, rewrite: { reason: raw.rewrite, plain: raw.plain === true } };
  }
  const { facts } = raw;
  if (!facts) return { kind: "dropped", relationId };
  return {
    kind: "facts",
    relationId,
    facts: {
      schema: facts.schema,
      table: facts.table,
      logged: facts.logged,
      columns: tableColumnsOf(facts.columns, facts.types),
      missing: new Map(facts.columns.flatMap((c) => (c.missing === null ? [] : [[c.attnum, c.missing]]))),
      leaves: new Map(Object.entries(facts.leaves).map(([oid, filenode]) => [Number(oid), filenode])),
      filled: facts.filled,
    },
  };
}
