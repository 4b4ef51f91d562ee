/** The tables of the chaos run, each beside a plain one that every transaction writes as well. */
import type { ColumnBatch } from "@spillway/base/columns";
import type { Client } from "../bench/scratch.ts";

export interface ChaosTable {
  readonly name: string;
  readonly key: "int" | "timestamptz";
  readonly mode: "tiered" | "direct";
  readonly keepHeap: boolean;
  /** Written by plain SQL and the SQL functions, with a plain table beside it; or by `spillway sql` alone. */
  readonly writes: "plain" | "statements";
}

export const TABLES: readonly ChaosTable[] = [
  { name: "ints", key: "int", mode: "tiered", keepHeap: false, writes: "plain" },
  { name: "times", key: "timestamptz", mode: "tiered", keepHeap: false, writes: "plain" },
  { name: "kept", key: "int", mode: "tiered", keepHeap: true, writes: "plain" },
  { name: "fresh", key: "int", mode: "direct", keepHeap: false, writes: "plain" },
  { name: "stated", key: "int", mode: "tiered", keepHeap: false, writes: "statements" },
  { name: "straight", key: "int", mode: "direct", keepHeap: false, writes: "statements" },
];

/** Keys of one partition. */
export const WIDTH = 100;
/** How far behind the newest key a partition has to be. */
export const LAG = 120;
/** Where the newest key is at the beginning. */
export const FIRST_HEAD = 450;

const MINUTE_US = 60_000_000n;
const EPOCH_US = 1_704_067_200_000_000n;

/** The value of a key, as SQL. Time keys count minutes from 2024 on. */
export function keySql(table: ChaosTable, key: number): string {
  if (table.key === "int") return String(key);
  return `('2024-01-01 00:00+00'::timestamptz + interval '1 minute' * (${key}))`;
}

/** The key as `keySql` counts, of what a read gave: an int, or µs. */
export function keyOfValue(table: ChaosTable, value: unknown): number {
  if (table.key === "int") return Number(value);
  return Number((BigInt(value as bigint) - EPOCH_US) / MINUTE_US);
}

export function rowValues(table: ChaosTable, id: number, key: number, stamp: number): string {
  const sign = id % 2 === 0 ? "" : "-";
  return `(${id}, ${keySql(table, key)}, ${stamp}, ${sign}${stamp}, 'v${stamp}${"x".repeat(Math.abs(stamp) % 23)}')`;
}

export function rowJson(table: ChaosTable, id: number, key: number, stamp: number): string {
  const [sign, value] = [id % 2 === 0 ? 1 : -1, `v${stamp}${"x".repeat(Math.abs(stamp) % 23)}`];
  const k = table.key === "int" ? key : new Date(Number(EPOCH_US / 1000n) + key * 60_000).toISOString();
  return JSON.stringify({ id, k, s: stamp, d: sign * stamp, v: value });
}

export async function createTable(client: Client, table: ChaosTable): Promise<void> {
  const { name, key } = table;
  const columns = `id bigint, k ${key} not null, s bigint, d bigint, v text`;
  await client.query(`create table ${name} (${columns}, primary key (id, k)) partition by range (k)`);
  for (let low = 0; low < FIRST_HEAD; low += WIDTH) {
    const [from, to] = [low, low + WIDTH].map((k) => keySql(table, k)) as [string, string];
    await client.query(`create table ${name}_${low} partition of ${name} for values from (${from}) to (${to})`);
  }
  if (table.writes === "plain") await client.query(`create table ${name}_shadow (${columns}, primary key (id))`);
}

/** The flags of `spillway register`. */
export function registerArgs(table: ChaosTable): string[] {
  const [lag, width] = table.key === "int" ? [LAG, WIDTH] : [`${LAG}m`, `${WIDTH}m`];
  const args = ["register", "--table", `public.${table.name}`, "--mode", table.mode];
  return [
    ...args,
    "--lag",
    String(lag),
    "--partition-width",
    String(width),
    ...(table.keepHeap ? ["--keep-heap"] : []),
  ];
}

/** Everything that the worker does often enough to meet the others within seconds. */
export const POLICY: Readonly<Record<string, string>> = {
  fold_rows: "100",
  fold_interval: "500ms",
  maintenance_interval: "2s",
  delete_compaction_min_deletes: "20",
  delete_compaction_min_ratio: "0.05",
  rewrite_min_input_files: "3",
  manifest_rewrite_min_manifests: "6",
  snapshot_retention: "2s",
  snapshot_min_retained: "1",
  orphan_grace: "5s",
};

export function textBatch(names: readonly string[], rows: readonly (readonly string[])[]): ColumnBatch {
  const columns = names.map((name, c) => {
    const values = rows.map((row) => Buffer.from(row[c] ?? ""));
    const offsets = new Uint32Array(rows.length + 1);
    values.forEach((value, i) => (offsets[i + 1] = (offsets[i] ?? 0) + value.length));
    return { spec: { name, kind: "text" as const }, validity: null, offsets, heap: Buffer.concat(values) };
  });
  return { length: rows.length, columns };
}
