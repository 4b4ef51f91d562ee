/**
 * What each source holds, and what each user may do with it: the facts on which the way of a statement is decided. Read at most once
 * a second for each source, and only while somebody asks.
 */
import type { Clock } from "@spillway/base/clock";
import type { Logger } from "@spillway/base/log";
import { Pool } from "@spillway/pg/pool";
import type { AccessRules } from "../../../control/control.ts";
import type { AccessSet } from "../../access/access-set.ts";
import type { Principal } from "../../session/session.ts";
import type { RelationFacts, SourceAccess, SourceView } from "./ports.ts";

export interface SourceFactsOptions {
  /** `AccessControl` of serve/access. */
  readonly access: {
    rules(principal: Principal, databaseId: string): Promise<AccessRules>;
    setOf(rules: AccessRules): Promise<AccessSet>;
  };
  /** The id of the database that the user means by this name. */
  databaseId(principal: Principal, name: string): Promise<string>;
  /** A connection string out of a connection string, `env:NAME` or `file:PATH`. */
  secret(text: string): Promise<string>;
  readonly clock: Clock;
  readonly log: Logger;
}

/** A relation of the source, without anybody's rights. */
export interface SourceRelation {
  readonly oid: number;
  readonly schema: string;
  readonly name: string;
  readonly seam: boolean;
  /** What it reads or is a part of: of a view what it selects from, of a partition its parent. */
  readonly beneath: readonly number[];
  /** Names by attnum. */
  readonly columns: readonly (readonly [number, string])[];
}

export interface SourceSnapshot {
  readonly id: number;
  readonly serverVersion: string;
  readonly functions: ReadonlyMap<string, "system" | "user">;
  readonly relations: readonly SourceRelation[];
}

const KEPT_MS = 1000;

export class SourceFacts implements SourceAccess {
  readonly #options: SourceFactsOptions;
  readonly #sources = new Map<string, SourceReader>();
  readonly #views = new WeakMap<AccessRules, { readonly snapshot: SourceSnapshot; readonly view: SourceView }>();

  constructor(options: SourceFactsOptions) {
    this.#options = options;
  }

  /** Throws `access_denied`, `control_unavailable`, and what the source throws while it cannot be asked. */
  async view(principal: Principal, database: string): Promise<SourceView> {
    const { access, secret } = this.#options;
    const id = await this.#options.databaseId(principal, database);
    const rules = await access.rules(principal, id);
    const url = await secret(rules.database.sourceUrl);
    const snapshot = await this.#reader(id, url).read();
    const known = this.#views.get(rules);
    if (known?.snapshot === snapshot) return known.view;
    const set = await access.setOf(rules);
    const view: SourceView = {
      serverVersion: snapshot.serverVersion,
      version: `${rules.version}.${snapshot.id}`,
      mappedLogin: rules.loginUrl === null ? null : await secret(rules.loginUrl),
      catalogLogin: url,
      functions: snapshot.functions,
      relations: relationsFor(snapshot.relations, set),
    };
    this.#views.set(rules, { snapshot, view });
    return view;
  }

  async close(): Promise<void> {
    for (const reader of this.#sources.values()) await reader.close();
    this.#sources.clear();
  }

  #reader(id: string, url: string): SourceReader {
    const found = this.#sources.get(id);
    if (found?.url === url) return found;
    void found?.close();
    const made = new SourceReader(url, this.#options.clock, this.#options.log);
    this.#sources.set(id, made);
    return made;
  }
}

/**
 * The relations as a user sees them. A policy, and being of two tiers, is inherited: what a view selects from and what a partition is
 * a part of hold for it too. Indexes, sequences and the like that belong to a table are seen with it.
 */
export function relationsFor(relations: readonly SourceRelation[], set: AccessSet): RelationFacts[] {
  const byOid = new Map(relations.map((relation) => [relation.oid, relation]));
  const own = new Map(relations.map((relation) => [relation, set.table(relation.schema, relation.name)]));
  const reach = new Map<SourceRelation, readonly SourceRelation[]>();
  for (const relation of relations) reach.set(relation, closure(relation, byOid));
  return relations.map((relation) => {
    const below = reach.get(relation) ?? [];
    const access = own.get(relation) ?? null;
    const restricts = (one: SourceRelation): boolean => {
      const found = own.get(one) ?? null;
      return found === null ? !set.isSuperuser && one !== relation : found.rows !== null || found.columns.size > 0;
    };
    const parent = below.find((one) => one !== relation);
    const visible = access !== null || (isPart(relation) && parent !== undefined && own.get(parent) !== null);
    return {
      oid: relation.oid,
      schema: relation.schema,
      name: relation.name,
      seam: below.some((one) => one.seam),
      visible,
      restricted: below.some(restricts),
      privileges: access?.privileges ?? NONE,
      hiddenColumns: relation.columns
        .filter(([, name]) => access?.columns.get(name) === null)
        .map(([attnum]) => attnum),
    };
  });
}

const NONE: ReadonlySet<string> = new Set();

/** Indexes, sequences and TOAST tables: what has no columns of its own is seen with the table that it belongs to. */
function isPart({ columns }: SourceRelation): boolean {
  return columns.length === 0;
}

/** The relation and all beneath it. */
function closure(relation: SourceRelation, byOid: ReadonlyMap<number, SourceRelation>): SourceRelation[] {
  const seen = new Set<SourceRelation>([relation]);
  for (const one of seen) {
    for (const oid of one.beneath) {
      const next = byOid.get(oid);
      if (next) seen.add(next);
    }
  }
  return [...seen];
}

/** One source, read again when what is known of it is a second old. */
class SourceReader {
  readonly url: string;
  readonly #pool: Pool;
  readonly #clock: Clock;
  #snapshot: SourceSnapshot | null = null;
  #text = "";
  #readAtMs = -Infinity;
  #reading: Promise<SourceSnapshot> | null = null;

  constructor(url: string, clock: Clock, log: Logger) {
    this.url = url;
    this.#clock = clock;
    this.#pool = new Pool({
      conninfo: url,
      size: 1,
      waitMs: 5000,
      connect: { applicationName: "spillway facts", connectTimeoutMs: 2000, statementTimeoutMs: 10_000 },
      clock,
      log,
    });
  }

  async read(): Promise<SourceSnapshot> {
    if (this.#snapshot && this.#clock.monotonicMs() - this.#readAtMs < KEPT_MS) return this.#snapshot;
    this.#reading ??= this.#load().finally(() => (this.#reading = null));
    return this.#reading;
  }

  async #load(): Promise<SourceSnapshot> {
    const startMs = this.#clock.monotonicMs();
    const { rows } = await this.#pool.withClient((client) => client.query<{ facts: string }>(FACTS));
    const text = rows[0]?.facts ?? "{}";
    this.#readAtMs = startMs;
    if (this.#snapshot && text === this.#text) return this.#snapshot;
    const facts = JSON.parse(text) as {
      version: string;
      functions: [string, boolean][] | null;
      relations: SourceRelation[] | null;
    };
    this.#text = text;
    this.#snapshot = {
      id: (this.#snapshot?.id ?? 0) + 1,
      serverVersion: facts.version,
      functions: new Map((facts.functions ?? []).map(([name, user]) => [name, user ? "user" : "system"])),
      relations: facts.relations ?? [],
    };
    return this.#snapshot;
  }

  close(): Promise<void> {
    return this.#pool.end();
  }
}

/** Relations with rows, and what belongs to them; what views select from is in pg_depend through their rules. */
const FACTS = `
WITH rel AS (
  SELECT c.oid, n.nspname, c.relname, c.relkind
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE c.oid >= 16384 AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'spillway')
    AND n.nspname NOT LIKE 'pg\\_temp\\_%' AND n.nspname NOT LIKE 'pg\\_toast\\_temp\\_%'),
below AS (
  SELECT i.inhrelid AS oid, i.inhparent AS under FROM pg_catalog.pg_inherits i
  UNION SELECT r.ev_class, d.refobjid FROM pg_catalog.pg_rewrite r
    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = r.oid
      AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid <> r.ev_class
  UNION SELECT x.indexrelid, x.indrelid FROM pg_catalog.pg_index x
  UNION SELECT t.reltoastrelid, t.oid FROM pg_catalog.pg_class t WHERE t.reltoastrelid <> 0
  UNION SELECT d.objid, d.refobjid FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S'
    WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
      AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.deptype IN ('a', 'i'))
SELECT pg_catalog.json_build_object(
  'version', pg_catalog.current_setting('server_version'),
  'functions', (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(f.proname, f.by_user) ORDER BY f.proname)
    FROM (SELECT proname, pg_catalog.bool_or(oid >= 16384) AS by_user FROM pg_catalog.pg_proc GROUP BY 1) f),
  'relations', (SELECT pg_catalog.json_agg(x.fact ORDER BY x.oid) FROM (
    SELECT rel.oid, pg_catalog.json_build_object(
      'oid', rel.oid::pg_catalog.int8, 'schema', rel.nspname, 'name', rel.relname,
      'seam', EXISTS (SELECT 1 FROM spillway.relation r WHERE r.relid = rel.oid),
      'beneath', COALESCE((SELECT pg_catalog.json_agg(b.under::pg_catalog.int8) FROM below b WHERE b.oid = rel.oid), '[]'),
      'columns', COALESCE((SELECT pg_catalog.json_agg(pg_catalog.json_build_array(a.attnum, a.attname) ORDER BY a.attnum)
        FROM pg_catalog.pg_attribute a WHERE a.attrelid = rel.oid AND a.attnum > 0 AND NOT a.attisdropped
          AND rel.relkind IN ('r', 'p', 'v', 'm', 'f')), '[]')) AS fact
    FROM rel
    UNION ALL
    SELECT 0, pg_catalog.json_build_object('oid', 0, 'schema', l.namespace, 'name', l.name, 'seam', true,
      'beneath', pg_catalog.json_build_array(), 'columns', pg_catalog.json_build_array())
    FROM spillway.lake_table l WHERE NOT EXISTS (SELECT 1 FROM spillway.relation r WHERE r.lake_id = l.lake_id)) x))::pg_catalog.text AS facts`;
