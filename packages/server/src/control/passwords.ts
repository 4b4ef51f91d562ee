/**
 * Passwords at rest: argon2id for those that arrive as text, and a SCRAM-SHA-256 verifier for the Postgres wire, where the
 * password never arrives. Sources: RFC 9106; RFC 5802 and 7677; pg_authid.rolpassword in the Postgres documentation.
 */
import { createHash, createHmac, pbkdf2, randomBytes, timingSafeEqual } from "node:crypto";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { promisify } from "node:util";
import { Worker } from "node:worker_threads";
import { SpillwayError } from "@spillway/base/errors";
import { saslPrep } from "@spillway/pg/wire/scram";

const derive = promisify(pbkdf2);
const SCRAM_ITERATIONS = 4096;
/** The second of the choices in RFC 9106 scaled to a server's login: 19 MiB, two passes. */
const ARGON = { memorySize: 19_456, iterations: 2, parallelism: 1, hashLength: 32 };
const MAX_PASSWORD_BYTES = 1024;
const MAX_WAITING = 64;

/** Both forms of a new password. Throws `control_invalid` for one that is too short or too long. */
export async function hashPassword(password: string): Promise<{ hash: string; verifier: string }> {
  if (password.length < 8 || Buffer.byteLength(password) > MAX_PASSWORD_BYTES || password.includes("\0")) {
    throw new SpillwayError("control_invalid", "a password has 8 to 1024 characters");
  }
  const hash = await inThread({ kind: "hash", password, salt: randomBytes(16), ...ARGON });
  return { hash: String(hash), verifier: await makeVerifier(password) };
}

/** Whether the password is the hash's. A user without one costs the same time. */
export async function verifyPassword(hash: string | null, password: string): Promise<boolean> {
  const known = hash ?? (await decoy());
  // The library takes no empty password; nobody has one.
  const possible = password !== "" && Buffer.byteLength(password) <= MAX_PASSWORD_BYTES;
  const ok = await inThread({ kind: "verify", password: possible ? password : "-", hash: known });
  return ok === true && hash !== null && possible;
}

/** `SCRAM-SHA-256$iterations:salt$stored:server`, as Postgres keeps it. */
export async function makeVerifier(password: string, salt = randomBytes(16)): Promise<string> {
  const salted = await derive(saslPrep(password), salt, SCRAM_ITERATIONS, 32, "sha256");
  const key = (label: string): Buffer => createHmac("sha256", salted).update(label).digest();
  const stored = createHash("sha256").update(key("Client Key")).digest("base64");
  const server = key("Server Key").toString("base64");
  return `SCRAM-SHA-256$${SCRAM_ITERATIONS}:${salt.toString("base64")}$${stored}:${server}`;
}

/** Compares two texts in a time that tells nothing about either. */
export function sameSecret(a: string, b: string): boolean {
  const digest = (text: string): Buffer => createHash("sha256").update(text).digest();
  return timingSafeEqual(digest(a), digest(b));
}

let decoyHash: Promise<string> | null = null;
function decoy(): Promise<string> {
  decoyHash ??= inThread({
    kind: "hash",
    password: randomBytes(9).toString("hex"),
    salt: randomBytes(16),
    ...ARGON,
  }).then(String);
  return decoyHash;
}

/** Hashing takes tens of milliseconds: in a thread of its own, or every client would feel every login. */
const THREAD = `
const { parentPort, workerData } = require("node:worker_threads");
const library = import(workerData.url);
parentPort.on("message", async ({ id, job }) => {
  try {
    const { argon2id, argon2Verify } = await library;
    const value = job.kind === "hash"
      ? await argon2id({ ...job, kind: undefined, outputType: "encoded" })
      : await argon2Verify({ password: job.password, hash: job.hash });
    parentPort.postMessage({ id, value });
  } catch (error) {
    parentPort.postMessage({ id, error: String(error && error.message || error) });
  }
});`;

type Job =
  | ({ kind: "hash"; password: string; salt: Buffer } & typeof ARGON)
  | { kind: "verify"; password: string; hash: string };
interface Answer {
  readonly id: number;
  readonly value?: unknown;
  readonly error?: string;
}

let thread: Worker | null = null;
let lastId = 0;
const waiting = new Map<number, { resolve: (value: unknown) => void; reject: (error: Error) => void }>();

function inThread(job: Job): Promise<unknown> {
  if (waiting.size >= MAX_WAITING) {
    throw new SpillwayError("auth_busy", `${MAX_WAITING} logins wait for their password to be checked`);
  }
  const worker = (thread ??= startThread());
  const id = (lastId += 1);
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    worker.ref();
    worker.postMessage({ id, job }, []);
  });
}

function startThread(): Worker {
  const url = pathToFileURL(createRequire(import.meta.url).resolve("hash-wasm")).href;
  const worker = new Worker(THREAD, { eval: true, workerData: { url }, execArgv: [] });
  worker.unref();
  worker.on("message", (answer: Answer) => {
    const waiter = waiting.get(answer.id);
    waiting.delete(answer.id);
    if (waiting.size === 0) worker.unref();
    if (answer.error === undefined) waiter?.resolve(answer.value);
    else waiter?.reject(new SpillwayError("internal", `a password could not be hashed: ${answer.error}`));
  });
  const lost = (): void => {
    if (thread === worker) thread = null;
    for (const [id, waiter] of waiting) {
      waiting.delete(id);
      waiter.reject(new SpillwayError("auth_busy", "the thread that checks passwords ended"));
    }
  };
  worker.on("error", lost);
  worker.on("exit", lost);
  return worker;
}
