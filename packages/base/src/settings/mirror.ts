import type { Setting } from "../config.ts";

export const MIRROR_SETTINGS = {
  mirrorFlushInterval: {
    name: "mirror-flush-interval",
    type: "duration",
    default: "1s",
    unit: "ms",
    min: 10,
    help: "How often the mirror publishes what it has received.",
  } as Setting<number>,
  maxBufferedRows: {
    name: "max-buffered-rows",
    type: "int",
    default: "100000",
    unit: "rows",
    min: 1000,
    help: "Changed rows that the mirror keeps in memory; a larger transaction is staged in files nobody sees.",
  } as Setting<number>,
  mirrorIndexMemory: {
    name: "mirror-index-memory",
    type: "bytes",
    default: "1GiB",
    min: 1 << 20,
    help: "Memory for the key indexes of all mirrored tables; 9 to 18 bytes a row.",
  } as Setting<number>,
  slotWarnBytes: {
    name: "slot-warn-bytes",
    type: "bytes",
    default: "1GiB",
    min: 1 << 20,
    help: "WAL kept by the slot at which the worker warns; at four times that it is an error.",
  } as Setting<number>,
  freshnessTimeout: {
    name: "freshness-timeout",
    type: "duration",
    default: "5s",
    unit: "ms",
    min: 0,
    help: "How long `--freshness strict` waits for the lake to get to this moment before the heap answers.",
  } as Setting<number>,
  copyParallel: {
    name: "copy-parallel",
    type: "int",
    default: "2",
    min: 1,
    max: 32,
    help: "Connections that read a table's first copy.",
  } as Setting<number>,
} as const satisfies Record<string, Setting>;
