/** `create monitor`, and `run` in the role of a monitor. */
import { hostname } from "node:os";
import { X509Certificate } from "node:crypto";
import { SpillwayError } from "@spillway/base/errors";
import { HA_SETTINGS } from "@spillway/base/settings/ha";
import { DEFAULT_LIMITS, type Limits } from "../fsm/model.ts";
import { fingerprintOf } from "../monitor/certificate.ts";
import { MonitorFiles, newToken, type MonitorConfig } from "../monitor/monitor-files.ts";
import type { Timings } from "../protocol/messages.ts";
import { runMonitor } from "../roles/monitor.ts";
import { JSON_OPTION, logger, readToken, settingOf, type Args, type Command, type Io } from "./command.ts";

export const createMonitor: Command = {
  words: "create monitor",
  summary: "Prepares a monitor's directory and prints its address.",
  options: {
    dir: { value: "PATH", help: "The directory to create (mode 0700)." },
    listen: { value: "HOST:PORT", help: "Where it listens (default: 127.0.0.1:6400)." },
    url: { value: "URL", help: "Under which keepers and commands reach it (default: from --listen)." },
    tls: { help: "Use TLS with a generated certificate, pinned by its fingerprint." },
    etcd: { value: "URL,URL,…", help: "Keep the state in this etcd v3 cluster, shared with other monitors." },
    "etcd-user": { value: "NAME", help: "With --etcd: the user to log in as, when etcd asks for one." },
    "etcd-password-file": { value: "PATH", help: "File with that user's password; it is copied (mode 0600)." },
    cluster: { value: "NAME", help: "With --etcd: monitors of the same name share their state (default: default)." },
    ...JSON_OPTION,
  },
  examples: [
    "spillway-ha create monitor --dir /var/lib/spillway-ha --listen 10.0.0.5:6400 --tls",
    "spillway-ha create monitor --dir /var/lib/spillway-ha --listen 10.0.0.5:6400 --etcd http://10.0.0.5:2379,http://10.0.0.6:2379",
  ],
  run: (args, io) => {
    const files = new MonitorFiles(args.required("dir"));
    if (files.exists())
      throw new SpillwayError("ha_refused", `${files.dir} holds a monitor already`, {
        remedy: "Run it, or choose another --dir.",
      });
    const config = configOf(args);
    const tokens = { adminToken: newToken(), registrationToken: newToken() };
    const password = config.etcdUser === null ? null : readToken(args.required("etcd-password-file"));
    files.create(config, tokens, io.clock.wallMs(), password);
    printAddress(files, config, args, io);
    return Promise.resolve(0);
  },
};

function configOf(args: Args): MonitorConfig {
  const listen = args.text("listen") ?? "127.0.0.1:6400";
  const match = /^\[?([^\]]*?)\]?:(\d{1,5})$/.exec(listen);
  if (!match) throw new SpillwayError("usage", `--listen is ${JSON.stringify(listen)}: expected HOST:PORT`);
  const host = ["", "0.0.0.0", "::"].includes(match[1] ?? "") ? hostname() : (match[1] ?? "");
  const scheme = args.has("tls") ? "https" : "http";
  const url = args.text("url") ?? `${scheme}://${host.includes(":") ? `[${host}]` : host}:${match[2]}`;
  const etcd = (args.text("etcd") ?? "").split(",").filter((part) => part !== "");
  for (const part of [url, ...etcd]) {
    if (!URL.canParse(part)) throw new SpillwayError("usage", `${JSON.stringify(part)} is not a URL`);
  }
  const cluster = args.text("cluster") ?? "default";
  if (!/^[a-z0-9][a-z0-9_-]{0,62}$/.test(cluster))
    throw new SpillwayError("usage", `--cluster is ${JSON.stringify(cluster)}: expected a name`);
  const etcdUser = args.text("etcd-user") ?? null;
  if (etcdUser !== null && etcd.length === 0) throw new SpillwayError("usage", "--etcd-user is for --etcd only");
  return { listen, url, tls: args.has("tls"), etcd, cluster, etcdUser };
}

function printAddress(files: MonitorFiles, config: MonitorConfig, args: Args, io: Io): void {
  const pin = config.tls ? `/?fingerprint=${fingerprintOf(new X509Certificate(files.tls().cert).raw)}` : "";
  const monitor = `${config.url}${pin}`;
  if (args.has("json")) {
    io.out(JSON.stringify({ monitor, dir: files.dir, registrationTokenFile: `${files.dir}/registration-token` }));
    return;
  }
  io.out(`Monitor: ${monitor}`);
  io.out(`Start it:      spillway-ha run --dir ${files.dir}`);
  io.out(`Add a node:    spillway-ha create postgres --monitor ${monitor} --token-file registration-token --pgdata …`);
  io.out(
    `Tokens are in  ${files.dir}/admin-token and ${files.dir}/registration-token (copy the latter to the nodes, mode 0600).`,
  );
}

export function timingsOf(args: Args, io: Io): Timings {
  return {
    heartbeatMs: settingOf(HA_SETTINGS.haHeartbeat, args, io),
    leaseTtlMs: settingOf(HA_SETTINGS.haLeaseTtl, args, io),
    takeoverWaitMs: settingOf(HA_SETTINGS.haTakeoverWait, args, io),
    restartTries: settingOf(HA_SETTINGS.haRestartTries, args, io),
    restartWindowMs: settingOf(HA_SETTINGS.haRestartWindow, args, io),
  };
}

/** The remaining limits follow from the four that can be set. */
export function limitsOf(args: Args, io: Io): Limits {
  const silentMs = settingOf(HA_SETTINGS.haSilentAfter, args, io);
  const detachedMs = settingOf(HA_SETTINGS.haDetachedAfter, args, io);
  const heartbeatMs = settingOf(HA_SETTINGS.haHeartbeat, args, io);
  return {
    ...DEFAULT_LIMITS,
    silentMs,
    detachedMs,
    stallMs: Math.max(silentMs, 2000),
    freshMs: Math.min(silentMs, Math.max(3 * heartbeatMs, 1000)),
    reconnectMs: Math.max(DEFAULT_LIMITS.reconnectMs, 2 * detachedMs),
    catchupBytes: settingOf(HA_SETTINGS.haCatchupBytes, args, io),
  };
}

export async function runAsMonitor(dir: string, args: Args, io: Io): Promise<number> {
  const { clock, signal } = io;
  const options = { files: new MonitorFiles(dir), clock, signal, log: logger(args, io) };
  await runMonitor({ ...options, timings: timingsOf(args, io), limits: limitsOf(args, io) });
  return 0;
}
