/** `docs/reference/types.md`, from the table that decides. */
import { NATIVE_TYPES, REFUSED_TYPES, TEXT_TYPES, MAX_DECIMAL_PRECISION } from "@spillway/base/pg-types";
import { duckType, icebergType } from "./types.ts";

/** The page, whole. */
export function typeTablePage(): string {
  const native = NATIVE_TYPES.map((t) => {
    const iceberg = icebergType({ kind: t.kind }).kind;
    return `| \`${t.name}\` | \`${iceberg}\` | \`${duckType({ kind: t.kind })}\` | ${t.note ?? ""} |`;
  });
  const refused = Object.entries(REFUSED_TYPES).map(([name, reason]) => `| \`${name}\` | ${reason} |`);
  return `# Types

<!-- Generated from packages/server/src/engine/type-table.ts; do not edit. -->

What becomes of each Postgres type in the lake. Nothing is rounded, and nothing loses a zone, a NULL or a trailing digit: a
column is held as itself, or as Postgres's own text of it, which casts back to the same value, or its table is refused by
\`register\` with the reason.

## Held as themselves

| Postgres | Iceberg | DuckDB | |
| --- | --- | --- | --- |
${native.join("\n")}
| \`numeric(p, s)\`, p up to ${MAX_DECIMAL_PRECISION}, s from 0 to p | \`decimal(p, s)\` | \`DECIMAL(p, s)\` | NaN stops the copy: a decimal cannot hold it |

A domain is held as its base type; its constraints stay in Postgres.

## Held as exact text

Iceberg \`string\`, DuckDB \`VARCHAR\`. The text is made with \`DateStyle ISO\`, \`IntervalStyle postgres\`, \`TimeZone UTC\`,
\`bytea_output hex\` and \`lc_monetary C\`, whatever the server's settings are; \`value::type\` in Postgres gives the value back.

- \`numeric\` without a modifier, with more than ${MAX_DECIMAL_PRECISION} digits, or with a scale below 0 or above its precision
- enums, ranges, multiranges, composites, and arrays of any type that is not refused
- types of extensions
- ${TEXT_TYPES.map((name) => `\`${name}\``).join(", ")}

## Refused

| Postgres | why |
| --- | --- |
| \`regclass\`, \`regproc\`, \`regtype\` and the like | their text names database objects, which can be renamed or dropped, and depends on the search path |
${refused.join("\n")}
`;
}
