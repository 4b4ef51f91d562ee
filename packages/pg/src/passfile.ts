/**
 * The password file. Source: https://www.postgresql.org/docs/current/libpq-pgpass.html
 */
import { readFile, stat } from "node:fs/promises";
import type { ConnHost, Conninfo } from "./conninfo.ts";

export interface PassfileResult {
  readonly password: string | null;
  /** Why the file was not used, when it is there. */
  readonly ignored: string | null;
}

/** The password for one host: that of the string, else the first line of the file that fits. Never throws. */
export async function findPassword(info: Conninfo, host: ConnHost): Promise<PassfileResult> {
  if (info.password !== null) return { password: info.password, ignored: null };
  try {
    const { mode } = await stat(info.passfile);
    // As libpq does: a file that others can read is no secret.
    if ((mode & 0o077) !== 0) return { password: null, ignored: `${info.passfile} is readable by others (chmod 0600)` };
    return { password: matchPassfile(await readFile(info.passfile, "utf8"), info, host), ignored: null };
  } catch {
    return { password: null, ignored: null };
  }
}

/** The password of the first line `host:port:database:user:password` that fits; `*` fits everything. */
export function matchPassfile(text: string, info: Pick<Conninfo, "database" | "user">, host: ConnHost): string | null {
  const isSocket = host.host.startsWith("/");
  for (const line of text.split(/\r?\n/)) {
    if (line === "" || line.startsWith("#")) continue;
    const [lineHost, port, database, user, password] = splitLine(line);
    if (password === undefined) continue;
    const hostFits = lineHost === "*" || lineHost === host.host || (isSocket && lineHost === "localhost");
    const fits = (field: string | undefined, value: string): boolean => field === "*" || field === value;
    if (hostFits && fits(port, String(host.port)) && fits(database, info.database) && fits(user, info.user)) {
      return password;
    }
  }
  return null;
}

/** Fields between colons; a backslash takes the next character as it is. A sixth field is not part of the password. */
function splitLine(line: string): string[] {
  const fields: string[] = [""];
  for (let at = 0; at < line.length; at++) {
    const char = line.charAt(at);
    if (char === ":") fields.push("");
    else fields[fields.length - 1] += char === "\\" && at + 1 < line.length ? line.charAt(++at) : char;
  }
  return fields;
}
