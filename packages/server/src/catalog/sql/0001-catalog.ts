/** The catalog's tables: see docs/internals/seam.md. The migration runner has created the schema. */
export const CATALOG_SQL = `
create table spillway.leader (
  id boolean primary key default true check (id),
  epoch bigint not null default 0,
  holder text,
  backend_pid int,
  backend_start timestamptz,
  heartbeat_at timestamptz,
  interval_ms int
);
insert into spillway.leader default values;

-- Whose lake this is. Equals the ownership object in the store, or nobody may delete there.
create table spillway.warehouse (
  id boolean primary key default true check (id),
  location text not null,
  lineage uuid not null,
  system_identifier bigint not null,
  database_oid oid not null,
  timeline int not null,
  generation bigint not null default 1,
  -- when the server was started that claimed the lake last, in µs
  instance bigint not null default 0,
  created_at timestamptz not null default now()
);

create table spillway.namespace (
  name text primary key,
  properties jsonb not null default '{}'
);

-- The Iceberg catalog: the metadata pointer of every table.
create table spillway.lake_table (
  lake_id bigint generated always as identity primary key,
  namespace text not null references spillway.namespace (name),
  name text not null,
  table_uuid uuid not null,
  location text not null,
  metadata_location text not null,
  metadata_version int not null,
  format_version int not null check (format_version in (2, 3)),
  current_snapshot_id bigint,
  sequence_number bigint not null default 0,
  allow_foreign_replace boolean not null default false,
  committed_at timestamptz not null default now(),
  unique (namespace, name)
);

create table spillway.relation (
  relation_id bigint generated always as identity primary key,
  relid oid not null unique,
  schema_name text not null,
  table_name text not null,
  mode text not null check (mode in ('tiered', 'direct', 'mirrored')),
  keep_heap boolean not null default false,
  state text not null check (state in ('registering', 'active', 'stopped', 'unregistering')),
  stop_code text,
  stop_reason text,
  stopped_at timestamptz,
  key_attnum smallint,
  key_kind text check (key_kind in ('int', 'timestamptz', 'timestamp', 'date')),
  pk_attnums smallint[] not null,
  landing oid,
  -- its file when the columns were last followed: while it is the same one, it still knows what old rows read in a new column
  landing_filenode oid,
  -- whether register made the landing, so that unregister may drop it
  landing_created boolean not null default false,
  lake_id bigint references spillway.lake_table (lake_id),
  -- lag, lake_retention, heap_retention, partition_width: canonical key units (integers, µs or days); null = none
  lag bigint,
  lake_retention bigint,
  heap_retention bigint,
  partition_width bigint,
  -- instead of a width: partitions of whole calendar months, which have no fixed length
  partition_months int,
  lake_partition text,
  -- maintenance policy overrides and the options as given
  policy jsonb not null default '{}',
  options jsonb not null default '{}',
  column_signature text not null default '',
  registered_at timestamptz not null default now()
);

create table spillway.relation_column (
  relation_id bigint not null references spillway.relation (relation_id) on delete cascade,
  attnum smallint not null,
  field_id int not null,
  name text not null,
  type_oid oid not null,
  typmod int not null,
  type_name text not null,
  not_null boolean not null,
  -- what every row that was written before the column existed reads, as text; null = NULL
  initial_default text,
  dropped boolean not null default false,
  primary key (relation_id, attnum),
  unique (relation_id, field_id)
);

create table spillway.seam (
  relation_id bigint primary key references spillway.relation (relation_id) on delete cascade,
  t bigint,
  s bigint,
  s_sequence bigint not null default 0,
  r bigint,
  f_lsn pg_lsn,
  f_timeline int,
  f_at timestamptz
);

-- What clients lock FOR SHARE, apart from seam, so that they hold back only a move of T or R and no fold.
-- Always equals seam.t and seam.r.
create table spillway.seam_guard (
  relation_id bigint primary key references spillway.relation (relation_id) on delete cascade,
  t bigint,
  r bigint
);

create function spillway.seam_never_goes_back() returns trigger language plpgsql as $$
begin
  if current_setting('spillway.rewind', true) = 'on' then return new; end if;
  if new.t < old.t or new.r < old.r or new.s_sequence < old.s_sequence
     or (new.t is null and old.t is not null)
     or (new.f_timeline = old.f_timeline and new.f_lsn < old.f_lsn) then
    raise exception 'the seam of relation % cannot go back', old.relation_id using errcode = 'SPW09';
  end if;
  return new;
end $$;
create trigger seam_never_goes_back before update on spillway.seam
  for each row execute function spillway.seam_never_goes_back();

create table spillway.band (
  band_id bigint generated always as identity primary key,
  relation_id bigint not null references spillway.relation (relation_id) on delete cascade,
  leaf oid,
  leaf_name text not null,
  lo bigint not null,
  hi bigint not null,
  -- capturing: triggers on, being copied · lake: committed, leaf still there · dropped: leaf gone · kept: keep-heap · expired: below R
  state text not null check (state in ('capturing', 'lake', 'dropped', 'kept', 'expired')),
  rows bigint,
  -- multiset checksum (base/rowhash.ts) in hex, over the fields named
  checksum text,
  checksum_fields int[],
  -- the leaf's own bounds; lo may lie below leaf_lo when there was a hole before it
  leaf_lo bigint,
  leaf_filenode oid,
  -- columns and capture triggers of the leaf as they were when its copy began
  leaf_signature text,
  bytes bigint,
  created_at timestamptz not null default now(),
  moved_at timestamptz,
  unique (relation_id, lo)
);

create table spillway.journal (
  op_id bigint generated always as identity primary key,
  relation_id bigint,
  lake_id bigint,
  kind text not null,
  phase text not null default 'open' check (phase in ('open', 'committed', 'abandoned')),
  epoch bigint,
  owner_pid int,
  owner_start timestamptz,
  detail jsonb not null default '{}',
  started_at timestamptz not null default now(),
  ended_at timestamptz
);
create index journal_open on spillway.journal (op_id) where phase = 'open';
create index journal_relation on spillway.journal (relation_id, op_id);

create table spillway.staged_file (
  path text primary key,
  op_id bigint not null references spillway.journal (op_id) on delete cascade
);
create index staged_file_op on spillway.staged_file (op_id);

create table spillway.doomed_file (
  path text primary key,
  lake_id bigint,
  op_id bigint,
  doomed_xid xid8 not null,
  doomed_at timestamptz not null default now()
);
create index doomed_file_at on spillway.doomed_file (doomed_at);

create table spillway.pin (
  pin_id bigint generated always as identity primary key,
  holder text not null,
  floor xid8 not null,
  created_at timestamptz not null default now(),
  expires_at timestamptz not null
);

-- Counters that outlive a process and only go up (true counters for /metrics).
create table spillway.counter (
  name text not null,
  relation_id bigint not null default 0,
  value bigint not null default 0,
  primary key (name, relation_id)
);

create sequence spillway.delta_version;


-- What a table waits for, for status: a drop that gets no lock, a commit behind a client's lock, a retry after an error.
create table spillway.relation_wait (
  relation_id bigint primary key references spillway.relation (relation_id) on delete cascade,
  step text not null,
  reason text not null,
  code text,
  attempts int not null default 1,
  since timestamptz not null default now(),
  last_at timestamptz not null default now(),
  retry_at timestamptz
);

-- Work that a command asks of the leader: maintain, a pass at once. Announced on channel spillway_worker.
create table spillway.request (
  request_id bigint generated always as identity primary key,
  kind text not null,
  relation_id bigint,
  detail jsonb not null default '{}',
  state text not null default 'open' check (state in ('open', 'claimed', 'done', 'failed')),
  result jsonb,
  requested_at timestamptz not null default now(),
  claimed_at timestamptz,
  ended_at timestamptz
);
create index request_open on spillway.request (request_id) where state in ('open', 'claimed');
`;
