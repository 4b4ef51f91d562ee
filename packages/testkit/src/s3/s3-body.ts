/**
 * Bodies of S3 requests: plain, or `aws-chunked` with a trailing checksum. Whatever the client
 * promised about the bytes is checked, so that a body that was framed wrongly cannot be stored.
 * Source: https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming-trailers.html
 */
import { createHash } from "node:crypto";
import type { IncomingHttpHeaders } from "node:http";
import { crc32 } from "node:zlib";

/** An S3 error answer: its code, and the HTTP status that goes with it. */
export class S3Error extends Error {
  readonly code: string;
  readonly status: number;

  constructor(status: number, code: string, message: string) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** The object's bytes out of a request's. Throws `BadDigest` or `IncompleteBody`. */
export function decodeBody(raw: Buffer, headers: IncomingHttpHeaders): Buffer {
  const chunked = /aws-chunked/.test(String(headers["content-encoding"] ?? ""));
  const streaming = String(headers["x-amz-content-sha256"] ?? "").startsWith("STREAMING-");
  if (!chunked && !streaming) {
    checkDigests(raw, headers);
    return raw;
  }
  const { body, trailers } = unchunk(raw);
  const announced = headers["x-amz-decoded-content-length"];
  if (announced !== undefined && Number(announced) !== body.length) throw incomplete("decoded length differs");
  checkDigests(body, { ...headers, ...trailers });
  return body;
}

function unchunk(raw: Buffer): { body: Buffer; trailers: Record<string, string> } {
  const pieces: Buffer[] = [];
  let at = 0;
  for (;;) {
    const end = raw.indexOf("\r\n", at);
    if (end < 0) throw incomplete("a chunk without its header");
    const size = Number.parseInt(raw.toString("latin1", at, end).split(";")[0] ?? "", 16);
    if (!(size >= 0)) throw incomplete("a chunk with a bad size");
    at = end + 2;
    if (size === 0) return { body: Buffer.concat(pieces), trailers: parseTrailers(raw.toString("latin1", at)) };
    if (raw.length < at + size + 2) throw incomplete("a chunk that ends early");
    pieces.push(raw.subarray(at, at + size));
    at += size + 2;
  }
}

function parseTrailers(text: string): Record<string, string> {
  const lines = text.split("\r\n").filter((line) => line.includes(":"));
  return Object.fromEntries(
    lines.map((line) => [line.slice(0, line.indexOf(":")).toLowerCase(), line.slice(line.indexOf(":") + 1).trim()]),
  );
}

function checkDigests(body: Buffer, headers: Record<string, unknown>): void {
  const crc = Buffer.alloc(4);
  crc.writeUInt32BE(crc32(body) >>> 0);
  const expected: Record<string, string> = {
    "content-md5": createHash("md5").update(body).digest("base64"),
    "x-amz-checksum-crc32": crc.toString("base64"),
    "x-amz-checksum-sha256": createHash("sha256").update(body).digest("base64"),
    "x-amz-checksum-sha1": createHash("sha1").update(body).digest("base64"),
  };
  for (const [name, value] of Object.entries(expected)) {
    if (headers[name] !== undefined && headers[name] !== value) throw new S3Error(400, "BadDigest", `${name} differs`);
  }
  const sha = String(headers["x-amz-content-sha256"] ?? "");
  if (/^[0-9a-f]{64}$/.test(sha) && createHash("sha256").update(body).digest("hex") !== sha) {
    throw new S3Error(400, "XAmzContentSHA256Mismatch", "the signed payload hash differs");
  }
}

function incomplete(why: string): S3Error {
  return new S3Error(400, "IncompleteBody", why);
}
