/** A process of its own that starts a server, says so, and waits to be killed: for the tests of the reaper. */
import { fileURLToPath } from "node:url";
import { startPostgres } from "../postgres.ts";
import { TestProcess } from "../processes.ts";

export const HOLD_SERVER = fileURLToPath(import.meta.url);

if (process.argv[1] === HOLD_SERVER) {
  const server = await startPostgres();
  const sleeper = new TestProcess("sleep", ["600"]);
  process.stdout.write(`${JSON.stringify({ pid: server.pid, dir: server.socketDir, sleeper: sleeper.pid })}\n`);
  const how = process.argv[2];
  if (how === "exit") process.exit(0);
  if (how === "throw") throw new Error("on purpose");
  if (how === "hang-server") server.signalAll("SIGSTOP");
  setInterval(() => {}, 1000);
}
