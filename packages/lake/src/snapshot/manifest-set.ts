/** Writes the manifests of a new snapshot: one rolling writer for each spec and content. */
import type { NewEntry, WrittenManifest } from "../manifest.ts";
import { ManifestWriter } from "../manifest.ts";
import { currentSchema } from "../metadata.ts";
import type { DataFile, ManifestEntry, TableMetadata } from "../model.ts";
import { partitionTypesOf, specById } from "../partition.ts";

export interface ManifestSetOptions {
  readonly metadata: TableMetadata;
  readonly content: "data" | "deletes";
  readonly specId: number;
  readonly snapshotId: bigint;
  readonly sequenceNumber: bigint;
  /** A manifest is closed when it reaches this. */
  readonly targetBytes: number;
  /** Writes a finished manifest's bytes under a name of the caller's choosing, and gives the location. */
  readonly write: (finish: (path: string) => WrittenManifest) => Promise<WrittenManifest>;
}

export class ManifestSet {
  readonly #options: ManifestSetOptions;
  #writer: ManifestWriter | null = null;
  readonly written: WrittenManifest[] = [];

  constructor(options: ManifestSetOptions) {
    this.#options = options;
  }

  /** A file that the snapshot adds. Its data sequence number is the snapshot's unless given. */
  async add(file: DataFile, dataSequenceNumber: bigint | null): Promise<void> {
    const { snapshotId } = this.#options;
    await this.#append({
      status: "added",
      snapshotId,
      sequenceNumber: dataSequenceNumber,
      fileSequenceNumber: null,
      dataFile: file,
    });
  }

  /** A live file of an older manifest that goes on living in a new one. */
  async keep(entry: ManifestEntry): Promise<void> {
    await this.#append({ ...entry, status: "existing" });
  }

  /** A file that the snapshot takes away. */
  async remove(entry: ManifestEntry): Promise<void> {
    await this.#append({ ...entry, status: "deleted", snapshotId: this.#options.snapshotId });
  }

  async #append(entry: NewEntry): Promise<void> {
    this.#writer ??= this.#open();
    this.#writer.add(entry);
    if (this.#writer.size >= this.#options.targetBytes) await this.finish();
  }

  #open(): ManifestWriter {
    const { metadata, specId, content, snapshotId, sequenceNumber } = this.#options;
    return new ManifestWriter({
      formatVersion: metadata.formatVersion,
      schema: currentSchema(metadata),
      spec: specById(metadata, specId),
      partitionTypes: partitionTypesOf(metadata, specId),
      content,
      snapshotId,
      sequenceNumber,
    });
  }

  async finish(): Promise<void> {
    const writer = this.#writer;
    if (!writer) return;
    this.#writer = null;
    this.written.push(await this.#options.write((path) => writer.finish(path)));
  }
}
