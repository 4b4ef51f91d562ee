/** A clock whose monotonic times can be compared between the processes of one machine (CLOCK_MONOTONIC). */
import { systemClock, type Clock } from "@spillway/base/clock";

export const sharedClock: Clock = {
  monotonicMs: () => Number(process.hrtime.bigint()) / 1e6,
  wallMs: () => systemClock.wallMs(),
  sleep: (ms, signal) => systemClock.sleep(ms, signal),
};
