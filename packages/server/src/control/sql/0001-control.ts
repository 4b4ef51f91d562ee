/** The control plane's tables: see docs/internals/serving.md. The migration runner has created the schema. */
export const CONTROL_SQL = `
-- One number for everything that decides who may what. Every change raises it, and says so on the channel of the same name.
create table spillway_control.control_version (
  id boolean primary key default true check (id),
  version bigint not null default 1
);
insert into spillway_control.control_version default values;

create function spillway_control.bump() returns trigger language plpgsql as $$
declare v bigint;
begin
  update spillway_control.control_version set version = version + 1 returning version into v;
  perform pg_notify('spillway_control', v::text);
  return null;
end $$;

create domain spillway_control.object_name as text
  check (value ~ '^[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,62}$');

-- Keys that managers share: of node tokens and tickets. Never shown.
create table spillway_control.secret (
  name text primary key,
  value bytea not null
);

create table spillway_control.tenant (
  id uuid primary key default gen_random_uuid(),
  name spillway_control.object_name not null unique,
  disabled boolean not null default false,
  created_at timestamptz not null default now()
);

create table spillway_control.database (
  id uuid primary key default gen_random_uuid(),
  tenant_id uuid not null references spillway_control.tenant on delete restrict,
  name spillway_control.object_name not null,
  -- A connection string, or env:NAME or file:PATH that holds one.
  source_url text not null,
  warehouse text,
  default_schema text not null default 'public' check (default_schema <> ''),
  disabled boolean not null default false,
  created_at timestamptz not null default now(),
  unique (tenant_id, name)
);

create table spillway_control.pool (
  id uuid primary key default gen_random_uuid(),
  database_id uuid not null references spillway_control.database on delete restrict,
  name spillway_control.object_name not null,
  is_default boolean not null default false,
  readonly_nodes int not null default 0 check (readonly_nodes between 0 and 64),
  writeonly_nodes int not null default 0 check (writeonly_nodes between 0 and 64),
  dual_nodes int not null default 1 check (dual_nodes between 0 and 64),
  -- Bounds of the number of READONLY nodes; equal, or null: no autoscaling.
  min_readonly int check (min_readonly between 0 and 64),
  max_readonly int check (max_readonly between 0 and 64),
  node_memory_bytes bigint not null default 536870912 check (node_memory_bytes >= 67108864),
  node_cpus numeric(6, 2) not null default 1 check (node_cpus > 0),
  -- Statements at a time on one node; those beyond wait.
  node_concurrency int not null default 8 check (node_concurrency between 1 and 1000),
  queue_limit int not null default 100 check (queue_limit between 0 and 100000),
  queue_timeout_ms int not null default 30000 check (queue_timeout_ms >= 0),
  -- 0: none.
  statement_timeout_ms int not null default 0 check (statement_timeout_ms >= 0),
  drain_timeout_ms int not null default 30000 check (drain_timeout_ms >= 0),
  -- Idle time after which the pool has no nodes; 0: never.
  suspend_after_ms int not null default 0 check (suspend_after_ms >= 0),
  spill_bytes bigint not null default 10737418240 check (spill_bytes >= 0),
  disabled boolean not null default false,
  created_at timestamptz not null default now(),
  unique (database_id, name),
  check (min_readonly is null or max_readonly is null or min_readonly <= max_readonly)
);
create unique index on spillway_control.pool (database_id) where is_default;

-- What a pool does, as opposed to what it should be: not part of the version.
create table spillway_control.pool_state (
  pool_id uuid primary key references spillway_control.pool on delete cascade,
  suspended boolean not null default false,
  last_statement_at timestamptz not null default now(),
  readonly_target int,
  scaled_at timestamptz
);

create table spillway_control.manager (
  id uuid primary key,
  host text not null,
  pid int not null,
  pid_start text not null,
  build text not null,
  addresses jsonb not null default '{}',
  started_at timestamptz not null default now(),
  expires_at timestamptz not null
);

create table spillway_control.node (
  id uuid primary key default gen_random_uuid(),
  pool_id uuid not null references spillway_control.pool on delete restrict,
  role text not null check (role in ('READONLY', 'WRITEONLY', 'DUAL')),
  generation bigint not null default 1,
  backend text not null default 'local' check (backend in ('local', 'kubernetes')),
  state text not null default 'starting' check (state in ('starting', 'ready', 'draining', 'stopped', 'lost')),
  host text,
  pid int,
  pid_start text,
  socket text,
  token_hash text,
  manager_id uuid,
  error text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
create index on spillway_control.node (pool_id);

-- Whatever must happen once is done by the holder of a lease, and checks the epoch in the transaction that does it.
create table spillway_control.lease (
  name text primary key,
  holder uuid not null,
  epoch bigint not null,
  expires_at timestamptz not null
);

create table spillway_control.app_user (
  id uuid primary key default gen_random_uuid(),
  -- Null: of the installation, not of a tenant.
  tenant_id uuid references spillway_control.tenant on delete restrict,
  name spillway_control.object_name not null unique,
  is_admin boolean not null default false,
  disabled boolean not null default false,
  -- argon2id in its own encoding; null: no password.
  password_hash text,
  -- As in pg_authid.rolpassword.
  scram_verifier text,
  -- Of an identity provider.
  oidc_issuer text,
  oidc_subject text,
  created_at timestamptz not null default now(),
  unique (oidc_issuer, oidc_subject),
  check ((oidc_issuer is null) = (oidc_subject is null)),
  check (tenant_id is not null or is_admin)
);

-- Failed logins: not part of the version.
create table spillway_control.login_failure (
  user_id uuid primary key references spillway_control.app_user on delete cascade,
  failures int not null default 0,
  last_at timestamptz not null default now(),
  locked_until timestamptz
);

-- Which Postgres role a user is at the source, by a connection that logs in as it.
create table spillway_control.source_login (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references spillway_control.app_user on delete cascade,
  database_id uuid not null references spillway_control.database on delete cascade,
  login_url text not null,
  unique (user_id, database_id)
);

create table spillway_control.app_group (
  id uuid primary key default gen_random_uuid(),
  tenant_id uuid not null references spillway_control.tenant on delete restrict,
  name spillway_control.object_name not null,
  created_at timestamptz not null default now(),
  unique (tenant_id, name)
);

create table spillway_control.app_role (
  id uuid primary key default gen_random_uuid(),
  tenant_id uuid not null references spillway_control.tenant on delete restrict,
  name spillway_control.object_name not null,
  created_at timestamptz not null default now(),
  unique (tenant_id, name)
);

create table spillway_control.membership (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references spillway_control.app_user on delete cascade,
  group_id uuid not null references spillway_control.app_group on delete cascade,
  unique (user_id, group_id)
);

-- A role is given to a user or to a group.
create table spillway_control.role_grant (
  id uuid primary key default gen_random_uuid(),
  role_id uuid not null references spillway_control.app_role on delete cascade,
  user_id uuid references spillway_control.app_user on delete cascade,
  group_id uuid references spillway_control.app_group on delete cascade,
  check (num_nonnulls(user_id, group_id) = 1),
  unique (role_id, user_id),
  unique (role_id, group_id)
);

create table spillway_control.table_grant (
  id uuid primary key default gen_random_uuid(),
  role_id uuid not null references spillway_control.app_role on delete cascade,
  database_id uuid not null references spillway_control.database on delete cascade,
  -- '*': all.
  schema_name text not null check (schema_name <> ''),
  table_name text not null check (table_name <> ''),
  privileges text[] not null
    check (cardinality(privileges) > 0 and privileges <@ array['select', 'insert', 'update', 'delete', 'ddl']),
  unique (role_id, database_id, schema_name, table_name)
);

create table spillway_control.pool_grant (
  id uuid primary key default gen_random_uuid(),
  pool_id uuid not null references spillway_control.pool on delete cascade,
  user_id uuid references spillway_control.app_user on delete cascade,
  group_id uuid references spillway_control.app_group on delete cascade,
  role_id uuid references spillway_control.app_role on delete cascade,
  check (num_nonnulls(user_id, group_id, role_id) = 1),
  unique (pool_id, user_id),
  unique (pool_id, group_id),
  unique (pool_id, role_id)
);

-- A table that has one shows a user only the rows that one of the policies of his roles lets through.
create table spillway_control.row_policy (
  id uuid primary key default gen_random_uuid(),
  database_id uuid not null references spillway_control.database on delete cascade,
  schema_name text not null check (schema_name <> '' and schema_name <> '*'),
  table_name text not null check (table_name <> '' and table_name <> '*'),
  name spillway_control.object_name not null,
  -- Null: everyone.
  role_id uuid references spillway_control.app_role on delete cascade,
  predicate text not null check (predicate <> ''),
  shadow boolean not null default false,
  unique (database_id, schema_name, table_name, name)
);

create table spillway_control.column_policy (
  id uuid primary key default gen_random_uuid(),
  database_id uuid not null references spillway_control.database on delete cascade,
  schema_name text not null check (schema_name <> '' and schema_name <> '*'),
  table_name text not null check (table_name <> '' and table_name <> '*'),
  column_name text not null check (column_name <> ''),
  name spillway_control.object_name not null,
  role_id uuid references spillway_control.app_role on delete cascade,
  action text not null check (action in ('deny', 'mask')),
  expression text,
  shadow boolean not null default false,
  check ((action = 'mask') = (expression is not null)),
  unique (database_id, schema_name, table_name, name)
);

create table spillway_control.access_token (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references spillway_control.app_user on delete cascade,
  name spillway_control.object_name not null,
  token_hash text not null unique,
  created_at timestamptz not null default now(),
  expires_at timestamptz,
  unique (user_id, name)
);

-- Bearer tokens of logins. They outlive the manager that made them.
create table spillway_control.session (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references spillway_control.app_user on delete cascade,
  token_hash text not null unique,
  protocol text not null,
  address text not null default '',
  created_at timestamptz not null default now(),
  expires_at timestamptz not null,
  revoked_at timestamptz
);
create index on spillway_control.session (expires_at);

-- Every decision and every change, with its reason. Partitioned, so that it can be tiered like any other table.
create table spillway_control.audit (
  at timestamptz not null,
  id uuid not null,
  manager_id uuid,
  session_id text,
  user_id uuid,
  user_name text not null default '',
  tenant_name text not null default '',
  database_name text not null default '',
  protocol text not null default '',
  address text not null default '',
  action text not null,
  object text not null default '',
  allowed boolean not null,
  reason text not null default '',
  details jsonb not null default '{}',
  primary key (at, id)
) partition by range (at);
create table spillway_control.audit_rest partition of spillway_control.audit default;

-- The name by which commands, requests and manifests mean an object.
create view spillway_control.object_path (kind, id, path, tenant_id) as
  select 'tenant', id, name::text, id from spillway_control.tenant
  union all
  select 'database', d.id, t.name || '/' || d.name, t.id
    from spillway_control.database d join spillway_control.tenant t on t.id = d.tenant_id
  union all
  select 'pool', p.id, t.name || '/' || d.name || '/' || p.name, t.id
    from spillway_control.pool p join spillway_control.database d on d.id = p.database_id
    join spillway_control.tenant t on t.id = d.tenant_id
  union all
  select 'user', id, name::text, tenant_id from spillway_control.app_user
  union all
  select 'group', g.id, t.name || '/' || g.name, t.id
    from spillway_control.app_group g join spillway_control.tenant t on t.id = g.tenant_id
  union all
  select 'role', r.id, t.name || '/' || r.name, t.id
    from spillway_control.app_role r join spillway_control.tenant t on t.id = r.tenant_id;

do $$
declare name text;
begin
  foreach name in array array['tenant', 'database', 'pool', 'app_user', 'source_login', 'app_group', 'app_role',
    'membership', 'role_grant', 'table_grant', 'pool_grant', 'row_policy', 'column_policy', 'access_token'] loop
    execute format('create trigger bump after insert or update or delete or truncate on spillway_control.%I
      for each statement execute function spillway_control.bump()', name);
  end loop;
end $$;
-- Logins are made all the time and change nothing for others; their end does.
create trigger bump after update of revoked_at on spillway_control.session
  for each statement execute function spillway_control.bump();

-- What names a thing must belong to the tenant that the other thing belongs to.
create function spillway_control.same_tenant() returns trigger language plpgsql as $$
declare
  n int;
  row jsonb := to_jsonb(new);
begin
  select count(distinct p.tenant_id) into n from spillway_control.object_path p
  where p.tenant_id is not null and (
    (p.kind = 'role' and p.id::text = row->>'role_id') or (p.kind = 'user' and p.id::text = row->>'user_id') or
    (p.kind = 'group' and p.id::text = row->>'group_id') or (p.kind = 'pool' and p.id::text = row->>'pool_id') or
    (p.kind = 'database' and p.id::text = row->>'database_id'));
  if n > 1 then
    raise exception 'the parts of this % belong to different tenants', tg_table_name using errcode = '23514';
  end if;
  return null;
end $$;
do $$
declare name text;
begin
  foreach name in array array['source_login', 'membership', 'role_grant', 'table_grant', 'pool_grant', 'row_policy',
    'column_policy'] loop
    execute format('create trigger same_tenant after insert or update on spillway_control.%I
      for each row execute function spillway_control.same_tenant()', name);
  end loop;
end $$;
`;
