/**
 * The front door of the library. Every module can also be imported by itself
 * (`@spillway/lake/<module>`).
 */
export * from "./model.ts";
export * from "./types.ts";
export * from "./schema.ts";
export * from "./evolve.ts";
export * from "./transforms.ts";
export * from "./partition.ts";
export * from "./metadata.ts";
export * from "./commit.ts";
export * from "./commit-json.ts";
export * from "./snapshot/stage.ts";
export * from "./snapshot/expire.ts";
export * from "./snapshot/source.ts";
export { fileKey, partitionKey } from "./snapshot/removals.ts";
export { parseJson, printJson, type JsonObject, type JsonValue } from "./json.ts";
export { compareValues, decodeValue, encodeValue, truncateLower, truncateUpper } from "./values.ts";
export { primitiveFromJson, primitiveToJson, valueFromJson, valueToJson } from "./value-json.ts";
export { readManifest, ManifestWriter } from "./manifest.ts";
export { readManifestList, writeManifestList } from "./manifest-list.ts";
export type { ObjectStore } from "./store/store.ts";
