/**
 * What the control plane has, as data: commands, requests, their description for clients, and manifests are made from these
 * tables and nothing else. An object is meant by its path (`tenant`, `tenant/database`, `tenant/database/pool`, `tenant/role`,
 * `tenant/group`, a user's name), anything else by its id or its key.
 */
export type FieldType = "text" | "int" | "number" | "bool" | "enum" | "texts" | "ref" | "time";
export type PathKind = "tenant" | "database" | "pool" | "user" | "group" | "role";

export interface Field {
  readonly type: FieldType;
  /** Of the table; default: the name in snake case, with `_id` for a reference. */
  readonly column?: string;
  readonly ref?: PathKind;
  readonly values?: readonly string[];
  /** Must be given when the object is made. */
  readonly required?: boolean;
  readonly nullable?: boolean;
  readonly min?: number;
  readonly max?: number;
  /**
   * `create`: given once, never changed · `read`: never given · `write`: never shown · `url`: shown without its password.
   * Default: everything.
   */
  readonly access?: "create" | "read" | "write" | "url";
  readonly help: string;
}

export interface Resource {
  /** kebab-case plural: the path of requests; as camelCase the key of manifests. */
  readonly name: string;
  readonly singular: string;
  readonly table: string;
  readonly help: string;
  /** Whether it has a path. */
  readonly path?: PathKind;
  /** The fields that name it among its kind. */
  readonly key: readonly string[];
  /** SQL over the row `t`: the tenant it belongs to. */
  readonly tenantSql: string;
  /** Only administrators of the installation change it: it decides over processes, addresses and files. */
  readonly installation?: boolean;
  /** Not in manifests, as it is made by the running system or holds secrets. */
  readonly transient?: boolean;
  readonly fields: Readonly<Record<string, Field>>;
}

const name: Field = { type: "text", required: true, access: "create", help: "Its name." };
const createdAt: Field = { type: "time", access: "read", help: "When it was made." };
const disabled: Field = { type: "bool", help: "Refuses new statements." };
const ref = (kind: PathKind, help: string, rest: Partial<Field> = {}): Field => ({
  type: "ref",
  ref: kind,
  required: true,
  access: "create",
  help,
  ...rest,
});
const schema: Field = {
  type: "text",
  column: "schema_name",
  required: true,
  access: "create",
  help: "The schema of the table.",
};
const table: Field = {
  type: "text",
  column: "table_name",
  required: true,
  access: "create",
  help: "The table.",
};
const optionalRef = (kind: PathKind, help: string): Field => ref(kind, help, { required: false, nullable: true });
const shadow: Field = {
  type: "bool",
  help: "Only reported in the audit, not enforced.",
};
const ofDatabase = "(select d.tenant_id from spillway_control.database d where d.id = t.database_id)";
const ofRole = "(select r.tenant_id from spillway_control.app_role r where r.id = t.role_id)";
const ofUser = "(select u.tenant_id from spillway_control.app_user u where u.id = t.user_id)";
const int = (help: string, min: number, max: number, rest: Partial<Field> = {}): Field => ({
  type: "int",
  min,
  max,
  help,
  ...rest,
});

export const RESOURCES: readonly Resource[] = [
  {
    name: "tenants",
    singular: "tenant",
    table: "tenant",
    help: "An organization: its databases, users and nodes are apart from those of others.",
    path: "tenant",
    key: ["name"],
    tenantSql: "t.id",
    installation: true,
    fields: { name, disabled, createdAt },
  },
  {
    name: "databases",
    singular: "database",
    table: "database",
    help: "One source with its lake, as clients see it.",
    path: "database",
    key: ["tenant", "name"],
    tenantSql: "t.tenant_id",
    installation: true,
    fields: {
      tenant: ref("tenant", "Whose it is."),
      name,
      sourceUrl: {
        type: "text",
        required: true,
        access: "url",
        help: "The source: a connection string, or env:NAME or file:PATH that holds one.",
      },
      warehouse: { type: "text", nullable: true, help: "Where the lake is." },
      defaultSchema: { type: "text", help: "Where unqualified names are looked up." },
      disabled,
      createdAt,
    },
  },
  {
    name: "pools",
    singular: "pool",
    table: "pool",
    help: "Nodes that run the statements of one database.",
    path: "pool",
    key: ["database", "name"],
    tenantSql: ofDatabase,
    installation: true,
    fields: {
      database: ref("database", "What its nodes serve."),
      name,
      isDefault: { type: "bool", help: "Used when a client names no pool." },
      readonlyNodes: int("Nodes that only read.", 0, 64),
      writeonlyNodes: int("Nodes that only write.", 0, 64),
      dualNodes: int("Nodes that do both.", 0, 64),
      minReadonly: int("The fewest READONLY nodes of autoscaling.", 0, 64, { nullable: true }),
      maxReadonly: int("The most READONLY nodes of autoscaling.", 0, 64, { nullable: true }),
      nodeMemoryBytes: int("What one node may have in memory.", 67_108_864, 2 ** 50),
      nodeCpus: { type: "number", min: 0.01, max: 1024, help: "What one node may have of the processors." },
      nodeConcurrency: int("Statements at a time on one node.", 1, 1000),
      queueLimit: int("Statements that may wait.", 0, 100_000),
      queueTimeoutMs: int("How long a statement waits for a node.", 0, 86_400_000),
      statementTimeoutMs: int("How long a statement may take; 0: no limit.", 0, 2_147_483_647),
      drainTimeoutMs: int("How long a node that is to end may finish its work.", 0, 86_400_000),
      suspendAfterMs: int("Idle time after which there are no nodes; 0: never.", 0, 2_147_483_647),
      spillBytes: int("What one node may spill to disk.", 0, 2 ** 50),
      disabled,
      createdAt,
    },
  },
  {
    name: "users",
    singular: "user",
    table: "app_user",
    help: "Somebody who logs in.",
    path: "user",
    key: ["name"],
    tenantSql: "t.tenant_id",
    fields: {
      name,
      tenant: optionalRef("tenant", "Whose it is; none: of the installation."),
      password: { type: "text", access: "write", nullable: true, help: "At least 8 characters." },
      isAdmin: { type: "bool", help: "May everything: in its tenant, or without one, everywhere." },
      disabled,
      oidcIssuer: { type: "text", nullable: true, help: "The identity provider." },
      oidcSubject: { type: "text", nullable: true, help: "Who the user is there." },
      createdAt,
    },
  },
  {
    name: "source-logins",
    singular: "source-login",
    table: "source_login",
    help: "The Postgres role that a user is at the source, by a connection that logs in as it.",
    key: ["user", "database"],
    tenantSql: ofDatabase,
    installation: true,
    fields: {
      user: ref("user", "Who."),
      database: ref("database", "Where."),
      loginUrl: {
        type: "text",
        required: true,
        access: "url",
        help: "A connection string, or env:NAME or file:PATH that holds one.",
      },
    },
  },
  {
    name: "groups",
    singular: "group",
    table: "app_group",
    help: "Users that are given roles together.",
    path: "group",
    key: ["tenant", "name"],
    tenantSql: "t.tenant_id",
    fields: { tenant: ref("tenant", "Whose it is."), name, createdAt },
  },
  {
    name: "roles",
    singular: "role",
    table: "app_role",
    help: "What permissions and policies are given to.",
    path: "role",
    key: ["tenant", "name"],
    tenantSql: "t.tenant_id",
    fields: { tenant: ref("tenant", "Whose it is."), name, createdAt },
  },
  {
    name: "memberships",
    singular: "membership",
    table: "membership",
    help: "That a user is in a group.",
    key: ["group", "user"],
    tenantSql: "(select g.tenant_id from spillway_control.app_group g where g.id = t.group_id)",
    fields: { group: ref("group", "The group."), user: ref("user", "Who is in it.") },
  },
  {
    name: "role-grants",
    singular: "role-grant",
    table: "role_grant",
    help: "That a user or a group has a role.",
    key: ["role", "user", "group"],
    tenantSql: ofRole,
    fields: {
      role: ref("role", "The role."),
      user: optionalRef("user", "Who has it."),
      group: optionalRef("group", "Whose members have it."),
    },
  },
  {
    name: "table-grants",
    singular: "table-grant",
    table: "table_grant",
    help: "What a role may do with tables.",
    key: ["role", "database", "schema", "table"],
    tenantSql: ofRole,
    fields: {
      role: ref("role", "Who may."),
      database: ref("database", "Where."),
      schema: { ...schema, help: "The schema; * for all." },
      table: { ...table, help: "The table; * for all." },
      privileges: {
        type: "texts",
        values: ["select", "insert", "update", "delete", "ddl"],
        required: true,
        help: "What it may do.",
      },
    },
  },
  {
    name: "pool-grants",
    singular: "pool-grant",
    table: "pool_grant",
    help: "Who may use a pool.",
    key: ["pool", "user", "group", "role"],
    tenantSql:
      "(select d.tenant_id from spillway_control.pool p join spillway_control.database d on d.id = p.database_id where p.id = t.pool_id)",
    fields: {
      pool: ref("pool", "The pool."),
      user: optionalRef("user", "Who may use it."),
      group: optionalRef("group", "Whose members may."),
      role: optionalRef("role", "Who has it may."),
    },
  },
  {
    name: "row-policies",
    singular: "row-policy",
    table: "row_policy",
    help: "Rows that a role sees. A table with one shows nothing to those whose roles have none.",
    key: ["database", "schema", "table", "name"],
    tenantSql: ofDatabase,
    fields: {
      database: ref("database", "Where."),
      schema,
      table,
      name,
      role: { ...optionalRef("role", "For whom; none: for everyone."), access: "create" },
      predicate: {
        type: "text",
        required: true,
        help: "DuckDB's SQL over the columns, with ${user}, ${tenant}, ${roles} and ${groups}.",
      },
      shadow,
    },
  },
  {
    name: "column-policies",
    singular: "column-policy",
    table: "column_policy",
    help: "A column that a role does not see, or sees as something else.",
    key: ["database", "schema", "table", "name"],
    tenantSql: ofDatabase,
    fields: {
      database: ref("database", "Where."),
      schema,
      table,
      name,
      column: { type: "text", column: "column_name", required: true, access: "create", help: "The column." },
      role: { ...optionalRef("role", "For whom; none: for everyone."), access: "create" },
      action: { type: "enum", values: ["deny", "mask"], required: true, help: "What is done." },
      expression: { type: "text", nullable: true, help: "What is shown instead, for a mask." },
      shadow,
    },
  },
  {
    name: "access-tokens",
    singular: "access-token",
    table: "access_token",
    help: "A personal access token. Its text is shown once, when it is made.",
    key: ["user", "name"],
    tenantSql: ofUser,
    transient: true,
    fields: {
      user: ref("user", "Whose it is."),
      name,
      expiresAt: { type: "time", nullable: true, access: "create", help: "When it ends; none: never." },
      createdAt,
    },
  },
  {
    name: "sessions",
    singular: "session",
    table: "session",
    help: "A login. Deleting it ends it.",
    key: ["id"],
    tenantSql: ofUser,
    transient: true,
    fields: {
      user: ref("user", "Whose it is.", { access: "read", required: false }),
      protocol: { type: "text", access: "read", help: "By which protocol." },
      address: { type: "text", access: "read", help: "From where." },
      createdAt,
      expiresAt: { type: "time", access: "read", help: "When it ends." },
      revokedAt: { type: "time", access: "read", nullable: true, help: "When it was ended." },
    },
  },
  {
    name: "nodes",
    singular: "node",
    table: "node",
    help: "A process that runs statements.",
    key: ["id"],
    tenantSql:
      "(select d.tenant_id from spillway_control.pool p join spillway_control.database d on d.id = p.database_id where p.id = t.pool_id)",
    transient: true,
    fields: {
      pool: ref("pool", "Its pool.", { access: "read", required: false }),
      role: { type: "text", access: "read", help: "READONLY, WRITEONLY or DUAL." },
      generation: { type: "int", access: "read", help: "Which process of this id." },
      backend: { type: "text", access: "read", help: "local or kubernetes." },
      state: { type: "text", access: "read", help: "starting, ready, draining, stopped or lost." },
      host: { type: "text", access: "read", nullable: true, help: "Where it runs." },
      pid: { type: "int", access: "read", nullable: true, help: "Its process." },
      error: { type: "text", access: "read", nullable: true, help: "Why it is not ready." },
      createdAt,
      updatedAt: { type: "time", access: "read", help: "When its state changed." },
    },
  },
];

export function resourceNamed(text: string): Resource | null {
  return RESOURCES.find((r) => r.name === text || r.singular === text) ?? null;
}

export function columnOf(name_: string, field: Field): string {
  const snake = name_.replace(/[A-Z]/g, (c) => `_${c.toLowerCase()}`);
  return field.column ?? (field.type === "ref" ? `${snake}_id` : snake);
}
