/**
 * A process that holds a replication slot as a pump does, until it is killed: for the tests of takeovers.
 * Arguments: URL, slot, publication. Says `streaming` once it streams.
 */
import { fileURLToPath } from "node:url";
import { connectRaw } from "@spillway/pg/wire/connect-raw";
import { RawConnection } from "@spillway/pg/wire/connection";
import { replicationTarget } from "@spillway/pg/replication/session";
import { ReplicationStream } from "@spillway/pg/replication/stream";

export const SLOT_HOLDER = fileURLToPath(import.meta.url);

if (process.argv[1] === SLOT_HOLDER) {
  const [url = "", slot = "", publication = ""] = process.argv.slice(2);
  const probe = await connectRaw(url);
  const target = replicationTarget(probe.target, "database");
  await probe.close();
  const connection = await RawConnection.open(target);
  const options = { slot, startLsn: 0n, publications: [publication] };
  const stream = await ReplicationStream.start(connection, options, { onChange: () => {}, onKeepalive: () => {} });
  process.stdout.write("streaming\n");
  await stream.ended;
}
