/**
 * The whole control plane as one document: what it lists is made or brought to what it says; what it leaves out stays, unless
 * pruning is asked for. Fields that are left out stay too. Without passwords, tokens and sessions.
 */
import { SpillwayError } from "@spillway/base/errors";
import { redactUrls } from "@spillway/base/log";
import type { Db } from "../catalog/catalog.ts";
import {
  type ControlObject,
  createObject,
  deleteObject,
  EVERYTHING,
  labelOf,
  listObjects,
  same,
  type Scope,
  updateObject,
} from "./objects.ts";
import { type Resource, RESOURCES } from "./resources.ts";

/** By the name of the kind in camelCase. */
export type Manifest = Readonly<Record<string, readonly ControlObject[]>>;

export const MANIFEST_VERSION = 1;

export interface Change {
  readonly action: "create" | "update" | "delete";
  readonly kind: string;
  readonly object: string;
  /** For an update: what becomes of which field. Secrets are not shown. */
  readonly fields: readonly { readonly name: string; readonly from: unknown; readonly to: unknown }[];
}

interface Step extends Change {
  readonly resource: Resource;
  readonly id: string | null;
  readonly body: ControlObject;
}

const LISTED = RESOURCES.filter((r) => !r.transient);
const keyOfKind = (r: Resource): string => r.name.replace(/-(.)/g, (_, c: string) => c.toUpperCase());

export async function exportManifest(db: Db, scope: Scope = EVERYTHING): Promise<Record<string, unknown>> {
  const out: Record<string, unknown> = { spillway: MANIFEST_VERSION };
  for (const resource of LISTED) {
    const objects = await listObjects(db, resource, {}, scope);
    if (objects.length > 0) out[keyOfKind(resource)] = objects.map((object) => plain(resource, object));
  }
  return out;
}

function plain(resource: Resource, object: ControlObject): ControlObject {
  const kept = Object.entries(resource.fields).filter(
    ([name, field]) => field.access !== "read" && object[name] !== null && object[name] !== undefined,
  );
  return Object.fromEntries(kept.map(([name]) => [name, object[name]]));
}

/** Throws `manifest_invalid`. Values are checked when they are applied. */
export function parseManifest(value: unknown): Manifest {
  const bad = (why: string): SpillwayError => new SpillwayError("manifest_invalid", `the manifest: ${why}`);
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw bad("it is not a map");
  const { spillway, ...rest } = value as Record<string, unknown>;
  if (spillway !== MANIFEST_VERSION) throw bad(`it does not begin with spillway: ${MANIFEST_VERSION}`);
  const out: Record<string, readonly ControlObject[]> = {};
  for (const [key, list] of Object.entries(rest)) {
    const resource = LISTED.find((r) => keyOfKind(r) === key);
    if (resource === undefined) throw bad(`there is no kind ${key}`);
    if (!Array.isArray(list)) throw bad(`${key} is not a list`);
    const seen = new Set<string>();
    for (const [i, item] of list.entries()) {
      if (typeof item !== "object" || item === null || Array.isArray(item)) throw bad(`${key}[${i}] is not a map`);
      const key_ = identity(resource, item as ControlObject);
      if (seen.has(key_)) throw bad(`${key}[${i}] is there twice: ${labelOf(resource, item as ControlObject)}`);
      seen.add(key_);
      const unknown = Object.keys(item).find((name) => resource.fields[name] === undefined);
      if (unknown !== undefined) throw bad(`${key}[${i}] has the unknown field ${unknown}`);
    }
    out[key] = list as ControlObject[];
  }
  return out;
}

function identity(resource: Resource, object: ControlObject): string {
  return JSON.stringify(resource.key.map((name) => object[name] ?? null));
}

export interface ApplyOptions {
  /** Deletes what the manifest does not list, of the kinds that it lists. */
  readonly prune?: boolean;
  readonly scope?: Scope;
  /** Asked before anything is changed. */
  readonly validate?: (resource: Resource, body: ControlObject) => Promise<void>;
}

/** What applying would do, in its order: makes and changes from tenants down, then deletions from below. */
export async function diffManifest(db: Db, manifest: Manifest, options: ApplyOptions = {}): Promise<Change[]> {
  return (await plan(db, manifest, options)).map(({ action, kind, object, fields }) => ({
    action,
    kind,
    object,
    fields,
  }));
}

/** In the caller's transaction: all of it or nothing. */
export async function applyManifest(tx: Db, manifest: Manifest, options: ApplyOptions = {}): Promise<Change[]> {
  // Two that apply at the same moment would each see half of the other's.
  await tx.query("SELECT FROM spillway_control.control_version FOR UPDATE");
  const steps = await plan(tx, manifest, options);
  for (const { resource, body, action } of steps) if (action !== "delete") await options.validate?.(resource, body);
  const scope = options.scope ?? EVERYTHING;
  for (const step of steps) {
    try {
      if (step.action === "create") await createObject(tx, step.resource, step.body, scope);
      else if (step.action === "update") await updateObject(tx, step.resource, step.id ?? "", step.body, scope);
      else await deleteObject(tx, step.resource, step.id ?? "", scope);
    } catch (error) {
      if (!(error instanceof SpillwayError)) throw error;
      throw new SpillwayError(error.code, `${step.kind} ${step.object}: ${error.message}`, {
        cause: error,
        details: error.details,
      });
    }
  }
  return steps.map(({ action, kind, object, fields }) => ({ action, kind, object, fields }));
}

async function plan(db: Db, manifest: Manifest, options: ApplyOptions): Promise<Step[]> {
  const changes: Step[] = [];
  const deletions: Step[] = [];
  for (const resource of LISTED) {
    const wanted = manifest[keyOfKind(resource)];
    if (wanted === undefined) continue;
    const there = await listObjects(db, resource, {}, options.scope ?? EVERYTHING, (url) => url);
    const byKey = new Map(there.map((object) => [identity(resource, object), object]));
    for (const body of wanted) {
      const before = byKey.get(identity(resource, body));
      byKey.delete(identity(resource, body));
      const fields = before === undefined ? [] : differences(resource, before, body);
      if (before !== undefined && fields.length === 0) continue;
      const action = before === undefined ? "create" : "update";
      changes.push(stepOf(resource, action, body, before ?? null, fields));
    }
    if (options.prune) {
      for (const object of byKey.values()) deletions.unshift(stepOf(resource, "delete", object, object, []));
    }
  }
  return [...changes, ...deletions];
}

function stepOf(
  resource: Resource,
  action: Change["action"],
  body: ControlObject,
  before: ControlObject | null,
  fields: Change["fields"],
): Step {
  const id = before === null ? null : String(before["id"]);
  return { action, kind: resource.singular, object: labelOf(resource, body), fields, resource, id, body };
}

function differences(resource: Resource, before: ControlObject, body: ControlObject): Change["fields"] {
  return Object.entries(body).flatMap(([name, to]) => {
    const access = resource.fields[name]?.access;
    const isSecret = access === "write";
    const from = before[name] ?? null;
    if (access === "url") {
      const [old, now] = [redactUrls(String(from)), redactUrls(String(to))];
      return from === to || old === to ? [] : [{ name, from: old, to: now }];
    }
    if (!isSecret && same(from, to ?? null)) return [];
    return [isSecret ? { name, from: "(not shown)", to: "(not shown)" } : { name, from, to: to ?? null }];
  });
}
