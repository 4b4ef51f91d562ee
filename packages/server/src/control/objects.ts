/** Reading and changing what the control plane has, from the tables of `resources.ts`. */
import { SpillwayError } from "@spillway/base/errors";
import { redactUrls } from "@spillway/base/log";
import { fromPgError, sqlstateOf } from "@spillway/pg/pg-error";
import { quoteIdent } from "@spillway/pg/quote";
import type { Db } from "../catalog/catalog.ts";
import { forgetFailures } from "./lockout.ts";
import { hashPassword } from "./passwords.ts";
import { columnOf, type Field, type PathKind, type Resource } from "./resources.ts";

/** As in requests and manifests: references are paths, times are ISO 8601. */
export type ControlObject = Readonly<Record<string, unknown>>;

/** Who asks: null = the installation, else only what belongs to the tenant. */
export type Scope = { readonly tenantId: string | null };
export const EVERYTHING: Scope = { tenantId: null };

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;
const REDACTED = "[redacted]";

/** The objects of a kind, in the order of their keys. `where`: fields and their values; `show`: of connection strings. */
export async function listObjects(
  db: Db,
  resource: Resource,
  where: ControlObject = {},
  scope: Scope = EVERYTHING,
  show: (url: string) => string = redactUrls,
): Promise<ControlObject[]> {
  const params: unknown[] = [];
  const conditions = ["true"];
  for (const [name, value] of Object.entries(where)) {
    const sql = name === "id" ? "t.id::text" : exprOf(resource, name);
    params.push(value === null ? null : typeof value === "string" ? value : JSON.stringify(value));
    conditions.push(`${sql} IS NOT DISTINCT FROM $${params.length}::text`);
  }
  if (scope.tenantId !== null) {
    params.push(scope.tenantId);
    conditions.push(`${resource.tenantSql} = $${params.length}::uuid`);
  }
  const shown = shownFields(resource).map(([name, field]) => `${selectOf(name, field)} AS ${quoteIdent(name)}`);
  const order = resource.key.map((name) => (name === "id" ? "t.id" : exprOf(resource, name)));
  const { rows } = await query<Record<string, unknown>>(
    db,
    `SELECT t.id, ${shown.join(", ")} FROM spillway_control.${quoteIdent(resource.table)} AS t
     WHERE ${conditions.join(" AND ")} ORDER BY ${order.join(", ")}`,
    params,
    resource,
  );
  return rows.map((row) => shape(resource, row, show));
}

/** By id or path. Throws `control_not_found`. */
export async function getObject(
  db: Db,
  resource: Resource,
  idOrPath: string,
  scope: Scope = EVERYTHING,
): Promise<ControlObject> {
  const id = UUID.test(idOrPath) ? idOrPath : resource.path ? await pathToId(db, resource.path, idOrPath) : null;
  const [found] = id === null ? [] : await listObjects(db, resource, { id }, scope);
  if (found === undefined) throw missing(resource, idOrPath);
  return found;
}

/** In the caller's transaction. Throws `control_invalid`, `control_exists`, `control_not_found`, `control_forbidden`. */
export async function createObject(
  db: Db,
  resource: Resource,
  body: ControlObject,
  scope: Scope = EVERYTHING,
): Promise<ControlObject> {
  for (const [name, field] of Object.entries(resource.fields)) {
    if (field.required && (body[name] === undefined || body[name] === null)) {
      throw new SpillwayError("control_invalid", `a ${resource.singular} needs ${name}`);
    }
  }
  const values = await columnsOf(db, resource, body, true);
  const names = Object.keys(values);
  const { rows } = await query<{ id: string }>(
    db,
    `INSERT INTO spillway_control.${quoteIdent(resource.table)} (${names.map(quoteIdent).join(", ")})
     VALUES (${names.map((_, i) => `$${i + 1}`).join(", ")}) RETURNING id`,
    names.map((n) => values[n]),
    resource,
  );
  return inScope(db, resource, rows[0]?.id ?? "", scope);
}

/** In the caller's transaction. Fields that are not given stay as they are. */
export async function updateObject(
  db: Db,
  resource: Resource,
  idOrPath: string,
  patch: ControlObject,
  scope: Scope = EVERYTHING,
): Promise<ControlObject> {
  const before = await getObject(db, resource, idOrPath, scope);
  const values = await columnsOf(db, resource, patch, false, before);
  const names = Object.keys(values);
  const id = String(before["id"]);
  if (names.length > 0) {
    await query(
      db,
      `UPDATE spillway_control.${quoteIdent(resource.table)} SET ${names.map((n, i) => `${quoteIdent(n)} = $${i + 2}`).join(", ")}
       WHERE id = $1`,
      [id, ...names.map((n) => values[n])],
      resource,
    );
  }
  if (patch["password"] !== undefined) await forgetFailures(db, id);
  return inScope(db, resource, id, scope);
}

/** A session is ended, everything else deleted. Throws `control_in_use` while something needs it. */
export async function deleteObject(
  db: Db,
  resource: Resource,
  idOrPath: string,
  scope: Scope = EVERYTHING,
): Promise<ControlObject> {
  const before = await getObject(db, resource, idOrPath, scope);
  const table = `spillway_control.${quoteIdent(resource.table)}`;
  const sql =
    resource.name === "sessions"
      ? `UPDATE ${table} SET revoked_at = coalesce(revoked_at, now()) WHERE id = $1`
      : `DELETE FROM ${table} WHERE id = $1`;
  if (resource.name === "nodes")
    throw new SpillwayError("control_invalid", "nodes follow from the counts of their pool");
  await query(db, sql, [before["id"]], resource);
  return before;
}

/** What a command or a manifest calls it. */
export function labelOf(resource: Resource, object: ControlObject): string {
  return resource.key
    .map((name) => object[name])
    .filter((v) => v !== null && v !== undefined)
    .join(resource.path ? "/" : " ");
}

export async function pathToId(db: Db, kind: PathKind, path: string): Promise<string> {
  const sql = "SELECT id FROM spillway_control.object_path WHERE kind = $1 AND path = $2";
  const { rows } = await db.query<{ id: string }>(sql, [kind, path]);
  if (rows[0] === undefined)
    throw new SpillwayError("control_not_found", `there is no ${kind} ${JSON.stringify(path)}`);
  return rows[0].id;
}

function shownFields(resource: Resource): [string, Field][] {
  return Object.entries(resource.fields).filter(([, field]) => field.access !== "write");
}

function selectOf(name: string, field: Field): string {
  const column = `t.${quoteIdent(columnOf(name, field))}`;
  if (field.type === "ref") return pathSql(field.ref ?? "tenant", column);
  if (field.type === "time") return `to_char(${column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')`;
  return field.type === "int" || field.type === "number" ? `${column}::float8` : column;
}

function pathSql(kind: PathKind, column: string): string {
  return `(SELECT o.path FROM spillway_control.object_path o WHERE o.kind = '${kind}' AND o.id = ${column})`;
}

function exprOf(resource: Resource, name: string): string {
  const field = resource.fields[name];
  if (field === undefined) throw new SpillwayError("control_invalid", `a ${resource.singular} has no ${name}`);
  if (field.type === "ref") return selectOf(name, field);
  return `t.${quoteIdent(columnOf(name, field))}::text`;
}

function shape(resource: Resource, row: Record<string, unknown>, show: (url: string) => string): ControlObject {
  const shown = shownFields(resource).map(([name, field]) => {
    const value = row[name];
    return [name, field.access === "url" && typeof value === "string" ? show(value) : value] as const;
  });
  return { id: row["id"], ...Object.fromEntries(shown) };
}

/** The columns to write. Values are checked here, so that the answer names the field. */
async function columnsOf(
  db: Db,
  resource: Resource,
  body: ControlObject,
  isNew: boolean,
  before: ControlObject = {},
): Promise<Record<string, unknown>> {
  const values: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(body)) {
    const field = resource.fields[name];
    if (value === undefined || name === "id") continue;
    if (field === undefined) throw new SpillwayError("control_invalid", `a ${resource.singular} has no ${name}`);
    checkValue(resource, name, field, value);
    if (!isNew && same(value, before[name])) continue;
    if (field.access === "read") throw new SpillwayError("control_invalid", `${name} cannot be given`);
    if (field.access === "create" && !isNew) throw new SpillwayError("control_invalid", `${name} cannot be changed`);
    if (field.access === "url" && String(value).includes(REDACTED)) {
      throw new SpillwayError("control_invalid", `${name} has no password: give it whole`);
    }
    if (name === "password" && field.access === "write") {
      const made = value === null ? { hash: null, verifier: null } : await hashPassword(String(value));
      values["password_hash"] = made.hash;
      values["scram_verifier"] = made.verifier;
    } else if (field.type === "ref" && value !== null) {
      values[columnOf(name, field)] = await pathToId(db, field.ref ?? "tenant", String(value));
    } else values[columnOf(name, field)] = value;
  }
  return values;
}

export function same(a: unknown, b: unknown): boolean {
  const norm = (v: unknown): unknown => (Array.isArray(v) ? [...v].toSorted() : v);
  return JSON.stringify(norm(a)) === JSON.stringify(norm(b));
}

function checkValue(resource: Resource, name: string, field: Field, value: unknown): void {
  const bad = (expected: string): never => {
    throw new SpillwayError("control_invalid", `${name} of a ${resource.singular} must be ${expected}`);
  };
  if (value === null) {
    if (!field.nullable) bad("given");
    return;
  }
  switch (field.type) {
    case "bool":
      if (typeof value !== "boolean") bad("true or false");
      break;
    case "int":
    case "number": {
      const whole = field.type === "int";
      const sound = typeof value === "number" && (whole ? Number.isSafeInteger(value) : Number.isFinite(value));
      const [min, max] = [field.min ?? -Infinity, field.max ?? Infinity];
      if (!sound || value < min || value > max) bad(`a ${whole ? "whole " : ""}number from ${min} to ${max}`);
      break;
    }
    case "enum":
      if (!field.values?.includes(String(value))) bad(`one of ${field.values?.join(", ")}`);
      break;
    case "texts": {
      const sound = Array.isArray(value) && value.length > 0 && value.every((v) => field.values?.includes(String(v)));
      if (!sound) bad(`a list of ${field.values?.join(", ")}`);
      break;
    }
    case "time":
      if (typeof value !== "string" || Number.isNaN(Date.parse(value))) bad("a time in ISO 8601");
      break;
    case "text":
    case "ref":
      if (typeof value !== "string" || value === "" || value.length > 10_000 || value.includes("\0")) bad("a text");
      if (name === "name" && !/^[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,62}$/.test(String(value))) {
        bad("up to 63 letters, digits and _ . @ + -, not beginning with a sign");
      }
  }
}

async function inScope(db: Db, resource: Resource, id: string, scope: Scope): Promise<ControlObject> {
  const [row] = await listObjects(db, resource, { id }, scope);
  if (row === undefined)
    throw new SpillwayError("control_forbidden", `this ${resource.singular} belongs to another tenant`);
  return row;
}

function missing(resource: Resource, what: string): SpillwayError {
  return new SpillwayError("control_not_found", `there is no ${resource.singular} ${JSON.stringify(what)}`);
}

async function query<R extends object>(
  db: Db,
  sql: string,
  params: unknown[],
  resource: Resource,
): Promise<{ rows: R[] }> {
  try {
    return await db.query<R>(sql, params);
  } catch (error) {
    throw constraintError(error, resource);
  }
}

function constraintError(error: unknown, resource: Resource): SpillwayError {
  const cause = { cause: error };
  switch (sqlstateOf(error)) {
    case "23505":
      return new SpillwayError("control_exists", `there is such a ${resource.singular} already`, cause);
    case "23503":
    case "23001":
      return new SpillwayError("control_in_use", `something belongs to this ${resource.singular}`, cause);
    case "23514":
    case "23502":
    case "22P02": {
      const text = error instanceof Error ? error.message : "";
      return new SpillwayError("control_invalid", `this ${resource.singular} is not possible: ${text}`, cause);
    }
    default:
      return fromPgError(error, `the ${resource.name} of the control database`);
  }
}
