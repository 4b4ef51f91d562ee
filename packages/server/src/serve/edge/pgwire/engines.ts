/**
 * The parties that run statements for one client: the session, the source over the mapped role's login, and the source's catalogs. The
 * connections to the source are made when they are first needed.
 */
import { isSpillwayError, SpillwayError } from "@spillway/base/errors";
import { quoteLiteral } from "@spillway/pg/quote";
import { guardSql } from "../../catalog-views/guards.ts";
import type { ServeSession } from "../../session/session.ts";
import type { OutBuffer } from "./out-buffer.ts";
import type { SourceAccess, SourceView } from "./ports.ts";
import type { RowCursor } from "./row-cursor.ts";
import { WireTransaction } from "./transaction.ts";
import { Upstream } from "./upstream.ts";
import { pgError } from "./wire-errors.ts";

export interface EngineOptions {
  readonly session: ServeSession;
  readonly source: SourceAccess | null;
  readonly out: OutBuffer;
  /** Settings of the client's start-up that the source is to have too. */
  readonly settings: Readonly<Record<string, string>>;
  /** Catalog queries end after this. */
  readonly catalogTimeoutMs: number;
}

/** What the source looks like when there is none. */
const NO_SOURCE: SourceView = {
  serverVersion: "15.0",
  version: "",
  mappedLogin: null,
  catalogLogin: null,
  functions: new Map(),
  relations: [],
};

export class Engines {
  readonly session: ServeSession;
  readonly transaction: WireTransaction;
  readonly #options: EngineOptions;
  #mapped: Upstream | null = null;
  #catalog: Upstream | null = null;
  #catalogState = "";
  #running: Upstream | null = null;
  /** The rows that the session still owes. */
  #active: RowCursor | null = null;
  /** Called when the source reports a parameter. */
  onParameter: (name: string, value: string) => void = () => {};

  constructor(options: EngineOptions) {
    this.#options = options;
    this.session = options.session;
    this.transaction = new WireTransaction(options.session, () => this.#mapped);
  }

  get mapped(): Upstream | null {
    return this.#mapped;
  }

  async view(): Promise<SourceView> {
    const { source, session } = this.#options;
    return source === null ? NO_SOURCE : source.view(session.principal, session.database);
  }

  /** The connection of the mapped role, inside of the client's transaction. */
  async joinMapped(): Promise<Upstream> {
    const upstream = this.#mapped ?? (await this.#openMapped());
    await this.transaction.joinMapped(upstream);
    return upstream;
  }

  async #openMapped(): Promise<Upstream> {
    const { mappedLogin } = await this.view();
    if (mappedLogin === null)
      throw pgError("42501", "you are mapped to no role of the source", {}, "passthrough_denied");
    const upstream = await Upstream.open(mappedLogin, this.#options.out, this.#options.settings);
    try {
      const power = await upstream.value(POWER);
      if (power !== null) {
        throw pgError(
          "42501",
          `the role that you are mapped to ${power}: statements do not pass to the source by it`,
          { hint: "Map the user to a role without that power." },
          "passthrough_denied",
        );
      }
    } catch (error) {
      upstream.destroy();
      throw error;
    }
    upstream.onParameter = (name, value) => this.onParameter(name, value);
    this.#mapped = upstream;
    for (const [name, value] of upstream.parameters) this.onParameter(name, value);
    return upstream;
  }

  /** The connection for catalog queries, told what the user may see. */
  async catalog(): Promise<Upstream> {
    const view = await this.view();
    if (view.catalogLogin === null) throw pgError("42501", "the system catalogs cannot be asked here");
    if (this.#catalog === null || !this.#catalog.isOpen) {
      const { catalogTimeoutMs, settings, out } = this.#options;
      this.#catalog = await Upstream.open(view.catalogLogin, out, {
        ...settings,
        statement_timeout: String(catalogTimeoutMs),
      });
      this.#catalogState = "";
      // Without its functions, or not read-only, the connection is not used.
      await this.#catalog.run(guardSql()).catch((error: unknown) => {
        this.#catalog?.destroy();
        this.#catalog = null;
        throw error;
      });
    }
    const path = this.session.parameter("search_path") ?? '"$user", public';
    const state = `${view.version}\0${path}`;
    if (!this.#catalog.unsynced && state !== this.#catalogState) {
      await this.#catalog.run(catalogSettings(view, this.session.principal.userName, path));
      this.#catalogState = state;
    }
    return this.#catalog;
  }

  /** The connection of a way that goes to the source. */
  upstream(way: "mapped" | "catalog"): Promise<Upstream> {
    return way === "mapped" ? this.joinMapped() : this.catalog();
  }

  /** Runs work on a connection to the source, so that a cancel reaches it. */
  async during<T>(upstream: Upstream, work: () => Promise<T>): Promise<T> {
    this.#running = upstream;
    try {
      return await work();
    } finally {
      this.#running = null;
    }
  }

  /** The session runs one statement at a time: takes in what the one before still owes. */
  async freeSession(): Promise<void> {
    const active = this.#active;
    this.#active = null;
    if (active !== null && !active.isEnded) await active.keep();
  }

  occupy(cursor: RowCursor): void {
    this.#active = cursor;
  }

  /** Ends the extended exchanges of the source. Gives whether any of them was open. */
  async sync(): Promise<boolean> {
    let any = false;
    for (const upstream of [this.#mapped, this.#catalog]) {
      if (!upstream?.unsynced) continue;
      any = true;
      if (!upstream.isOpen) throw new SpillwayError("pg_connection_lost", "the connection to the source ended");
      await this.during(upstream, () => upstream.sync());
    }
    return any;
  }

  cancel(reason: "client" | "killed"): void {
    this.session.cancel(reason);
    void this.#running?.cancel();
  }

  async close(): Promise<void> {
    this.#mapped?.destroy();
    this.#catalog?.destroy();
    await this.session.close();
  }
}

/** A role that can leave the database by itself makes every check on statements moot. Null: it cannot. */
const POWER = `SELECT CASE
  WHEN (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = session_user) THEN 'is a superuser'
  WHEN pg_catalog.pg_has_role(session_user, 'pg_read_server_files', 'MEMBER')
    OR pg_catalog.pg_has_role(session_user, 'pg_write_server_files', 'MEMBER') THEN 'may read or write files of the server'
  WHEN pg_catalog.pg_has_role(session_user, 'pg_execute_server_program', 'MEMBER') THEN 'may run programs on the server' END`;

function catalogSettings(view: SourceView, user: string, searchPath: string): string {
  const seen = view.relations.filter((relation) => relation.visible && relation.oid > 0);
  const hidden = seen.flatMap(({ oid, hiddenColumns }) => hiddenColumns.map((column) => `${oid}.${column}`));
  const settings: [string, string][] = [
    ["spillway.visible", `{${seen.map(({ oid }) => oid).join(",")}}`],
    ["spillway.hidden_columns", `{${hidden.join(",")}}`],
    ["spillway.user", user],
    ["search_path", searchPath],
  ];
  const calls = settings.map(([name, value]) => `pg_catalog.set_config('${name}', ${quoteLiteral(value)}, false)`);
  return `SELECT ${calls.join(", ")}`;
}

/** Whether an error says that the way to the source is gone, not that the source refused. */
export function isLostSource(error: unknown): boolean {
  return isSpillwayError(error, "pg_connection_lost", "pg_unreachable");
}
