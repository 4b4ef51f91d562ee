/** Field summaries of a manifest: what its partition tuples range over, and whether a tuple can be inside. */
import type { FieldSummary, ManifestFile, PartitionTuple, PrimitiveType, PrimitiveValue } from "./model.ts";
import { compareValues, decodeValue, encodeValue } from "./values.ts";

interface Range {
  containsNull: boolean;
  containsNan: boolean;
  lower: PrimitiveValue | undefined;
  upper: PrimitiveValue | undefined;
}

export class FieldSummaries {
  readonly #types: readonly PrimitiveType[];
  readonly #ranges: Range[];

  constructor(types: readonly PrimitiveType[]) {
    this.#types = types;
    this.#ranges = types.map(() => ({ containsNull: false, containsNan: false, lower: undefined, upper: undefined }));
  }

  add(tuple: PartitionTuple): void {
    this.#types.forEach((type, i) => {
      const range = this.#ranges[i];
      const value = tuple[i] ?? null;
      if (!range) return;
      if (value === null) range.containsNull = true;
      else if (Number.isNaN(value)) range.containsNan = true;
      else {
        if (range.lower === undefined || compareValues(type, value, range.lower) < 0) range.lower = value;
        if (range.upper === undefined || compareValues(type, value, range.upper) > 0) range.upper = value;
      }
    });
  }

  finish(): FieldSummary[] {
    return this.#types.map((type, i) => {
      const range = this.#ranges[i];
      return {
        containsNull: range?.containsNull ?? false,
        containsNan: range?.containsNan ?? false,
        ...(range?.lower === undefined ? {} : { lowerBound: encodeValue(type, range.lower) }),
        ...(range?.upper === undefined ? {} : { upperBound: encodeValue(type, range.upper) }),
      };
    });
  }
}

/** Whether the manifest can hold a file with the tuple. Never a false no. */
export function mayHoldTuple(manifest: ManifestFile, tuple: PartitionTuple, types: readonly PrimitiveType[]): boolean {
  const summaries = manifest.partitions;
  if (!summaries || summaries.length !== types.length) return true;
  return types.every((type, i) => {
    const summary = summaries[i];
    const value = tuple[i] ?? null;
    if (!summary) return true;
    if (value === null) return summary.containsNull;
    if (Number.isNaN(value)) return summary.containsNan !== false;
    const { lowerBound, upperBound } = summary;
    if (!lowerBound || !upperBound) return false;
    return (
      compareValues(type, value, decodeValue(type, lowerBound)) >= 0 &&
      compareValues(type, value, decodeValue(type, upperBound)) <= 0
    );
  });
}
