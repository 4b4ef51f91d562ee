/** The first start: an administrator, a tenant with a database and a pool, and the keys that managers share. Again changes nothing. */
import { randomBytes } from "node:crypto";
import { inTransaction } from "@spillway/pg/transaction";
import type pg from "pg";
import { createObject, type ControlObject } from "./objects.ts";
import { hashPassword } from "./passwords.ts";
import { resourceNamed } from "./resources.ts";
import { must } from "@spillway/base/assert";

export interface BootstrapOptions {
  /** Default `admin`. */
  readonly adminName?: string;
  /** Default: a random one. */
  readonly adminPassword?: string;
  /** Made with the installation; null: none. */
  readonly first?: {
    readonly tenant: string;
    readonly database: string;
    /** A connection string, or env:NAME or file:PATH. */
    readonly sourceUrl: string;
    readonly warehouse: string | null;
    readonly pool: ControlObject;
  } | null;
}

export interface BootstrapResult {
  /** Null: there was an administrator already. */
  readonly admin: { readonly name: string; readonly password: string } | null;
}

export async function bootstrap(client: pg.ClientBase, options: BootstrapOptions = {}): Promise<BootstrapResult> {
  return inTransaction(client as pg.Client, {}, async (tx) => {
    // One at a time: the second waits here and then finds everything.
    await tx.query("LOCK TABLE spillway_control.app_user, spillway_control.secret IN EXCLUSIVE MODE");
    for (const name of ["node-token", "scram-decoy", "ticket"]) {
      await tx.query("INSERT INTO spillway_control.secret (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING", [
        name,
        randomBytes(32),
      ]);
    }
    const { rows } = await tx.query(
      "SELECT FROM spillway_control.app_user WHERE is_admin AND tenant_id IS NULL LIMIT 1",
    );
    if (rows.length > 0) return { admin: null };
    const name = options.adminName ?? "admin";
    const password = options.adminPassword ?? randomBytes(15).toString("base64url");
    const { hash, verifier } = await hashPassword(password);
    await tx.query(
      `INSERT INTO spillway_control.app_user (name, is_admin, password_hash, scram_verifier) VALUES ($1, true, $2, $3)`,
      [name, hash, verifier],
    );
    if (options.first) await createFirst(tx, options.first);
    return { admin: { name, password } };
  });
}

async function createFirst(tx: pg.ClientBase, first: NonNullable<BootstrapOptions["first"]>): Promise<void> {
  const make = (kind: string, body: ControlObject): Promise<unknown> =>
    createObject(tx, must(resourceNamed(kind), kind), body);
  const found = await tx.query("SELECT FROM spillway_control.tenant WHERE name = $1", [first.tenant]);
  if (found.rows.length > 0) return;
  await make("tenant", { name: first.tenant });
  await make("database", {
    tenant: first.tenant,
    name: first.database,
    sourceUrl: first.sourceUrl,
    warehouse: first.warehouse,
  });
  await make("pool", { name: "main", isDefault: true, ...first.pool, database: `${first.tenant}/${first.database}` });
}
