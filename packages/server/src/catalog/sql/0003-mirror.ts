/** What the mirror keeps in the catalog: see docs/internals/mirror.md. */
export const MIRROR_SQL = `
-- One slot and one publication per source.
create table spillway.mirror (
  id boolean primary key default true check (id),
  slot_name text not null,
  publication_name text not null,
  system_identifier text not null,
  -- where the slot began: the frontier of a source that has no live mirrored table yet
  start_lsn pg_lsn not null,
  timeline int not null,
  created_at timestamptz not null default now()
);

create table spillway.mirror_table (
  relation_id bigint primary key references spillway.relation (relation_id) on delete cascade,
  -- copying: ranges are being read · copied: all ranges are there, the pump joins it · live · needs_copy: stopped, its changes are dropped
  phase text not null check (phase in ('copying', 'copied', 'live', 'needs_copy')),
  -- the slot is not confirmed beyond this while the table is copied; before every snapshot of the copy
  hold_lsn pg_lsn,
  -- the journal's operation that owns the copied files until the table joins
  copy_op bigint,
  -- REPLICA IDENTITY as it was, for each table whose identity Spillway changed
  identity_was jsonb not null default '{}',
  -- relfilenodes by leaf: a rewrite or another set of leaves that no message announced is seen by it
  leaves jsonb not null default '{}',
  verified_at timestamptz,
  verified_lsn pg_lsn,
  verified_rows bigint,
  verified_sum text,
  changed_at timestamptz not null default now()
);

-- The parts of a copy. A part that is done has the LSN of the snapshot that it was read under, and its files.
create table spillway.mirror_range (
  relation_id bigint not null references spillway.relation (relation_id) on delete cascade,
  part int not null,
  leaf oid not null,
  leaf_schema text not null,
  leaf_name text not null,
  -- heap blocks [first_block, end_block); a null end is open
  first_block bigint not null,
  end_block bigint,
  snapshot_lsn pg_lsn,
  rows bigint,
  files jsonb,
  done_at timestamptz,
  primary key (relation_id, part)
);
`;
