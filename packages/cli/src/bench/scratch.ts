/** A source of its own for a bench: an embedded Postgres, a lake in a scratch folder, both removed at the end. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect, endClient } from "@spillway/pg/connect";
import { type EmbeddedPostgres, startEmbedded } from "../embedded/server.ts";
import { Child, type ChildEnv, runChild } from "./child.ts";

export interface ScratchOptions {
  /** Settings of Postgres. */
  readonly postgres?: Readonly<Record<string, string>>;
  /** Settings of Spillway, as its environment variables. */
  readonly env?: ChildEnv;
}

export type Client = Awaited<ReturnType<typeof connect>>;

export class Scratch {
  readonly postgres: EmbeddedPostgres;
  readonly home: string;
  readonly url: string;
  readonly env: ChildEnv;
  readonly client: Client;

  private constructor(postgres: EmbeddedPostgres, home: string, url: string, env: ChildEnv, client: Client) {
    this.postgres = postgres;
    this.home = home;
    this.url = url;
    this.env = env;
    this.client = client;
  }

  /** With the catalog made and the warehouse taken. */
  static async open(options: ScratchOptions = {}): Promise<Scratch> {
    const postgres = await startEmbedded(options.postgres ? { settings: options.postgres } : {});
    const home = mkdtempSync(join(tmpdir(), "spillway-bench-"));
    const url = postgres.url("postgres");
    const env = {
      SPILLWAY_DATABASE_URL: url,
      SPILLWAY_WAREHOUSE: join(home, "lake"),
      SPILLWAY_CACHE_DIR: join(home, "cache"),
      SPILLWAY_METRICS_LISTEN: "off",
      ...options.env,
    };
    const client = await connect(url, { applicationName: "spillway bench" });
    const scratch = new Scratch(postgres, home, url, env, client);
    try {
      await scratch.run(["init"]);
    } catch (error) {
      await scratch.close();
      throw error;
    }
    return scratch;
  }

  /** Starts a `spillway` command against it. */
  spawn(args: readonly string[], env: ChildEnv = {}): Child {
    return new Child(args, { ...this.env, ...env });
  }

  run(args: readonly string[], env: ChildEnv = {}): Promise<string> {
    return runChild(args, { ...this.env, ...env });
  }

  async close(): Promise<void> {
    await endClient(this.client);
    await this.postgres.stop();
    rmSync(this.home, { recursive: true, force: true });
  }
}
