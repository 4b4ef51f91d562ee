/** What a process of this package is given: streams, clock, signals. */
import { systemClock } from "@spillway/base/clock";
import type { Io } from "../commands/command.ts";

export function processIo(): Io {
  const controller = new AbortController();
  for (const name of ["SIGINT", "SIGTERM"] as const) process.on(name, () => controller.abort());
  // A reader that went away (`… | head`) is no failure.
  process.stdout.on("error", () => controller.abort());
  process.stderr.on("error", () => {});
  return {
    out: (line) => void process.stdout.write(`${line}\n`),
    err: (line) => void process.stderr.write(`${line}\n`),
    env: process.env,
    clock: systemClock,
    signal: controller.signal,
  };
}
