/** The gate as sessions ask it: for a principal in a database, the tables of a statement with their policies. */
import type { PlannedTable } from "../node/request.ts";
import type { Guard, GuardContext } from "../session/client-session.ts";
import type { Classified } from "../plan/classify.ts";
import { SpillwayError } from "@spillway/base/errors";
import type { Control } from "../../control/control.ts";
import type { AccessControl, AccessPlan, TableUse } from "./access.ts";

/** What was decided about a statement, and why. */
export interface Decision {
  readonly principal: GuardContext["principal"];
  readonly database: string;
  readonly kind: Classified["kind"];
  readonly writes: boolean;
  /** `schema.table: privilege`. */
  readonly objects: readonly string[];
  readonly allowed: boolean;
  /** The code and message of the refusal. */
  readonly reason: string;
  readonly shadow: readonly string[];
}

export interface GuardOptions {
  readonly control: Control;
  readonly access: AccessControl;
  /** Told of every decision. Throws `audit_unavailable` when a write must not go on unrecorded. */
  readonly onDecision?: (decision: Decision) => void;
}

export function createGuard({ control, access, onDecision }: GuardOptions): Guard {
  const plan = async (statement: Classified, context: GuardContext): Promise<AccessPlan | null> => {
    const { principal, database } = context;
    const id = await control.databaseId(database, principal.tenantId === "" ? null : principal.tenantId);
    if (id === null) {
      throw new SpillwayError("access_denied", `database ${JSON.stringify(database)} does not exist`, {
        details: { sqlstate: "3D000" },
      });
    }
    const set = await access.accessFor(principal, id);
    const request = { sql: statement.sql, kind: statement.kind, writes: statement.writes, tree: statement.tree };
    return access.check({
      ...request,
      access: set,
      searchPath: context.searchPath,
      database: database.slice(database.indexOf("/") + 1),
      session: (name, setting) => sessionValue(context, name, setting),
    });
  };
  const decide = async (statement: Classified, context: GuardContext): Promise<AccessPlan | null> => {
    const about = {
      principal: context.principal,
      database: context.database,
      kind: statement.kind,
      writes: statement.writes,
    };
    try {
      const found = await plan(statement, context);
      const objects = (found?.tables ?? []).map((t) => `${t.schema}.${t.name}: ${t.privilege}`);
      onDecision?.({ ...about, objects, allowed: true, reason: "granted", shadow: found?.shadow ?? [] });
      return found;
    } catch (error) {
      if (error instanceof SpillwayError && error.code !== "audit_unavailable") {
        const reason = `${error.code}: ${error.message}`;
        onDecision?.({ ...about, objects: [], allowed: false, reason, shadow: [] });
      }
      throw error;
    }
  };
  return {
    check: async (statement, context) => {
      const found = await decide(statement, context);
      return found === null ? null : planned(found.tables);
    },
    sqlOf: async (statement, context) => {
      // Only a query in DuckDB's grammar has the session's values put in; Postgres's statements ask Postgres.
      if (statement.kind !== "select" || statement.writes || !MAY_ASK.test(statement.sql)) return statement.sql;
      return (await plan(statement, context))?.sql ?? statement.sql;
    },
  };
}

const MAY_ASK = /current_|session_user|\buser\b|version/i;

/** Each of the names that a name without a schema may mean: which one it is, the source knows. */
function planned(uses: readonly TableUse[]): PlannedTable[] {
  const found = new Map<string, PlannedTable>();
  for (const use of uses.flatMap((u) => [u, ...u.others])) {
    const key = `${use.schema}\0${use.name}`;
    const before = found.get(key);
    found.set(key, {
      schema: use.schema,
      name: use.name,
      rows: use.access.rows,
      columns: [...use.access.columns],
      writable: (before?.writable ?? false) || use.privilege !== "select",
    });
  }
  return [...found.values()];
}

function sessionValue(context: GuardContext, name: string, setting: string | null): string | null {
  switch (name) {
    case "current_setting":
      return context.parameter(setting ?? "");
    case "current_schema":
      return context.searchPath[0] ?? null;
    case "current_catalog":
    case "current_database":
      return context.database;
    case "version":
      return `PostgreSQL ${context.parameter("server_version") ?? ""} (Spillway)`;
    default:
      return context.principal.userName;
  }
}
