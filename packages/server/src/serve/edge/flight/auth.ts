/**
 * Who calls: `Basic` in a handshake or in any call makes a bearer token, which names the session from then on; personal tokens and
 * tokens of an identity provider are taken as they are, but because several connections share one, state needs the cookie.
 */
import { createHash, randomBytes } from "node:crypto";
import { SpillwayError } from "@spillway/base/errors";
import type { Principal } from "../../session/session.ts";
import { decodeMessage, text } from "./proto.ts";
import type { CallContext } from "./transport.ts";

/** What this edge needs of authentication. Every method throws `auth_*` codes. */
export interface FlightAuth {
  password(user: string, password: string, address: string): Promise<Principal>;
  /** A token of a new session, for this edge. */
  mint(principal: Principal): Promise<string>;
  /** `shared`: not minted for one session, so that others may send it too. */
  bearer(token: string, address: string): Promise<{ readonly principal: Principal; readonly shared: boolean }>;
}

export interface Caller {
  readonly principal: Principal;
  /** Names the connection's state. */
  readonly key: string;
}

const COOKIE = "spillway_session";

/** Throws `auth_failed` and what `FlightAuth` throws. */
export async function callerOf(auth: FlightAuth, call: CallContext): Promise<Caller> {
  const header = call.header("authorization");
  const [scheme = "", rest = ""] = splitOnce(header, " ");
  if (/^bearer$/i.test(scheme)) return bearer(auth, call, rest.trim());
  if (/^basic$/i.test(scheme)) {
    const { user, password } = parseBasic(rest.trim());
    const principal = await auth.password(user, password, call.address);
    const token = await auth.mint(principal);
    call.reply("authorization", `Bearer ${token}`);
    return { principal, key: digest(token) };
  }
  const token = call.headerBytes("auth-token-bin");
  if (token !== null) return bearer(auth, call, token.toString("utf8"));
  throw new SpillwayError("auth_failed", "The call has no authorization header.");
}

async function bearer(auth: FlightAuth, call: CallContext, token: string): Promise<Caller> {
  const { principal, shared } = await auth.bearer(token, call.address);
  if (!shared) return { principal, key: digest(token) };
  const sent = cookieOf(call.header("cookie"));
  const cookie = sent ?? randomBytes(16).toString("hex");
  if (sent === null) call.reply("set-cookie", `${COOKIE}=${cookie}; HttpOnly`);
  return { principal, key: digest(`${token}\0${cookie}`) };
}

/** Both kinds of handshake: the header, and the payload of older clients. The token is the answer's header and payload. */
export async function* handshake(
  auth: FlightAuth,
  call: CallContext,
  requests: AsyncIterable<Buffer>,
): AsyncIterable<{ readonly token: string }> {
  const header = call.header("authorization");
  if (/^basic /i.test(header)) {
    const { user, password } = parseBasic(header.slice(6).trim());
    const token = await auth.mint(await auth.password(user, password, call.address));
    call.reply("authorization", `Bearer ${token}`);
    yield { token };
    return;
  }
  for await (const request of requests) {
    const payload = decodeMessage("HandshakeRequest", request)["payload"];
    const basic = decodeMessage("BasicAuth", Buffer.isBuffer(payload) ? payload : Buffer.alloc(0));
    const principal = await auth.password(text(basic["username"]), text(basic["password"]), call.address);
    yield { token: await auth.mint(principal) };
    return;
  }
  throw new SpillwayError("auth_failed", "The handshake has neither an authorization header nor a payload.");
}

function parseBasic(encoded: string): { user: string; password: string } {
  const decoded = Buffer.from(encoded, "base64").toString("utf8");
  const [user = "", password = ""] = splitOnce(decoded, ":");
  if (user === "") throw new SpillwayError("auth_failed", "The Basic credentials name no user.");
  return { user, password };
}

function splitOnce(value: string, separator: string): string[] {
  const at = value.indexOf(separator);
  return at < 0 ? [value] : [value.slice(0, at), value.slice(at + 1)];
}

function cookieOf(header: string): string | null {
  for (const part of header.split(";")) {
    const [name = "", value = ""] = splitOnce(part.trim(), "=");
    if (name === COOKIE && /^[0-9a-f]{32}$/.test(value)) return value;
  }
  return null;
}

/** Tokens are not kept as they are. */
function digest(value: string): string {
  return createHash("sha256").update(value).digest("hex");
}
