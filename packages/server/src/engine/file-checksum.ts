/** The row checksum of one data file, none of whose rows is deleted: what a written file reads back as. */
import { Checksum, type HashField, RowHasher } from "@spillway/base/rowhash";
import type { Engine } from "./instance.ts";
import { readDataFiles } from "./readback.ts";
import type { ScanField } from "./scan-sql.ts";

/** Plain data: it may be handed to another thread. */
export interface FileChecksumRequest {
  /** Local. */
  readonly path: string;
  readonly rows: bigint;
  readonly fields: readonly ScanField[];
  /** Of the same columns, in the same order. */
  readonly hashes: readonly HashField[];
  /** Only the rows at these positions: from the first, up to but not with the second. Default all. */
  readonly range?: readonly [number, number];
}

export type FileChecksum = (request: FileChecksumRequest, signal?: AbortSignal) => Promise<Checksum>;

export function fileChecksum(engine: Engine): FileChecksum {
  return async ({ path, rows, fields, hashes, range }, signal) => {
    const hasher = new RowHasher(hashes);
    const checksum = new Checksum();
    const where = range && `file_row_number >= ${range[0]} AND file_row_number < ${range[1]}`;
    const batches = readDataFiles({
      engine,
      files: [{ path, rows }],
      fields,
      ...(where === undefined ? {} : { where }),
      ...(signal ? { signal } : {}),
    });
    for await (const batch of batches) checksum.add(hasher.hashBatch(batch));
    return checksum;
  };
}
