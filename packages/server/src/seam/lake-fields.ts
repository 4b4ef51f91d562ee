/** The columns of a registered table as fields of its lake table, read as the table's types are now. */
import type { ColumnKind } from "@spillway/base/columns";
import { SpillwayError } from "@spillway/base/errors";
import type { NestedField, TableMetadata } from "@spillway/lake/model";
import { duckDefault, kindOfIceberg, type ScanField } from "../engine/engine.ts";
import type { LakeState, ResolvedRelation, SeamColumn } from "./resolve.ts";

/** Null for a column that the worker has not followed yet: no lake row has it. */
export function fieldIdOf(lake: LakeState, column: SeamColumn): number | null {
  return lake.followed.get(column.attnum)?.fieldId ?? null;
}

/**
 * The fields to scan. A column that was not followed yet gets an id that no file has, and so reads its default everywhere.
 * Throws `seam_columns_changed` for a type that the files cannot be read as.
 */
export function scanFields(
  relation: ResolvedRelation,
  lake: LakeState,
  metadata: TableMetadata,
  columns: readonly SeamColumn[],
): ScanField[] {
  const known = new Map<number, NestedField>();
  for (const schema of metadata.schemas) for (const field of schema.fields) known.set(field.id, field);
  return columns.map((column) => {
    const followed = lake.followed.get(column.attnum);
    const { name, kind, decimal } = column.spec;
    const field = followed ? known.get(followed.fieldId) : undefined;
    if (!followed && column.isUnknowable) {
      throw new SpillwayError(
        "seam_columns_changed",
        `${JSON.stringify(name)} of ${relation.sql} was added with a default, and what older rows read is not known.`,
      );
    }
    if (field && !canRead(kindOfIceberg(field.type), column)) {
      throw new SpillwayError(
        "seam_columns_changed",
        `The type of ${JSON.stringify(name)} of ${relation.sql} was changed, and the lake has the old one.`,
      );
    }
    return {
      id: followed?.fieldId ?? UNFOLLOWED + column.attnum,
      name,
      kind,
      ...(decimal ? { decimal } : {}),
      initialDefault: duckDefault(kind, followed ? followed.initialDefault : column.table.missingValue),
    };
  });
}

/** Above any field id that Iceberg gives out. */
const UNFOLLOWED = 2_000_000_000;

function canRead(stored: ReturnType<typeof kindOfIceberg>, column: SeamColumn): boolean {
  const { kind, decimal } = column.spec;
  if (kind === "decimal") {
    return (
      stored.kind === "decimal" &&
      stored.decimal?.scale === decimal?.scale &&
      (stored.decimal?.precision ?? 99) <= (decimal?.precision ?? 0)
    );
  }
  return stored.kind === (kind === "int16" ? "int32" : kind) || PROMOTIONS[stored.kind] === kind;
}

const PROMOTIONS: Partial<Record<ColumnKind, ColumnKind>> = { int32: "int64", float32: "float64" };
