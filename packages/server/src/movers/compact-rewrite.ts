/** Copying the live rows of data files into new ones, in order, and reading them back. */
import { assert, must } from "@spillway/base/assert";
import { estimateBytes } from "@spillway/base/batch";
import type { Column, ColumnBatch } from "@spillway/base/columns";
import { SpillwayError } from "@spillway/base/errors";
import { Checksum, RowHasher, type RowHashes } from "@spillway/base/rowhash";
import type { DataFile, TableMetadata } from "@spillway/lake/model";
import { specById } from "@spillway/lake/partition";
import type { ScanTask } from "@spillway/lake/scan/scan";
import { RESERVED_IDS } from "@spillway/lake/schema";
import { type LakeField, readDataFiles, type ScanField, writeDataFiles } from "../engine/engine.ts";
import type { MoverContext } from "./context.ts";
import type { HashedRows } from "./fold-bands.ts";
import { type KnownField, keysOf } from "./fold-fields.ts";
import { keyField, places } from "./fold-lookup.ts";
import { withLocalFiles } from "./fold-scan.ts";
import { ROW_ID_FIELD, withoutReserved } from "./fold-write.ts";
import { asTiered, type LakeRelation, type TieredRelation } from "./tiered.ts";

const UPDATED_FIELD: LakeField = {
  id: RESERVED_IDS.lastUpdatedSequenceNumber,
  name: "_last_updated_sequence_number",
  kind: "int64",
};
/** Null where a file does not have them: then they follow from the file's place in the table (spec, row lineage). */
const LINEAGE: readonly ScanField[] = [ROW_ID_FIELD, UPDATED_FIELD];

export interface RewriteRequest {
  readonly relation: LakeRelation;
  readonly metadata: TableMetadata;
  readonly fields: readonly KnownField[];
  readonly tasks: readonly ScanTask[];
  readonly onFile: (path: string) => Promise<void>;
  /** Given the hashes of each batch over every column that there ever was, and over the live ones; only where they differ. */
  readonly onDropped: (rows: { readonly before: HashedRows; readonly after: HashedRows }) => void;
}

export interface Rewritten {
  readonly files: readonly DataFile[];
  readonly rows: bigint;
  readonly bytesPerRow: number;
}

/** Throws `verify_failed` when the new files do not read back as what was written, in its order. */
export async function rewrite(ctx: MoverContext, request: RewriteRequest): Promise<Rewritten> {
  const copy = new Copy(request);
  const { metadata, tasks, fields } = request;
  const live = fields.filter((f) => f.live).map((f) => f.scan);
  const withLineage = metadata.formatVersion >= 3;
  const files = await withLocalFiles(ctx, tasks, (local) =>
    writeDataFiles({
      engine: ctx.engine,
      batches: copy.batches(
        readDataFiles({
          engine: ctx.engine,
          files: local,
          fields: [...fields.map((f) => f.scan), ...(withLineage ? LINEAGE : [])],
          withPosition: true,
          ...(ctx.signal ? { signal: ctx.signal } : {}),
        }),
      ),
      fields: withLineage ? [...live, ...LINEAGE] : live,
      spec: specById(metadata, must(tasks[0], "file").dataFile.specId),
      store: ctx.store,
      dataLocation: `${metadata.location}/data`,
      stageDir: ctx.stageDir,
      onFile: request.onFile,
      ...(ctx.signal ? { signal: ctx.signal } : {}),
    }),
  );
  const written = files.map(withoutReserved);
  await readBack(ctx, fields, written, copy.digest);
  const { rows } = copy.digest.checksum;
  return { files: written, rows, bytesPerRow: rows === 0n ? 0 : copy.bytes / Number(rows) };
}

class Copy {
  readonly #request: RewriteRequest;
  readonly #liveHasher: RowHasher;
  readonly #fullHasher: RowHasher | null;
  readonly #tiered: TieredRelation | null;
  readonly digest = new OrderedDigest();
  bytes = 0;
  #last = -1n;

  constructor(request: RewriteRequest) {
    const { fields } = request;
    this.#request = request;
    this.#liveHasher = new RowHasher(fields.filter((f) => f.live).map((f) => f.hash));
    // Only bands have checksums over columns that are gone.
    this.#tiered = fields.every((f) => f.live) ? null : asTiered(request.relation);
    this.#fullHasher = this.#tiered === null ? null : new RowHasher(fields.map((f) => f.hash));
  }

  async *batches(source: AsyncIterable<ColumnBatch>): AsyncIterable<ColumnBatch> {
    const { fields, metadata, tasks } = this.#request;
    const liveCount = fields.filter((f) => f.live).length;
    const keyAt = this.#tiered === null ? -1 : fields.indexOf(keyField(this.#tiered, fields));
    for await (const batch of source) {
      this.#checkOrder(batch);
      const columns = batch.columns.slice(0, liveCount);
      const hashes = this.#liveHasher.hashBatch({ length: batch.length, columns });
      this.digest.add(hashes, batch.length);
      if (this.#fullHasher) {
        const keys = keysOf(must(batch.columns[keyAt], "tier key"), batch.length).slice();
        const full = this.#fullHasher.hashBatch({
          length: batch.length,
          columns: batch.columns.slice(0, fields.length),
        });
        this.#request.onDropped({ before: { keys, hashes: full }, after: { keys, hashes } });
      }
      const lineage = metadata.formatVersion >= 3 ? lineageOf(batch, tasks) : [];
      const out = { length: batch.length, columns: [...columns, ...lineage] };
      this.bytes += estimateBytes(out);
      yield out;
    }
  }

  /** New positions are counted, so everything depends on the order. */
  #checkOrder(batch: ColumnBatch): void {
    const [files, positions] = places(batch);
    for (let i = 0; i < batch.length; i++) {
      const at = ((files[i] ?? 0n) << 48n) | (positions[i] ?? 0n);
      assert(at > this.#last, "rows are read in the order of files and positions");
      this.#last = at;
    }
  }
}

/** Row ids and the sequence numbers of the rows' last changes, written out: the new files' own would be others. */
function lineageOf(batch: ColumnBatch, tasks: readonly ScanTask[]): Column[] {
  const [files, positions] = places(batch);
  const [ids, updates] = [must(batch.columns.at(-4), "_row_id"), must(batch.columns.at(-3), "_last_updated")];
  const idOf = (i: number): bigint | undefined => {
    const first = tasks[Number(files[i])]?.dataFile.firstRowId;
    return first === undefined ? undefined : first + (positions[i] ?? 0n);
  };
  const sequenceOf = (i: number): bigint | undefined => {
    const task = tasks[Number(files[i])];
    return task?.dataFile.firstRowId === undefined ? undefined : task.sequenceNumber;
  };
  return [filled(ids, batch.length, idOf), filled(updates, batch.length, sequenceOf)];
}

function filled(own: Column, length: number, otherwise: (i: number) => bigint | undefined): Column {
  const data = new BigInt64Array(length);
  const validity = new Uint8Array(length);
  const given = "data" in own ? (own.data as BigInt64Array) : new BigInt64Array(length);
  for (let i = 0; i < length; i++) {
    const has = own.validity === null || own.validity[i] === 1;
    const value = has ? given[i] : otherwise(i);
    if (value === undefined) continue;
    data[i] = value;
    validity[i] = 1;
  }
  return { spec: own.spec, validity, data };
}

/** A checksum that depends on the order of the rows too. */
class OrderedDigest {
  readonly checksum = new Checksum();
  #state = 0x811c9dc5;

  add(hashes: RowHashes, length: number): void {
    this.checksum.add(hashes, 0, length);
    let state = this.#state;
    for (let i = 0; i < length; i++) {
      state = Math.imul(state ^ (hashes.lo[i] ?? 0), 0x01000193);
      state = Math.imul(state ^ (hashes.hi[i] ?? 0), 0x01000193) ^ (state >>> 15);
    }
    this.#state = state;
  }

  toString(): string {
    return `${this.checksum.toString()} in order ${(this.#state >>> 0).toString(16)}`;
  }
}

async function readBack(
  ctx: MoverContext,
  fields: readonly KnownField[],
  files: readonly DataFile[],
  expected: OrderedDigest,
): Promise<void> {
  const found = new OrderedDigest();
  const hasher = new RowHasher(fields.map((f) => f.hash));
  for (const file of files) {
    const task: ScanTask = { dataFile: file, sequenceNumber: 0n, deletes: [], residual: { op: "true" } };
    await withLocalFiles(ctx, [task], async (local) => {
      const before = found.checksum.rows;
      for await (const batch of readDataFiles({
        engine: ctx.engine,
        files: local,
        fields: fields.map((f) => f.scan),
      })) {
        found.add(hasher.hashBatch(batch), batch.length);
      }
      if (found.checksum.rows - before !== file.recordCount) {
        throw new SpillwayError(
          "verify_failed",
          `${file.path} does not have the ${file.recordCount} rows that it declares`,
        );
      }
    });
  }
  if (found.toString() === expected.toString()) return;
  throw new SpillwayError(
    "verify_failed",
    `rewritten files read back as ${found.toString()}, written was ${expected.toString()}`,
  );
}
