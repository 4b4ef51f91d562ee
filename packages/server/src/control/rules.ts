/** What the control database says about a user in a database, read in one statement, so at one version. */
import type { Db } from "../catalog/catalog.ts";

export type Privilege = "select" | "insert" | "update" | "delete" | "ddl";

export interface TableGrant {
  /** `*`: all. */
  readonly schema: string;
  readonly table: string;
  readonly privileges: readonly Privilege[];
  readonly role: string;
}

export interface RowPolicy {
  readonly name: string;
  readonly schema: string;
  readonly table: string;
  readonly predicate: string;
  readonly shadow: boolean;
  /** Whether one of the user's roles has it. Those of others close the table all the same. */
  readonly applies: boolean;
}

export interface ColumnPolicy {
  readonly name: string;
  readonly schema: string;
  readonly table: string;
  readonly column: string;
  readonly action: "deny" | "mask";
  readonly expression: string | null;
  readonly shadow: boolean;
}

export interface DatabaseInfo {
  readonly id: string;
  readonly name: string;
  readonly tenantId: string;
  readonly tenantName: string;
  readonly defaultSchema: string;
  /** A connection string, or env:NAME or file:PATH. */
  readonly sourceUrl: string;
  readonly warehouse: string | null;
}

export interface PoolInfo {
  readonly id: string;
  readonly name: string;
  readonly isDefault: boolean;
}

export interface AccessRules {
  readonly version: bigint;
  readonly userId: string;
  readonly userName: string;
  /** May everything here. */
  readonly isAdmin: boolean;
  /** Null: may log in. Else why not. */
  readonly refused: string | null;
  readonly roles: readonly string[];
  readonly groups: readonly string[];
  readonly database: DatabaseInfo;
  readonly grants: readonly TableGrant[];
  readonly rowPolicies: readonly RowPolicy[];
  /** Only those that apply to the user. */
  readonly columnPolicies: readonly ColumnPolicy[];
  /** Tables with a policy of anybody, `schema.table` in lower case with a NUL between. */
  readonly policed: readonly string[];
  /** Those that the user may use. */
  readonly pools: readonly PoolInfo[];
  /** The connection that logs in as the user's Postgres role at the source. */
  readonly loginUrl: string | null;
}

const SQL = `
with u as (select * from spillway_control.app_user where id = $1),
d as (select d.*, t.name as tenant_name, t.disabled as tenant_disabled
      from spillway_control.database d join spillway_control.tenant t on t.id = d.tenant_id where d.id = $2),
g as (select g.* from spillway_control.app_group g join spillway_control.membership m on m.group_id = g.id
      where m.user_id = $1 and g.tenant_id = (select tenant_id from d)),
r as (select r.* from spillway_control.app_role r where r.tenant_id = (select tenant_id from d) and exists (
      select from spillway_control.role_grant x where x.role_id = r.id
        and (x.user_id = $1 or x.group_id in (select id from g))))
select json_build_object(
  'version', (select version::text from spillway_control.control_version),
  'userName', u.name,
  'isAdmin', u.is_admin and (u.tenant_id is null or u.tenant_id = d.tenant_id),
  'refused', case when u.disabled then 'the user is disabled' when d.tenant_disabled then 'the tenant is disabled'
     when d.disabled then 'the database is disabled'
     when u.tenant_id is not null and u.tenant_id <> d.tenant_id then 'the database belongs to another tenant' end,
  'roles', (select coalesce(json_agg(name order by name), '[]') from r),
  'groups', (select coalesce(json_agg(name order by name), '[]') from g),
  'database', json_build_object('id', d.id, 'name', d.name, 'tenantId', d.tenant_id, 'tenantName', d.tenant_name,
     'defaultSchema', d.default_schema, 'sourceUrl', d.source_url, 'warehouse', d.warehouse),
  'grants', (select coalesce(json_agg(json_build_object('schema', p.schema_name, 'table', p.table_name,
       'privileges', p.privileges, 'role', r.name) order by r.name, p.schema_name, p.table_name), '[]')
     from spillway_control.table_grant p join r on r.id = p.role_id where p.database_id = d.id),
  'rowPolicies', (select coalesce(json_agg(json_build_object('name', p.name, 'schema', p.schema_name,
       'table', p.table_name, 'predicate', p.predicate, 'shadow', p.shadow,
       'applies', p.role_id is null or p.role_id in (select id from r)) order by p.name), '[]')
     from spillway_control.row_policy p where p.database_id = d.id),
  'columnPolicies', (select coalesce(json_agg(json_build_object('name', p.name, 'schema', p.schema_name,
       'table', p.table_name, 'column', p.column_name, 'action', p.action, 'expression', p.expression,
       'shadow', p.shadow) order by p.name), '[]')
     from spillway_control.column_policy p
     where p.database_id = d.id and (p.role_id is null or p.role_id in (select id from r))),
  'policed', (select coalesce(json_agg(json_build_array(lower(schema_name), lower(table_name))), '[]') from (
     select schema_name, table_name from spillway_control.row_policy where database_id = d.id and not shadow
     union select schema_name, table_name from spillway_control.column_policy where database_id = d.id and not shadow) p),
  'pools', (select coalesce(json_agg(json_build_object('id', p.id, 'name', p.name, 'isDefault', p.is_default)
       order by p.is_default desc, p.name), '[]')
     from spillway_control.pool p where p.database_id = d.id and not p.disabled and (
       (u.is_admin and (u.tenant_id is null or u.tenant_id = d.tenant_id)) or exists (
         select from spillway_control.pool_grant x where x.pool_id = p.id and (x.user_id = $1
           or x.group_id in (select id from g) or x.role_id in (select id from r))))),
  'loginUrl', (select login_url from spillway_control.source_login s where s.user_id = $1 and s.database_id = d.id)
) as rules from u, d`;

/** Null when the user or the database does not exist. */
export async function loadRules(db: Db, userId: string, databaseId: string): Promise<AccessRules | null> {
  type Row = Omit<AccessRules, "version" | "userId" | "policed"> & { version: string; policed: [string, string][] };
  const { rows } = await db.query<{ rules: Row }>(SQL, [userId, databaseId]);
  const found = rows[0]?.rules;
  if (found === undefined) return null;
  const policed = found.policed.map(([schema, table]) => `${schema}\0${table}`);
  return { ...found, userId, policed, version: BigInt(found.version) };
}

/** What a login is checked against. */
export interface LoginUser {
  readonly id: string;
  readonly name: string;
  readonly tenantId: string | null;
  readonly tenantName: string | null;
  readonly isAdmin: boolean;
  readonly disabled: boolean;
  readonly passwordHash: string | null;
  readonly scramVerifier: string | null;
  /** In all tenants; those of no tenant can have some in several. */
  readonly roles: readonly string[];
  readonly groups: readonly string[];
}

const USER_SQL = `select u.id, u.name::text as name, u.tenant_id as "tenantId", t.name::text as "tenantName",
    u.is_admin as "isAdmin", u.disabled or coalesce(t.disabled, false) as disabled,
    u.password_hash as "passwordHash", u.scram_verifier as "scramVerifier",
    array(select distinct r.name::text from spillway_control.app_role r
      join spillway_control.role_grant x on x.role_id = r.id
      left join spillway_control.membership m on m.group_id = x.group_id
      where u.id in (x.user_id, m.user_id) order by 1) as roles,
    array(select distinct g.name::text from spillway_control.app_group g
      join spillway_control.membership m on m.group_id = g.id where m.user_id = u.id order by 1) as groups
  from spillway_control.app_user u left join spillway_control.tenant t on t.id = u.tenant_id`;

export async function loadUser(db: Db, name: string): Promise<LoginUser | null> {
  return (await db.query<LoginUser>(`${USER_SQL} where u.name = $1`, [name])).rows[0] ?? null;
}

export async function loadUserById(db: Db, id: string): Promise<LoginUser | null> {
  return (await db.query<LoginUser>(`${USER_SQL} where u.id = $1`, [id])).rows[0] ?? null;
}

export async function loadUserBySubject(db: Db, issuer: string, subject: string): Promise<LoginUser | null> {
  const sql = `${USER_SQL} where u.oidc_issuer = $1 and u.oidc_subject = $2`;
  return (await db.query<LoginUser>(sql, [issuer, subject])).rows[0] ?? null;
}

/**
 * The database that a client means: `tenant/database`, or `database` in the user's tenant, or, for those of the installation,
 * the only one of that name. Null: none, or several.
 */
export async function findDatabase(db: Db, name: string, tenantId: string | null): Promise<string | null> {
  const { rows } = await db.query<{ id: string }>(
    `select d.id from spillway_control.database d join spillway_control.tenant t on t.id = d.tenant_id
     where (d.name = $1 or t.name || '/' || d.name = $1) and ($2::uuid is null or t.id = $2) limit 2`,
    [name, tenantId],
  );
  return rows.length === 1 ? (rows[0]?.id ?? null) : null;
}
