/**
 * What the stream says of tables, and what becomes of it: which columns a relation's rows have, DDL at its place, and tables that
 * cannot be followed. The stream is held while the catalog is asked.
 */
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import { canReadBinary } from "@spillway/pg/columns/plan";
import type { PgRelation } from "@spillway/pg/replication/pgoutput";
import {
  type Db,
  liveColumns,
  type RawColumn,
  readTypes,
  type Relation,
  type TableColumn,
  tableColumnsOf,
} from "../../catalog/catalog.ts";
import type { MoverContext } from "../context.ts";
import { ChangeLog, type TableShape } from "./change-log.ts";
import type { DdlMessage } from "./ddl-facts.ts";
import { followFacts } from "./follow-facts.ts";
import { followStream } from "./follow-stream.ts";
import type { MirrorTable } from "./mirror-table.ts";
import { shapeOf, signatureOf } from "./shape.ts";
import type { FeedState, MirrorSink } from "./sink.ts";
import type { TableSet } from "./table-set.ts";

const NOTHING: TableShape = { attnums: [], plans: [], fields: [], keyAt: [] };

export interface SchemaHost {
  readonly sink: () => MirrorSink;
  readonly tables: TableSet;
  /** Reads the catalog again. */
  readonly reload: () => Promise<void>;
  readonly stop: (table: MirrorTable, error: SpillwayError) => Promise<void>;
  /** The stream was begun without this table: values that cannot be read in binary must come as text. */
  readonly needsText: () => Error | null;
}

export class StreamSchema {
  readonly #ctx: MoverContext;
  readonly #host: SchemaHost;

  constructor(ctx: MoverContext, host: SchemaHost) {
    this.#ctx = ctx;
    this.#host = host;
  }

  /** What is known of a relation by heart; null: `resolve` it. */
  known(relation: PgRelation<FeedState>): FeedState | null {
    const table = this.#host.tables.get(relation.oid);
    const shape = table?.shapes.get(signatureOf(relation));
    if (!table || !shape) return null;
    if (table.isFed) table.feed.log ??= new ChangeLog(shape);
    else table.feed.log = null;
    return { feed: table.feed, shape };
  }

  async resolve(relation: PgRelation<FeedState>): Promise<FeedState> {
    const { tables, reload, stop } = this.#host;
    if (tables.get(relation.oid) === undefined) await reload();
    const table = tables.get(relation.oid);
    const ignored = { feed: { oid: relation.oid, log: null, truncates: 0 }, shape: NOTHING };
    // Of no table that is mirrored: it left the publication, or was registered by nobody.
    if (!table) return ignored;
    try {
      return await this.#shaped(table, relation);
    } catch (error) {
      if (!isSpillwayError(error)) throw error;
      // Columns of a time before F, or before the copy: what was done under them is in the lake, or will be.
      const sink = this.#host.sink();
      if (table.isPast(sink.openCommit)) return ignored;
      if (table.isFed && !sink.spoil(table.feed, error)) await stop(table, error);
      return { feed: table.feed, shape: NOTHING };
    }
  }

  async #shaped(table: MirrorTable, relation: PgRelation<FeedState>): Promise<FeedState> {
    const followed = (): Promise<TableColumn[]> => this.#ctx.pool.withClient((c) => followedColumns(c, table.relation));
    let shape = shapeOf(relation, table.relation, await followed());
    const sink = this.#host.sink();
    if (shape === null && table.isFed && !table.isPast(sink.openCommit) && !sink.isInStream) {
      await followStream(this.#ctx, table, relation);
      // What was known of the columns before is not to be met again.
      table.shapes.clear();
      shape = shapeOf(relation, table.relation, await followed());
    }
    if (shape === null) throw new SpillwayError("mirror_schema_ambiguous", `the columns of ${table.name} have changed`);
    const restart = canReadBinary(shape.plans) ? null : this.#host.needsText();
    if (restart !== null) throw restart;
    table.shapes.set(signatureOf(relation), shape);
    return this.known(relation) ?? { feed: table.feed, shape };
  }

  /** DDL, at its place in the stream. */
  async ddl(message: DdlMessage): Promise<void> {
    const { tables, reload } = this.#host;
    if (message.kind === "failed") {
      for (const table of tables.all) {
        await this.#apply(table, () =>
          Promise.reject(new SpillwayError("mirror_schema_ambiguous", `DDL could not be told: ${message.reason}`)),
        );
      }
      return;
    }
    let table = tables.byRelation(message.relationId);
    // It may have been registered, or copied, since the catalog was read last.
    if (!table || (table.phase === "copying" && table.copyLsn === null)) {
      await reload();
      table = tables.byRelation(message.relationId);
    }
    const found = table;
    if (!found) return;
    await this.#apply(found, async () => {
      if (message.kind === "dropped") throw new SpillwayError("mirror_schema_ambiguous", `${found.name} was dropped`);
      if (message.kind === "rewrite") {
        found.rewrite = message.rewrite;
        return;
      }
      const { rewrite } = found;
      found.rewrite = null;
      await followFacts(this.#ctx, found, message.facts, rewrite);
    });
  }

  async #apply(table: MirrorTable, work: () => Promise<void>): Promise<void> {
    const sink = this.#host.sink();
    if (!table.isFed || table.isPast(sink.openCommit)) return;
    try {
      if (sink.isInStream) {
        throw new SpillwayError("mirror_schema_ambiguous", `${table.name} was altered inside a large transaction`);
      }
      await work();
    } catch (error) {
      if (!isSpillwayError(error)) throw error;
      if (!sink.spoil(table.feed, error)) await this.#host.stop(table, error);
    }
  }
}

/** The columns as they were followed, with what their types are: the stream may be behind what the table is by now. */
async function followedColumns(db: Db, relation: Relation): Promise<TableColumn[]> {
  const live = liveColumns(relation);
  const types = await readTypes(
    db,
    live.map((c) => c.typeOid),
  );
  return tableColumnsOf(
    live.map((c): RawColumn => ({
      attnum: c.attnum,
      attname: c.name,
      atttypid: String(c.typeOid),
      atttypmod: c.typmod,
      type_name: c.typeName,
      attnotnull: c.notNull,
      attgenerated: "",
      attidentity: "",
      loose: false,
      missing: null,
    })),
    types,
  );
}
