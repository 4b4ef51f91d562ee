/** Data files as JSON, for the journal of a copy. Numbers of 64 bits, bytes and maps are tagged. */
import type { DataFile } from "@spillway/lake/model";

export function filesToJson(files: readonly DataFile[]): string {
  return JSON.stringify(files, (_key, value: unknown) => {
    if (typeof value === "bigint") return { $n: value.toString() };
    if (value instanceof Map) return { $m: [...value] };
    if (value instanceof Uint8Array) return { $b: Buffer.from(value).toString("hex") };
    // A Buffer has told its own form before it comes here.
    if (isBufferJson(value)) return { $b: Buffer.from(value.data).toString("hex") };
    return value;
  });
}

/** From the text, or from what the driver has parsed of it. */
export function filesFromJson(json: unknown): DataFile[] {
  return revive(typeof json === "string" ? JSON.parse(json) : json) as DataFile[];
}

function revive(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(revive);
  if (value === null || typeof value !== "object") return value;
  const object = value as Record<string, unknown>;
  if (typeof object["$n"] === "string") return BigInt(object["$n"]);
  if (typeof object["$b"] === "string") return new Uint8Array(Buffer.from(object["$b"], "hex"));
  if (Array.isArray(object["$m"])) return new Map(object["$m"].map((pair) => revive(pair) as [unknown, unknown]));
  return Object.fromEntries(Object.entries(object).map(([key, inner]) => [key, revive(inner)]));
}

function isBufferJson(value: unknown): value is { data: number[] } {
  return typeof value === "object" && value !== null && (value as { type?: unknown }).type === "Buffer";
}
