/**
 * What a keeper keeps on disk, in one private directory beside the data directory: its configuration
 * (with the secrets of the registration), the core of its state machine, and what it last wrote into
 * Postgres's configuration. Every file is mode 0600 and replaced by rename, synced.
 */
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import { isState } from "../fsm/states.ts";
import { NEW_NODE, type KeeperCore } from "../fsm/keeper-core.ts";
import { replaceIfChanged } from "../postgres/config-files.ts";
import { assignment } from "../protocol/messages.ts";
import { bool, int, list, nullable, object, optional, parseMessage, text, type Infer } from "../protocol/validate.ts";

export const keeperConfig = object({
  formation: text(63),
  name: text(63),
  nodeId: int(1),
  nodeToken: text(256),
  peerToken: text(256),
  monitors: list(text(512), 16),
  /** SHA-256 of the monitor's certificate, when it is pinned instead of checked against authorities. */
  monitorFingerprint: nullable(text(64)),
  pgdata: text(),
  pgBin: text(),
  pgPort: int(1, 65535),
  host: text(255),
  listen: list(text(255), 16),
  socketDirs: list(text(), 8),
  superuser: text(63),
  superuserPassword: text(256),
  replicationUser: text(63),
  replicationPassword: text(256),
  sslmode: optional(text(16), "prefer"),
  /** host:port of the keeper's own endpoint. */
  keeperListen: text(300),
  tlsCert: nullable(text()),
  tlsKey: nullable(text()),
  /** Networks from which applications log in. */
  clients: list(text(64), 64),
  onRoleChange: nullable(text()),
  maxWalSenders: int(1),
  maxReplicationSlots: int(1),
});
export type KeeperConfig = Infer<typeof keeperConfig>;

/** What of Postgres's configuration depends on the state: survives the keeper and a copied directory. */
export const desiredConf = object({
  ssn: text(8192),
  readOnly: bool,
  /** Node id, host and port that the standby streams from; null = none. */
  upstream: nullable(object({ nodeId: int(1), host: text(255), port: int(1, 65535), useSlot: bool })),
  syncSlots: list(text(63), 64),
});
export type DesiredConf = Infer<typeof desiredConf>;

export const NO_CONF: DesiredConf = { ssn: "", readOnly: false, upstream: null, syncSlots: [] };

/** The state directory that belongs to a data directory. */
export function defaultStateDir(pgdata: string): string {
  return `${resolve(pgdata)}.ha`;
}

export class KeeperFiles {
  readonly dir: string;

  constructor(dir: string) {
    this.dir = dir;
  }

  path(name: string): string {
    return join(this.dir, name);
  }

  get passfile(): string {
    return this.path("pgpass");
  }

  get postgresLog(): string {
    return this.path("postgres.log");
  }

  exists(): boolean {
    return existsSync(this.path("keeper.json"));
  }

  create(): void {
    mkdirSync(this.dir, { recursive: true, mode: 0o700 });
  }

  readConfig(): KeeperConfig {
    if (!this.exists()) {
      throw new SpillwayError("ha_keeper_state_invalid", `${this.dir} holds no keeper: nothing was created there`);
    }
    return this.#read("keeper.json", (body) => parseMessage(keeperConfig, body, this.path("keeper.json")));
  }

  writeConfig(config: KeeperConfig): void {
    this.#write("keeper.json", config);
  }

  readCore(): KeeperCore {
    if (!existsSync(this.path("core.json"))) return NEW_NODE;
    return this.#read("core.json", (body) => {
      const raw = JSON.parse(body) as Record<string, unknown>;
      if (!isState(raw["state"]) || typeof raw["appliedVersion"] !== "number") throw new Error("no such state");
      const given = raw["assignment"];
      return {
        state: raw["state"],
        assignment: given === null ? null : assignment(given, "assignment"),
        appliedVersion: raw["appliedVersion"],
      };
    });
  }

  writeCore(core: KeeperCore): void {
    this.#write("core.json", core);
  }

  readConf(): DesiredConf {
    if (!existsSync(this.path("conf.json"))) return NO_CONF;
    return this.#read("conf.json", (body) => parseMessage(desiredConf, body, this.path("conf.json")));
  }

  writeConf(conf: DesiredConf): void {
    this.#write("conf.json", conf);
  }

  #read<T>(name: string, parse: (body: string) => T): T {
    const path = this.path(name);
    try {
      return parse(readFileSync(path, "utf8"));
    } catch (cause) {
      throw new SpillwayError("ha_keeper_state_invalid", `${path} cannot be read: ${messageOf(cause)}`, { cause });
    }
  }

  #write(name: string, value: unknown): void {
    try {
      replaceIfChanged(this.path(name), `${JSON.stringify(value)}\n`);
    } catch (cause) {
      const full = (cause as NodeJS.ErrnoException).code === "ENOSPC";
      throw new SpillwayError(
        full ? "ha_disk_full" : "ha_keeper_state_invalid",
        `${this.path(name)}: ${messageOf(cause)}`,
        {
          cause,
        },
      );
    }
  }
}
