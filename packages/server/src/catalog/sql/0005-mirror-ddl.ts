/**
 * What the change stream does not tell of DDL, written into it: event triggers say, at their place in the transaction, what the
 * columns and leaves of a mirrored table are by now, and which commands wrote rows anew. The triggers themselves are made when the first table is
 * mirrored, where the role may (`movers/mirror/ddl-triggers.ts`). A fault in here must not fail somebody's DDL: it is said instead, and the
 * table is copied again.
 * Source: https://www.postgresql.org/docs/current/functions-event-triggers.html
 */
import { CANONICAL_TEXT_SETTINGS } from "@spillway/base/pg-types";

const SETTINGS = Object.entries(CANONICAL_TEXT_SETTINGS)
  .filter(([name]) => name !== "client_encoding")
  .map(([name, value]) => `set ${name.toLowerCase()} = '${value}'`)
  .join(" ");

export const MIRROR_DDL_SQL = `
-- Everything about a mirrored table that a copy of it depends on. The rows of columns and types are those of catalog/table-columns.ts.
create function spillway.mirror_facts(root oid, stored jsonb) returns jsonb language plpgsql volatile
set search_path = pg_catalog, pg_temp ${SETTINGS}
as $$
declare
  leaves jsonb := '{}';
  filled jsonb := '[]';
  leaf record;
  has_rows boolean;
begin
  for leaf in
    select c.oid, c.relfilenode, n.nspname, c.relname
    from (select root as relid union select relid from pg_partition_tree(root)) t
    join pg_class c on c.oid = t.relid join pg_namespace n on n.oid = c.relnamespace where c.relkind = 'r'
  loop
    leaves := leaves || jsonb_build_object(leaf.oid::text, leaf.relfilenode::bigint);
    if not stored ? leaf.oid::text then
      execute format('select exists (select from only %I.%I)', leaf.nspname, leaf.relname) into has_rows;
      if has_rows then filled := filled || to_jsonb(leaf.oid::bigint); end if;
    end if;
  end loop;
  return jsonb_build_object(
    'leaves', leaves, 'filled', filled,
    'schema', (select n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = root),
    'table', (select relname from pg_class where oid = root),
    'logged', (select bool_and(relpersistence = 'p') from pg_class
      where oid in (select root union select relid from pg_partition_tree(root))),
    'columns', (select coalesce(json_agg(json_build_object(
        'attnum', a.attnum, 'attname', a.attname, 'atttypid', a.atttypid::text, 'atttypmod', a.atttypmod,
        'type_name', format_type(a.atttypid, a.atttypmod), 'attnotnull', a.attnotnull, 'attgenerated', a.attgenerated,
        'attidentity', a.attidentity, 'loose', coalesce(not l.collisdeterministic, false),
        -- A partitioned table keeps none itself; any of its leaves that was there has it.
        'missing', case when a.atthasmissing then (a.attmissingval::text::text[])[1] else (
          select min((b.attmissingval::text::text[])[1]) from pg_partition_tree(root) t join pg_attribute b on b.attrelid = t.relid
          where b.attname = a.attname and b.atthasmissing and not b.attisdropped) end) order by a.attnum), '[]')
      from pg_attribute a left join pg_collation l on l.oid = a.attcollation
      where a.attrelid = root and a.attnum > 0 and not a.attisdropped),
    'types', (
      with recursive t (oid) as (
        select distinct atttypid from pg_attribute where attrelid = root and attnum > 0 and not attisdropped
        union
        select n.oid from t join pg_type y on y.oid = t.oid
          cross join lateral (values (y.typbasetype), (y.typelem)) as n (oid) where n.oid <> 0)
      select coalesce(json_agg(json_build_object('oid', y.oid::text, 'typname', y.typname, 'typtype', y.typtype,
        'typcategory', y.typcategory, 'nspname', n.nspname, 'typbasetype', y.typbasetype::text,
        'typtypmod', y.typtypmod, 'typelem', y.typelem::text)), '[]')
      from t join pg_type y on y.oid = t.oid join pg_namespace n on n.oid = y.typnamespace));
end $$;

-- The mirrored tables that these tables are, or are partitions of.
create function spillway.mirrored_among(tables oid[]) returns table (relation_id bigint, relid oid, leaves jsonb)
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select x.relation_id, x.relid, m.leaves
  from spillway.relation x join spillway.mirror_table m using (relation_id)
  where x.relid in (
    select unnest(tables) union all
    select a.relid from pg_class c, pg_partition_ancestors(c.oid) a where c.oid = any (tables) and c.relispartition)
$$;

create function spillway.say_mirrored(tables oid[]) returns void language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  found_table record;
begin
  for found_table in select * from spillway.mirrored_among(tables) loop
    perform pg_logical_emit_message(true, 'spillway.ddl', jsonb_build_object(
      'relation', found_table.relation_id,
      'facts', case when exists (select from pg_class where oid = found_table.relid)
        then spillway.mirror_facts(found_table.relid, found_table.leaves) end)::text);
  end loop;
end $$;

create function spillway.mirror_ddl_end() returns event_trigger language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform spillway.say_mirrored(array(
    select distinct objid from pg_event_trigger_ddl_commands()
    where classid = 'pg_class'::regclass and object_type in ('table', 'table column')));
exception when others then
  perform pg_logical_emit_message(true, 'spillway.ddl', jsonb_build_object('failed', sqlerrm)::text);
end $$;

-- By now it is not known any more which table a dropped partition belonged to: all that are partitioned are looked at.
create function spillway.mirror_sql_drop() returns event_trigger language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if exists (select from pg_event_trigger_dropped_objects() where object_type in ('table', 'table column') and not is_temporary) then
    perform spillway.say_mirrored(array(
      select objid from pg_event_trigger_dropped_objects() where classid = 'pg_class'::regclass and object_type in ('table', 'table column')
      union select x.relid from spillway.relation x join pg_class c on c.oid = x.relid
      where c.relkind = 'p' and exists (select from pg_event_trigger_dropped_objects() where object_type = 'table')));
  end if;
exception when others then
  perform pg_logical_emit_message(true, 'spillway.ddl', jsonb_build_object('failed', sqlerrm)::text);
end $$;

-- A command that changes no value but its type says so by its text: nothing else can have run it, and it has no USING.
create function spillway.mirror_rewrite() returns event_trigger language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  found_table record;
  plain boolean := current_query() ~* '^\\s*alter\\s+table\\M' and current_query() !~* '\\musing\\M' and current_query() !~ ';\\s*\\S'
    and not exists (select from pg_event_trigger where evtenabled <> 'D' and evtname not like 'spillway\\_mirror\\_%');
begin
  for found_table in select * from spillway.mirrored_among(array[pg_event_trigger_table_rewrite_oid()]) loop
    perform pg_logical_emit_message(true, 'spillway.ddl', jsonb_build_object(
      'relation', found_table.relation_id, 'rewrite', pg_event_trigger_table_rewrite_reason(), 'plain', plain)::text);
  end loop;
exception when others then
  perform pg_logical_emit_message(true, 'spillway.ddl', jsonb_build_object('failed', sqlerrm)::text);
end $$;
`;
