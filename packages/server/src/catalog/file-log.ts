/**
 * The store's own log of files: append-only, one small object an entry, below `<warehouse>/_spillway/log/`. The journal in
 * Postgres is rewound by a failover or a restore; this is not, so files that a lost journal knew are still found.
 */
import type { Clock } from "@spillway/base/clock";
import { newUuid } from "@spillway/base/ids";
import type { ObjectStore } from "@spillway/lake/store/store";

export interface FileLogTarget {
  readonly store: ObjectStore;
  /** Canonical location of the warehouse. */
  readonly warehouse: string;
  readonly clock: Clock;
}

export interface FileLogEntry {
  readonly op: bigint;
  /** Files that the operation is about to write. */
  readonly staged?: readonly string[];
  /** Files that its commit made unreferenced. */
  readonly doomed?: readonly string[];
}

export const LOG_FOLDER = "_spillway/log";

/** Where entries of one moment go: the name sorts by time. */
export async function appendFileLog(target: FileLogTarget, entry: FileLogEntry): Promise<void> {
  const at = new Date(target.clock.wallMs()).toISOString();
  const path = `${target.warehouse}/${LOG_FOLDER}/${at.slice(0, 10)}/${at.replaceAll(":", "")}-${newUuid()}.json`;
  const body = JSON.stringify({ at, op: entry.op.toString(), staged: entry.staged, doomed: entry.doomed });
  await target.store.put(path, Buffer.from(body), { ifNoneMatch: true });
}

/** Entries older than `beforeMs` (all by default), in no promised order; entries that cannot be read are skipped. */
export async function* readFileLog(
  target: Pick<FileLogTarget, "store" | "warehouse">,
  beforeMs = Number.POSITIVE_INFINITY,
): AsyncIterable<{
  readonly path: string;
  readonly atMs: number;
  readonly entry: FileLogEntry;
}> {
  for await (const { path } of target.store.list(`${target.warehouse}/${LOG_FOLDER}/`)) {
    if (timeOfName(path) >= beforeMs) continue;
    const raw = parse(Buffer.from(await target.store.get(path)).toString("utf8"));
    if (raw) yield { path, ...raw };
  }
}

/** When an entry was written, by its name; an older one than any where the name does not say. */
function timeOfName(path: string): number {
  const match = /\/(\d{4}-\d\d-\d\dT)(\d\d)(\d\d)(\d\d\.\d+Z)-[^/]*$/.exec(path);
  return match ? Date.parse(`${match[1]}${match[2]}:${match[3]}:${match[4]}`) : Number.NEGATIVE_INFINITY;
}

function parse(text: string): { atMs: number; entry: FileLogEntry } | null {
  try {
    const raw = JSON.parse(text) as { at: string; op: string; staged?: string[]; doomed?: string[] };
    const entry = { op: BigInt(raw.op), staged: raw.staged ?? [], doomed: raw.doomed ?? [] };
    return { atMs: Date.parse(raw.at), entry };
  } catch {
    return null;
  }
}
