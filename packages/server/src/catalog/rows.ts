/** The catalog's rows as values. 64-bit numbers are bigints; oids are numbers. */
import type { KeyKind } from "./key.ts";

export type Mode = "tiered" | "direct" | "mirrored";
export type RelationState = "registering" | "active" | "stopped" | "unregistering";
export type BandState = "capturing" | "lake" | "dropped" | "kept" | "expired";
export type HistoricalInserts = "upsert" | "refuse";

/** The options that `register` was given, beside those with columns of their own. */
export interface RelationOptions {
  readonly historicalInserts?: HistoricalInserts;
  readonly formatVersion?: 2 | 3;
  /** As given, for `status` and for a later `register` to compare with. */
  readonly given?: Readonly<Record<string, string>>;
}

export interface RelationRow {
  readonly relationId: bigint;
  readonly relid: number;
  readonly schemaName: string;
  readonly tableName: string;
  readonly mode: Mode;
  readonly keepHeap: boolean;
  readonly state: RelationState;
  readonly stopCode: string | null;
  readonly stopReason: string | null;
  readonly stoppedAt: string | null;
  /** Null only for mirrored tables without a tier key. */
  readonly keyAttnum: number | null;
  readonly keyKind: KeyKind | null;
  /** In the order of the primary key. */
  readonly pkAttnums: readonly number[];
  /** The oid of the DEFAULT partition. */
  readonly landing: number | null;
  readonly landingCreated: boolean;
  readonly lakeId: bigint | null;
  /** Canonical key units, as are the next three. */
  readonly lag: bigint | null;
  readonly lakeRetention: bigint | null;
  readonly heapRetention: bigint | null;
  readonly partitionWidth: bigint | null;
  readonly partitionMonths: number | null;
  readonly lakePartition: string | null;
  readonly policy: Readonly<Record<string, unknown>>;
  readonly options: RelationOptions;
  readonly columnSignature: string;
}

export interface RelationColumn {
  readonly attnum: number;
  readonly fieldId: number;
  readonly name: string;
  readonly typeOid: number;
  readonly typmod: number;
  readonly typeName: string;
  readonly notNull: boolean;
  readonly initialDefault: string | null;
  readonly dropped: boolean;
}

export interface SeamRow {
  readonly relationId: bigint;
  /** The cut-line; null for mirrored tables. */
  readonly t: bigint | null;
  /** The lake snapshot; null while the lake table has none. */
  readonly s: bigint | null;
  readonly sSequence: bigint;
  /** The retention line; null when nothing was expired. */
  readonly r: bigint | null;
  readonly fLsn: string | null;
  readonly fTimeline: number | null;
}

/** A registered table with its columns (dropped ones included) and its seam. */
export interface Relation extends RelationRow {
  readonly columns: readonly RelationColumn[];
  readonly seam: SeamRow;
}

export interface BandRow {
  readonly bandId: bigint;
  readonly relationId: bigint;
  readonly leaf: number | null;
  readonly leafName: string;
  readonly lo: bigint;
  readonly hi: bigint;
  readonly state: BandState;
  readonly rows: bigint | null;
  readonly checksum: string | null;
  readonly checksumFields: readonly number[] | null;
  readonly leafLo: bigint | null;
  readonly leafFilenode: number | null;
  readonly leafSignature: string | null;
  readonly bytes: bigint | null;
  readonly movedAt: string | null;
}

export interface LakeTableRow {
  readonly lakeId: bigint;
  readonly namespace: string;
  readonly name: string;
  readonly tableUuid: string;
  readonly location: string;
  /** The current metadata file: the pointer that commits compare and swap. */
  readonly metadataLocation: string;
  /** The number in the name of that file. */
  readonly metadataVersion: number;
  readonly formatVersion: 2 | 3;
  readonly currentSnapshotId: bigint | null;
  readonly sequenceNumber: bigint;
  readonly allowForeignReplace: boolean;
}

export interface JournalRow {
  readonly opId: bigint;
  readonly relationId: bigint | null;
  readonly lakeId: bigint | null;
  readonly kind: string;
  readonly phase: "open" | "committed" | "abandoned";
  readonly epoch: bigint | null;
  readonly ownerPid: number | null;
  readonly ownerStart: string | null;
  readonly detail: Readonly<Record<string, unknown>>;
  readonly startedAt: string;
  readonly endedAt: string | null;
}

/** int8 arrives as text (node-postgres), or as a number from a connection that was told to. */
export function big(value: unknown): bigint {
  return BigInt(value as string | number | bigint);
}

export function bigOrNull(value: unknown): bigint | null {
  return value === null || value === undefined ? null : big(value);
}
