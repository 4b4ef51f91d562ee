import type { Command } from "commander";
import { SpillwayError } from "@spillway/base/errors";
import type { Db } from "@spillway/server/catalog/catalog";
import { loadRelationByName, loadRelationByOid, loadRelations, type Relation } from "@spillway/server/catalog/catalog";
import { formatLsn } from "@spillway/base/lsn";
import { SETTINGS } from "@spillway/base/settings";
import {
  type Difference,
  findTable,
  type MirrorReport,
  resync,
  verifyMirrored,
  verifyTable,
  type VerifyReport,
} from "@spillway/server/movers/movers";
import type { CliContext, CommandContext } from "../context.ts";
import { formatBytes, formatCount } from "../output.ts";
import { openCatalogedSource, withCommand } from "../source.ts";

/** `spillway verify`: full rows against the journal and the heap; exit code 1 on any difference. */
export function registerVerify(program: Command, context: CliContext): void {
  program
    .command("verify")
    .description("Compare full rows of the lake with the journaled checksums, and with the heap where it has them.")
    .option("--table <name>", "the table, as in SQL")
    .option("--all", "every registered table")
    .option("--repair", "mirrored tables that differ are copied again")
    .addHelpText("after", "\nExamples:\n  spillway verify --table public.flights\n  spillway verify --all --json")
    .action(async (flags: { table?: string; all?: boolean; repair?: boolean }) => {
      const run = context.begin(flags);
      await withCommand(run, async () => {
        const runtime = await openCatalogedSource(run, "spillway verify");
        const relations = await runtime.pool.withClient((c) => chosenRelations(c, flags));
        const reports: VerifyReport[] = [];
        for (const relation of relations.filter((r) => r.mode !== "mirrored")) {
          const report = await verifyTable(runtime.mover(null, run.signal), relation.relationId, {
            signal: run.signal,
            onProgress: ({ table, rows, of }) =>
              run.out.progress(
                `verifying ${table}: ${formatCount(rows)} of ${formatCount(of)} rows`,
                run.clock.wallMs(),
              ),
          });
          reports.push(report);
          printReport(run, report);
        }
        const mirrors: MirrorReport[] = [];
        for (const relation of relations.filter((r) => r.mode === "mirrored")) {
          const report = await verifyMirrored(runtime.mover(null, run.signal), relation.relationId);
          mirrors.push(report);
          printMirror(run, report);
          if (report.ok || flags.repair !== true) continue;
          await resync(runtime.mover(null, run.signal), relation.relationId, {
            parallel: run.get(SETTINGS.copyParallel),
          });
          run.out.line("  copied again; the worker puts the new copy in the old one's place");
        }
        const ok = reports.every((r) => r.ok) && mirrors.every((r) => r.ok);
        run.out.result({ ok, tables: [...reports, ...mirrors] });
        if (!ok) process.exitCode = 1;
      });
    });
}

/** The tables that `--table` or `--all` names. Throws `usage`, `table_unknown`. */
export async function chosenRelations(
  db: Db,
  flags: { readonly table?: string; readonly all?: boolean },
): Promise<Relation[]> {
  if ((flags.table === undefined) === (flags.all !== true)) {
    throw new SpillwayError("usage", "one of --table and --all is needed");
  }
  return flags.table === undefined ? loadRelations(db) : [await chosenRelation(db, flags.table)];
}

/** A registered table by its name, also one that was dropped from the source. Throws `table_unknown`. */
export async function chosenRelation(db: Db, name: string): Promise<Relation> {
  const oid = await findTable(db, name).catch(() => null);
  const parts = name.split(".");
  const [schema, table] = parts.length === 2 ? parts : ["public", name];
  const found =
    (oid === null ? null : await loadRelationByOid(db, oid)) ??
    (await loadRelationByName(db, schema ?? "", table ?? ""));
  if (found === null) throw new SpillwayError("table_unknown", `the table ${name} is not registered`);
  return found;
}

function printMirror(run: CommandContext, report: MirrorReport): void {
  run.out.line(
    `${report.table}: ${report.ok ? "ok" : "DIFFERS"}; ${formatCount(report.rows)} rows of the heap, ` +
      `${formatCount(report.lakeRows)} of the lake, both at ${formatLsn(report.lsn)}, ${report.ms} ms`,
  );
  for (const { key, fault } of report.differences) run.out.line(`  row ${key}: ${fault}`);
  if (report.more) run.out.line("  and more");
}

function printReport(run: CommandContext, report: VerifyReport): void {
  const heap = report.heapRows === null ? "" : `, ${formatCount(report.heapRows)} rows of the heap`;
  run.out.line(
    `${report.table}: ${report.ok ? "ok" : "DIFFERS"}; ${formatCount(report.lakeRows)} lake rows in ${report.files} files ` +
      `(${formatBytes(Number(report.bytes))}), ${report.bands} bands${heap}, below ${report.cutLine}, ${report.ms} ms`,
  );
  for (const difference of report.differences) run.out.line(`  ${describe(difference)}`);
  if (report.more) run.out.line("  and more");
}

function describe(d: Difference): string {
  switch (d.kind) {
    case "file":
      return `file ${d.path}: ${d.code}: ${d.message}`;
    case "band":
      return `rows from ${d.from} to ${d.to}${d.leaf ? ` (${d.leaf})` : ""}: ${d.found}, journaled ${d.expected}; in ${d.files.join(", ") || "no file"}`;
    case "stray":
      return `${d.rows} rows that belong to no band`;
    default:
      return `row ${d.key}: ${d.fault}`;
  }
}
