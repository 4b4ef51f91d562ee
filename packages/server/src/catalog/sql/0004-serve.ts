/** What serving keeps in the source: see docs/internals/serving.md. */
export const SERVE_SQL = `
-- The ids of clients' commits, each written by the transaction itself: whoever got no answer looks its id up here. One that is
-- looked up before it was written is taken as rolled back, so that the transaction can no longer commit.
create table spillway.client_commit (
  commit_id uuid primary key,
  outcome text not null default 'committed' check (outcome in ('committed', 'rolled back')),
  -- of a statement that was a transaction of its own
  rows bigint not null default 0,
  at timestamptz not null default now()
);
create index client_commit_at on spillway.client_commit (at);
`;
