/**
 * The server's side of SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (channel binding `tls-server-end-point`). A user who does not exist gets
 * an exchange like any other, always with the same salt, and fails where a wrong password fails.
 * Sources: https://www.postgresql.org/docs/current/sasl-authentication.html, RFC 5802, RFC 7677, RFC 5929 §4.
 */
import { createHash, createHmac, randomBytes, timingSafeEqual } from "node:crypto";
import { SpillwayError } from "@spillway/base/errors";

export interface ScramVerifier {
  readonly iterations: number;
  readonly salt: Buffer;
  readonly storedKey: Buffer;
  readonly serverKey: Buffer;
}

export const DEFAULT_ITERATIONS = 4096;

/** `SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`, as pg_authid holds it; null for anything else. */
export function parseVerifier(text: string): ScramVerifier | null {
  const match = /^SCRAM-SHA-256\$(\d{1,7}):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)$/.exec(text);
  if (!match) return null;
  const [, iterations = "", salt = "", stored = "", server = ""] = match;
  const [storedKey, serverKey] = [Buffer.from(stored, "base64"), Buffer.from(server, "base64")];
  if (storedKey.length !== 32 || serverKey.length !== 32) return null;
  return { iterations: Number(iterations), salt: Buffer.from(salt, "base64"), storedKey, serverKey };
}

/** For a name that nobody has: the same salt at every try and at every manager that shares `secret`; no password fits. */
export function fakeVerifier(user: string, secret: Buffer): ScramVerifier {
  const of = (what: string): Buffer => createHmac("sha256", secret).update(`${what}\0${user}`).digest();
  return {
    iterations: DEFAULT_ITERATIONS,
    salt: of("salt").subarray(0, 16),
    storedKey: randomBytes(32),
    serverKey: of("server"),
  };
}

export interface ScramExchange {
  /** The server-first-message for this client-first-message. */
  first(clientFirst: string): string;
  /** The server-final-message. Throws `pg_auth_failed` (28P01) unless the client proved the password. */
  final(clientFinal: string): string;
}

export interface ScramOptions {
  readonly mechanism: string;
  readonly verifier: ScramVerifier;
  /** The hash of the server's certificate when the channel can be bound; null without TLS. */
  readonly endPoint: Buffer | null;
  /** Base64 or other printable text without commas. */
  readonly nonce?: string;
}

/** One exchange. Throws `pg_auth_failed` with SQLSTATE 28P01 or, for a malformed or downgraded one, 28000 or 08P01. */
export function scramServer(options: ScramOptions): ScramExchange {
  const { verifier, endPoint, mechanism } = options;
  const plus = mechanism === "SCRAM-SHA-256-PLUS";
  let header = "";
  let bare = "";
  let serverFirst = "";
  let nonce = "";
  return {
    first: (clientFirst) => {
      const match = /^((n|y|p=([a-z0-9.-]+)),(?:a=[^,]*)?,)(n=[^,]*,r=([\x21-\x2b\x2d-\x7e]+)(?:,.*)?)$/.exec(
        clientFirst,
      );
      if (!match) throw refused("08P01", "the SCRAM message is malformed");
      const [, gs2 = "", flag = "", type, rest = "", clientNonce = ""] = match;
      if (plus !== (type !== undefined)) throw refused("08P01", "channel binding does not fit the SCRAM mechanism");
      if (type !== undefined && type !== "tls-server-end-point") {
        throw refused("08P01", "the channel binding type is not supported");
      }
      // A client that could bind and thinks that we cannot was lied to by somebody in between.
      if (flag === "y" && endPoint !== null) throw refused("28000", "SCRAM channel binding negotiation error");
      header = gs2;
      bare = rest;
      nonce = clientNonce + (options.nonce ?? randomBytes(18).toString("base64"));
      serverFirst = `r=${nonce},s=${verifier.salt.toString("base64")},i=${verifier.iterations}`;
      return serverFirst;
    },
    final: (clientFinal) => {
      const match = /^(c=([A-Za-z0-9+/=]+),r=([^,]+)(?:,.*)?),p=([A-Za-z0-9+/=]+)$/.exec(clientFinal);
      if (!match || serverFirst === "") throw refused("08P01", "the SCRAM message is malformed");
      const [, withoutProof = "", binding = "", given = "", proofText = ""] = match;
      const expected = Buffer.concat([Buffer.from(header, "utf8"), plus && endPoint ? endPoint : Buffer.alloc(0)]);
      if (binding !== expected.toString("base64")) throw refused("28000", "the SCRAM channel binding does not match");
      if (given !== nonce) throw refused("08P01", "the SCRAM nonce does not match");
      const auth = `${bare},${serverFirst},${withoutProof}`;
      const signature = hmac(verifier.storedKey, auth);
      const proof = Buffer.from(proofText, "base64");
      const clientKey = Buffer.from(signature.map((byte, i) => byte ^ (proof[i] ?? 0)));
      const stored = createHash("sha256").update(clientKey).digest();
      if (proof.length !== 32 || !timingSafeEqual(stored, verifier.storedKey)) throw wrongPassword();
      return `v=${hmac(verifier.serverKey, auth).toString("base64")}`;
    },
  };
}

function hmac(key: Buffer, text: string): Buffer {
  return createHmac("sha256", key).update(text).digest();
}

function wrongPassword(): SpillwayError {
  return refused("28P01", "password authentication failed");
}

function refused(sqlstate: string, message: string): SpillwayError {
  return new SpillwayError("pg_auth_failed", message, { details: { sqlstate } });
}

const HASH_OF_SIGNATURE: Readonly<Record<string, string>> = {
  "2a864886f70d010104": "sha256",
  "2a864886f70d010105": "sha256",
  "2a864886f70d01010b": "sha256",
  "2a864886f70d01010c": "sha384",
  "2a864886f70d01010d": "sha512",
  "2a8648ce3d0401": "sha256",
  "2a8648ce3d040302": "sha256",
  "2a8648ce3d040303": "sha384",
  "2a8648ce3d040304": "sha512",
};

/**
 * `tls-server-end-point` of a certificate (DER): its hash by the hash function of its signature, MD5 and SHA-1 replaced by
 * SHA-256. Null for signatures that name no hash function (Ed25519, RSA-PSS): then the channel cannot be bound.
 */
export function endPointOf(certificate: Buffer): Buffer | null {
  const outer = derAt(certificate, 0);
  const tbs = derAt(certificate, outer.body);
  const algorithm = derAt(certificate, tbs.end);
  const oid = derAt(certificate, algorithm.body);
  const hash = HASH_OF_SIGNATURE[certificate.subarray(oid.body, oid.end).toString("hex")];
  return hash === undefined ? null : createHash(hash).update(certificate).digest();
}

function derAt(bytes: Buffer, at: number): { readonly body: number; readonly end: number } {
  const first = bytes[at + 1] ?? 0;
  if (first < 0x80) return { body: at + 2, end: at + 2 + first };
  const count = first & 0x7f;
  const body = at + 2 + count;
  return { body, end: body + bytes.readUIntBE(at + 2, count) };
}
