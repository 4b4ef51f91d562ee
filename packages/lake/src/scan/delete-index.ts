/**
 * Which deletes apply to a data file (spec, scan planning):
 * - a deletion vector: the one that references it, if the file is not newer;
 * - else position delete files: not older than the file, of its partition, that may name it;
 * - equality deletes, strictly newer, of its partition or of an unpartitioned spec: refused.
 */
import { SpillwayError } from "@spillway/base/errors";
import { mayConcern } from "../deletes/deletes.ts";
import type { DataFile, ManifestEntry, PartitionSpec } from "../model.ts";
import { partitionKey } from "../snapshot/removals.ts";

interface Sequenced {
  readonly file: DataFile;
  readonly sequenceNumber: bigint;
}

export class DeleteIndex {
  readonly #vectors = new Map<string, Sequenced>();
  readonly #byFile = new Map<string, Sequenced[]>();
  readonly #byPartition = new Map<string, Sequenced[]>();
  readonly #equality = new Map<string, bigint>();
  /** The newest equality delete of an unpartitioned spec: it applies to every partition. */
  #globalEquality = -1n;
  readonly #count: number;

  constructor(entries: readonly ManifestEntry[], specs: readonly PartitionSpec[]) {
    this.#count = entries.length;
    const unpartitioned = new Set(specs.filter((spec) => spec.fields.length === 0).map((spec) => spec.specId));
    for (const { dataFile: file, sequenceNumber } of entries) {
      const one = { file, sequenceNumber };
      if (file.content === "equality-deletes") this.#addEquality(one, unpartitioned.has(file.specId));
      else if (file.format === "puffin") this.#addVector(one);
      else if (file.referencedDataFile !== undefined) push(this.#byFile, file.referencedDataFile, one);
      else push(this.#byPartition, partitionKey(file), one);
    }
  }

  get isEmpty(): boolean {
    return this.#count === 0;
  }

  /** The delete files to apply. `partition`: the file's `partitionKey`. Throws `equality_deletes_unsupported`. */
  deletesOf(dataFile: DataFile, sequenceNumber: bigint, partition: string): readonly DataFile[] {
    if (this.#count === 0) return [];
    this.#refuseEquality(dataFile, sequenceNumber, partition);
    const vector = this.#vectors.get(dataFile.path);
    if (vector && sequenceNumber <= vector.sequenceNumber) return [vector.file];
    const own = this.#byFile.get(dataFile.path) ?? [];
    const near = this.#byPartition.size === 0 ? [] : (this.#byPartition.get(partition) ?? []);
    const files: DataFile[] = [];
    for (const one of own) if (sequenceNumber <= one.sequenceNumber) files.push(one.file);
    for (const one of near) {
      if (sequenceNumber <= one.sequenceNumber && mayConcern(one.file, dataFile.path)) files.push(one.file);
    }
    return files;
  }

  #addVector(one: Sequenced): void {
    const path = one.file.referencedDataFile;
    if (path === undefined) {
      throw new SpillwayError("puffin_invalid", `A deletion vector in ${one.file.path} references no data file.`);
    }
    const other = this.#vectors.get(path);
    if (other) {
      // The spec allows one; which of two is right cannot be known.
      throw new SpillwayError("puffin_invalid", `The data file ${path} has two deletion vectors in one snapshot.`);
    }
    this.#vectors.set(path, one);
  }

  #addEquality(one: Sequenced, global: boolean): void {
    if (global) {
      if (one.sequenceNumber > this.#globalEquality) this.#globalEquality = one.sequenceNumber;
      return;
    }
    const key = partitionKey(one.file);
    const newest = this.#equality.get(key) ?? -1n;
    if (one.sequenceNumber > newest) this.#equality.set(key, one.sequenceNumber);
  }

  #refuseEquality(dataFile: DataFile, sequenceNumber: bigint, partition: string): void {
    let newest = this.#globalEquality;
    if (this.#equality.size > 0) {
      const own = this.#equality.get(partition) ?? -1n;
      if (own > newest) newest = own;
    }
    if (newest <= sequenceNumber) return;
    throw new SpillwayError(
      "equality_deletes_unsupported",
      `Equality deletes apply to the data file ${dataFile.path}.`,
    );
  }
}

function push(map: Map<string, Sequenced[]>, key: string, one: Sequenced): void {
  const list = map.get(key);
  if (list) list.push(one);
  else map.set(key, [one]);
}
