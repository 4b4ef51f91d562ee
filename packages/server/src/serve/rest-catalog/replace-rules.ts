/** How a replace is refused, and where its files may lie. */
import { SpillwayError } from "@spillway/base/errors";
import type { TableMetadata } from "@spillway/lake/model";
import { isWithin, normalizeLocation } from "@spillway/lake/store/store";

export function refuse(why: string): never {
  throw new SpillwayError("foreign_replace_refused", why);
}

/** A file of the commit must lie below the table's location. */
export function requireWithin(metadata: TableMetadata, path: string): void {
  let inside = false;
  try {
    inside = normalizeLocation(path) === path && isWithin(metadata.location, path);
  } catch {
    // No location that a store could have.
  }
  if (!inside) refuse(`the file ${path} does not lie below the table's location ${metadata.location}`);
}
