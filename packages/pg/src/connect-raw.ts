/** The raw connection (COPY, replication) made like the others: several hosts, `target_session_attrs`, the password file. */
import type { Conninfo } from "./conninfo.ts";
import { parseConninfo } from "./conninfo.ts";
import { type ConnectOptions, DEFAULT_CONNECT_TIMEOUT_MS, startupOf } from "./connect.ts";
import { connectAnyHost, type SessionState } from "./hosts.ts";
import { type OpenOptions, RawConnection } from "./wire/connection.ts";
import { serverOptions } from "./wire/target.ts";

export interface ConnectRawOptions extends ConnectOptions {
  /** A walsender: `database` for logical replication (statements work too), `true` for physical. */
  readonly replication?: "database" | "true";
  readonly open?: OpenOptions;
  /** False: the server's own settings of how text looks stay; `settings` alone are set. For a relay. */
  readonly canonical?: boolean;
}

/** Connects to the first host that will do. Throws as `connect` does. */
export async function connectRaw(conninfo: Conninfo | string, options: ConnectRawOptions = {}): Promise<RawConnection> {
  const info = typeof conninfo === "string" ? parseConninfo(conninfo) : conninfo;
  const { canonical = true } = options;
  const own = {
    application_name: options.applicationName ?? "spillway",
    options: serverOptions(options.settings ?? {}),
  };
  const replication = options.replication === undefined ? {} : { replication: options.replication };
  return connectAnyHost<RawConnection>(info, {
    open: (target) => RawConnection.open({ ...target, canonical }, options.open),
    inspect: sessionState,
    close: (connection) => connection.close(),
    parameters: { ...(canonical ? startupOf(options) : own), ...replication },
    connectTimeoutMs: options.connectTimeoutMs ?? DEFAULT_CONNECT_TIMEOUT_MS,
    ...(options.random ? { random: options.random } : {}),
  });
}

/** Told by the server at start-up since 14 (`in_hot_standby`, `default_transaction_read_only`): no query is needed. */
async function sessionState(connection: RawConnection): Promise<SessionState> {
  const inRecovery = connection.parameters.get("in_hot_standby") === "on";
  return { inRecovery, readOnly: inRecovery || connection.parameters.get("default_transaction_read_only") === "on" };
}
