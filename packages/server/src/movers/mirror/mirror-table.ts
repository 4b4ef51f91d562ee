/** One mirrored table in the pump: what the catalog says of it, its feed, and what is known of its lake table. */
import type { SpillwayError } from "@spillway/base/errors";
import type { Lsn } from "@spillway/base/lsn";
import type { TableUpdate } from "@spillway/lake/commit";
import type { Schema } from "@spillway/lake/model";
import type { Relation, RelationColumn } from "../../catalog/catalog.ts";
import { displayName } from "../context.ts";
import type { JoinLsns } from "./apply.ts";
import type { DdlRewrite } from "./ddl-facts.ts";
import type { Segment, TableShape } from "./change-log.ts";
import type { Block, LakeState } from "./lake-state.ts";
import type { Leaves, SeenLeaves } from "./leaves.ts";
import type { Feed } from "./sink.ts";
import type { MirrorPhase, MirrorTableRow } from "./state.ts";

/** A change of the columns that the next flush takes along. */
export interface PendingSchema {
  readonly schema: Schema;
  readonly lastColumnId: number;
  readonly updates: readonly TableUpdate[];
  readonly columns: readonly RelationColumn[];
}

export class MirrorTable {
  relation: Relation;
  phase: MirrorPhase;
  holdLsn: Lsn | null;
  copyOp: bigint | null;
  /** The first snapshot of the copy; null before it. */
  copyLsn: Lsn | null;
  /** The last one: what comes before it in the stream is in the copy, or belongs into it. */
  copyEnd: Lsn | null;
  /** Transactions whose commit lies before it are in the lake already; null before the table has joined. */
  f: Lsn | null;
  readonly feed: Feed;
  /** By the stream's signature. */
  readonly shapes = new Map<string, TableShape>();
  state: LakeState | null = null;
  /** While the table joins: its copy. */
  copied: readonly Block[] = [];
  /** And what the copy takes the place of. */
  replaced: readonly Block[] = [];
  join: JoinLsns | null = null;
  pending: PendingSchema | null = null;
  /** What its leaves were when they were last looked at, and something that is not explained yet. */
  leaves: Leaves | null = null;
  suspect: SeenLeaves | null = null;
  /** The next flush writes the leaves down. */
  leavesChanged = false;
  /** A rewrite that was announced; what it did is said when the command ends. */
  rewrite: DdlRewrite | null = null;
  /** What has made it unfit; the next flush writes it down. */
  failure: SpillwayError | null = null;

  constructor(row: MirrorTableRow) {
    this.relation = row.relation;
    this.phase = row.phase;
    this.holdLsn = row.holdLsn;
    this.copyOp = row.copyOp;
    this.copyLsn = row.copyLsn;
    this.copyEnd = row.copyEnd;
    this.f = row.f;
    this.feed = { oid: row.relation.relid, log: null, truncates: 0 };
  }

  get name(): string {
    return displayName(this.relation);
  }

  /** Its changes are kept: it is live, or will be. */
  get isFed(): boolean {
    return this.phase !== "needs_copy" && this.failure === null;
  }

  /** What the catalog says now. The phase of a live table is the pump's own. */
  refresh(row: MirrorTableRow): void {
    if (this.phase === "copying" || row.phase === "needs_copy") this.phase = row.phase;
    if (this.phase !== "live") this.holdLsn = row.holdLsn;
    this.copyOp = row.copyOp;
    this.copyLsn = row.copyLsn;
    this.copyEnd = row.copyEnd;
  }

  /** Whether its copy can become part of the lake, with what came in the stream up to `seen`. */
  isJoinable(seen: Lsn): boolean {
    return this.phase === "copied" && this.failure === null && this.copyEnd !== null && seen >= this.copyEnd;
  }

  /** Whether the copy has, or will have, everything that a transaction with this commit did. */
  isCopiedAfter(commit: Lsn | null): boolean {
    if (commit === null || (this.phase !== "copying" && this.phase !== "copied")) return false;
    return this.copyLsn === null || commit < this.copyLsn;
  }

  /** Whether the lake has, or the copy will have, what a transaction with this commit did. Null: not known yet. */
  isPast(commit: Lsn | null): boolean {
    if (commit === null) return false;
    return (this.phase === "live" && this.f !== null && commit < this.f) || this.isCopiedAfter(commit);
  }

  forgetLake(): void {
    this.state = null;
    this.copied = [];
    this.replaced = [];
    this.join = null;
  }
}

/** Leaves out what the lake has: a stream that begins before F sends it again. Pure. */
export function withoutApplied(segments: readonly Segment[], f: Lsn | null): Segment[] {
  if (f === null) return [...segments];
  return segments.flatMap((segment) => {
    const done = segment.commits.filter((c) => c.lsn < f).at(-1)?.end ?? 0;
    if (done === 0) return segment;
    if (done === segment.ops.length) return [];
    segment.skips.push([0, done]);
    segment.skips.sort((a, b) => a[0] - b[0]);
    return segment;
  });
}
