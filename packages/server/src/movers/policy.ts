/** The maintenance policy of a table: every pass with its switch and thresholds, the table's own values over the defaults. */
import { parseBytes, parseDuration } from "@spillway/base/config";
import { SpillwayError } from "@spillway/base/errors";
import { type Db, loadRelation, type Relation } from "../catalog/catalog.ts";

type PolicyType = "bool" | "int" | "ratio" | "bytes" | "duration";

interface PolicyEntry {
  readonly type: PolicyType;
  readonly default: string;
  readonly help: string;
}

export const POLICY = {
  fold_enabled: { type: "bool", default: "true", help: "Fold corrections into the lake." },
  fold_rows: { type: "int", default: "50000", help: "Delta rows of one pass, and of one lake commit." },
  fold_interval: {
    type: "duration",
    default: "10s",
    help: "The least time between two folds while less than fold_rows wait.",
  },
  maintenance_enabled: { type: "bool", default: "true", help: "Run the passes below at all." },
  maintenance_interval: { type: "duration", default: "1h", help: "How often they run." },
  delete_compaction_enabled: { type: "bool", default: "true", help: "Rewrite data files that have many deleted rows." },
  delete_compaction_min_deletes: {
    type: "int",
    default: "1000",
    help: "Deleted rows of a file from which it is rewritten, with the ratio.",
  },
  delete_compaction_min_ratio: { type: "ratio", default: "0.1", help: "Share of a file's rows that must be deleted." },
  rewrite_enabled: { type: "bool", default: "true", help: "Pack small data files of a partition together." },
  rewrite_target_bytes: { type: "bytes", default: "128MiB", help: "Files below this are small." },
  rewrite_min_input_files: {
    type: "int",
    default: "8",
    help: "Small files of a partition from which they are packed.",
  },
  manifest_rewrite_enabled: { type: "bool", default: "true", help: "Merge small manifests." },
  manifest_rewrite_min_manifests: { type: "int", default: "100", help: "Manifests from which they are merged." },
  snapshot_expiry_enabled: { type: "bool", default: "true", help: "Expire old snapshots." },
  snapshot_retention: {
    type: "duration",
    default: "24h",
    help: "How long snapshots stay, one a minute; the last 10 minutes all of them.",
  },
  snapshot_min_retained: { type: "int", default: "5", help: "Snapshots that stay whatever their age." },
  orphan_removal_enabled: {
    type: "bool",
    default: "true",
    help: "Remove files that only the store's log still knows.",
  },
  orphan_grace: { type: "duration", default: "72h", help: "How old such a file must be." },
  allow_foreign_replace: {
    type: "bool",
    default: "false",
    help: "Take compactions by other engines through the REST catalog, each checked row by row.",
  },
} as const satisfies Record<string, PolicyEntry>;

export type PolicyName = keyof typeof POLICY;
export type PolicyValue = boolean | number;

/** Values in their base units: milliseconds, bytes. */
export class Policy {
  readonly #own: Readonly<Record<string, unknown>>;

  constructor(own: Readonly<Record<string, unknown>>) {
    this.#own = own;
  }

  on(name: PolicyName): boolean {
    return this.#value(name) === true;
  }

  number(name: PolicyName): number {
    return Number(this.#value(name));
  }

  isOwn(name: PolicyName): boolean {
    return typeof this.#own[name] === "string";
  }

  text(name: PolicyName): string {
    const own = this.#own[name];
    return typeof own === "string" ? own : POLICY[name].default;
  }

  /** A value that an older or newer program wrote and this one cannot read counts as unset. */
  #value(name: PolicyName): PolicyValue {
    return parseValue(POLICY[name].type, this.text(name)) ?? parseValue(POLICY[name].type, POLICY[name].default) ?? 0;
  }
}

export function policyOf(relation: Pick<Relation, "policy">): Policy {
  return new Policy(relation.policy);
}

function parseValue(type: PolicyType, text: string): PolicyValue | null {
  switch (type) {
    case "bool":
      return text === "true" ? true : text === "false" ? false : null;
    case "int":
      return /^\d{1,12}$/.test(text) ? Number(text) : null;
    case "ratio": {
      const value = Number(text);
      return text.trim() !== "" && value >= 0 && value <= 1 ? value : null;
    }
    case "bytes":
      return parseBytes(text);
    case "duration":
      return parseDuration(text);
    default:
      return null;
  }
}

export interface PolicyLine {
  readonly name: PolicyName;
  readonly value: string;
  readonly default: string;
  readonly origin: "table" | "default";
  readonly help: string;
}

export function policyLines(relation: Pick<Relation, "policy">): PolicyLine[] {
  const policy = policyOf(relation);
  return Object.entries(POLICY).map(([key, entry]) => {
    const name = key as PolicyName;
    const origin = policy.isOwn(name) ? "table" : "default";
    return { name, value: policy.text(name), default: entry.default, origin, help: entry.help };
  });
}

export interface PolicyChange {
  /** `name=value`. */
  readonly set?: readonly string[];
  readonly unset?: readonly string[];
  /** Forgets every value of the table's own, before `set`. */
  readonly reset?: boolean;
}

/** Changes the table's own values, all or none. Throws `policy_invalid`, `table_unknown`. */
export async function changePolicy(db: Db, relationId: bigint, change: PolicyChange): Promise<Relation> {
  const faults: string[] = [];
  const values: Record<string, string> = {};
  for (const text of change.set ?? []) {
    const at = text.indexOf("=");
    const [name, value] = [text.slice(0, Math.max(0, at)).trim(), text.slice(at + 1).trim()];
    const fault = at < 1 ? `${JSON.stringify(text)} is not name=value` : faultOf(name, value);
    if (fault === null) values[name] = value;
    else faults.push(fault);
  }
  for (const name of change.unset ?? []) if (!Object.hasOwn(POLICY, name)) faults.push(`there is no setting ${name}`);
  if (faults.length > 0) throw new SpillwayError("policy_invalid", faults.join("; "));
  await db.query(
    `with changed as (
       update spillway.relation set policy = (case when $2 then '{}'::jsonb else policy end - $3::text[]) || $4::jsonb
       where relation_id = $1 returning lake_id, policy)
     update spillway.lake_table t set allow_foreign_replace = coalesce(c.policy ->> 'allow_foreign_replace' = 'true', false)
     from changed c where t.lake_id = c.lake_id`,
    [relationId.toString(), change.reset === true, [...(change.unset ?? [])], JSON.stringify(values)],
  );
  const relation = await loadRelation(db, relationId);
  if (relation === null) throw new SpillwayError("table_unknown", `relation ${relationId} is not registered any more`);
  return relation;
}

function faultOf(name: string, value: string): string | null {
  if (!Object.hasOwn(POLICY, name)) return `there is no setting ${name}`;
  const { type } = POLICY[name as PolicyName];
  return parseValue(type, value) === null ? `${name} takes ${TYPE_HELP[type]}, not ${JSON.stringify(value)}` : null;
}

const TYPE_HELP: Record<PolicyType, string> = {
  bool: "true or false",
  int: "a whole number",
  ratio: "a number from 0 to 1",
  bytes: "a size such as 128MiB",
  duration: "a duration such as 90s or 24h",
};
