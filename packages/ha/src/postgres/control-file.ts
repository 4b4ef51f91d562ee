/**
 * The few facts of `global/pg_control` that a stopped data directory must tell us. The start of the
 * file has had the same layout since Postgres 11 (source: src/include/catalog/pg_control.h), so it is
 * read directly: the npm packages of Postgres have no pg_controldata.
 */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { SpillwayError } from "@spillway/base/errors";
import type { Lsn } from "@spillway/base/lsn";

/** DBState of pg_control.h, in its order. */
const STATES = [
  "starting up",
  "shut down",
  "shut down in recovery",
  "shutting down",
  "in crash recovery",
  "in archive recovery",
  "in production",
] as const;

export type ClusterState = (typeof STATES)[number];

export interface ControlData {
  readonly systemId: string;
  readonly state: ClusterState;
  /** Position of the last checkpoint record. */
  readonly checkpointLsn: Lsn;
  readonly redoLsn: Lsn;
  /** Timeline of the last checkpoint; a standby may have received a later one since. */
  readonly timeline: number;
}

const PREFIX_BYTES = 56;

/** Decodes the prefix of pg_control. Null when it cannot be one. */
export function parseControlData(bytes: Buffer): ControlData | null {
  if (bytes.length < PREFIX_BYTES) return null;
  const state = STATES[bytes.readInt32LE(16)];
  const systemId = bytes.readBigUInt64LE(0);
  if (state === undefined || systemId === 0n) return null;
  return {
    systemId: systemId.toString(),
    state,
    checkpointLsn: bytes.readBigUInt64LE(32),
    redoLsn: bytes.readBigUInt64LE(40),
    timeline: bytes.readUInt32LE(48),
  };
}

/** Throws `ha_data_dir_invalid` when the directory has no readable control file. */
export async function readControlData(pgdata: string): Promise<ControlData> {
  const path = join(pgdata, "global", "pg_control");
  const bytes = await readFile(path).catch((cause: unknown) => {
    throw new SpillwayError("ha_data_dir_invalid", `${path} cannot be read`, { cause });
  });
  const data = parseControlData(bytes);
  if (!data) throw new SpillwayError("ha_data_dir_invalid", `${path} is not a control file`);
  return data;
}
