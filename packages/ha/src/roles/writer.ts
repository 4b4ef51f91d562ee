/**
 * Process entry of a writer in another network namespace: its argument is JSON `{uri, writer, everyMs}`. Prints
 * every acknowledgement as one JSON line, until its standard input closes.
 */
import { sharedClock } from "../client/shared-clock.ts";
import { Writer } from "../client/writer.ts";

const { uri, writer, everyMs } = JSON.parse(process.argv[2] ?? "{}") as {
  uri: string;
  writer: number;
  everyMs: number;
};
process.stdout.on("error", () => process.exit(0));
const client = new Writer({
  uri,
  writer,
  everyMs,
  clock: sharedClock,
  timeoutMs: 3_000,
  onAck: (ack) => void process.stdout.write(`${JSON.stringify(ack)}\n`),
});
client.start();
process.stdin.on("end", () => process.exit(0)).resume();
