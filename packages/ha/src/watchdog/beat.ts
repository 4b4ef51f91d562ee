/**
 * The beat: how the keeper tells the watchdog until when its Postgres may be writable. One small file,
 * overwritten in place, so that it needs no space on a full disk, no socket, and survives the keeper:
 * the next keeper goes on writing it. Times are CLOCK_MONOTONIC nanoseconds (`process.hrtime.bigint()`),
 * which all processes of one boot share; the boot id keeps a beat from before a restart from counting.
 * Node gives no access to CLOCK_BOOTTIME: while a whole machine sleeps, the clock stands still with it.
 *
 * Imports nothing but Node: the watchdog must keep working when everything else is wrong.
 */
import { closeSync, openSync, readFileSync, writeSync } from "node:fs";

export interface Beat {
  readonly bootId: string;
  /** Postgres must be gone when this passes; null = no limit (no lease is required, or no writable state). */
  readonly deadlineNs: bigint | null;
  readonly keeperPid: number;
}

const LENGTH = 128;
const FOREVER = "forever";

export function currentBootId(): string {
  try {
    return readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  } catch {
    return "unknown";
  }
}

export function formatBeat(beat: Beat): string {
  const fields = [beat.bootId, beat.deadlineNs === null ? FOREVER : String(beat.deadlineNs), String(beat.keeperPid)];
  const text = fields.join(" ");
  return `${`${text} ${checksum(text)}`.padEnd(LENGTH - 1)}\n`;
}

/** Null for anything torn, foreign or empty. */
export function parseBeat(text: string): Beat | null {
  const [bootId, deadline, pid, sum] = text.trim().split(" ");
  if (bootId === undefined || deadline === undefined || pid === undefined || sum === undefined) return null;
  if (sum !== checksum(`${bootId} ${deadline} ${pid}`)) return null;
  if (deadline !== FOREVER && !/^-?\d+$/.test(deadline)) return null;
  return { bootId, deadlineNs: deadline === FOREVER ? null : BigInt(deadline), keeperPid: Number(pid) };
}

/** Catches a torn write, nothing more. */
function checksum(text: string): string {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193) >>> 0;
  return hash.toString(16).padStart(8, "0");
}

export function readBeat(path: string): Beat | null {
  try {
    return parseBeat(readFileSync(path, "utf8"));
  } catch {
    return null;
  }
}

/** Writes beats through one open file. */
export class BeatWriter {
  readonly #fd: number;
  readonly #bootId = currentBootId();

  constructor(path: string) {
    this.#fd = openSync(path, "r+", 0o600);
  }

  static open(path: string): BeatWriter {
    closeSync(openSync(path, "a", 0o600));
    return new BeatWriter(path);
  }

  write(deadlineNs: bigint | null, keeperPid: number): void {
    writeSync(this.#fd, formatBeat({ bootId: this.#bootId, deadlineNs, keeperPid }), 0);
  }

  close(): void {
    closeSync(this.#fd);
  }
}
