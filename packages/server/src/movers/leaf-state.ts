/** A leaf as it was when its capture began: what must not have changed behind the capture's back. */
import { type Db, CAPTURE_TRIGGER, TRUNCATE_TRIGGER } from "../catalog/catalog.ts";

export interface LeafState {
  readonly filenode: number;
  /** Oid, last change and state of both capture triggers; a DISABLE and ENABLE in between shows. */
  readonly triggers: string;
  readonly columns: string;
  readonly attached: boolean;
}

const STATE = `
  select pg_relation_filenode(c.oid)::text as filenode,
    coalesce((select string_agg(format('%s:%s:%s', t.oid, t.xmin, t.tgenabled), ',' order by t.tgname)
      from pg_trigger t where t.tgrelid = c.oid and t.tgname in ($3, $4)), '') as triggers,
    spillway.column_signature(c.oid) as columns,
    exists (select from pg_inherits i where i.inhrelid = c.oid and i.inhparent = $2
      and not coalesce((to_jsonb(i) ->> 'inhdetachpending')::boolean, false)) as attached
  from pg_class c where c.oid = $1`;

/** Null when the leaf is gone. */
export async function readLeafState(db: Db, leaf: number, parent: number): Promise<LeafState | null> {
  const { rows } = await db.query<{ filenode: string; triggers: string; columns: string; attached: boolean }>(STATE, [
    leaf,
    parent,
    CAPTURE_TRIGGER,
    TRUNCATE_TRIGGER,
  ]);
  const raw = rows[0];
  if (!raw) return null;
  return { filenode: Number(raw.filenode), triggers: raw.triggers, columns: raw.columns, attached: raw.attached };
}

/** What the band row keeps: without the columns, whose changes are followed and not guarded here. */
export function leafSignature(state: LeafState): string {
  return state.triggers;
}

/** Why the capture cannot be trusted, or null. */
export function leafFault(
  recorded: { readonly leafFilenode: number | null; readonly leafSignature: string | null },
  now: LeafState,
): string | null {
  if (!now.attached) return "it was detached";
  if (now.filenode !== recorded.leafFilenode)
    return "it was rewritten (TRUNCATE, VACUUM FULL, CLUSTER or a rewriting ALTER)";
  if (now.triggers === "") return "its capture triggers were dropped";
  if (now.triggers !== recorded.leafSignature) return "its capture triggers were changed or disabled";
  return null;
}
