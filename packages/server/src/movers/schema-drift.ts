/** What changed in a table's columns since they were last followed. Pure. */
import type { Relation, RelationColumn, TableColumn } from "../catalog/catalog.ts";

export interface Drift {
  readonly added: readonly TableColumn[];
  readonly dropped: readonly RelationColumn[];
  readonly renamed: readonly { readonly from: RelationColumn; readonly to: TableColumn }[];
  readonly retyped: readonly { readonly from: RelationColumn; readonly to: TableColumn }[];
  /** The lake requires a value where the table does not any more. */
  readonly madeNullable: readonly { readonly from: RelationColumn; readonly to: TableColumn }[];
}

/** Null when nothing changed that the lake, or a capture, would notice. */
export function schemaDrift(relation: Pick<Relation, "columns">, now: readonly TableColumn[]): Drift | null {
  const was = new Map(relation.columns.filter((c) => !c.dropped).map((c) => [c.attnum, c]));
  const is = new Map(now.map((c) => [c.attnum, c]));
  const pairs = [...was.values()].flatMap((from) => {
    const to = is.get(from.attnum);
    return to ? [{ from, to }] : [];
  });
  const drift: Drift = {
    added: now.filter((c) => !was.has(c.attnum)),
    dropped: [...was.values()].filter((c) => !is.has(c.attnum)),
    renamed: pairs.filter(({ from, to }) => from.name !== to.name),
    retyped: pairs.filter(({ from, to }) => from.typeOid !== to.typeOid || from.typmod !== to.typmod),
    madeNullable: pairs.filter(({ from, to }) => from.notNull && !to.notNull),
  };
  return Object.values(drift).every((list: readonly unknown[]) => list.length === 0) ? null : drift;
}
