/** What a read takes, needs and gives. */
import type { Clock } from "@spillway/base/clock";
import type { ColumnBatch, ColumnSpec } from "@spillway/base/columns";
import type { Engine, EngineParam } from "../engine/engine.ts";
import type { DirectCommit } from "./corrections.ts";
import type { FrontierWait } from "./frontier-wait.ts";
import type { Freshness, MirrorReader, MirrorStats } from "./mirror-read.ts";
import type { PartialReader } from "./partials.ts";
import type { PinKeeper } from "./pins.ts";
import type { TablePolicy } from "./policy.ts";
import type { ResolvedRelation, Resolver } from "./resolve.ts";
import type { Source } from "./source.ts";
import type { AsOf, TableReader, TableStats } from "./table-read.ts";
import type { TextCache } from "./text-cache.ts";

export interface QueryOptions {
  readonly params?: readonly EngineParam[];
  /** Reads every registered table's lake alone, as it was. */
  readonly asOf?: AsOf;
  /** How new the rows of mirrored tables must be; default: as new as the statement, by cost. */
  readonly freshness?: Freshness;
  readonly signal?: AbortSignal;
  /** What the user may see of a table; null: all of it. Throws for one that does not exist for the user. */
  readonly access?: (relation: ResolvedRelation) => TablePolicy | null;
  /** Schemas for names without one; default: those of the connection. */
  readonly searchPath?: readonly string[];
}

export interface QueryStats {
  readonly tables: readonly TableStats[];
  /** Milliseconds until the rows of Postgres were here and its transaction over. */
  readonly fetchMs: number;
  readonly aggregatePushdown: boolean;
  /** Whether the lake's aggregates were computed over all rows, less the deleted ones. */
  readonly lakeDifference: boolean;
  /** Where the mirrored tables were read, and why; null when there are none. */
  readonly mirror: MirrorStats | null;
  /** The statement that DuckDB runs, over views of the tables' parts. */
  readonly sql: string;
}

export interface QueryResult {
  readonly columns: readonly ColumnSpec[];
  readonly stats: QueryStats;
  /**
   * Iterate once, or call `close`. Nothing is given before the whole answer fits into `HOLD_BYTES` or that much of it is
   * there; an error, `pin_lost` among them, can come as long as it has not ended.
   */
  batches(): AsyncIterable<ColumnBatch>;
  close(): Promise<void>;
}

export interface QueryParts {
  readonly engine: Engine;
  readonly source: Source;
  readonly pins: PinKeeper;
  readonly resolver: Resolver;
  readonly tables: TableReader;
  readonly clock: Clock;
  readonly texts: TextCache;
  readonly partials: PartialReader;
  readonly mirrors: MirrorReader;
  readonly frontier: FrontierWait;
  /** For corrections of direct tables. */
  readonly direct?: DirectCommit;
}
