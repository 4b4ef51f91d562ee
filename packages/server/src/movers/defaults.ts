/** Initial defaults: kept in the catalog as Postgres's canonical text, and needed as values in three other forms. */
import type { HashDefault } from "@spillway/base/rowhash";
import { columnBuilder, type PgColumnPlan } from "@spillway/pg/columns/plan";
import type { PrimitiveValue } from "@spillway/lake/model";
import { valueAt } from "../engine/engine.ts";

/** The value of a text, as Iceberg and the row hash hold it. Throws what COPY would for a text that is none. */
export function valueOfText(plan: PgColumnPlan, text: string): PrimitiveValue & HashDefault {
  const builder = columnBuilder(plan);
  const bytes = Buffer.from(text, "utf8");
  builder.appendText(bytes, 0, bytes.length);
  return valueAt(builder.finish(), 0) as PrimitiveValue & HashDefault;
}
