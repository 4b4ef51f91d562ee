/** A registered table that is tiered or direct, with what its movements always need. */
import { must } from "@spillway/base/assert";
import type { KeyKind, Relation, SeamRow } from "../catalog/catalog.ts";

export interface TieredRelation extends Relation {
  readonly keyKind: KeyKind;
  readonly keyAttnum: number;
  readonly keyName: string;
  readonly lakeId: bigint;
  readonly landing: number;
  readonly seam: SeamRow & { readonly t: bigint };
}

/** Null for a mirrored table. */
export function asTiered(relation: Relation): TieredRelation | null {
  if (relation.mode === "mirrored") return null;
  const keyAttnum = must(relation.keyAttnum, "tier key");
  return {
    ...relation,
    keyAttnum,
    keyKind: must(relation.keyKind, "kind of the tier key"),
    keyName: must(
      relation.columns.find((c) => c.attnum === keyAttnum),
      "column of the tier key",
    ).name,
    lakeId: must(relation.lakeId, "lake table"),
    landing: must(relation.landing, "landing"),
    seam: { ...relation.seam, t: must(relation.seam.t, "cut-line") },
  };
}

/** Any registered table that has a lake table. */
export interface LakeRelation extends Relation {
  readonly lakeId: bigint;
}

/** Null while the table has no lake table yet. */
export function asLake(relation: Relation): LakeRelation | null {
  return relation.lakeId === null ? null : { ...relation, lakeId: relation.lakeId };
}
