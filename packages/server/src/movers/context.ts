/** What every movement is handed, and the few things that all of them do. */
import { must } from "@spillway/base/assert";
import type { Clock } from "@spillway/base/clock";
import type { HashField } from "@spillway/base/rowhash";
import type { Logger } from "@spillway/base/log";
import type { LocalCache } from "@spillway/lake/store/cache";
import type { ObjectStore } from "@spillway/lake/store/store";
import { connect } from "@spillway/pg/connect";
import type { Conninfo } from "@spillway/pg/conninfo";
import { fromPgError, isConnectionError, sqlstateOf } from "@spillway/pg/pg-error";
import type { Pool } from "@spillway/pg/pool";
import { inTransaction } from "@spillway/pg/transaction";
import type pg from "pg";
import { type FileLogTarget, liveColumns, type Relation, stageFiles, type TableColumn } from "../catalog/catalog.ts";
import { duckDefault, type Engine, type FileChecksum, type LakeField, type ScanField } from "../engine/engine.ts";
import { valueOfText } from "./defaults.ts";

export interface MoverContext {
  readonly pool: Pool;
  /** For connections outside the pool: COPY, and the look-up of a commit whose outcome is unknown. */
  readonly conninfo: Conninfo;
  readonly applicationName: string;
  readonly store: ObjectStore;
  readonly cache: LocalCache;
  /** Canonical location. */
  readonly warehouse: string;
  readonly engine: Engine;
  /** Reads written files back; where it is absent, the engine above does. */
  readonly fileChecksum?: FileChecksum;
  /** Where files are staged before they are uploaded; unused for a local store. */
  readonly stageDir: string;
  readonly clock: Clock;
  readonly log: Logger;
  /** The leader's; null for a command that works by itself (register, unregister), fenced by the pointers alone. */
  readonly epoch: bigint | null;
  /** The longest that a movement waits for a lock on a user's table. */
  readonly lockTimeoutMs: number;
  readonly premake: number;
  /** How long doomed files stay in the store. Default 7 days. */
  readonly restoreWindowMs?: number;
  /** Ends what is under way at the next safe place. */
  readonly signal?: AbortSignal;
}

export function fileLog(ctx: MoverContext): FileLogTarget {
  return { store: ctx.store, warehouse: ctx.warehouse, clock: ctx.clock };
}

/** Journals files in batches of their own transactions; for `onFile`. */
export function stager(ctx: MoverContext, opId: bigint): (path: string) => Promise<void> {
  return (path) => ctx.pool.withClient((c) => stageFiles(c, fileLog(ctx), opId, [path]));
}

/** A transaction with a bounded wait for locks: for everything that touches a user's table. */
export function lockingTransaction<T>(
  ctx: MoverContext,
  work: (tx: pg.Client) => Promise<T>,
  lockTimeoutMs: number = ctx.lockTimeoutMs,
): Promise<T> {
  return ctx.pool.withClient((client) =>
    inTransaction(client, {}, async (tx) => {
      await tx.query("select set_config('lock_timeout', $1, true)", [`${lockTimeoutMs}ms`]);
      return work(tx);
    }),
  );
}

/** A connection of its own, for work that must not share the pool's. */
export async function withFreshClient<T>(ctx: MoverContext, work: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = await connect(ctx.conninfo, { applicationName: ctx.applicationName });
  try {
    return await work(client);
  } finally {
    await client.end().catch(() => {});
  }
}

/** One column of a registered table in all its forms. */
export interface MovedColumn {
  readonly column: TableColumn;
  readonly field: LakeField;
  readonly initialDefault: string | null;
}

/** The columns that travel, in the table's order. `now` are the columns that Postgres has. */
export function movedColumns(relation: Relation, now: readonly TableColumn[]): MovedColumn[] {
  const byAttnum = new Map(now.map((c) => [c.attnum, c]));
  return liveColumns(relation).map((c) => {
    const column = must(byAttnum.get(c.attnum), `column ${c.name} of ${relation.tableName}`);
    return { column, field: lakeField(c.fieldId, column), initialDefault: c.initialDefault };
  });
}

export function lakeField(fieldId: number, column: TableColumn): LakeField {
  const { kind, decimal } = column.plan;
  const base = { id: fieldId, name: column.name, kind };
  return decimal ? { ...base, decimal } : base;
}

export function hashField({ column, field, initialDefault }: MovedColumn): HashField {
  const base = { fieldId: field.id, kind: field.kind };
  return initialDefault === null ? base : { ...base, default: valueOfText(column.copyPlan, initialDefault) };
}

export function scanField({ field, initialDefault }: MovedColumn): ScanField {
  return { ...field, initialDefault: duckDefault(field.kind, initialDefault) };
}

/** `"schema"."table"` for messages, without quotes. */
export function displayName(relation: Pick<Relation, "schemaName" | "tableName">): string {
  return `${relation.schemaName}.${relation.tableName}`;
}

/** Errors of Postgres get their code of the catalogue; bugs, and errors that have one, stay what they are. */
export function typedError(error: unknown, doing: string): unknown {
  return sqlstateOf(error) !== null || isConnectionError(error) ? fromPgError(error, doing) : error;
}
