import type { Command } from "commander";
import { SETTINGS } from "@spillway/base/settings";
import { normalizeLocation } from "@spillway/lake/store/store";
import { openStore } from "@spillway/lake/store/open";
import { withConnection } from "@spillway/pg/connect";
import { init } from "@spillway/server/catalog/catalog";
import type { CliContext } from "../context.ts";
import { withCommand } from "../source.ts";

/** `spillway init`: the catalog in the source, and the warehouse that belongs to it. */
export function registerInit(program: Command, context: CliContext): void {
  program
    .command("init")
    .description("Create Spillway's catalog in the source, or bring it up to date, and take the warehouse.")
    .addHelpText("after", "\nExample:\n  spillway init --database-url postgres://localhost/app --warehouse /srv/lake")
    .action(async (flags: Record<string, unknown>) => {
      const run = context.begin(flags);
      await withCommand(run, async () => {
        const warehouse = normalizeLocation(run.need(SETTINGS.warehouse));
        const store = openStore({
          root: warehouse,
          endpoint: run.get(SETTINGS.s3Endpoint),
          region: run.get(SETTINGS.s3Region),
          pathStyle: run.get(SETTINGS.s3PathStyle),
          clock: run.clock,
          random: Math.random,
        });
        const result = await withConnection(
          run.need(SETTINGS.databaseUrl),
          { applicationName: "spillway init", connectTimeoutMs: run.get(SETTINGS.connectTimeout) },
          (client) => init({ client, store, warehouse, clock: run.clock, log: run.log }),
        );
        run.out.line(
          result.created
            ? `The catalog is in schema spillway; the lake is at ${warehouse}.`
            : `The catalog is there already${result.applied.length > 0 ? " and was brought up to date" : ""}; the lake is at ${warehouse}.`,
        );
        run.out.result({
          created: result.created,
          applied: result.applied,
          warehouse,
          lineage: result.warehouse.lineage,
        });
      });
    });
}
