/** The monitor's directory: what `create monitor` writes once and `run` reads. Private to its owner. */
import { randomBytes } from "node:crypto";
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { messageOf, SpillwayError } from "@spillway/base/errors";
import {
  bool,
  list,
  nameText,
  nullable,
  object,
  optional,
  parseMessage,
  text,
  type Infer,
} from "../protocol/validate.ts";
import { selfSigned } from "./certificate.ts";

const monitorConfig = object({
  /** host:port to listen on. */
  listen: text(255),
  /** URL under which keepers and commands reach it. */
  url: text(512),
  tls: bool,
  /** etcd endpoints; empty = the embedded store. */
  etcd: list(text(512), 16),
  /** Monitors of one cluster share their state in etcd. */
  cluster: nameText,
  /** For an etcd with authentication: its password is in the file `etcd-password`. */
  etcdUser: optional(nullable(text(255)), null),
});
export type MonitorConfig = Infer<typeof monitorConfig>;

export interface MonitorSecrets {
  readonly adminToken: string;
  readonly registrationToken: string;
}

const CONFIG = "monitor.json";
const ADMIN = "admin-token";
const ETCD_PASSWORD = "etcd-password";
const REGISTRATION = "registration-token";

export class MonitorFiles {
  readonly dir: string;

  constructor(dir: string) {
    this.dir = dir;
  }

  exists(): boolean {
    return existsSync(join(this.dir, CONFIG));
  }

  /** Creates the directory, tokens and certificate; the configuration last, so that half is nothing. */
  create(config: MonitorConfig, secrets: MonitorSecrets, nowMs: number, etcdPassword: string | null = null): void {
    try {
      mkdirSync(this.dir, { recursive: true, mode: 0o700 });
      chmodSync(this.dir, 0o700);
    } catch (cause) {
      throw new SpillwayError("config_invalid", `${this.dir} cannot be made private: ${messageOf(cause)}`, { cause });
    }
    this.writeSecrets(secrets);
    if (etcdPassword !== null) this.#write(ETCD_PASSWORD, `${etcdPassword}\n`);
    if (config.tls) {
      const { cert, key } = selfSigned([new URL(config.url).hostname.replace(/^\[|\]$/g, ""), "localhost"], nowMs);
      this.#write("tls.crt", cert);
      this.#write("tls.key", key);
    }
    this.#write(CONFIG, `${JSON.stringify(config, null, 2)}\n`);
  }

  writeSecrets(secrets: MonitorSecrets): void {
    this.#write(ADMIN, `${secrets.adminToken}\n`);
    this.#write(REGISTRATION, `${secrets.registrationToken}\n`);
  }

  config(): MonitorConfig {
    return parseMessage(monitorConfig, this.#read(CONFIG), join(this.dir, CONFIG));
  }

  secrets(): MonitorSecrets {
    return { adminToken: this.#read(ADMIN).trim(), registrationToken: this.#read(REGISTRATION).trim() };
  }

  /** How to log in to etcd, or null. */
  etcdLogin(): { readonly user: string; readonly password: string } | null {
    const { etcdUser: user } = this.config();
    return user === null ? null : { user, password: this.#read(ETCD_PASSWORD).trim() };
  }

  tls(): { readonly cert: string; readonly key: string } {
    return { cert: this.#read("tls.crt"), key: this.#read("tls.key") };
  }

  #write(name: string, value: string): void {
    const path = join(this.dir, name);
    writeFileSync(path, value, { mode: 0o600 });
    chmodSync(path, 0o600);
  }

  #read(name: string): string {
    const path = join(this.dir, name);
    try {
      return readFileSync(path, "utf8");
    } catch (cause) {
      throw new SpillwayError("config_missing", `${path} cannot be read: ${messageOf(cause)}`, {
        remedy: "Create the monitor first: `spillway-ha create monitor --dir …`.",
        cause,
      });
    }
  }
}

export function newToken(): string {
  return randomBytes(24).toString("base64url");
}
