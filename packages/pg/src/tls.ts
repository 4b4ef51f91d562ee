/**
 * The certificate files of a connection string. Source: https://www.postgresql.org/docs/current/libpq-ssl.html
 */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { SpillwayError } from "@spillway/base/errors";
import type { Conninfo } from "./conninfo.ts";
import type { SslOptions } from "./wire/target.ts";

/** Reads the files that the sslmode needs; throws `pg_tls_failed` that names a file that is missing. */
export async function loadSsl(info: Conninfo): Promise<SslOptions> {
  if (info.sslmode === "disable") return { mode: "disable" };
  const [cert, key] = await Promise.all([
    readCertificate(info.sslcert, join(info.configDir, "postgresql.crt")),
    readCertificate(info.sslkey, join(info.configDir, "postgresql.key")),
  ]);
  return { mode: info.sslmode, ...(await rootCertificate(info)), ...(cert && key ? { cert, key } : {}) };
}

async function rootCertificate(info: Conninfo): Promise<{ rootCert?: string }> {
  if (info.sslrootcert === "system") {
    if (info.sslmode === "verify-full") return {};
    throw new SpillwayError("pg_tls_failed", "sslrootcert=system works only with sslmode=verify-full");
  }
  const path = join(info.configDir, "root.crt");
  const rootCert = await readCertificate(info.sslrootcert, path);
  if (rootCert !== null) return { rootCert };
  if (info.sslmode !== "verify-ca" && info.sslmode !== "verify-full") return {};
  throw new SpillwayError("pg_tls_failed", `sslmode=${info.sslmode} needs root certificates, and there is no ${path}`, {
    remedy: "Name the file with sslrootcert=, or use sslrootcert=system.",
  });
}

/** A file that was named must be there; one at the default path may be. */
async function readCertificate(named: string | null, fallback: string): Promise<string | null> {
  try {
    return await readFile(named ?? fallback, "utf8");
  } catch (error) {
    if (named === null) return null;
    throw new SpillwayError("pg_tls_failed", `the certificate file ${named} cannot be read`, { cause: error });
  }
}
