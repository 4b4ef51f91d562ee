/**
 * The watchdog: a second, very small process beside the keeper. When the deadline of the last beat passes
 * (the keeper died, hangs, or was stopped while its node held a lease), it stops Postgres by force. It
 * never starts anything. A keeper that comes back finds Postgres stopped and asks the monitor what to do.
 */
import { currentBootId, readBeat, type Beat } from "./beat.ts";
import { fencePostgres } from "../postgres/processes.ts";

export interface WatchdogOptions {
  readonly beatFile: string;
  readonly pgdata: string;
  readonly sleep: (ms: number) => Promise<void>;
  readonly nowNs: () => bigint;
  readonly say: (text: string) => void;
  /** False ends the watch. */
  readonly goOn: () => boolean;
}

const POLL_MS = 50;
/** Once Postgres is gone, looking for one that somebody started by hand need not be as quick. */
const FENCED_POLL_MS = 400;

/** Whether the beat says that Postgres must be gone by now. A beat of another boot, or none, limits nothing yet. */
export function mustFence(beat: Beat | null, bootId: string, nowNs: bigint): boolean {
  return beat !== null && beat.bootId === bootId && beat.deadlineNs !== null && nowNs >= beat.deadlineNs;
}

export async function watch(options: WatchdogOptions): Promise<void> {
  const bootId = currentBootId();
  let last: Beat | null = null;
  let fencedFor: bigint | null = null;
  while (options.goOn()) {
    // A torn or missing file leaves the last good beat in force.
    last = readBeat(options.beatFile) ?? last;
    const fences = last !== null && mustFence(last, bootId, options.nowNs());
    if (last !== null && fences) {
      const gone = await fencePostgres(options.pgdata, options.sleep);
      if (fencedFor !== last.deadlineNs) {
        options.say(
          `the lease ran out without a beat of the keeper (pid ${last.keeperPid}): Postgres ${gone ? "stopped" : "does not stop"}`,
        );
        fencedFor = last.deadlineNs;
      }
    }
    await options.sleep(fences ? FENCED_POLL_MS : POLL_MS);
  }
}
