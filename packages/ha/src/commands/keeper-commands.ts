/** `create postgres`, and `run` in the role of a keeper: parsing only, the work is `keeper/commands.ts`. */
import { createPostgres, dropPrivileges, runKeeper } from "../keeper/commands.ts";
import { replaceMonitor } from "../keeper/replace-monitor.ts";
import { JSON_OPTION, logger, LOG_OPTIONS, monitorAddress, type Args, type Command, type Io } from "./command.ts";

const USER = { user: { value: "NAME", help: "Started as root: give that up and become this user first." } };
const STATE_DIR = {
  "state-dir": { value: "PATH", help: "Where the keeper keeps its own state (default: beside --pgdata)." },
};

export const createPostgresCommand: Command = {
  words: "create postgres",
  summary: "Registers a Postgres: the first becomes the primary, the next ones standbys; a data directory is adopted.",
  options: {
    monitor: {
      value: "URL",
      help: "http(s)://[TOKEN@]host:port[?fingerprint=…], several with commas (or SPILLWAY_HA_MONITOR).",
    },
    "token-file": { value: "PATH", help: "File with the registration token (or SPILLWAY_HA_TOKEN)." },
    pgdata: { value: "PATH", help: "The data directory: empty, missing, or a cluster to adopt." },
    pgport: { value: "PORT", help: "Postgres's port (default: 5432)." },
    "pg-bin": { value: "PATH", help: "The folder of initdb, pg_ctl and postgres (default: found)." },
    hostname: { value: "HOST", help: "How other nodes and clients reach this host (default: its name)." },
    name: { value: "NAME", help: "The node's name (default: host-port)." },
    formation: { value: "NAME", help: "The formation (default: default)." },
    "keeper-listen": {
      value: "HOST:PORT",
      help: "Where the keeper answers peers and load balancers (default: port + 1000).",
    },
    "pg-listen": { value: "ADDR,…", help: "What Postgres listens on." },
    client: { value: "CIDR,…", help: "Networks whose clients pg_hba lets in." },
    "candidate-priority": { value: "0-100", help: "0 = never promoted (default: 50)." },
    "replication-quorum": { value: "on|off", help: "Whether it counts among the synchronous standbys (default: on)." },
    "on-role-change": { value: "COMMAND", help: "Program to run after every change of role." },
    "tls-cert": { value: "PATH", help: "The keeper's certificate." },
    "tls-key": { value: "PATH", help: "Its key." },
    sslmode: { value: "MODE", help: "libpq's sslmode between the nodes' Postgres (default: prefer)." },
    run: { help: "Run the keeper right away." },
    ...STATE_DIR,
    ...USER,
    ...LOG_OPTIONS,
    ...JSON_OPTION,
  },
  examples: [
    "spillway-ha create postgres --monitor http://10.0.0.5:6400 --token-file registration-token --pgdata /var/lib/postgresql/ha --pgport 5432",
  ],
  run: async (args, io) => {
    const address = monitorAddress(args, io);
    if (args.text("user") !== undefined) dropPrivileges(args.required("user"));
    const list = (name: string): string[] | undefined =>
      args
        .text(name)
        ?.split(",")
        .map((part) => part.trim());
    const pgdata = args.required("pgdata");
    const config = await createPostgres(
      {
        monitors: address.urls,
        registrationToken: address.token,
        monitorFingerprint: address.fingerprint,
        pgdata,
        pgPort: args.int("pgport", 1, 65535) ?? 5432,
        pgBin: args.text("pg-bin"),
        hostname: args.text("hostname"),
        name: args.text("name"),
        formation: args.text("formation"),
        stateDir: args.text("state-dir"),
        keeperListen: args.text("keeper-listen"),
        pgListen: list("pg-listen"),
        clients: list("client"),
        candidatePriority: args.int("candidate-priority", 0, 100),
        replicationQuorum: args.bool("replication-quorum"),
        onRoleChange: args.text("on-role-change"),
        tlsCert: args.text("tls-cert"),
        tlsKey: args.text("tls-key"),
        sslmode: args.text("sslmode"),
      },
      { clock: io.clock, log: logger(args, io) },
    );
    const { formation, name, nodeId } = config;
    io.out(
      args.has("json")
        ? JSON.stringify({ formation, name, nodeId, pgdata })
        : `Node ${name} is registered in ${formation}. Run it: spillway-ha run --pgdata ${pgdata}`,
    );
    return args.has("run") ? runAsKeeper(pgdata, args, io) : 0;
  },
};

export const replaceMonitorCommand: Command = {
  words: "replace monitor",
  summary: "Gives a node another monitor when the old one is lost for good; Postgres runs on. The primary goes first.",
  options: {
    monitor: {
      value: "URL",
      help: "The new one: http(s)://[TOKEN@]host:port[?fingerprint=…], several with commas (or SPILLWAY_HA_MONITOR).",
    },
    "token-file": { value: "PATH", help: "File with its registration token (or SPILLWAY_HA_TOKEN)." },
    pgdata: { value: "PATH", help: "The node's data directory." },
    ...STATE_DIR,
    ...USER,
    ...JSON_OPTION,
  },
  examples: [
    "spillway-ha replace monitor --pgdata /var/lib/postgresql/ha --monitor http://10.0.0.6:6400 --token-file registration-token",
  ],
  run: async (args, io) => {
    const address = monitorAddress(args, io);
    if (args.text("user") !== undefined) dropPrivileges(args.required("user"));
    const { formation, name, nodeId, monitors } = await replaceMonitor({
      pgdata: args.required("pgdata"),
      stateDir: args.text("state-dir"),
      monitors: address.urls,
      registrationToken: address.token,
      monitorFingerprint: address.fingerprint,
    });
    io.out(
      args.has("json")
        ? JSON.stringify({ formation, name, nodeId, monitors })
        : `Node ${name} of ${formation} belongs to ${monitors.join(",")} now; its keeper goes over by itself.`,
    );
    return 0;
  },
};

export const KEEPER_RUN_OPTIONS = { ...STATE_DIR, ...USER };

export async function runAsKeeper(pgdata: string, args: Args, io: Io): Promise<number> {
  if (args.text("user") !== undefined) dropPrivileges(args.required("user"));
  const { clock, signal } = io;
  const end = await runKeeper({ pgdata, stateDir: args.text("state-dir") }, { clock, signal, log: logger(args, io) });
  if (end === "dropped") io.err("The node was dropped from its formation.");
  return 0;
}
