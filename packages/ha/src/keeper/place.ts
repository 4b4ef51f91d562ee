/** Where a keeper answers, as it tells others. */
import { createHash, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { SpillwayError } from "@spillway/base/errors";
import { parseListen } from "./http-server.ts";

/** `http(s)://host:port` of the keeper's own endpoint: the node's host, the port that it listens on. */
export function keeperUrlOf(at: {
  readonly host: string;
  readonly keeperListen: string;
  readonly tlsCert: string | null;
}): string {
  const host = at.host.includes(":") ? `[${at.host}]` : at.host;
  return `${at.tlsCert === null ? "http" : "https"}://${host}:${parseListen(at.keeperListen).port}`;
}

/** SHA-256 of the certificate, as peers pin it; null without one. Throws `config_invalid`. */
export function certificateFingerprint(path: string | null): string | null {
  if (path === null) return null;
  try {
    return createHash("sha256")
      .update(new X509Certificate(readFileSync(path)).raw)
      .digest("hex");
  } catch (cause) {
    throw new SpillwayError("config_invalid", `${path} is not a readable certificate`, { cause });
  }
}
