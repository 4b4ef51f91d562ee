/**
 * Functions of Postgres that tell about any object by its oid. In a filtered query each stands for one of the connection's own that
 * answers only for what the user sees: who guesses oids learns nothing.
 */
import { quoteIdent } from "@spillway/pg/quote";

const SEEN = "(SELECT pg_catalog.unnest(pg_catalog.current_setting('spillway.visible')::pg_catalog.oid[]))";
/** Objects that initdb made have oids below this. */
const FIRST_USER_OID = 16_384;

const ofRelation = `($1 < ${FIRST_USER_OID} OR $1 IN ${SEEN})`;
const ofCatalog = (catalog: string, relation: string): string =>
  `($1 < ${FIRST_USER_OID} OR EXISTS (SELECT 1 FROM pg_catalog.${catalog} g WHERE g.oid = $1 AND (g.${relation} = 0 OR g.${relation} IN ${SEEN})))`;
const ofSystem = `$1 < ${FIRST_USER_OID}`;

interface Guard {
  /** Types of the arguments, the oid first; one list for each form. */
  readonly forms: readonly string[];
  /** Whether the user may know; `$1` is the oid. */
  readonly allowed: string;
}

const GUARDS: ReadonlyMap<string, Guard> = new Map([
  ["pg_get_viewdef", { forms: ["oid", "oid, bool", "oid, int4"], allowed: ofRelation }],
  ["pg_get_indexdef", { forms: ["oid", "oid, int4, bool"], allowed: ofRelation }],
  ["pg_get_partkeydef", { forms: ["oid"], allowed: ofRelation }],
  ["pg_get_partition_constraintdef", { forms: ["oid"], allowed: ofRelation }],
  ["pg_get_constraintdef", { forms: ["oid", "oid, bool"], allowed: ofCatalog("pg_constraint", "conrelid") }],
  ["pg_get_triggerdef", { forms: ["oid", "oid, bool"], allowed: ofCatalog("pg_trigger", "tgrelid") }],
  ["pg_get_ruledef", { forms: ["oid", "oid, bool"], allowed: ofCatalog("pg_rewrite", "ev_class") }],
  ["pg_get_statisticsobjdef", { forms: ["oid"], allowed: ofCatalog("pg_statistic_ext", "stxrelid") }],
  ["pg_get_statisticsobjdef_columns", { forms: ["oid"], allowed: ofCatalog("pg_statistic_ext", "stxrelid") }],
  ["pg_get_functiondef", { forms: ["oid"], allowed: ofSystem }],
  ["pg_get_function_sqlbody", { forms: ["oid"], allowed: ofSystem }],
  ["pg_get_function_arguments", { forms: ["oid"], allowed: ofSystem }],
  ["pg_get_function_identity_arguments", { forms: ["oid"], allowed: ofSystem }],
  ["pg_get_function_result", { forms: ["oid"], allowed: ofSystem }],
  ["col_description", { forms: ["oid, int4"], allowed: ofRelation }],
  ["obj_description", { forms: ["oid, name"], allowed: `($2 <> 'pg_class' OR ${ofRelation})` }],
]);

/** Whether the function is one whose calls go to the connection's own. */
export function isGuarded(name: string): boolean {
  return GUARDS.has(name);
}

/** What it is called in a filtered query. */
export function guardedName(name: string): string {
  return `pg_temp.${quoteIdent(name)}`;
}

/**
 * Makes the functions, in the connection's temporary schema, and the connection read-only. Where the login may not make temporary
 * objects the calls fail, and nothing is told.
 */
export function guardSql(): string {
  const functions = [...GUARDS].flatMap(([name, { forms, allowed }]) =>
    forms.map((form) => {
      const types = form.split(", ").map((type) => `pg_catalog.${type}`);
      const args = types.map((_, i) => `$${i + 1}`).join(", ");
      return `CREATE FUNCTION ${guardedName(name)}(${types.join(", ")}) RETURNS pg_catalog.text LANGUAGE sql STABLE AS $guard$ SELECT CASE WHEN ${allowed} THEN pg_catalog.${quoteIdent(name)}(${args}) END $guard$`;
    }),
  );
  return [...functions, "SET default_transaction_read_only = on"].join("; ");
}
