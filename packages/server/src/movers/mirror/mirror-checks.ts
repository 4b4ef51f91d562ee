/** Whether a table can be mirrored: every reason why not, at once, before anything is touched. */
import { SpillwayError } from "@spillway/base/errors";
import type { Db } from "../../catalog/catalog.ts";
import { keyTypeFault } from "../register-checks.ts";
import type { TableFacts } from "../table-facts.ts";

interface LeafRow {
  name: string;
  relkind: string;
  persistence: string;
  identity: string;
  has_key: boolean;
  deferrable: boolean;
}

/** The table and its leaves: joining the publication would break their UPDATEs and DELETEs without an identity. */
const LEAVES = `
  select c.oid::regclass::text as name, c.relkind, c.relpersistence as persistence, c.relreplident as identity,
    i.indexrelid is not null as has_key, coalesce(not i.indimmediate, false) as deferrable
  from (select $1::oid as relid union select relid from pg_partition_tree($1::oid::regclass)) t
  join pg_class c on c.oid = t.relid left join pg_index i on i.indrelid = c.oid and i.indisprimary`;

/** Throws `register_refused` with every reason. */
export async function requireMirrorable(db: Db, facts: TableFacts, serverVersion: number): Promise<void> {
  const reasons: string[] = [];
  const say = (condition: boolean, reason: string): void => {
    if (condition) reasons.push(reason);
  };
  say(!["r", "p"].includes(facts.relkind), "it is no table");
  say(facts.isPartition, "it is itself a partition of another table: mirror its root");
  say(facts.rowSecurity, "it has row-level security, which does not reach the lake");
  say(!facts.isOwner, "the role of the connection does not own it, and so cannot publish it");
  say(facts.primaryKey === null, "it has no primary key");
  for (const column of facts.columns) {
    if (column.plan.fate === "refused") {
      reasons.push(`column ${column.name} is of type ${column.typeName}: ${column.plan.reason ?? "unsupported"}`);
    }
    say(
      column.generated === "v",
      `column ${column.name} is a virtual generated column, which is not in the change stream`,
    );
    say(
      column.generated === "s" && serverVersion < 180_000,
      `column ${column.name} is a generated column, which Postgres before 18 leaves out of the change stream`,
    );
    if (facts.primaryKey?.attnums.includes(column.attnum)) {
      const fault = keyTypeFault(column);
      if (fault !== null) reasons.push(`column ${column.name} of its primary key ${fault}`);
    }
  }
  const folded = facts.columns.map((c) => c.name.toLowerCase());
  say(
    new Set(folded).size !== folded.length,
    "two of its columns differ by case only, which the lake's engines do not",
  );
  const { rows } = await db.query<LeafRow>(LEAVES, [facts.relid]);
  for (const leaf of rows) {
    say(leaf.relkind === "f", `${leaf.name} is a foreign table`);
    say(leaf.persistence !== "p", `${leaf.name} is unlogged or temporary`);
    say(
      leaf.identity === "n",
      `${leaf.name} has REPLICA IDENTITY NOTHING: every UPDATE of a published table would fail`,
    );
    say(leaf.identity === "d" && !leaf.has_key, `${leaf.name} has no primary key to identify its rows`);
    say(
      leaf.deferrable && leaf.identity === "d",
      `${leaf.name} has a DEFERRABLE primary key: every UPDATE of a published table would fail`,
    );
  }
  if (reasons.length === 0) return;
  const name = `${facts.schemaName}.${facts.tableName}`;
  throw new SpillwayError("register_refused", `${name} cannot be mirrored: ${reasons.join("; ")}`, {
    details: { reasons },
  });
}
