/** Where a statement reads Postgres. */
import type { RawConnection } from "@spillway/pg/wire/connection";
import type { Pin, PinKeeper } from "./pins.ts";
import type { RelationName, ResolvedRelation, Resolver } from "./resolve.ts";
import type { Source } from "./source.ts";

/** Where a statement reads Postgres: by itself, or inside a transaction that stays open. */
export interface ReadScope {
  readonly pin: Pin;
  readonly connection: RawConnection;
  /** Resolved in the transaction's snapshot. */
  relations(names: readonly RelationName[], signal?: AbortSignal): Promise<ResolvedRelation[]>;
  /** All that the statement wanted of Postgres is here. */
  end(): void;
}

/** A statement of its own: a pin, a connection, and one snapshot that is let go as soon as its rows are here. */
export async function openScope(parts: {
  readonly pins: PinKeeper;
  readonly source: Source;
  readonly resolver: Resolver;
}): Promise<ReadScope> {
  const pin = await parts.pins.take();
  try {
    const connection = await parts.source.acquire();
    return {
      pin,
      connection,
      relations: (names, signal) => parts.resolver.begin(connection, names, signal),
      end: () => {
        // Nothing was written: nobody has to wait for its end.
        const isOpen = connection.isOpen && connection.transactionStatus !== "I" && !connection.isBusy;
        const ending: Promise<unknown> = isOpen ? connection.query("COMMIT").catch(() => {}) : Promise.resolve();
        void ending.then(() => parts.source.release(connection));
      },
    };
  } catch (error) {
    pin.release();
    throw error;
  }
}
