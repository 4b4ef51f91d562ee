/**
 * Another monitor for a node whose monitor is lost together with its disk. The node registers anew with what it has:
 * the new monitor takes over the formation's secrets from the first node, which has to be the primary, and the
 * keeper goes over while Postgres runs on. What the keeper is to become is written to one file; a keeper that finds
 * it, at its start or while it runs, makes it its own. Writing it again, or making it its own twice, changes nothing.
 */
import { existsSync, readFileSync, rmSync } from "node:fs";
import { resolve } from "node:path";
import { SpillwayError } from "@spillway/base/errors";
import { isWritable, type State } from "../fsm/states.ts";
import { detectBinaries, versionNumber } from "../postgres/binaries.ts";
import { replaceIfChanged } from "../postgres/config-files.ts";
import { readControlData } from "../postgres/control-file.ts";
import { MONITOR_PATHS } from "../protocol/http.ts";
import { assignment, PROTOCOL_VERSION } from "../protocol/messages.ts";
import { object, parseMessage } from "../protocol/validate.ts";
import { defaultStateDir, keeperConfig, KeeperFiles, type KeeperConfig } from "./files.ts";
import { HttpClient } from "./http-client.ts";
import { certificateFingerprint, keeperUrlOf } from "./place.ts";
import { MonitorClient } from "./monitor-client.ts";

const FILE = "replacement.json";
const REGISTER_TIMEOUT_MS = 10_000;
const ASK_TIMEOUT_MS = 2_000;

const replacement = object({ config: keeperConfig, assignment });

export function hasReplacement(files: KeeperFiles): boolean {
  return existsSync(files.path(FILE));
}

/** Makes a pending replacement the keeper's own: its configuration, and the new monitor's first assignment. */
export function takeReplacement(files: KeeperFiles): void {
  if (!hasReplacement(files)) return;
  const path = files.path(FILE);
  const next = parseMessage(replacement, readFileSync(path, "utf8"), path);
  const { state } = files.readCore();
  files.writeConfig(next.config);
  files.writeCore({ state: carried(state), assignment: next.assignment, appliedVersion: 0 });
  rmSync(path, { force: true });
}

/** A primary and a standby stay what they are; whoever was on the way to something is looked at anew. */
function carried(state: State): State {
  return isWritable(state) || state === "secondary" || state === "catchingup" ? state : "init";
}

export interface ReplaceMonitorOptions {
  readonly pgdata: string;
  readonly stateDir?: string | undefined;
  readonly monitors: readonly string[];
  readonly registrationToken: string;
  readonly monitorFingerprint: string | null;
}

/** Registers the node with the new monitors. Throws `ha_refused` while one of the old ones answers. */
export async function replaceMonitor(options: ReplaceMonitorOptions): Promise<KeeperConfig> {
  const files = new KeeperFiles(resolve(options.stateDir ?? defaultStateDir(options.pgdata)));
  const before = files.readConfig();
  const core = files.readCore();
  const http = new HttpClient();
  try {
    await refuseLivingMonitor(http, before, options.monitors);
    const { monitors, registrationToken: token, monitorFingerprint: fingerprint } = options;
    const control = await readControlData(before.pgdata);
    const registered = await new MonitorClient(http, { monitors, token, fingerprint }).register(
      {
        protocol: PROTOCOL_VERSION,
        formation: before.formation,
        name: before.name,
        host: before.host,
        pgPort: before.pgPort,
        keeperUrl: keeperUrlOf(before),
        keeperFingerprint: certificateFingerprint(before.tlsCert),
        systemIdentifier: control.systemId,
        pgVersion: versionNumber(await detectBinaries({ pgBin: before.pgBin })),
        candidatePriority: core.assignment?.candidatePriority ?? 50,
        replicationQuorum: core.assignment?.replicationQuorum ?? true,
        follows: !isWritable(core.state),
        secrets: {
          peerToken: before.peerToken,
          replicationUser: before.replicationUser,
          replicationPassword: before.replicationPassword,
        },
      },
      REGISTER_TIMEOUT_MS,
    );
    const { nodeId, nodeToken, peerToken, replicationUser, replicationPassword } = registered;
    const config: KeeperConfig = {
      ...before,
      nodeId,
      nodeToken,
      peerToken,
      replicationUser,
      replicationPassword,
      monitors,
      monitorFingerprint: fingerprint,
    };
    replaceIfChanged(files.path(FILE), `${JSON.stringify({ config, assignment: registered.assignment })}\n`);
    return config;
  } finally {
    http.close();
  }
}

/** Two monitors that both decide about one formation would be two brains. */
async function refuseLivingMonitor(http: HttpClient, before: KeeperConfig, next: readonly string[]): Promise<void> {
  for (const url of before.monitors.filter((old) => !next.includes(old))) {
    const call = { method: "GET", url: new URL(MONITOR_PATHS.health, url).toString(), token: "" } as const;
    const alive = await http
      .call({ ...call, timeoutMs: ASK_TIMEOUT_MS, fingerprint: before.monitorFingerprint })
      .then(() => true)
      .catch(() => false);
    if (!alive) continue;
    throw new SpillwayError("ha_refused", `the monitor at ${url} still answers, and it decides about this node`, {
      remedy: "Stop it for good first, or leave the node with it.",
    });
  }
}
