/**
 * Password authentication: MD5 and SCRAM-SHA-256 (without channel binding).
 * Sources: https://www.postgresql.org/docs/current/sasl-authentication.html, RFC 5802, RFC 7677, RFC 4013.
 */
import { createHash, createHmac, pbkdf2, randomBytes, timingSafeEqual } from "node:crypto";
import { promisify } from "node:util";
import { SpillwayError } from "@spillway/base/errors";

const derive = promisify(pbkdf2);
/** A hostile server could ask for hours of hashing. */
const MAX_ITERATIONS = 1_000_000;

/** The answer to AuthenticationMD5Password: `md5` + md5(md5(password + user) + salt). */
export function md5Password(user: string, password: string, salt: Buffer): string {
  const inner = createHash("md5").update(`${password}${user}`).digest("hex");
  return `md5${createHash("md5").update(inner).update(salt).digest("hex")}`;
}

export interface ScramClient {
  /** The client-first-message. */
  readonly first: string;
  /** The client-final-message for this server-first-message. */
  final(serverFirst: string): Promise<string>;
  /** Throws unless the server proved that it knows the password too. */
  verify(serverFinal: string): void;
}

/** One exchange. `nonce` is random, printable, without commas. */
export function scramClient(password: string, nonce = randomBytes(18).toString("base64")): ScramClient {
  // Postgres takes the user from the start-up message and ignores the one here.
  const bare = `n=,r=${nonce}`;
  let serverSignature: Buffer | null = null;
  return {
    first: `n,,${bare}`,
    final: async (serverFirst) => {
      const { combined, salt, iterations } = parseServerFirst(serverFirst, nonce);
      const salted = await derive(saslPrep(password), salt, iterations, 32, "sha256");
      const clientKey = hmac(salted, "Client Key");
      const storedKey = createHash("sha256").update(clientKey).digest();
      const withoutProof = `c=biws,r=${combined}`;
      const auth = `${bare},${serverFirst},${withoutProof}`;
      serverSignature = hmac(hmac(salted, "Server Key"), auth);
      const signature = hmac(storedKey, auth);
      const proof = Buffer.from(clientKey.map((byte, i) => byte ^ (signature[i] ?? 0)));
      return `${withoutProof},p=${proof.toString("base64")}`;
    },
    verify: (serverFinal) => {
      const attributes = parseAttributes(serverFinal);
      const failed = attributes.get("e");
      if (failed !== undefined) throw new SpillwayError("pg_auth_failed", `the server refused the password: ${failed}`);
      const given = Buffer.from(attributes.get("v") ?? "", "base64");
      if (!serverSignature || given.length !== serverSignature.length || !timingSafeEqual(given, serverSignature)) {
        throw new SpillwayError("pg_auth_failed", "the server could not prove that it knows the password");
      }
    },
  };
}

function parseServerFirst(text: string, nonce: string): { combined: string; salt: Buffer; iterations: number } {
  const attributes = parseAttributes(text);
  const combined = attributes.get("r") ?? "";
  const salt = Buffer.from(attributes.get("s") ?? "", "base64");
  const iterations = Number(attributes.get("i"));
  const sound = combined.startsWith(nonce) && combined.length > nonce.length && salt.length > 0;
  if (!sound || !Number.isInteger(iterations) || iterations < 1 || iterations > MAX_ITERATIONS) {
    throw new SpillwayError("pg_auth_failed", "the server's SCRAM challenge is malformed");
  }
  return { combined, salt, iterations };
}

function parseAttributes(text: string): Map<string, string> {
  return new Map(text.split(",").map((part) => [part.slice(0, 1), part.slice(2)]));
}

function hmac(key: Buffer, text: string): Buffer {
  return createHmac("sha256", key).update(text).digest();
}

/** SASLprep as far as it matters: ASCII is unchanged, the rest is mapped and put in NFKC; as in Postgres, a
 * password with forbidden characters is used as it is. */
export function saslPrep(password: string): string {
  if (/^[\x20-\x7e]*$/.test(password)) return password;
  const prepared = password
    .replace(/[\u00a0\u1680\u2000-\u200b\u202f\u205f\u3000]/g, " ")
    .replace(/\p{Cf}|\u{34f}|[\u{180b}-\u{180d}]|[\u{fe00}-\u{fe0f}]/gu, "")
    .normalize("NFKC");
  return prepared === "" || /[\p{Cc}\p{Co}\p{Cs}\p{Cn}]/u.test(prepared) ? password : prepared;
}
