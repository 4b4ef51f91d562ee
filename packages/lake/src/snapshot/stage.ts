/**
 * Staging a snapshot: writes manifests and the manifest list, and gives the updates and requirements
 * that publish them. Nothing that a reader can see changes before the catalog applies the updates.
 *
 * Manifests are reused as they are; only those that hold a removed file are rewritten, and small
 * ones are merged once there are many.
 */
import { assert } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import type { TableRequirement, TableUpdate } from "../commit.ts";
import type { WrittenManifest } from "../manifest.ts";
import { writeManifestList } from "../manifest-list.ts";
import { MAIN_BRANCH, metadataDirectory, refByName, snapshotOfRef } from "../metadata.ts";
import type { DataFile, ManifestEntry, ManifestFile, Snapshot, SnapshotOperation, TableMetadata } from "../model.ts";
import { partitionTypesOf } from "../partition.ts";
import type { ObjectStore } from "../store/store.ts";
import { checkAddedFiles } from "./check-added.ts";
import { ManifestSet } from "./manifest-set.ts";
import { Removals } from "./removals.ts";
import { assignRowIds } from "./row-ids.ts";
import { hasLiveFiles, type ManifestSource, storeSource } from "./source.ts";
import { summarize } from "./summary.ts";

/** Entries compress well: 2 MiB are some 20 000 files, which is as much as one small change should rewrite. */
const DEFAULT_TARGET_BYTES = 2 * 1024 * 1024;
const DEFAULT_MIN_COUNT_TO_MERGE = 100;

export interface StageRequest {
  readonly metadata: TableMetadata;
  readonly store: ObjectStore;
  /** `append`: data files only. `overwrite`: a row-delta, or files replaced. `replace`: the same live rows. */
  readonly operation: SnapshotOperation;
  /** A random positive 63-bit id, new for each attempt: file names are made of it. */
  readonly snapshotId: bigint;
  readonly nowMs: number;
  readonly addDataFiles?: readonly DataFile[];
  /** v2: position delete files. v3: deletion vectors, one for a data file; the old one is to be removed here. */
  readonly addDeleteFiles?: readonly DataFile[];
  /** As a scan gave them: with spec and partition. Delete files that refer only to them go with them. */
  readonly removeDataFiles?: readonly DataFile[];
  readonly removeDeleteFiles?: readonly DataFile[];
  /** For a `replace` whose new files must still be hit by deletes of later snapshots: their older sequence number. */
  readonly dataSequenceNumber?: bigint;
  readonly summaryProps?: Readonly<Record<string, string>>;
  readonly branch?: string;
  /** Merges every small manifest now, however few. */
  readonly mergeManifests?: boolean;
  /** Awaited before each file is written: the caller journals it. */
  readonly onFile?: (path: string) => Promise<void> | void;
  /** The location of a new file; the table's metadata directory unless given. */
  readonly pathOf?: (name: string) => string;
  readonly source?: ManifestSource;
}

export interface Staged {
  readonly snapshot: Snapshot;
  readonly updates: readonly TableUpdate[];
  readonly requirements: readonly TableRequirement[];
  /** Manifests and the manifest list, in the order in which they were written. */
  readonly writtenFiles: readonly string[];
  /** The new snapshot's manifests. */
  readonly manifests: readonly ManifestFile[];
}

/**
 * Writes the metadata files of a new snapshot. Throws `lake_commit_conflict` when a file to be
 * removed is not in the branch, or a data file would have two deletion vectors; `lake_update_invalid`
 * for files that the table cannot take. What was written before a failure is in the caller's journal.
 */
export async function stageSnapshot(request: StageRequest): Promise<Staged> {
  return new Staging(request).run();
}

class Staging {
  readonly #request: StageRequest;
  readonly #source: ManifestSource;
  readonly #branch: string;
  readonly #parent: Snapshot | undefined;
  readonly #sequenceNumber: bigint;
  readonly #targetBytes: number;
  readonly #writtenFiles: string[] = [];

  constructor(request: StageRequest) {
    const { metadata } = request;
    this.#request = request;
    this.#source = request.source ?? storeSource(request.store);
    this.#branch = request.branch ?? MAIN_BRANCH;
    this.#parent = snapshotOfRef(metadata, this.#branch);
    this.#sequenceNumber = metadata.lastSequenceNumber + 1n;
    this.#targetBytes = numberProperty(metadata, "commit.manifest.target-size-bytes", DEFAULT_TARGET_BYTES);
    checkRequest(request);
  }

  async run(): Promise<Staged> {
    const {
      metadata,
      addDataFiles = [],
      addDeleteFiles = [],
      removeDataFiles = [],
      removeDeleteFiles = [],
    } = this.#request;
    const parent = this.#parent ? await this.#source.manifests(this.#parent) : [];
    const live = parent.filter(hasLiveFiles);

    const data = new Removals();
    data.require(removeDataFiles);
    const dataManifests = await this.#content("data", live, addDataFiles, data);

    const deletes = new Removals();
    deletes.require(removeDeleteFiles);
    deletes.alsoReferringTo(removeDataFiles);
    deletes.alsoVisit(addDeleteFiles);
    const deleteManifests = await this.#content("deletes", live, addDeleteFiles, deletes);

    const { manifests, addedRows } = assignRowIds(metadata, [...dataManifests, ...deleteManifests]);
    const removed = [...data.found, ...deletes.found];
    const snapshot = await this.#writeList(manifests, addedRows, [...addDataFiles, ...addDeleteFiles], removed);
    return { ...this.#publication(snapshot), writtenFiles: this.#writtenFiles, manifests };
  }

  /** The manifests of one content: new ones first, then those that stay as they are. */
  async #content(
    content: "data" | "deletes",
    live: readonly ManifestFile[],
    added: readonly DataFile[],
    removals: Removals,
  ): Promise<(WrittenManifest | ManifestFile)[]> {
    const old = live.filter((m) => m.content === content);
    const specIds = new Set([...old.map((m) => m.partitionSpecId), ...added.map((f) => f.specId)]);
    const result: (WrittenManifest | ManifestFile)[] = [];
    const vectors = new VectorCheck(added);
    for (const specId of specIds) {
      const own = added.filter((f) => f.specId === specId);
      const manifests = old.filter((m) => m.partitionSpecId === specId);
      const set = this.#manifestSet(content, specId);
      const kept = await this.#rewrite(manifests, own.length > 0, removals, vectors, set);
      for (const file of own) await set.add(this.#newFile(file), this.#request.dataSequenceNumber ?? null);
      await set.finish();
      result.push(...set.written, ...kept);
    }
    removals.checkAllFound();
    return result.toSorted((a, b) => Number(!isWritten(a)) - Number(!isWritten(b)));
  }

  /** Feeds what must be rewritten or merged into the set; gives the manifests that stay. */
  async #rewrite(
    manifests: readonly ManifestFile[],
    adding: boolean,
    removals: Removals,
    vectors: VectorCheck,
    set: ManifestSet,
  ): Promise<ManifestFile[]> {
    const { metadata } = this.#request;
    const merging = this.#isTimeToMerge(manifests, adding);
    const kept: ManifestFile[] = [];
    for (const manifest of manifests) {
      const types = partitionTypesOf(metadata, manifest.partitionSpecId);
      const merge = merging && this.#isSmall(manifest);
      if (!merge && !removals.mayBeIn(manifest, types)) {
        kept.push(manifest);
        continue;
      }
      const entries = (await this.#source.entries(metadata, manifest)).filter((e) => e.status !== "deleted");
      const gone = new Set(entries.filter((e) => removals.take(e.dataFile)));
      const staying = entries.filter((e) => !gone.has(e));
      for (const entry of staying) vectors.check(entry.dataFile);
      if (!merge && gone.size === 0) kept.push(manifest);
      else await feed(set, entries, gone);
    }
    return kept;
  }

  #isSmall(manifest: ManifestFile): boolean {
    return Number(manifest.length) < this.#targetBytes * 0.75;
  }

  #isTimeToMerge(manifests: readonly ManifestFile[], adding: boolean): boolean {
    const { metadata, mergeManifests } = this.#request;
    const small = manifests.filter((m) => this.#isSmall(m)).length;
    if (mergeManifests) return small > 1;
    if (metadata.properties["commit.manifest-merge.enabled"] === "false") return false;
    const atLeast = numberProperty(metadata, "commit.manifest.min-count-to-merge", DEFAULT_MIN_COUNT_TO_MERGE);
    return small + (adding ? 1 : 0) >= Math.max(2, atLeast);
  }

  /** Row ids of new files are assigned by inheritance; only a replace may bring ids that exist. */
  #newFile(file: DataFile): DataFile {
    if (file.firstRowId === undefined || this.#request.operation === "replace") return file;
    return { ...file, firstRowId: undefined };
  }

  #manifestSet(content: "data" | "deletes", specId: number): ManifestSet {
    const { metadata, snapshotId } = this.#request;
    return new ManifestSet({
      metadata,
      content,
      specId,
      snapshotId,
      sequenceNumber: this.#sequenceNumber,
      targetBytes: this.#targetBytes,
      write: async (finish) => {
        const path = this.#path(`${snapshotId}-m${this.#writtenFiles.length}.avro`);
        const written = finish(path);
        await this.#put(path, written.bytes);
        return written;
      },
    });
  }

  #path(name: string): string {
    return this.#request.pathOf?.(name) ?? `${metadataDirectory(this.#request.metadata)}/${name}`;
  }

  async #put(path: string, bytes: Uint8Array): Promise<void> {
    await this.#request.onFile?.(path);
    await this.#request.store.put(path, bytes);
    this.#writtenFiles.push(path);
  }

  async #writeList(
    manifests: readonly ManifestFile[],
    addedRows: bigint,
    added: readonly DataFile[],
    removed: readonly DataFile[],
  ): Promise<Snapshot> {
    const { metadata, snapshotId, nowMs, operation, summaryProps } = this.#request;
    const parentSnapshotId = this.#parent?.snapshotId;
    const isV3 = metadata.formatVersion >= 3;
    const header = {
      formatVersion: metadata.formatVersion,
      snapshotId,
      parentSnapshotId,
      sequenceNumber: this.#sequenceNumber,
      ...(isV3 ? { firstRowId: metadata.nextRowId } : {}),
    };
    const manifestList = this.#path(`snap-${snapshotId}.avro`);
    await this.#put(manifestList, writeManifestList(manifests, header));
    return {
      snapshotId,
      ...(parentSnapshotId === undefined ? {} : { parentSnapshotId }),
      sequenceNumber: this.#sequenceNumber,
      timestampMs: Math.max(nowMs, metadata.lastUpdatedMs),
      manifestList,
      operation,
      summary: summarize({ parent: this.#parent, added, removed, extra: summaryProps }),
      schemaId: metadata.currentSchemaId,
      ...(isV3 ? { firstRowId: metadata.nextRowId, addedRows } : {}),
    };
  }

  #publication(snapshot: Snapshot): Pick<Staged, "snapshot" | "updates" | "requirements"> {
    const { metadata } = this.#request;
    const branch = this.#branch;
    const ref = refByName(metadata, branch) ?? { type: "branch" as const };
    return {
      snapshot,
      updates: [
        { action: "add-snapshot", snapshot },
        { action: "set-snapshot-ref", refName: branch, ref: { ...ref, snapshotId: snapshot.snapshotId } },
      ],
      requirements: [
        { type: "assert-table-uuid", uuid: metadata.tableUuid },
        { type: "assert-ref-snapshot-id", ref: branch, snapshotId: this.#parent?.snapshotId ?? null },
      ],
    };
  }
}

function isWritten(item: WrittenManifest | ManifestFile): item is WrittenManifest {
  return "manifest" in item;
}

async function feed(
  set: ManifestSet,
  entries: readonly ManifestEntry[],
  gone: ReadonlySet<ManifestEntry>,
): Promise<void> {
  for (const entry of entries) {
    if (gone.has(entry)) await set.remove(entry);
    else await set.keep(entry);
  }
}

/** At most one deletion vector for a data file in a snapshot (spec, deletion vectors). */
class VectorCheck {
  readonly #referenced: ReadonlySet<string>;

  constructor(added: readonly DataFile[]) {
    const vectors = added.filter((f) => f.format === "puffin");
    this.#referenced = new Set(vectors.flatMap((f) => f.referencedDataFile ?? []));
  }

  check(staying: DataFile): void {
    const path = staying.referencedDataFile;
    if (path === undefined || staying.format !== "puffin" || !this.#referenced.has(path)) return;
    throw new SpillwayError("lake_commit_conflict", `${path} has another deletion vector, in ${staying.path}`);
  }
}

function checkRequest(request: StageRequest): void {
  const {
    metadata,
    operation,
    addDataFiles = [],
    addDeleteFiles = [],
    removeDataFiles = [],
    removeDeleteFiles = [],
  } = request;
  checkAddedFiles(metadata, addDataFiles, addDeleteFiles);
  if (operation === "append") {
    const others = addDeleteFiles.length + removeDataFiles.length + removeDeleteFiles.length;
    assert(others === 0, "an append only adds data files");
  }
  if (operation === "replace") {
    const rows = (files: readonly DataFile[]): bigint => files.reduce((sum, f) => sum + f.recordCount, 0n);
    assert(rows(addDataFiles) <= rows(removeDataFiles), "a replace cannot add rows");
  }
  if (refByName(metadata, request.branch ?? MAIN_BRANCH)?.type === "tag") {
    throw new SpillwayError("lake_update_invalid", `${request.branch} is a tag: nothing can be committed to it`);
  }
}

function numberProperty(metadata: TableMetadata, key: string, fallback: number): number {
  const value = Number(metadata.properties[key]);
  return Number.isInteger(value) && value > 0 ? value : fallback;
}
