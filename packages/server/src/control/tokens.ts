/**
 * Bearer tokens of logins and personal access tokens: 256 random bits, of which the database keeps only a hash. They are
 * good at every manager, and outlive each of them.
 */
import { createHash, createHmac, randomBytes } from "node:crypto";
import { SpillwayError } from "@spillway/base/errors";
import type { Db } from "../catalog/catalog.ts";

const SESSION_PREFIX = "sws_";
const ACCESS_PREFIX = "swp_";

export function tokenHash(token: string): string {
  return createHash("sha256").update(token).digest("hex");
}

export function tokenKind(token: string): "session" | "access" | null {
  if (/^sws_[A-Za-z0-9_-]{43}$/.test(token)) return "session";
  return /^swp_[A-Za-z0-9_-]{43}$/.test(token) ? "access" : null;
}

function newToken(prefix: string): string {
  return prefix + randomBytes(32).toString("base64url");
}

export interface NewSession {
  readonly userId: string;
  readonly protocol: string;
  readonly address: string;
  readonly ttlMs: number;
}

/** The token is nowhere else. */
export async function createSession(db: Db, session: NewSession): Promise<{ id: string; token: string }> {
  const token = newToken(SESSION_PREFIX);
  const { rows } = await db.query<{ id: string }>(
    `INSERT INTO spillway_control.session (user_id, token_hash, protocol, address, expires_at)
     VALUES ($1, $2, $3, $4, now() + $5 * interval '1 ms') RETURNING id`,
    [session.userId, tokenHash(token), session.protocol, session.address, session.ttlMs],
  );
  return { id: rows[0]?.id ?? "", token };
}

export interface TokenOwner {
  /** Of the session or access token. */
  readonly id: string;
  readonly userId: string;
  /** Milliseconds from now until it ends, by the clock of the database; null: never. */
  readonly leftMs: number | null;
}

/** Null for a token that is unknown, over or revoked. */
export async function findToken(db: Db, token: string): Promise<TokenOwner | null> {
  const kind = tokenKind(token);
  if (kind === null) return null;
  const left = "(extract(epoch FROM expires_at - clock_timestamp()) * 1000)::float8";
  const sql =
    kind === "session"
      ? `SELECT id, user_id AS "userId", ${left} AS "leftMs" FROM spillway_control.session
         WHERE token_hash = $1 AND revoked_at IS NULL AND expires_at > clock_timestamp()`
      : `SELECT id, user_id AS "userId", ${left} AS "leftMs" FROM spillway_control.access_token
         WHERE token_hash = $1 AND (expires_at IS NULL OR expires_at > clock_timestamp())`;
  return (await db.query<TokenOwner>(sql, [tokenHash(token)])).rows[0] ?? null;
}

export async function revokeSession(db: Db, token: string): Promise<void> {
  await db.query(
    "UPDATE spillway_control.session SET revoked_at = now() WHERE token_hash = $1 AND revoked_at IS NULL",
    [tokenHash(token)],
  );
}

/** Sessions that ended a day ago and more. */
export async function forgetSessions(db: Db): Promise<number> {
  const sql = "DELETE FROM spillway_control.session WHERE expires_at < now() - interval '1 day'";
  return (await db.query(sql)).rowCount ?? 0;
}

/** Makes a personal access token. `expiresAt`: ISO 8601, or null for one without end. */
export async function createAccessToken(
  db: Db,
  userId: string,
  name: string,
  expiresAt: string | null,
): Promise<{ id: string; token: string }> {
  const token = newToken(ACCESS_PREFIX);
  const { rows } = await db.query<{ id: string }>(
    `INSERT INTO spillway_control.access_token (user_id, name, token_hash, expires_at) VALUES ($1, $2, $3, $4)
     ON CONFLICT (user_id, name) DO NOTHING RETURNING id`,
    [userId, name, tokenHash(token), expiresAt],
  );
  if (rows[0] === undefined) throw new SpillwayError("control_exists", `the user has a token named ${name} already`);
  return { id: rows[0].id, token };
}

/** The token of one generation of a node: every manager can compute it, nobody else. */
export function nodeToken(key: Buffer, nodeId: string, generation: bigint): string {
  return createHmac("sha256", key).update(`node\0${nodeId}\0${generation}`).digest("base64url");
}
