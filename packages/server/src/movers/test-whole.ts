/**
 * For tests: what a registered table is by the invariant of docs/internals/seam.md §1, put together in Postgres from its heap,
 * its delta, and its lake files as DuckDB writes them out as CSV, and compared there with a plain copy of the table.
 */
import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { assert, must } from "@spillway/base/assert";
import { readMetadata } from "@spillway/lake/metadata";
import { DeleteLoader } from "@spillway/lake/deletes/deletes";
import { planScan, type ScanTask } from "@spillway/lake/scan/scan";
import { storeSource } from "@spillway/lake/snapshot/source";
import { localPathOf, type ObjectStore } from "@spillway/lake/store/store";
import { outputText } from "@spillway/pg/columns/plan";
import { quoteIdent as q } from "@spillway/pg/quote";
import type pg from "pg";
import { deltaColumn, deltaTable, keyExpression, loadLakeTable, loadRelationByName } from "../catalog/catalog.ts";
import { duckIdent, duckList, duckLiteral } from "../engine/engine.ts";
import type { MoverContext } from "./context.ts";

/** Throws with the differing rows unless the table is what `<table>_model` is. */
export async function checkWhole(ctx: MoverContext, client: pg.Client, table: string): Promise<void> {
  const relation = must(await loadRelationByName(client, "public", table), "relation");
  const columns = relation.columns.filter((c) => !c.dropped);
  await loadLake(ctx, client, table);
  const key = keyExpression(
    relation.keyKind ?? "int",
    q(columns.find((c) => c.attnum === relation.keyAttnum)?.name ?? ""),
  );
  const t = `(select t from spillway.seam where relation_id = ${relation.relationId})`;
  const delta = deltaTable(relation.relationId);
  const nameOf = (attnum: number): string => q(columns.find((c) => c.attnum === attnum)?.name ?? "");
  const on = relation.pkAttnums.map((n) => `concat(l.${nameOf(n)}) = concat(d.${deltaColumn(n)})`).join(" and ");
  const list = columns.map((c) => outputText(q(c.name))).join(", ");
  const whole = `select ${list} from ${q(table)} where ${key} >= ${t}
    union all select ${list} from ${q(`${table}_lake`)} l where not exists (select from ${delta} d where d.key < ${t} and ${on})
    union all select ${columns.map((c) => outputText(deltaColumn(c.attnum))).join(", ")} from ${delta} where op = 'U' and key < ${t}`;
  const model = `select ${list} from ${q(`${table}_model`)}`;
  const { rows } = await client.query(
    `select 'missing' as fault, x::text as row from ((${model}) except all (${whole})) x
     union all select 'too many', x::text from ((${whole}) except all (${model})) x limit 20`,
  );
  assert(rows.length === 0, () => `the table is not what its model is: ${JSON.stringify(rows, null, 1)}`);
}

/** The lake's rows into `<table>_lake`; returns how many. */
export async function loadLake(ctx: MoverContext, client: pg.Client, table: string): Promise<number> {
  const relation = must(await loadRelationByName(client, "public", table), "relation");
  const lake = must(await loadLakeTable(client, relation.lakeId ?? 0n), "lake table");
  const metadata = await readMetadata(ctx.store, lake.metadataLocation);
  await client.query(
    `drop table if exists ${q(`${table}_lake`)}; create table ${q(`${table}_lake`)} (like ${q(table)})`,
  );
  if (metadata.currentSnapshotId === undefined) return 0;
  const plan = await planScan({ store: ctx.store, metadata });
  if (plan.tasks.length === 0) return 0;
  const columns = relation.columns.filter((c) => !c.dropped);
  const fields = metadata.schemas.find((s) => s.schemaId === metadata.currentSchemaId)?.fields ?? [];
  const byId = new Map(fields.map((f) => [f.id, f]));
  const types = await duckTypes(
    ctx,
    plan.tasks.map((t) => localPathOf(t.dataFile.path) ?? ""),
  );
  const schema = columns.map((c) => {
    const missing = c.initialDefault === null ? "NULL" : duckLiteral(c.initialDefault);
    const type = types.get(c.fieldId) ?? "VARCHAR";
    return `${c.fieldId}: {name: ${duckLiteral(must(byId.get(c.fieldId), "field").name)}, type: ${duckLiteral(type)}, default_value: ${missing}}`;
  });
  const dir = mkdtempSync(join(tmpdir(), "spillway-test-"));
  chmodSync(dir, 0o777);
  const csv = join(dir, "lake.csv");
  const live = await liveRows(ctx, plan.tasks);
  await ctx.engine.use((s) =>
    s.run(
      `COPY (SELECT ${columns.map((c) => asText(duckIdent(c.name), types.get(c.fieldId))).join(", ")} FROM read_parquet(
         ${duckList(plan.tasks.map((t) => localPathOf(t.dataFile.path) ?? ""))}, schema = MAP {${schema.join(", ")}})
         WHERE ${live})
       TO ${duckLiteral(csv)} (FORMAT csv, HEADER false, NULLSTR '\\N', FORCE_QUOTE *)`.replace(", FORCE_QUOTE *", ""),
    ),
  );
  chmodSync(csv, 0o644);
  const names = columns.map((c) => q(c.name)).join(", ");
  const { rowCount } = await client.query(
    `copy ${q(`${table}_lake`)} (${names}) from '${csv}' (format csv, null '\\N')`,
  );
  rmSync(dir, { recursive: true });
  return rowCount ?? 0;
}

/** Bytes as Postgres reads them; all else DuckDB's CSV writes as Postgres does. */
function asText(name: string, type: string | undefined): string {
  return type === "BLOB" ? `'\\x' || lower(hex(${name}))` : name;
}

/** A condition that leaves out deleted positions. */
async function liveRows(ctx: MoverContext, tasks: readonly ScanTask[]): Promise<string> {
  const loader = new DeleteLoader(ctx.store);
  const gone: string[] = [];
  for (const [i, task] of tasks.entries()) {
    const positions = (await loader.load(task.deletes)).get(task.dataFile.path);
    if (positions) gone.push(`(file_index = ${i} AND file_row_number IN (${[...positions].join(", ")}))`);
  }
  return gone.length === 0 ? "true" : `NOT (${gone.join(" OR ")})`;
}

/** The DuckDB type of each field, by id: the widest that any file has. Names are no guide: columns may have exchanged theirs. */
async function duckTypes(ctx: MoverContext, paths: readonly string[]): Promise<Map<number, string>> {
  const found = new Map<number, string>();
  const width = (type: string): number =>
    Number(/^DECIMAL\((\d+)/.exec(type)?.[1] ?? { INTEGER: 1, BIGINT: 2, FLOAT: 1, DOUBLE: 2 }[type] ?? 0);
  for (const path of paths) {
    const rows = await ctx.engine.use((s) =>
      s.rows(`SELECT p.field_id, c.column_type FROM parquet_schema(${duckLiteral(path)}) p
        JOIN (SELECT * FROM (DESCRIBE SELECT * FROM read_parquet(${duckLiteral(path)}))) c ON c.column_name = p.name
        WHERE p.field_id IS NOT NULL`),
    );
    for (const row of rows) {
      const [id, type] = [Number(row[0]), String(row[1])];
      const known = found.get(id);
      if (known === undefined || width(type) > width(known)) found.set(id, type);
    }
  }
  return found;
}

/** Every file that a metadata file names: itself, its log, and all of all its snapshots. */
export async function referencedBy(store: ObjectStore, metadataLocation: string): Promise<string[]> {
  const metadata = await readMetadata(store, metadataLocation);
  const source = storeSource(store);
  const files = new Set([metadataLocation, ...metadata.metadataLog.map((e) => e.metadataFile)]);
  for (const snapshot of metadata.snapshots) {
    files.add(snapshot.manifestList);
    for (const manifest of await source.manifests(snapshot)) {
      files.add(manifest.path);
      for (const entry of await source.entries(metadata, manifest)) files.add(entry.dataFile.path);
    }
  }
  return [...files];
}
