import type { Command } from "commander";
import { SETTINGS } from "@spillway/base/settings";
import { connect } from "@spillway/pg/connect";
import {
  type MirrorStatus,
  readStatus,
  requireCatalog,
  type SourceStatus,
  type TableStatus,
} from "@spillway/server/catalog/catalog";
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
    ["table", "mode", "state", "cut-line or F", "heap rows", "heap", "lake rows", "lake", "delta"],
    status.tables.map((t) => [
      t.table,
      t.mode,
      t.state,
      t.mirror === null || t.cutLine !== null ? (t.cutLineText ?? "") : (t.mirror.frontier ?? ""),
      formatCount(Math.round(t.heapRows)),
      formatBytes(Number(t.heapBytes)),
      // What a mirror has in the lake is not journaled.
      t.mirror !== null && t.lakeRows === 0n ? "" : formatCount(t.lakeRows),
      t.mirror !== null && t.lakeBytes === 0n ? "" : formatBytes(Number(t.lakeBytes)),
      formatCount(t.deltaRows),
    ]),
  );
  for (const table of status.tables) details(run, table);
}

/** `copy 12 of 40 parts …`, `verified 3 h ago …`: pure, for people. */
export function mirrorLines(mirror: MirrorStatus): string[] {
  const { phase, copy, verified, lagMs, lagBytes } = mirror;
  const lines: string[] = [];
  if (phase === "live") {
    const seconds = lagMs === null ? "" : `, ${formatDuration(lagMs)}`;
    lines.push(`follows the stream, ${lagBytes === null ? "?" : formatBytes(lagBytes)} of WAL${seconds} behind`);
  } else lines.push(phase === "needs_copy" ? "is to be copied again" : "is being copied");
  if (copy !== null) {
    const rate = copy.rowsPerSecond === null ? "" : `, ${formatCount(copy.rowsPerSecond)} rows/s`;
    const left = copy.secondsLeft === null ? "" : `, ${formatDuration(copy.secondsLeft * 1000)} left`;
    lines.push(`copy: ${copy.done} of ${copy.parts} parts, ${formatCount(copy.rows)} rows${rate}${left}`);
  }
  lines.push(
    verified === null
      ? "never verified"
      : `verified ${formatDuration(verified.ageMs)} ago at ${verified.lsn}, ${formatCount(verified.rows)} rows`,
  );
  return lines;
}

function formatDuration(ms: number): string {
  if (ms < 10_000) return `${(ms / 1000).toFixed(1)} s`;
  if (ms < 120_000) return `${Math.round(ms / 1000)} s`;
  if (ms < 7_200_000) return `${Math.round(ms / 60_000)} min`;
  return ms < 172_800_000 ? `${Math.round(ms / 3_600_000)} h` : `${Math.round(ms / 86_400_000)} d`;
}

function details(run: CommandContext, table: TableStatus): void {
  const { waiting } = table;
  if (table.mirror !== null) run.out.line(`\n${table.table}: ${mirrorLines(table.mirror).join("; ")}`);
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
