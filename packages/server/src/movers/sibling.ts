/** A new table beside a partitioned one, fit to be attached to it as if its owner had made it. */
import { quoteIdent, quoteLiteral, quoteQualified } from "@spillway/pg/quote";
import type { Db } from "../catalog/catalog.ts";

interface Template {
  owner: string;
  is_owner: boolean;
  options: string[] | null;
  tablespace: string | null;
}

/** The storage of the newest leaf, and the owner of the table itself: a role that alters the table must own each partition. */
const TEMPLATE = `
  select pg_get_userbyid(p.relowner) as owner, p.relowner::regrole::text = quote_ident(current_user) as is_owner,
    l.reloptions as options, s.spcname as tablespace
  from pg_class p
  left join lateral (select c.* from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent = p.oid and c.relkind = 'r' and pg_get_expr(c.relpartbound, c.oid) <> 'DEFAULT' order by c.oid desc limit 1) l on true
  left join pg_tablespace s on s.oid = l.reltablespace
  where p.oid = $1`;

/** Everything of the table but its identity, which is the table's own (17 and later refuse another). Returns the quoted name. */
export async function createSibling(
  tx: Db,
  parent: { readonly relid: number; readonly schemaName: string; readonly tableName: string },
  name: string,
): Promise<string> {
  const { rows } = await tx.query<Template>(TEMPLATE, [parent.relid]);
  const template = rows[0];
  const table = quoteQualified(parent.schemaName, name);
  const tablespace = template?.tablespace ? ` tablespace ${quoteIdent(template.tablespace)}` : "";
  await tx.query(
    `create table ${table} (like ${quoteQualified(parent.schemaName, parent.tableName)} including all excluding identity)
     ${storageClause(template?.options ?? [])}${tablespace}`,
  );
  if (template && !template.is_owner) await tx.query(`alter table ${table} owner to ${quoteIdent(template.owner)}`);
  return table;
}

/** `fillfactor=70`, as pg_class keeps them. */
function storageClause(options: readonly string[]): string {
  const pairs = options.flatMap((option) => {
    const match = /^([a-z_]+(?:\.[a-z_]+)?)=(.*)$/s.exec(option);
    return match ? [`${match[1]} = ${quoteLiteral(match[2] ?? "")}`] : [];
  });
  return pairs.length === 0 ? "" : `with (${pairs.join(", ")})`;
}
