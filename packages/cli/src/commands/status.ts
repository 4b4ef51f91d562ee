import type { Command } from "commander";
import { SETTINGS } from "@spillway/base/settings";
import { connect } from "@spillway/pg/connect";
import { readStatus, requireCatalog, type SourceStatus, type TableStatus } from "@spillway/server/catalog/catalog";
import type { CliContext, CommandContext } from "../context.ts";
import { formatBytes, formatCount } from "../output.ts";
import { withCommand } from "../source.ts";

const WATCH_MS = 2000;

/** `spillway status`: what is where, what moves, what waits for what. */
export function registerStatus(program: Command, context: CliContext): void {
  program
    .command("status")
    .description("Show the registered tables, the worker, and what waits for what.")
    .option("--watch", "show it again every two seconds")
    .option("--table <name>", "only this table")
    .addHelpText("after", "\nExamples:\n  spillway status\n  spillway status --json")
    .action(async (flags: Record<string, unknown>) => {
      const run = context.begin(flags);
      await withCommand(run, async () => {
        const client = await connect(run.need(SETTINGS.databaseUrl), {
          applicationName: "spillway status",
          connectTimeoutMs: run.get(SETTINGS.connectTimeout),
        });
        run.onClose(() => client.end());
        await requireCatalog(client);
        for (;;) {
          const status = filtered(await readStatus(client), flags["table"]);
          print(run, status, flags["watch"] === true);
          if (flags["watch"] !== true) return;
          await run.clock.sleep(WATCH_MS, run.signal);
          if (run.signal.aborted) return;
        }
      });
    });
}

function filtered(status: SourceStatus, table: unknown): SourceStatus {
  if (typeof table !== "string") return status;
  const wanted = table.includes(".") ? table : `public.${table}`;
  return { ...status, tables: status.tables.filter((t) => t.table === wanted) };
}

function print(run: CommandContext, status: SourceStatus, clear: boolean): void {
  run.out.result(status);
  if (clear && run.out.isTerminal && !run.out.json) run.out.raw("\u001b[2J\u001b[H");
  const { worker, pins } = status;
  run.out.line(
    worker.alive
      ? `worker   leads, epoch ${worker.epoch}, heartbeat ${worker.heartbeatAgeMs} ms ago`
      : `worker   none leads${worker.heartbeatAgeMs === null ? "" : ` (last heartbeat ${worker.heartbeatAgeMs} ms ago)`}`,
  );
  run.out.line(`lake     ${status.warehouse ?? "none"}, ${status.doomedFiles} replaced files kept`);
  run.out.line(
    `readers  ${pins.live} pins${pins.oldestMs === null ? "" : `, the oldest ${Math.round(pins.oldestMs / 1000)} s`}`,
  );
  run.out.line();
  if (status.tables.length === 0) return run.out.line("No table is registered.");
  run.out.table(
    ["table", "mode", "state", "cut-line", "heap rows", "heap", "lake rows", "lake", "delta"],
    status.tables.map((t) => [
      t.table,
      t.mode,
      t.state,
      t.cutLineText ?? "",
      formatCount(Math.round(t.heapRows)),
      formatBytes(Number(t.heapBytes)),
      formatCount(t.lakeRows),
      formatBytes(Number(t.lakeBytes)),
      formatCount(t.deltaRows),
    ]),
  );
  for (const table of status.tables) details(run, table);
}

function details(run: CommandContext, table: TableStatus): void {
  const { waiting } = table;
  for (const op of table.lastMovements.filter((m) => m.phase === "open")) {
    const rows = typeof op.detail["rows"] === "number" ? `, ${formatCount(op.detail["rows"])} rows so far` : "";
    const leaf = typeof op.detail["leaf"] === "string" ? ` ${op.detail["leaf"]}` : "";
    run.out.line(`\n${table.table}: ${op.kind}${leaf} since ${op.startedAt}${rows}`);
  }
  if (table.state === "stopped") run.out.line(`\n${table.table} is stopped: ${table.stopCode}: ${table.stopReason}`);
  if (waiting) {
    run.out.line(
      `\n${table.table}: ${waiting.step} waits since ${waiting.since} (${waiting.attempts} tries): ${waiting.reason}`,
    );
  }
}
