/**
 * The main job on real input: three million real flights in an embedded Postgres, tiered by the real worker while a
 * writer keeps inserting and correcting rows, and every answer checked against a plain copy of the same rows.
 */
import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { must } from "@spillway/base/assert";
import { SpillwayError } from "@spillway/base/errors";
import { connect } from "@spillway/pg/connect";
import { readStatus, type TableStatus } from "@spillway/server/catalog/catalog";
import { openRuntime } from "@spillway/server/roles/runtime";
import { createSeam, type Seam } from "@spillway/server/seam/seam";
import type pg from "pg";
import type { CommandContext } from "../context.ts";
import { startEmbedded } from "../embedded/server.ts";
import { formatBytes, formatCount, formatTable } from "../output.ts";
import { answer, compareAllRows, differingNow, QUESTIONS } from "./checks.ts";
import { Children, errorLine, type RunningChild } from "./children.ts";
import { finishTables, loadTables } from "./load.ts";
import { Show } from "./show.ts";
import { heapBytes, watchTiering } from "./tiering.ts";
import { Writer } from "./writer.ts";

export interface DemoOptions {
  readonly exit: boolean;
  /** A sample of so many flights; null for all. */
  readonly rows: number | null;
}

/** January to May: what is more than 14 days behind the last flight, in whole months. */
const DUE_PARTITIONS = 5;
const LAG = "14d";
const [BUSY_PAUSE_MS, SLOW_PAUSE_MS] = [20, 1000];
const FOLD_WAIT_MS = 45_000;

/** Throws `demo_failed`, `embedded_unavailable`, `interrupted`; a check that fails is only counted. */
export async function flightsDemo(run: CommandContext, options: DemoOptions): Promise<number> {
  const demo = await FlightsDemo.open(run, options);
  await demo.load();
  await demo.register();
  await demo.tier();
  await demo.ask();
  await demo.verify();
  return demo.finish();
}

class FlightsDemo {
  readonly #run: CommandContext;
  readonly #options: DemoOptions;
  readonly #show: Show;
  readonly #url: string;
  readonly #lake: string;
  readonly #token: string;
  readonly #client: pg.Client;
  readonly #children: Children;
  #writer: Writer | null = null;
  #seam: Seam | null = null;
  #bytesBefore = 0;
  #flights = 0;
  #tieredPerSecond = 0;

  private constructor(
    run: CommandContext,
    options: DemoOptions,
    parts: { url: string; lake: string; token: string; client: pg.Client; children: Children },
  ) {
    this.#run = run;
    this.#options = options;
    this.#show = new Show(run.out);
    this.#url = parts.url;
    this.#lake = parts.lake;
    this.#token = parts.token;
    this.#client = parts.client;
    this.#children = parts.children;
  }

  static async open(run: CommandContext, options: DemoOptions): Promise<FlightsDemo> {
    const home = mkdtempSync(join(tmpdir(), "spillway-demo-"));
    run.onClose(async () => rmSync(home, { recursive: true, force: true }));
    const postgres = await startEmbedded({ settings: { shared_buffers: "256MB", synchronous_commit: "off" } });
    run.onClose(() => postgres.stop());
    const client = await connect(postgres.url(), { applicationName: "spillway demo" });
    run.onClose(() => client.end());
    const lake = join(home, "lake");
    const token = randomBytes(12).toString("base64url");
    const own = Object.fromEntries(Object.entries(run.env).filter(([key]) => !key.startsWith("SPILLWAY_")));
    const url = postgres.url();
    const children = new Children({
      ...own,
      SPILLWAY_DATABASE_URL: url,
      SPILLWAY_WAREHOUSE: lake,
      SPILLWAY_CACHE_DIR: join(home, "cache"),
      SPILLWAY_CATALOG_TOKEN: token,
      SPILLWAY_LOG_LEVEL: "warn",
    });
    run.onClose(() => children.close());
    const demo = new FlightsDemo(run, options, { url, lake, token, client, children });
    const { rows } = await client.query<{ v: string }>("select current_setting('server_version') as v");
    demo.#show.step(`Postgres ${rows[0]?.v} runs on 127.0.0.1:${postgres.port}, the lake is ${lake}`);
    return demo;
  }

  async load(): Promise<void> {
    const show = this.#show;
    show.step("Real US flights of 2001, a plain copy of the same rows, and airports");
    const started = performance.now();
    this.#flights = await loadTables({
      url: this.#url,
      client: this.#client,
      rows: this.#options.rows,
      onProgress: (rows) => show.progress(`loading ${formatCount(rows)} flights`),
      signal: this.#run.signal,
    });
    show.progress("copying and indexing");
    await finishTables(this.#client);
    this.#bytesBefore = await heapBytes(this.#client, "flights");
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    show.line(`${formatCount(this.#flights)} flights, ${formatBytes(this.#bytesBefore)} in Postgres, in ${seconds} s`);
  }

  async register(): Promise<void> {
    this.#show.step(`spillway init; spillway register --table public.flights --lag ${LAG}`);
    await this.#spillway("init");
    await this.#spillway("register", "--table", "public.flights", "--tier-key", "departed", "--lag", LAG);
    this.#show.line("registered; no row has moved yet");
  }

  async tier(): Promise<void> {
    const show = this.#show;
    show.step("spillway worker, while a writer inserts, corrects and deletes in both tables");
    this.#writer = await Writer.open(this.#url, BUSY_PAUSE_MS);
    this.#run.onClose(async () => this.#writer?.close());
    this.#writer.start();
    const worker = this.#children.start([
      "worker",
      "--cycle-interval",
      "500ms",
      "--campaign-interval",
      "1s",
      "--metrics-listen",
      "off",
    ]);
    const done = await watchTiering({
      client: this.#client,
      worker,
      partitions: DUE_PARTITIONS,
      signal: this.#run.signal,
      onProgress: (text) => show.progress(text),
    });
    this.#tieredPerSecond = Math.round(done.rows / done.seconds);
    show.line(
      `${formatCount(done.rows)} rows in ${DUE_PARTITIONS} partitions copied, read back, compared and dropped in ${done.seconds.toFixed(1)} s (${formatCount(this.#tieredPerSecond)} rows/s)`,
    );
    const { written } = this.#writer;
    show.line(
      `the writer meanwhile: ${formatCount(written.transactions)} transactions; ${written.inserted} new flights, ${written.late} late ones, ${written.corrected} corrections, ${written.deleted} deletions`,
    );
  }

  async ask(): Promise<void> {
    const show = this.#show;
    show.step("One SQL table over both tiers");
    const seam = await this.#openSeam();
    const [differing, seconds] = await timed(() => differingNow(seam));
    show.check(
      "both tables in one statement while the writer goes on: no row differs",
      differing === 0,
      `${differing} differ, ${seconds}`,
    );
    await must(this.#writer, "writer").pause();
    for (const question of QUESTIONS) {
      const found = await answer(seam, this.#client, question);
      const times = `${Math.round(found.ms)} ms, the plain copy in Postgres ${Math.round(found.plainMs)} ms`;
      show.check(question.title, found.same, times);
      if (!found.same || question === QUESTIONS[0]) {
        for (const line of formatTable(found.header, found.rows).split("\n")) show.line(`       ${line}`);
      }
    }
  }

  async verify(): Promise<void> {
    const show = this.#show;
    show.step("The worker folds the corrections into the lake; spillway verify --table public.flights");
    const deadline = performance.now() + FOLD_WAIT_MS;
    let delta = (await this.#table()).deltaRows;
    while (delta > 0 && performance.now() < deadline && !this.#run.signal.aborted) {
      show.progress(`${formatCount(delta)} corrections to fold`);
      await new Promise((resolve) => setTimeout(resolve, 300));
      delta = (await this.#table()).deltaRows;
    }
    show.check("the corrections are in the lake", delta === 0, delta === 0 ? "" : `${delta} are left`);
    const verified = await this.#children.run(["verify", "--table", "public.flights"]);
    const said = (verified.code === 0 ? verified.stdout : verified.stderr)
      .trim()
      .split("\n")
      .filter((line) => line.trim() !== "");
    show.check("spillway verify", verified.code === 0, verified.code === 0 ? "" : said.slice(-3).join(" "));
    if (verified.code === 0) for (const line of said.slice(0, 8)) show.line(`       ${line}`);
    const seam = must(this.#seam, "seam");
    const [compared, took] = await timed(() =>
      compareAllRows(seam, this.#client, (rows) => show.progress(`comparing rows: ${formatCount(rows)}`)),
    );
    const same = compared.differences.length === 0 && compared.rows > 0;
    show.check(
      "every row, as text, in key order, against the plain copy",
      same,
      same ? `${formatCount(compared.rows)} rows, ${took}` : compared.differences.join("; "),
    );
  }

  async finish(): Promise<number> {
    const show = this.#show;
    const status = await this.#table();
    const total = await this.#count("SELECT count(*) AS n FROM flights");
    const { rows } = await this.#client.query<{ heap: string; plain: string }>(
      "select (select count(*) from flights)::text as heap, (select count(*) from flights_plain)::text as plain",
    );
    const [heap, plain] = [Number(rows[0]?.heap), Number(rows[0]?.plain)];
    show.check(
      "heap and lake together are the plain copy's rows",
      total === plain && heap + Number(status.lakeRows) === plain,
    );
    const after = await heapBytes(this.#client, "flights");
    show.step("Sizes");
    const size = (rowCount: number | bigint, bytes: number | bigint): string[] => [
      formatCount(rowCount),
      formatBytes(Number(bytes)),
    ];
    const table = formatTable(
      ["", "rows", "bytes"],
      [
        ["Postgres before", ...size(this.#flights, this.#bytesBefore)],
        ["Postgres now", ...size(heap, after)],
        ["lake (Parquet)", ...size(status.lakeRows, status.lakeBytes)],
      ],
    );
    for (const line of table.split("\n")) show.line(line);
    const catalog = await this.#startCatalog();
    await this.#checkCatalog(catalog.url, status);
    this.#printHints(catalog.url, status);
    this.#run.out.result({
      heap_rows: heap,
      lake_rows: status.lakeRows,
      rows_total: total,
      checks_failed: show.failed,
      seconds: show.seconds,
      checks: show.checks,
      flights_loaded: this.#flights,
      heap_bytes_before: this.#bytesBefore,
      heap_bytes_after: after,
      lake_bytes: status.lakeBytes,
      tiered_rows_per_second: this.#tieredPerSecond,
      writer: must(this.#writer, "writer").written,
    });
    show.out.line(
      `\n${show.failed === 0 ? "Every check held" : `${show.failed} checks FAILED`} (${show.checks.length} checks, ${show.seconds} s).`,
    );
    if (!this.#options.exit) await this.#goOn(catalog.child);
    return show.failed === 0 ? 0 : 1;
  }

  /** Runs `spillway <args>` and fails with what it said. */
  async #spillway(...args: string[]): Promise<void> {
    const done = await this.#children.run(args);
    if (done.code === 0) return;
    throw new SpillwayError("demo_failed", `spillway ${args.join(" ")}: ${errorLine(done.stderr)}`);
  }

  async #openSeam(): Promise<Seam> {
    const run = this.#run;
    const runtime = await openRuntime({
      databaseUrl: this.#url,
      warehouse: this.#lake,
      s3Endpoint: null,
      s3Region: "us-east-1",
      s3PathStyle: false,
      cacheDir: `${this.#lake}-cache`,
      cacheBytes: 1 << 30,
      connectTimeoutMs: 10_000,
      engineMemoryBytes: 768 << 20,
      lockTimeoutMs: 100,
      premake: 2,
      applicationName: "spillway demo",
      clock: run.clock,
      log: run.log,
    });
    run.onClose(() => runtime.close());
    const { conninfo, store, cache, engine } = runtime;
    const seam = createSeam({
      conninfo,
      store,
      cache,
      engine,
      clock: run.clock,
      log: run.log,
      holder: `demo:${process.pid}`,
    });
    run.onClose(() => seam.close());
    this.#seam = seam;
    return seam;
  }

  async #count(sql: string): Promise<number> {
    const result = await must(this.#seam, "seam").query(sql);
    let count = -1;
    for await (const batch of result.batches()) {
      const column = must(batch.columns[0], "count");
      if ("data" in column) count = Number(column.data[0]);
    }
    return count;
  }

  async #table(): Promise<TableStatus> {
    const status = await readStatus(this.#client);
    return must(
      status.tables.find((t) => t.table === "public.flights"),
      "the registered table",
    );
  }

  async #startCatalog(): Promise<{ url: string; child: RunningChild }> {
    const child = this.#children.start(["catalog", "--listen", "127.0.0.1:0"]);
    const match = await child.line(/catalog at (http:\S+)/, 30_000);
    return { url: must(match[1], "address"), child };
  }

  async #checkCatalog(url: string, status: TableStatus): Promise<void> {
    const response = await fetch(`${url}/v1/namespaces/public/tables/flights`, {
      headers: { authorization: `Bearer ${this.#token}` },
    });
    const text = await response.text();
    const ok = response.status === 200 && text.includes(`"current-snapshot-id":${status.snapshotId}`);
    this.#show.check("the Iceberg REST catalog serves the current snapshot", ok);
  }

  #printHints(url: string, status: TableStatus): void {
    const show = this.#show;
    show.step(this.#options.exit ? "To copy, while the demo runs without --exit" : "To copy, in another terminal");
    const prefix = `SPILLWAY_DATABASE_URL='${this.#url}' SPILLWAY_WAREHOUSE='${this.#lake}'`;
    show.line("both tiers, as one table:");
    show.line(
      `  ${prefix} npm run -s spillway -- sql "SELECT origin, count(*) FROM flights GROUP BY 1 ORDER BY 2 DESC LIMIT 5"`,
    );
    show.line("psql (the heap's rows, and corrections of any row):");
    show.line(`  psql '${this.#url}' -c "SELECT count(*), min(departed) FROM flights"`);
    show.line("DuckDB (the lake, through the REST catalog):");
    show.line(
      `  INSTALL iceberg; LOAD iceberg; ATTACH '' AS lake (TYPE iceberg, ENDPOINT '${url}', TOKEN '${this.#token}'); SELECT count(*) FROM lake.public.flights;`,
    );
    show.line("pyiceberg:");
    show.line(
      `  python3 -c "from pyiceberg.catalog import load_catalog; print(load_catalog('spillway', type='rest', uri='${url}', token='${this.#token}').load_table('public.flights').scan(limit=5).to_arrow())"`,
    );
    show.line(`the lake's files: ${status.lakeLocation ?? this.#lake}`);
  }

  /** Until Ctrl-C: worker, endpoint, and a slow writer. */
  async #goOn(catalog: RunningChild): Promise<void> {
    const writer = must(this.#writer, "writer");
    writer.pauseMs = SLOW_PAUSE_MS;
    writer.start();
    this.#show.out.line("\nThe worker, the catalog endpoint and a slow writer go on. Ctrl-C ends everything.");
    const { signal } = this.#run;
    if (!signal.aborted)
      await new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve(), { once: true }));
    this.#show.out.line("\nStopping.");
    await writer.pause().catch(() => {});
    await catalog.stop();
  }
}

/** The result, and how long it took, for people. */
async function timed<T>(work: () => Promise<T>): Promise<[T, string]> {
  const started = performance.now();
  const result = await work();
  return [result, `${((performance.now() - started) / 1000).toFixed(1)} s`];
}
