/** What the interop tests share: the foreign process, tables in a temporary store, sample values of every type. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect } from "vitest";
import type { FormatVersion, NestedField, PartitionSpec, PrimitiveType } from "@spillway/lake/model";
import { FileStore } from "@spillway/lake/store/file";
import { Foreign, type Reader } from "./foreign.ts";
import { type CellValue, LakeTable, type LakeTableOptions, type Row } from "./lake-table.ts";

export const READERS: readonly Reader[] = ["pyiceberg", "duckdb"];
const VERSIONS: readonly FormatVersion[] = [2, 3];
export const COMBINATIONS = VERSIONS.flatMap((version) => READERS.map((reader) => [version, reader] as const));

export function field(id: number, name: string, type: NestedField["type"], required = false): NestedField {
  return { id, name, required, type };
}

/** Values for the fields 1, 2, 3 … */
export const row = (...values: CellValue[]): Row => new Map(values.map((value, i) => [i + 1, value]));
export const bytes = (...list: number[]): Uint8Array => Uint8Array.from(list);
/** Microseconds. */
export const DAY = 86_400_000_000n;
/** 0001-01-01 and the last microsecond of 9999. */
const [YEAR_1, YEAR_9999] = [-62_135_596_800_000_000n, 253_402_300_799_999_999n];

export const SAMPLES: readonly (readonly [PrimitiveType, readonly CellValue[]])[] = [
  [{ kind: "boolean" }, [true, false]],
  [{ kind: "int" }, [0, -1, 2 ** 31 - 1, -(2 ** 31)]],
  [{ kind: "long" }, [0n, -1n, 2n ** 63n - 1n, -(2n ** 63n)]],
  [{ kind: "float" }, [0, -0, Math.fround(0.1), Number.NaN, Infinity, -Infinity]],
  [{ kind: "double" }, [0, -0, 0.1, Number.NaN, Infinity, -Infinity, Number.MIN_VALUE]],
  [{ kind: "decimal", precision: 9, scale: 2 }, [0n, -1n, 999_999_999n, -999_999_999n]],
  [{ kind: "decimal", precision: 18, scale: 0 }, [10n ** 18n - 1n, -1n]],
  [{ kind: "decimal", precision: 38, scale: 10 }, [10n ** 38n - 1n, -(10n ** 38n) + 1n, 1n]],
  [{ kind: "date" }, [0, -1, 20_000, -719_162, 2_932_896]],
  [{ kind: "time" }, [0n, 1n, DAY - 1n]],
  [{ kind: "timestamp" }, [0n, -1n, YEAR_1, YEAR_9999]],
  [{ kind: "timestamptz" }, [0n, -1n, YEAR_1, YEAR_9999]],
  [{ kind: "string" }, ["", "a", "ü\u{1F600}\n\"'\\", "x".repeat(300), "\u0000"]],
  [
    { kind: "uuid" },
    [new Uint8Array(16), new Uint8Array(16).fill(255), bytes(...Array.from({ length: 16 }, (_, i) => i))],
  ],
  [{ kind: "fixed", length: 3 }, [bytes(0, 0, 0), bytes(255, 0, 1)]],
  [{ kind: "binary" }, [bytes(), bytes(0, 255), new Uint8Array(100).fill(255)]],
];
export const NS_SAMPLES: typeof SAMPLES = [
  [{ kind: "timestamp_ns" }, [0n, -1n, 1_700_000_000_123_456_789n]],
  [{ kind: "timestamptz_ns" }, [0n, -1n, 1_700_000_000_123_456_789n]],
];

export type TableShape = Pick<LakeTableOptions, "fields" | "formatVersion"> & { readonly spec?: PartitionSpec };

export interface InteropBench {
  readonly foreign: Foreign;
  readonly store: FileStore;
  table(shape: TableShape): LakeTable;
  /** Reads with the reader and compares with the model; or expects the words with which it refuses. */
  check(reader: Reader, lake: LakeTable, refusal?: RegExp): Promise<void>;
}

/** Started before and stopped after the tests of the file that calls it. */
export function interopBench(): InteropBench {
  const base = mkdtempSync(join(tmpdir(), "spillway-interop-"));
  const store = new FileStore({ root: base, fsync: false });
  let foreign: Foreign | undefined;
  let tables = 0;
  beforeAll(() => {
    foreign = Foreign.start();
  });
  afterAll(async () => {
    await foreign?.stop();
    rmSync(base, { recursive: true, force: true });
  });
  const running = (): Foreign => {
    if (!foreign) throw new Error("the foreign process runs in tests only");
    return foreign;
  };
  return {
    store,
    get foreign() {
      return running();
    },
    table: (shape) => new LakeTable({ store, foreign: running(), location: `${store.root}/t${tables++}`, ...shape }),
    check: async (reader, lake, refusal) => {
      const read = running().read(reader, await lake.publish());
      if (refusal) await expect(read).rejects.toThrow(refusal);
      else expect(lake.received(await read)).toEqual(lake.expected());
    },
  };
}
