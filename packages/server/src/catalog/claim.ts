/**
 * Claiming the lake. The leader raises a generation every few seconds, in the catalog and then in the warehouse's ownership object:
 * a copy of the database, or this one restored to an earlier point, has an older generation, and so is no owner. Until
 * the next renewal, though, a copy has the same: so a server that is not the one which renewed last (it was started at another
 * time: restarted, promoted after a failover, or copied) first watches the object for several renewals. If the original lives, it
 * shows, and the copy is refused; if nobody does, the generation proves that this catalog has the last renewal, and with it
 * every commit up to then: a promotion, or a restart, and not a rewound copy.
 */
import type { Clock } from "@spillway/base/clock";
import { SpillwayError } from "@spillway/base/errors";
import type { ObjectStore } from "@spillway/lake/store/store";
import { inTransaction } from "@spillway/pg/transaction";
import type pg from "pg";
import type { Db } from "./db.ts";
import {
  loadWarehouse,
  mismatch,
  ownerPath,
  ownershipFault,
  printOwner,
  readIdentity,
  readOwner,
  type ServerIdentity,
  type WarehouseRow,
} from "./identity.ts";

/** The leader's, beside whatever else it does. */
export const RENEW_EVERY_MS = 10_000;
/** Three renewals: one may be late, and the store slow. */
export const WATCH_MS = 30_000;
const POLL_MS = 1_000;

export interface ClaimRequest {
  /** Lends a connection to the primary. */
  readonly lend: <T>(work: (client: pg.Client) => Promise<T>) => Promise<T>;
  readonly store: ObjectStore;
  readonly warehouse: string;
  readonly clock: Clock;
  /** How long the object is watched when another server renewed it last. Default `WATCH_MS`. */
  readonly watchMs?: number;
  /** Whether a newer timeline is gone along with. Default false: a promoted copy looks like a failover. */
  readonly adoptPromotion?: boolean;
  readonly signal?: AbortSignal;
  /** Checks the leader's epoch in the claim's transaction. */
  readonly also?: (tx: Db) => Promise<void>;
  /** Told when it has to watch. */
  readonly onWatch?: (ms: number) => void;
}

interface Claimant {
  readonly catalog: WarehouseRow;
  readonly owner: WarehouseRow;
  readonly now: ServerIdentity;
}

/**
 * Makes sure that the lake is this server's alone. Returns at once when it was the last to renew. Throws
 * `catalog_missing`, `warehouse_mismatch`, `lake_not_ours`, and what the signal ends with.
 */
export async function claimLake(request: ClaimRequest): Promise<"held" | "claimed"> {
  const first = await claimant(request);
  if (isHolder(first)) return "held";
  await watch(request, first);
  const { catalog, now } = await claimant(request);
  const row = { ...catalog, timeline: now.timeline || catalog.timeline, instance: now.instance };
  await request.lend((client) => raise(client, request, row, request.also ?? (async () => {})));
  return "claimed";
}

/** Whether a claim can be tried at all. Throws as `claimLake`. */
export async function requireClaimable(request: ClaimRequest): Promise<void> {
  await claimant(request);
}

async function claimant(request: ClaimRequest): Promise<Claimant> {
  const { lend, store, warehouse } = request;
  return lend(async (db) => {
    const catalog = await loadWarehouse(db);
    if (catalog === null) throw new SpillwayError("catalog_missing", "this database has no Spillway catalog yet");
    if (catalog.location !== warehouse) throw mismatch(catalog.location, warehouse);
    const [owner, now] = [await readOwner(store, warehouse), await readIdentity(db)];
    const fault = claimFault(catalog, owner, now, request.adoptPromotion ?? false);
    if (fault !== null || owner === null) throw new SpillwayError("lake_not_ours", `${warehouse}: ${fault}`);
    return { catalog, owner, now };
  });
}

/** Why this server cannot even claim the lake, or null. A newer timeline is none, when promotions are gone along with. Pure. */
export function claimFault(
  catalog: WarehouseRow,
  owner: WarehouseRow | null,
  now: ServerIdentity,
  adoptPromotion: boolean,
): string | null {
  const seen = Math.max(catalog.timeline, owner?.timeline ?? 0);
  if (!adoptPromotion || owner === null || now.timeline <= seen || seen === 0) {
    return ownershipFault(catalog, owner, now);
  }
  const as = (row: WarehouseRow): WarehouseRow => ({ ...row, timeline: now.timeline });
  return ownershipFault(as(catalog), as(owner), now);
}

function isHolder({ catalog, owner, now }: Claimant): boolean {
  const is = (row: WarehouseRow): boolean =>
    row.instance === now.instance && (row.timeline === now.timeline || now.timeline === 0);
  return is(catalog) && is(owner) && now.instance !== 0n;
}

/** Throws `lake_not_ours` when somebody else renews: the object has a generation then that this catalog does not know. */
async function watch(request: ClaimRequest, { owner }: Claimant): Promise<void> {
  const { store, warehouse, clock, signal } = request;
  const watchMs = request.watchMs ?? WATCH_MS;
  request.onWatch?.(watchMs);
  const endMs = clock.monotonicMs() + watchMs;
  for (let leftMs = watchMs; leftMs > 0; leftMs = endMs - clock.monotonicMs()) {
    await clock.sleep(Math.min(POLL_MS, leftMs), signal);
    const now = await readOwner(store, warehouse);
    if (signal?.aborted)
      throw new SpillwayError("interrupted", "stopped while the lake's ownership object was watched");
    if (now?.generation === owner.generation && now.instance === owner.instance && now.lineage === owner.lineage)
      continue;
    // Somebody is alive. What a former leader of this catalog still had under way does not count; then it is watched again.
    return watch(request, await claimant(request));
  }
}

/**
 * Raises the generation, in the catalog and then in the store. Done by the leader again and again. `also` is run in the same
 * transaction. Throws `lake_not_ours`; `lake_unclaimed` when the server is not the one any more that claimed it.
 */
export async function renewOwnership(
  client: pg.Client,
  store: ObjectStore,
  warehouse: string,
  clock: Clock,
  also: (tx: Db) => Promise<void>,
): Promise<void> {
  const found = await claimant({ lend: (work) => work(client), store, warehouse, clock, adoptPromotion: false });
  if (!isHolder(found)) {
    throw new SpillwayError(
      "lake_unclaimed",
      `${warehouse} was last claimed by a server that was started at another time`,
    );
  }
  // The last renewal was interrupted between its two steps: the second is done again.
  const behind = found.owner.generation < found.catalog.generation;
  if (behind) await store.put(ownerPath(warehouse), Buffer.from(printOwner(found.catalog, clock)));
  else await raise(client, { store, warehouse, clock }, found.catalog, also);
}

async function raise(
  client: pg.Client,
  { store, warehouse, clock }: Pick<ClaimRequest, "store" | "warehouse" | "clock">,
  row: WarehouseRow,
  also: (tx: Db) => Promise<void>,
): Promise<void> {
  const next = { ...row, generation: row.generation + 1n };
  await inTransaction(client, {}, async (tx) => {
    const { rowCount } = await tx.query(
      "update spillway.warehouse set generation = $2, timeline = $3, instance = $4 where generation = $1",
      [row.generation.toString(), next.generation.toString(), next.timeline, next.instance.toString()],
    );
    if (rowCount !== 1)
      throw new SpillwayError("lake_unclaimed", `${warehouse} was claimed by somebody else meanwhile`);
    await also(tx);
  });
  await store.put(ownerPath(warehouse), Buffer.from(printOwner(next, clock)));
}
