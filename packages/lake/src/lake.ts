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
export * from "./snapshot/diff.ts";
export * from "./metrics.ts";
export { fileKey, partitionKey } from "./snapshot/removals.ts";
export { parseJson, printJson, type JsonObject, type JsonValue } from "./json.ts";
export { compareValues, decodeValue, encodeValue, truncateLower, truncateUpper } from "./values.ts";
export { primitiveFromJson, primitiveToJson, valueFromJson, valueToJson } from "./value-json.ts";
export { readManifest, ManifestWriter } from "./manifest.ts";
export { readManifestList, writeManifestList } from "./manifest-list.ts";
export type { ObjectStore } from "./store/store.ts";
export * from "./store/store.ts";
export { openStore, putFile } from "./store/open.ts";
export { FileStore, type FileStoreOptions } from "./store/file.ts";
export { S3Store, type S3StoreOptions } from "./store/s3.ts";
export { type CacheOptions, type CacheRequest, type CacheStats, LocalCache, type Localized } from "./store/cache.ts";
export { claimCacheDir, type ClaimedDir } from "./store/cache-dir.ts";
export { PositionSet } from "./puffin/position-set.ts";
export * from "./deletes/deletes.ts";
export * from "./scan/scan.ts";
