import type { Command } from "commander";
import { SpillwayError } from "@spillway/base/errors";
import type { Bench, BenchReport } from "../bench/report.ts";
import type { CliContext } from "../context.ts";
import { toJson } from "../output.ts";

type Load = () => Promise<Bench>;

const BENCHES: Readonly<Record<string, Load>> = {
  tier: async () => (await import("../bench/tier.ts")).run,
  read: async () => (await import("../bench/read.ts")).run,
  plan: async () => (await import("../bench/plan.ts")).run,
  mirror: async () => (await import("../bench/mirror.ts")).run,
  copy: async () => (await import("../bench/copy.ts")).run,
  bigtx: async () => (await import("../bench/bigtx.ts")).run,
  update: async () => (await import("../bench/update.ts")).run,
  freshness: async () => (await import("../bench/freshness.ts")).run,
  failover: async () => (await import("../bench/failover.ts")).run,
  "serve-latency": async () => (await import("../bench/serve-latency.ts")).run,
  "serve-throughput": async () => (await import("../bench/serve-throughput.ts")).run,
  "serve-cold": async () => (await import("../bench/serve-cold.ts")).run,
};

const CHAOS: Readonly<Record<string, Load>> = {
  seam: async () => (await import("../chaos/seam.ts")).run,
  "seam-reader": async () => (await import("../chaos/seam-reader.ts")).run,
  mirror: async () => (await import("../chaos/mirror.ts")).run,
  ha: async () => (await import("../chaos/ha.ts")).run,
};

/** `spillway bench <name>` and `spillway chaos [name]`: measured numbers, as one JSON line each. */
export function registerBench(program: Command, context: CliContext): void {
  add(program, context, "bench <name>", "Measure; see docs/benchmarks.md.", BENCHES, "bench tier --rows 5000000");
  add(
    program,
    context,
    "chaos [name]",
    "Kill and check; see docs/benchmarks.md.",
    CHAOS,
    "chaos seam --seconds 300 --seed 7",
  );
}

function add(
  program: Command,
  context: CliContext,
  usage: string,
  description: string,
  table: Readonly<Record<string, Load>>,
  example: string,
): void {
  const command = program
    .command(usage)
    .description(`${description} One of: ${Object.keys(table).join(", ")}.`)
    .option("--quick", "scale down to under 50 seconds")
    .addHelpText("after", `\nExamples:\n  spillway ${example}\n  spillway ${example} --quick`);
  for (const name of ["rows", "files", "seconds", "seed", "rate", "runs", "table-rows", "updates", "mirror"]) {
    command.option(`--${name} <n>`, `see docs/benchmarks.md`);
  }
  command.action(async (name: string | undefined, flags: Record<string, unknown>) => {
    const run = context.begin(flags);
    const load = table[name ?? "seam"];
    if (!load)
      throw new SpillwayError("usage", `there is no ${JSON.stringify(name)}; one of: ${Object.keys(table).join(", ")}`);
    const bench = await load();
    const result: BenchReport = await bench({
      quick: flags["quick"] === true,
      signal: context.signal,
      option: (key, fallback) => numberFlag(flags, key, fallback),
      say: (text) => run.out.error(text),
    });
    await run.close();
    run.out.raw(`${toJson(result)}\n`);
    if (!result.ok) process.exitCode = 1;
  });
}

function numberFlag(flags: Record<string, unknown>, key: string, fallback: number): number {
  const raw = flags[key.replace(/-([a-z])/g, (_, c: string) => c.toUpperCase())];
  if (raw === undefined) return fallback;
  const value = Number(raw);
  if (!Number.isFinite(value) || value < 0)
    throw new SpillwayError("usage", `--${key} ${JSON.stringify(raw)} is not a number`);
  return value;
}
