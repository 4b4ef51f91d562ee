/** What a user may see and do in one database, ready to be asked: docs/internals/serving.md §4. */
import { isSpillwayError } from "@spillway/base/errors";
import type { AccessRules, ColumnPolicy, Privilege, RowPolicy } from "../../control/control.ts";

export interface TableAccess {
  readonly privileges: ReadonlySet<Privilege>;
  /** DuckDB SQL over the table's columns; null: all rows. */
  readonly rows: string | null;
  /** By column name, whatever its case: absent = as it is; null = does not exist for the user; text = shown instead. */
  readonly columns: ReadonlyMap<string, string | null>;
  /** A policy that cannot be understood: then nothing of the table is shown, and this is said. */
  readonly broken: string | null;
}

export interface AccessSet {
  /** Of the control state that it was made from. */
  readonly version: bigint;
  readonly isSuperuser: boolean;
  /** By the table's real name. Null: no such name for this user. */
  table(schema: string, name: string): TableAccess | null;
  /** Whether anybody's policy is on the table. */
  hasPolicy(schema: string, name: string): boolean;
  /** May make and drop tables in the schema, whatever their names. */
  ownsSchema(schema: string): boolean;
  /** What it would be if the policies in shadow mode were in force; null: there are none. */
  readonly shadow: AccessSet | null;
  /** Plain data, for a node: `accessSetOf` makes the same set of it. */
  toImage(): AccessImage;
}

export interface PolicyImage {
  readonly rows: string | null;
  readonly columns: readonly (readonly [string, string | null])[];
  readonly broken?: string;
}

export interface AccessImage {
  /** bigint as text. */
  readonly version: string;
  readonly isSuperuser: boolean;
  readonly grants: readonly {
    readonly schema: string;
    readonly table: string;
    readonly privileges: readonly Privilege[];
  }[];
  /** By `schema.table` in lower case, with a NUL between. */
  readonly policies: Readonly<Record<string, PolicyImage>>;
  readonly policed: readonly string[];
}

const ALL: ReadonlySet<Privilege> = new Set(["select", "insert", "update", "delete", "ddl"]);
/** Not covered by `*`, nor by anything: what they hold is shown by other ways, filtered. */
const SYSTEM = /^(pg_.*|information_schema|spillway|spillway_.*|duckdb_.*)$/i;

export function isSystemSchema(schema: string): boolean {
  return SYSTEM.test(schema);
}

/** Column names of Postgres differ by case, policies written by people do not: one for `SSN` holds for `ssn`. */
class Columns extends Map<string, string | null> {
  constructor(entries: readonly (readonly [string, string | null])[]) {
    super(entries.map(([name, shown]) => [name.toLowerCase(), shown]));
  }
  override get(name: string): string | null | undefined {
    return super.get(name.toLowerCase());
  }
  override has(name: string): boolean {
    return super.has(name.toLowerCase());
  }
}

const NO_POLICY = { rows: null, columns: new Columns([]), broken: null };

export function accessSetOf(image: AccessImage, shadow: AccessSet | null = null): AccessSet {
  const policies = new Map(
    Object.entries(image.policies).map(([key, p]) => [
      key,
      { rows: p.rows, columns: new Columns(p.columns), broken: p.broken ?? null },
    ]),
  );
  const policed = new Set(image.policed);
  const known = new Map<string, TableAccess | null>();
  const find = (schema: string, name: string): TableAccess | null => {
    if (isSystemSchema(schema)) return null;
    if (image.isSuperuser) return { privileges: ALL, ...NO_POLICY };
    const privileges = new Set<Privilege>();
    for (const grant of image.grants) {
      const covers = (grant.schema === "*" || grant.schema === schema) && (grant.table === "*" || grant.table === name);
      if (covers) for (const privilege of grant.privileges) privileges.add(privilege);
    }
    if (privileges.size === 0) return null;
    const policy = policies.get(tableKey(schema, name));
    return { privileges, ...(policy ?? NO_POLICY) };
  };
  return {
    version: BigInt(image.version),
    isSuperuser: image.isSuperuser,
    shadow,
    table: (schema, name) => {
      const key = `${schema}\0${name}`;
      let found = known.get(key);
      if (found === undefined) {
        found = find(schema, name);
        if (known.size > 1000) known.clear();
        known.set(key, found);
      }
      return found;
    },
    hasPolicy: (schema, name) => policed.has(tableKey(schema, name)),
    ownsSchema: (schema) =>
      !isSystemSchema(schema) &&
      (image.isSuperuser ||
        image.grants.some(
          (g) => (g.schema === "*" || g.schema === schema) && g.table === "*" && g.privileges.includes("ddl"),
        )),
    toImage: () => image,
  };
}

export function tableKey(schema: string, name: string): string {
  return `${schema.toLowerCase()}\0${name.toLowerCase()}`;
}

interface MadePolicy {
  rows: string | null;
  columns: [string, string | null][];
  broken?: string;
}

/**
 * The set that the rules make. `compile` turns the text of a policy into SQL of this user. A table with a row policy shows a user
 * only what those of his roles let through, so nothing when there is none; of several policies on a column the
 * strictest holds, and masks that differ deny.
 */
export async function makeAccessSet(
  rules: AccessRules,
  compile: (text: string) => Promise<string>,
  shadowed = false,
): Promise<AccessSet> {
  const inForce = <P extends RowPolicy | ColumnPolicy>(policies: readonly P[]): readonly P[] =>
    policies.filter((p) => shadowed || !p.shadow);
  const policies: Record<string, MadePolicy> = {};
  const entry = (p: { schema: string; table: string }): MadePolicy =>
    (policies[tableKey(p.schema, p.table)] ??= { rows: null, columns: [] });
  const compiled = async (made: MadePolicy, text: string, otherwise: string): Promise<string> => {
    try {
      return await compile(text);
    } catch (error) {
      if (!isSpillwayError(error, "access_policy_invalid")) throw error;
      made.broken = error.message;
      return otherwise;
    }
  };
  if (!rules.isAdmin) {
    for (const policy of inForce(rules.rowPolicies)) {
      const made = entry(policy);
      const predicate = policy.applies ? `(${await compiled(made, policy.predicate, "false")})` : null;
      if (made.rows === null) made.rows = predicate ?? "false";
      else if (predicate !== null) made.rows = made.rows === "false" ? predicate : `${made.rows} OR ${predicate}`;
    }
    for (const policy of inForce(rules.columnPolicies)) {
      const made = entry(policy);
      const column = policy.column.toLowerCase();
      const shown = policy.action === "deny" ? null : await compiled(made, policy.expression ?? "NULL", "NULL");
      const before = made.columns.find(([name]) => name === column);
      if (before === undefined) made.columns.push([column, shown]);
      else if (before[1] !== shown) before[1] = null;
    }
  }
  const image: AccessImage = {
    version: rules.version.toString(),
    isSuperuser: rules.isAdmin,
    grants: rules.grants.map(({ schema, table, privileges }) => ({ schema, table, privileges })),
    policies,
    policed: rules.policed,
  };
  const hasShadow = !shadowed && [...rules.rowPolicies, ...rules.columnPolicies].some((p) => p.shadow);
  return accessSetOf(image, hasShadow ? await makeAccessSet(rules, compile, true) : null);
}
