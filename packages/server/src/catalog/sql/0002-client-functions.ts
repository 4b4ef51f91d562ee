/**
 * What clients may call, and what the capture triggers share. The callers' privileges on their own table decide:
 * `upsert` and `insert_if_absent` run as the caller; the helpers that run as the owner check the caller's privileges
 * first, have their search_path pinned, and are given names only through format().
 *
 * SQLSTATEs: see `SQL_STATES` in `catalog/sqlstates.ts`.
 */
export const CLIENT_FUNCTIONS_SQL = `
grant usage on schema spillway to public;

-- The role that the caller acts as, also inside a function that runs as its owner.
create function spillway.acting_role() returns name language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case when current_setting('role') in ('none', '') then session_user else current_setting('role')::name end
$$;

-- The columns of a table as one text: what the capture functions compare with what was last followed.
create function spillway.column_signature(rel oid) returns text language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(string_agg(attnum || ' ' || atttypid || ' ' || atttypmod || ' ' || attname, ',' order by attnum), '')
  from pg_attribute where attrelid = rel and attnum > 0 and not attisdropped
$$;

-- The canonical tier key of one value given as an expression: the SQL text of it.
create function spillway.key_expression(kind text, expression text) returns text language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select case kind
    when 'int' then format('(%s)::bigint', expression)
    when 'date' then format(
      'case when isfinite(%1$s) then (%1$s - date ''1970-01-01'')::bigint '
      'when %1$s > date ''1970-01-01'' then 9223372036854775807 else -9223372036854775807 end', expression)
    else format(
      'case when isfinite(%1$s) then (extract(epoch from %1$s) * 1000000)::bigint '
      'when %1$s > ''1970-01-01'' then 9223372036854775807 else -9223372036854775807 end', expression)
  end
$$;

-- The relation of a registered table, its cut-line row locked FOR SHARE: a transaction whose snapshot is older than
-- the last move of T or R gets 40001, and T and R stay where they are until the caller's transaction ends.
create function spillway.guard(rel regclass, privilege text,
  out relation_id bigint, out mode text, out keep_heap boolean, out t bigint, out r bigint,
  out key_name name, out key_kind text, out pk_names name[], out target text)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
  found_relation spillway.relation;
begin
  if not has_table_privilege(spillway.acting_role(), rel, privilege) then
    raise exception 'permission denied for table %', rel using errcode = '42501';
  end if;
  select * into found_relation from spillway.relation x where x.relid = rel;
  if found_relation.relation_id is null then
    raise exception 'table % is not registered', rel
      using errcode = 'SPW06', hint = 'Register it: spillway register --table ...';
  end if;
  relation_id := found_relation.relation_id;
  mode := found_relation.mode;
  keep_heap := found_relation.keep_heap;
  key_kind := found_relation.key_kind;
  select format('%I.%I', n.nspname, c.relname) into target
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = rel;
  select a.attname into key_name from pg_attribute a where a.attrelid = rel and a.attnum = found_relation.key_attnum;
  select array_agg(a.attname order by p.ord) into pk_names
    from unnest(found_relation.pk_attnums) with ordinality as p (attnum, ord)
    join pg_attribute a on a.attrelid = rel and a.attnum = p.attnum;
  select g.t, g.r into t, r from spillway.seam_guard g where g.relation_id = found_relation.relation_id for share;
end $$;

-- Refuses a row that is no object, has unknown columns, or lacks a column of the primary key.
create function spillway.check_row(rel regclass, pk_names name[], data jsonb) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  unknown text;
  missing text;
begin
  if data is null or jsonb_typeof(data) <> 'object' then
    raise exception 'a row is given as a jsonb object' using errcode = 'SPW05';
  end if;
  select string_agg(quote_ident(k), ', ') into unknown from jsonb_object_keys(data) k
    where not exists (select 1 from pg_attribute a
      where a.attrelid = rel and a.attnum > 0 and not a.attisdropped and a.attname = k);
  if unknown is not null then
    raise exception 'table % has no column %', rel, unknown using errcode = 'SPW05';
  end if;
  select string_agg(quote_ident(k), ', ') into missing from unnest(pk_names) k
    where data -> k is null or jsonb_typeof(data -> k) = 'null';
  if missing is not null then
    raise exception 'the row lacks %, of the primary key of table %', missing, rel using errcode = 'SPW05';
  end if;
end $$;

create function spillway.canonical_key(rel regclass, key_name name, key_kind text, data jsonb) returns bigint
language plpgsql stable as $$
declare
  k bigint;
begin
  if key_name is null then return null; end if;
  execute pg_catalog.format('select %s from pg_catalog.jsonb_populate_record(null::%s, $1) r',
    spillway.key_expression(key_kind, pg_catalog.format('r.%I', key_name)), rel) into k using data;
  return k;
end $$;

-- Columns that an INSERT may name, of those that the row has.
create function spillway.given_columns(rel regclass, data jsonb) returns name[]
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select array_agg(a.attname order by a.attnum) from pg_attribute a
  where a.attrelid = rel and a.attnum > 0 and not a.attisdropped and a.attgenerated = '' and data ? a.attname::text
$$;

-- Puts a whole row: columns that are not given take their defaults, in the heap as in the lake.
create function spillway.upsert(rel regclass, data jsonb) returns void
language plpgsql volatile as $$
declare
  g record;
  assignments text;
  columns text;
  was text := pg_catalog.current_setting('spillway.upsert', true);
begin
  g := spillway.guard(rel, 'INSERT');
  perform spillway.check_row(rel, g.pk_names, data);
  select pg_catalog.string_agg(pg_catalog.format('%1$I = excluded.%1$I', a.attname), ', ') into assignments
    from pg_catalog.pg_attribute a
    where a.attrelid = rel and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
      and a.attidentity <> 'a' and not (a.attname = any (g.pk_names));
  select pg_catalog.string_agg(pg_catalog.quote_ident(c), ', ') into columns
    from pg_catalog.unnest(spillway.given_columns(rel, data)) c;
  perform pg_catalog.set_config('spillway.upsert', 'on', true);
  execute pg_catalog.format(
    'insert into %s (%s) overriding system value select %s from pg_catalog.jsonb_populate_record(null::%s, $1) '
    'on conflict (%s) do %s',
    g.target, columns, columns, g.target,
    (select pg_catalog.string_agg(pg_catalog.quote_ident(c), ', ') from pg_catalog.unnest(g.pk_names) c),
    case when assignments is null then 'nothing' else 'update set ' || assignments end) using data;
  perform pg_catalog.set_config('spillway.upsert', coalesce(was, ''), true);
end $$;

-- Deletes by primary key, in whichever tier the row is; the row may hold other columns, which are not looked at.
create function spillway.delete(rel regclass, data jsonb) returns void
language plpgsql volatile as $$
declare
  g record;
begin
  g := spillway.guard(rel, 'DELETE');
  perform spillway.check_row(rel, g.pk_names, data);
  perform spillway.tombstone(rel, data);
  execute pg_catalog.format('delete from %s as t using pg_catalog.jsonb_populate_record(null::%s, $1) as r where %s',
    g.target, g.target,
    (select pg_catalog.string_agg(pg_catalog.format('t.%1$I = r.%1$I', c), ' and ')
     from pg_catalog.unnest(g.pk_names) c)) using data;
end $$;

-- Inserts unless the key is there. Only for rows of the heap: SQL in Postgres cannot look into the lake, so below the
-- cut-line it refuses and names the way that can.
create function spillway.insert_if_absent(rel regclass, data jsonb) returns void
language plpgsql volatile as $$
declare
  g record;
  k bigint;
  columns text;
begin
  g := spillway.guard(rel, 'INSERT');
  perform spillway.check_row(rel, g.pk_names, data);
  k := spillway.canonical_key(rel, g.key_name, g.key_kind, data);
  if g.mode in ('tiered', 'direct') and not g.keep_heap and k < g.t then
    raise exception 'a row of table % below its cut-line is in the lake, which this function cannot look into', rel
      using errcode = 'SPW08', hint = 'Use: spillway sql "INSERT ... ON CONFLICT DO NOTHING"';
  end if;
  select pg_catalog.string_agg(pg_catalog.quote_ident(c), ', ') into columns
    from pg_catalog.unnest(spillway.given_columns(rel, data)) c;
  execute pg_catalog.format(
    'insert into %s (%s) overriding system value select %s from pg_catalog.jsonb_populate_record(null::%s, $1) '
    'on conflict do nothing', g.target, columns, columns, g.target) using data;
end $$;

-- Writes the tombstone of a row below the cut-line. Runs as the owner: checks the caller's privilege by itself.
create function spillway.tombstone(rel regclass, data jsonb) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
  g record;
  k bigint;
  pk_attnums smallint[];
  delta_columns text;
begin
  g := spillway.guard(rel, 'DELETE');
  if g.mode not in ('tiered', 'direct') or g.keep_heap then return; end if;
  k := spillway.canonical_key(rel, g.key_name, g.key_kind, data);
  if k is null or g.t is null or k >= g.t then return; end if;
  if g.mode = 'direct' then
    raise exception 'table % is direct: a row below its cut-line is corrected in the lake itself', rel
      using errcode = 'SPW01', hint = 'Use: spillway sql "DELETE ..."';
  end if;
  if k < g.r then
    raise exception 'table % has expired its rows below %', rel, g.r using errcode = 'SPW02';
  end if;
  select x.pk_attnums into pk_attnums from spillway.relation x where x.relation_id = g.relation_id;
  select string_agg('c' || a, ', ' order by ord) into delta_columns from unnest(pk_attnums) with ordinality as p (a, ord);
  execute format(
    'insert into spillway.%1$I as d (op, version, key, %2$s) '
    'select ''D'', nextval(''spillway.delta_version''), $2, %3$s from jsonb_populate_record(null::%4$s, $1) r '
    'on conflict (%2$s) do update set op = ''D'', version = nextval(''spillway.delta_version''), key = excluded.key%5$s',
    'delta_' || g.relation_id, delta_columns,
    (select string_agg(format(case when d.atttypid = 'text'::regtype then 'pg_catalog.concat(r.%I)' else 'r.%I' end, n.c), ', '
       order by n.ord)
     from unnest(g.pk_names, pk_attnums) with ordinality as n (c, a, ord)
     join pg_attribute d on d.attrelid = to_regclass('spillway.' || quote_ident('delta_' || g.relation_id))
       and d.attname = 'c' || n.a and not d.attisdropped),
    rel, spillway.delta_reset(g.relation_id)) using data, k;
end $$;

-- The SET list that empties every column of a delta row but its key, for a tombstone.
create function spillway.delta_reset(relation bigint) returns text language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(string_agg(', ' || quote_ident(a.attname) || ' = null', '' order by a.attnum), '')
  from pg_attribute a join spillway.relation x on x.relation_id = relation
  where a.attrelid = to_regclass('spillway.' || quote_ident('delta_' || relation)) and a.attnum > 0 and not a.attisdropped
    and a.attname not in ('op', 'version', 'key')
    and not (a.attname = any (select 'c' || n from unnest(x.pk_attnums) n))
$$;

-- The text that the type's own output function makes of a value, as COPY does. A cast to text can be another function: that of
-- inet adds the mask, and users can make casts of their own.
create function spillway.output_text(expression text) returns text language sql immutable set search_path = pg_catalog, pg_temp
as $$
  select format('case when %1$s is distinct from null then pg_catalog.concat(%1$s) end', expression)
$$;

-- The slow path of a capture: the statement that puts one row (as $1) into the delta while the table's columns differ
-- from those last followed. Columns are matched by number; what has no column in the delta yet goes into x, as text.
create function spillway.slow_capture(relation bigint, rel oid, leaf oid) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  x record;
  delta oid := to_regclass('spillway.' || quote_ident('delta_' || relation));
  names text := '';
  vals text := '';
  sets text := '';
  extra text := '';
  col record;
begin
  x := spillway.slow_facts(relation, rel, leaf);
  for col in
    select a.attnum, a.attname, d.attname as delta_name, format_type(d.atttypid, d.atttypmod) as delta_type,
      coalesce(rc.type_oid = a.atttypid and rc.typmod = a.atttypmod, false) as same,
      a.attnum = any (x.pk_attnums) as is_pk
    from pg_attribute a
    left join pg_attribute d on d.attrelid = delta and d.attname = 'c' || a.attnum and not d.attisdropped
    left join spillway.relation_column rc on rc.relation_id = relation and rc.attnum = a.attnum and not rc.dropped
    where a.attrelid = rel and a.attnum > 0 and not a.attisdropped and a.attgenerated in ('', 's')
    order by a.attnum
  loop
    if col.delta_name is not null and (col.same or col.is_pk) then
      names := names || format(', %I', col.delta_name);
      vals := vals || ', ' || case when col.delta_type = 'text' then spillway.output_text(format('r.%I', col.attname))
        else format('r.%I::%s', col.attname, col.delta_type) end;
      if not col.is_pk then sets := sets || format(', %1$I = excluded.%1$I', col.delta_name); end if;
    else
      extra := extra || format(', %L, %s', col.attnum::text, spillway.output_text(format('r.%I', col.attname)));
      if col.delta_name is not null then sets := sets || format(', %1$I = null', col.delta_name); end if;
    end if;
  end loop;
  return format(
    'insert into spillway.%1$I as d (op, version, key, x%2$s) '
    'select ''U'', nextval(''spillway.delta_version''), %3$s, nullif(jsonb_build_object(%4$s), ''{}'')%5$s '
    'from only %8$s r where %9$s '
    'on conflict (%6$s) do update set op = ''U'', version = nextval(''spillway.delta_version''), '
    'key = excluded.key, x = excluded.x%7$s',
    'delta_' || relation, names, spillway.key_expression(x.key_kind, format('r.%I', x.key_name)),
    substr(extra, 3), vals, x.delta_pk, sets, x.target, x.same_pk);
end $$;

-- The names that the slow path works with: of the key, of the primary key's columns, of the partition.
create function spillway.slow_facts(relation bigint, rel oid, leaf oid,
  out key_name name, out key_kind text, out pk_attnums smallint[], out delta_pk text, out same_pk text,
  out old_pk text, out target text)
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
  select r.key_kind, r.pk_attnums, a.attname into key_kind, pk_attnums, key_name
    from spillway.relation r join pg_attribute a on a.attrelid = rel and a.attnum = r.key_attnum
    where r.relation_id = relation;
  select string_agg('c' || p.n, ', ' order by p.ord),
      string_agg(format('r.%1$I = ($1).%1$I', a.attname), ' and '),
      string_agg(format(case when d.atttypid = 'text'::regtype then 'pg_catalog.concat(($1).%I)' else '($1).%I' end, a.attname),
        ', ' order by p.ord)
    into delta_pk, same_pk, old_pk
    from unnest(pk_attnums) with ordinality as p (n, ord) join pg_attribute a on a.attrelid = rel and a.attnum = p.n
    join pg_attribute d on d.attrelid = to_regclass('spillway.' || quote_ident('delta_' || relation))
      and d.attname = 'c' || p.n and not d.attisdropped;
  select format('%I.%I', n.nspname, c.relname) into target
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = leaf;
end $$;

create function spillway.slow_tombstone(relation bigint, rel oid, leaf oid) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  x record := spillway.slow_facts(relation, rel, leaf);
begin
  return format(
    'insert into spillway.%1$I as d (op, version, key, %2$s) '
    'select ''D'', nextval(''spillway.delta_version''), %3$s, %4$s where not exists (select from only %5$s r where %6$s) '
    'on conflict (%2$s) do update set op = ''D'', version = nextval(''spillway.delta_version''), key = excluded.key%7$s',
    'delta_' || relation, x.delta_pk, spillway.key_expression(x.key_kind, format('($1).%I', x.key_name)),
    x.old_pk, x.target, x.same_pk, spillway.delta_reset(relation));
end $$;

-- TRUNCATE: a tombstone for every row that the partition has.
create function spillway.truncate_capture(relation bigint, rel oid, leaf oid) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
  x record := spillway.slow_facts(relation, rel, leaf);
begin
  return format(
    'insert into spillway.%1$I as d (op, version, key, %2$s) '
    'select ''D'', nextval(''spillway.delta_version''), %3$s, %4$s from only %5$s r '
    'on conflict (%2$s) do update set op = ''D'', version = nextval(''spillway.delta_version''), key = excluded.key%6$s',
    'delta_' || relation, x.delta_pk, spillway.key_expression(x.key_kind, format('r.%I', x.key_name)),
    replace(x.old_pk, '($1).', 'r.'), x.target, spillway.delta_reset(relation));
end $$;

-- What the landing does with a row that took the slow path; the same rules as in the generated function.
create function spillway.slow_landing(relation bigint, rel oid, leaf oid, row_data jsonb) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
  x record := spillway.slow_facts(relation, rel, leaf);
  rule record;
  g record;
  k bigint := spillway.canonical_key(leaf::regclass, x.key_name, x.key_kind, row_data);
begin
  select r.mode, r.keep_heap, r.options ->> 'historicalInserts' as inserts into rule
    from spillway.relation r where r.relation_id = relation;
  select s.t, s.r into g from spillway.seam_guard s where s.relation_id = relation for share;
  if g.t is null or k >= g.t then return; end if;
  if k = -9223372036854775807 then
    raise exception 'the lake holds no row of table % whose tier key is -infinity', rel::regclass using errcode = 'SPW03';
  elsif k < g.r then
    raise exception 'table % has expired its rows of that age', rel::regclass using errcode = 'SPW02';
  elsif rule.mode = 'direct' then
    raise exception 'table % is direct: a row below its cut-line is written to the lake itself', rel::regclass
      using errcode = 'SPW01', hint = 'Use: spillway sql "INSERT ..."';
  elsif rule.inserts = 'refuse' and coalesce(current_setting('spillway.upsert', true), '') <> 'on' then
    raise exception 'table % refuses plain INSERTs of rows below its cut-line', rel::regclass
      using errcode = 'SPW07', hint = 'Use spillway.upsert(regclass, jsonb).';
  end if;
  if rule.keep_heap then return; end if;
  perform set_config('spillway.internal', pg_current_xact_id()::text, true);
  execute format('delete from only %1$s r using jsonb_populate_record(null::%1$s, $1) as n where %2$s', x.target,
    replace(x.same_pk, '($1).', 'n.')) using row_data;
  perform set_config('spillway.internal', '', true);
end $$;

revoke execute on function spillway.slow_capture(bigint, oid, oid), spillway.slow_facts(bigint, oid, oid),
  spillway.slow_tombstone(bigint, oid, oid), spillway.truncate_capture(bigint, oid, oid),
  spillway.slow_landing(bigint, oid, oid, jsonb), spillway.delta_reset(bigint), spillway.output_text(text)
  from public;
`;
