/** What any reader sees of a lake table at this moment, by the reader of the chaos run, which shares no code with the product. */
import { type ForeignMetadata, ForeignReader, readForeignMetadata } from "../chaos/mirror-foreign.ts";
import type { Client } from "./scratch.ts";

export interface Watch {
  /** Different states that were seen, in order: what `look` made of them. */
  readonly seen: string[];
  stop(): Promise<void>;
}

/** Looks at the newest snapshot again and again. */
export function watchLake(
  client: Client,
  table: string,
  everyMs: number,
  look: (reader: ForeignReader, metadata: ForeignMetadata) => Promise<string>,
): Watch {
  const seen: string[] = [];
  const over = new AbortController();
  const reader = new ForeignReader();
  let last = "";
  const watching = (async () => {
    while (!over.signal.aborted) {
      const { rows } = await client.query<{ location: string }>(
        "select metadata_location as location from spillway.lake_table where name = $1",
        [table],
      );
      const location = rows[0]?.location ?? "";
      if (location !== "" && location !== last) {
        last = location;
        seen.push(await look(reader, readForeignMetadata(location)));
      }
      await new Promise((resolve) => setTimeout(resolve, everyMs));
    }
  })();
  return {
    seen,
    stop: async () => {
      over.abort();
      await watching;
    },
  };
}
