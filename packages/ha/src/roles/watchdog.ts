/** Process entry of the watchdog: `watchdog <beat file> <pgdata> <keeper state directory>`. */
import { existsSync } from "node:fs";
import { watch } from "../watchdog/watchdog.ts";

const [beatFile = "", pgdata = "", stateDir = ""] = process.argv.slice(2);
process.title = "spillway-ha watchdog";
for (const signal of ["SIGHUP", "SIGINT", "SIGPIPE"] as const) process.on(signal, () => {});
process.stderr.on("error", () => {});

await watch({
  beatFile,
  pgdata,
  sleep: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
  nowNs: () => process.hrtime.bigint(),
  say: (text) => void process.stderr.write(`${new Date().toISOString()} WARN  watchdog ${text}\n`),
  // The node was dropped or its test directory removed: nothing is left to watch.
  goOn: () => existsSync(stateDir),
});
