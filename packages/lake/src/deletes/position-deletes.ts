/**
 * Position delete files of format v2: Parquet with the columns `file_path` and `pos`, sorted by both.
 * Source: https://iceberg.apache.org/spec/#position-delete-files
 */
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { newUuid } from "@spillway/base/ids";
import { parquetMetadataAsync, parquetRead, type FileMetaData, type SchemaElement } from "hyparquet";
import { parquetWriteBuffer } from "hyparquet-writer";
import type { DataFile } from "../model.ts";
import { PositionSet } from "../puffin/position-set.ts";
import { RESERVED_IDS } from "../schema.ts";
import type { ObjectStore } from "../store/store.ts";
import { compareUtf8, encodeValue } from "../values.ts";
import { COMPRESSORS, parquetFile } from "./parquet-file.ts";

const ROW_GROUP_ROWS = 100_000;
const SCHEMA: SchemaElement[] = [
  { name: "table", num_children: 2 },
  {
    name: "file_path",
    type: "BYTE_ARRAY",
    repetition_type: "REQUIRED",
    converted_type: "UTF8",
    logical_type: { type: "STRING" },
    field_id: RESERVED_IDS.deleteFilePath,
  },
  { name: "pos", type: "INT64", repetition_type: "REQUIRED", field_id: RESERVED_IDS.deletePos },
];

/** The new deletes of one data file. */
export interface FileDeletes {
  readonly dataFile: DataFile;
  readonly positions: PositionSet;
}

/**
 * Writes position delete files below `folder`, one for each data file, so that a later delete of the
 * same data file can replace its own and no other. Empty sets give none.
 */
export async function writePositionDeletes(
  store: ObjectStore,
  folder: string,
  deletes: readonly FileDeletes[],
): Promise<DataFile[]> {
  const written: DataFile[] = [];
  for (const { dataFile, positions } of deletes) {
    if (!positions.isEmpty) written.push(await writeOne(store, folder, dataFile, positions));
  }
  return written;
}

async function writeOne(store: ObjectStore, folder: string, data: DataFile, set: PositionSet): Promise<DataFile> {
  const positions = set.toSortedBigInt();
  const bytes = new Uint8Array(
    parquetWriteBuffer({
      schema: SCHEMA,
      columnData: [
        { name: "file_path", data: Array.from({ length: positions.length }, () => data.path) },
        { name: "pos", data: positions },
      ],
      rowGroupSize: ROW_GROUP_ROWS,
      // Readers find the data files of a delete file by these bounds: they must be whole.
      statisticsTruncateLength: Infinity,
      kvMetadata: [{ key: "delete-type", value: "position" }],
      createdBy: "spillway",
    }),
  );
  const path = `${folder}/${newUuid()}-deletes.parquet`;
  await store.put(path, bytes, { ifNoneMatch: true });
  const count = BigInt(positions.length);
  const name = encodeValue({ kind: "string" }, data.path);
  const both = <T>(file: T, pos: T): Map<number, T> =>
    new Map([
      [RESERVED_IDS.deleteFilePath as number, file],
      [RESERVED_IDS.deletePos as number, pos],
    ]);
  return {
    content: "position-deletes",
    path,
    format: "parquet",
    specId: data.specId,
    partition: data.partition,
    recordCount: count,
    fileSizeBytes: BigInt(bytes.length),
    valueCounts: both(count, count),
    nullValueCounts: both(0n, 0n),
    lowerBounds: both(name, encodeValue({ kind: "long" }, positions[0] ?? 0n)),
    upperBounds: both(name, encodeValue({ kind: "long" }, positions.at(-1) ?? 0n)),
    referencedDataFile: data.path,
  };
}

/** Every data file that a position delete file names, with its positions. Throws `deletes_invalid`. */
export async function readPositionDeletes(store: ObjectStore, file: DataFile): Promise<Map<string, PositionSet>> {
  if (file.format !== "parquet") throw invalid(file, `has the format ${file.format}, which is not read`);
  const buffer = await parquetFile(store, file.path, Number(file.fileSizeBytes));
  try {
    const metadata = await parquetMetadataAsync(buffer);
    const names = [
      columnName(metadata, RESERVED_IDS.deleteFilePath, "file_path"),
      columnName(metadata, RESERVED_IDS.deletePos, "pos"),
    ];
    const result = new Map<string, PositionSet>();
    let rowStart = 0;
    for (const group of metadata.row_groups) {
      const rowEnd = rowStart + Number(group.num_rows);
      await readGroup({ file: buffer, metadata, columns: names, rowStart, rowEnd }, result);
      rowStart = rowEnd;
    }
    return result;
  } catch (error) {
    if (error instanceof SpillwayError) throw error;
    throw invalid(file, `cannot be read: ${messageOf(error)}`, error);
  }
}

interface GroupRead {
  readonly file: Awaited<ReturnType<typeof parquetFile>>;
  readonly metadata: FileMetaData;
  readonly columns: string[];
  readonly rowStart: number;
  readonly rowEnd: number;
}

async function readGroup(read: GroupRead, into: Map<string, PositionSet>): Promise<void> {
  const rows = read.rowEnd - read.rowStart;
  const paths: (string | undefined)[] = Array.from({ length: rows });
  const positions: (bigint | number | null | undefined)[] = Array.from({ length: rows });
  await parquetRead({
    ...read,
    compressors: COMPRESSORS,
    onChunk: ({ columnName, columnData, rowStart, rowEnd }) => {
      const target = (columnName === read.columns[0] ? paths : positions) as unknown[];
      const from = Math.max(rowStart, read.rowStart);
      for (let row = from; row < Math.min(rowEnd, read.rowEnd); row++) {
        target[row - read.rowStart] = columnData[row - rowStart];
      }
    },
  });
  let [lastPath, set]: [string | undefined, PositionSet] = [undefined, new PositionSet()];
  for (let row = 0; row < rows; row++) {
    const [path, position] = [paths[row], positions[row]];
    if (typeof path !== "string" || position === undefined || position === null || position < 0) {
      throw new RangeError(`row ${read.rowStart + row} names no position`);
    }
    if (path !== lastPath) {
      set = into.get(path) ?? new PositionSet();
      into.set(path, set);
      lastPath = path;
    }
    set.add(position);
  }
}

/** By field id; writers without ids use the specification's names. */
function columnName(metadata: FileMetaData, id: number, name: string): string {
  const found = metadata.schema.find((e) => e.field_id === id) ?? metadata.schema.find((e) => e.name === name);
  if (!found) throw new TypeError(`it has no column ${name}`);
  return found.name;
}

function invalid(file: DataFile, why: string, cause?: unknown): SpillwayError {
  return new SpillwayError("deletes_invalid", `The delete file ${file.path} ${why}.`, { cause });
}

/** Whether a position delete file may name the data file, by its reference or its bounds. */
export function mayConcern(file: DataFile, dataFile: string): boolean {
  if (file.referencedDataFile !== undefined) return file.referencedDataFile === dataFile;
  const lower = file.lowerBounds?.get(RESERVED_IDS.deleteFilePath);
  const upper = file.upperBounds?.get(RESERVED_IDS.deleteFilePath);
  const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);
  // Truncated bounds hold too: a lower one is a prefix, an upper one is incremented.
  if (lower !== undefined && compareUtf8(dataFile, text(lower)) < 0) return false;
  return upper === undefined || compareUtf8(dataFile, text(upper)) <= 0;
}
