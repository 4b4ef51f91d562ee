/**
 * Leases in the control database, by its clock: whatever must happen once (a pool's nodes, its scaling, a database that is
 * made) is done by the holder. Whoever acts on one checks it in the transaction that acts: `requireLease`.
 */
import { SpillwayError } from "@spillway/base/errors";
import type { Db } from "../catalog/catalog.ts";

export interface HeldLease {
  readonly name: string;
  readonly holder: string;
  readonly epoch: bigint;
}

/** Takes a free or lapsed lease, or renews one's own; null while another has it. The epoch rises with every new holder. */
export async function takeLease(db: Db, name: string, holder: string, ttlMs: number): Promise<HeldLease | null> {
  const { rows } = await db.query<{ epoch: bigint }>(
    `INSERT INTO spillway_control.lease AS l (name, holder, epoch, expires_at)
     VALUES ($1, $2, 1, clock_timestamp() + $3 * interval '1 ms')
     ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at,
       epoch = CASE WHEN l.holder = excluded.holder AND l.expires_at > clock_timestamp() THEN l.epoch ELSE l.epoch + 1 END
     WHERE l.holder = excluded.holder OR l.expires_at <= clock_timestamp()
     RETURNING epoch`,
    [name, holder, ttlMs],
  );
  return rows[0] ? { name, holder, epoch: rows[0].epoch } : null;
}

/** Locks the row for the rest of the transaction. Throws `control_unavailable` when the lease is another's by now. */
export async function requireLease(tx: Db, lease: HeldLease): Promise<void> {
  const { rows } = await tx.query(
    `SELECT FROM spillway_control.lease WHERE name = $1 AND holder = $2 AND epoch = $3 AND expires_at > clock_timestamp()
     FOR UPDATE`,
    [lease.name, lease.holder, lease.epoch.toString()],
  );
  if (rows.length === 0) throw new SpillwayError("control_unavailable", `the lease ${lease.name} is not held any more`);
}

export async function releaseLease(db: Db, lease: HeldLease): Promise<void> {
  await db.query(
    "UPDATE spillway_control.lease SET expires_at = clock_timestamp() WHERE name = $1 AND holder = $2 AND epoch = $3",
    [lease.name, lease.holder, lease.epoch.toString()],
  );
}
