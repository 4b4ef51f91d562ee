/**
 * A process that campaigns, leads, and commits under its epoch as fast as it can, saying so: for the tests of the lease.
 * Arguments: URL, advisory key, interval in ms, and how: `work`, or `stop-in-commit` (stops itself between the fence and COMMIT).
 */
import { fileURLToPath } from "node:url";
import { systemClock } from "@spillway/base/clock";
import { messageOf } from "@spillway/base/errors";
import { randomHex } from "@spillway/base/ids";
import { silentLogger } from "@spillway/base/log";
import { connect } from "@spillway/pg/connect";
import { assertEpoch, campaign, type Lease } from "@spillway/pg/lease";
import type pg from "pg";
import { sleep } from "../wait.ts";

export const LEASE_HOLDER = fileURLToPath(import.meta.url);

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}

async function commitOnce(client: pg.Client, lease: Lease, how: string | undefined): Promise<void> {
  await client.query("BEGIN");
  await client.query("INSERT INTO work (epoch) VALUES ($1)", [lease.epoch.toString()]);
  await assertEpoch(client, lease);
  if (how === "stop-in-commit") {
    say("fenced");
    process.kill(process.pid, "SIGSTOP");
    // The signal is delivered at once, but this thread may run on for a moment.
    await sleep(50);
  }
  await client.query("COMMIT");
}

if (process.argv[1] === LEASE_HOLDER) {
  const [url = "", key = "0", interval = "0", how] = process.argv.slice(2);
  const holder = `child:${process.pid}:${randomHex(8)}`;
  const lease = await campaign({
    conninfo: url,
    key: BigInt(key),
    holder,
    intervalMs: Number(interval),
    clock: systemClock,
    log: silentLogger,
    onLost: (reason) => say(`lost: ${reason.message}`),
  });
  // The name is the lease's, so that a successor can end this session too.
  const client = await connect(url, { applicationName: how === "stop-in-commit" ? holder : "bystander" });
  say(`leading ${lease.epoch}`);
  // It goes on trying after the loss on purpose: nothing of that may be committed.
  for (let committed = 0; ;) {
    try {
      await commitOnce(client, lease, how);
      committed += 1;
      if (committed === 1) say("committed");
    } catch (error) {
      await client.query("ROLLBACK").catch(() => {});
      say(`refused: ${messageOf(error)}`);
      await sleep(50);
    }
    await sleep(5);
  }
}
