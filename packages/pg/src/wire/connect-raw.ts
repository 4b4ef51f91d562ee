/** Raw connections from a connection string: several hosts, `target_session_attrs`, password file, TLS files. */
import { type Conninfo, parseConninfo } from "../conninfo.ts";
import { connectAnyHost } from "../hosts.ts";
import { RawConnection, type OpenOptions } from "./connection.ts";
import { DEFAULT_CONNECT_TIMEOUT_MS, serverOptions } from "./target.ts";

export interface ConnectRawOptions extends OpenOptions {
  /** `database` for logical replication and SQL, `physical` for base backups and physical slots. */
  readonly replication?: "database" | "physical";
  readonly applicationName?: string;
  readonly connectTimeoutMs?: number;
  /** Settings of the session, as `-c` options: wal_sender_timeout, tcp_user_timeout, statement_timeout, … */
  readonly settings?: Readonly<Record<string, string | number>>;
}

/**
 * Connects to the first host that is what `target_session_attrs` asks for. Throws pg_unreachable, pg_no_primary,
 * pg_auth_failed, pg_tls_failed, … naming every host that was tried.
 */
export async function connectRaw(conninfo: Conninfo | string, options: ConnectRawOptions = {}): Promise<RawConnection> {
  const info = typeof conninfo === "string" ? parseConninfo(conninfo) : conninfo;
  const { replication, applicationName, settings } = options;
  const parameters = {
    ...(applicationName === undefined ? {} : { application_name: applicationName }),
    ...(settings === undefined ? {} : { options: serverOptions(settings) }),
    ...(replication === undefined ? {} : { replication: replication === "database" ? "database" : "true" }),
  };
  return connectAnyHost<RawConnection>(info, {
    open: (target) => RawConnection.open(target, options),
    // The server reports both by itself (14 and later): a physical replication session cannot be asked by SQL.
    inspect: (connection) => {
      const inRecovery = connection.parameters.get("in_hot_standby") === "on";
      const readOnly = inRecovery || connection.parameters.get("default_transaction_read_only") === "on";
      return Promise.resolve({ inRecovery, readOnly });
    },
    close: (connection) => connection.close(),
    connectTimeoutMs: options.connectTimeoutMs ?? DEFAULT_CONNECT_TIMEOUT_MS,
    parameters,
  });
}
