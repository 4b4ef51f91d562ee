/**
 * Fault points: named places where a test may kill the process, fail, or wait. The names are a typed
 * list (`FAULT_POINTS`), so that a test can visit every one. In production the switch is off and a
 * point costs one comparison.
 *
 * `SPILLWAY_FAULT=<point>:<action>[:<nth>]`, action = kill | stop | fail | exit, nth (default 1) = which visit.
 */
import { FAULT_POINTS, type FaultPoint } from "./fault-points.ts";

export { FAULT_POINTS, type FaultPoint } from "./fault-points.ts";

export type FaultAction = "kill" | "stop" | "fail" | "exit";

interface Armed {
  point: FaultPoint;
  action: FaultAction;
  visitsLeft: number;
}

let armed: Armed | null = null;

/** Arms one fault from its text form; `undefined` or empty disarms. Called once by a role at its start. */
export function armFault(text: string | undefined): void {
  if (!text) {
    armed = null;
    return;
  }
  const [point, action, nth] = text.split(":");
  if (!FAULT_POINTS.includes(point as FaultPoint)) throw new RangeError(`no such fault point: ${point}`);
  if (!["kill", "stop", "fail", "exit"].includes(action ?? "")) throw new RangeError(`no such fault action: ${action}`);
  armed = { point: point as FaultPoint, action: action as FaultAction, visitsLeft: Number(nth ?? "1") };
}

/** Marks a place between two steps of a movement. */
export function faultPoint(point: FaultPoint): void {
  if (armed === null || armed.point !== point) return;
  armed.visitsLeft -= 1;
  if (armed.visitsLeft > 0) return;
  const action = armed.action;
  armed = null;
  if (action === "kill") process.kill(process.pid, "SIGKILL");
  if (action === "stop") process.kill(process.pid, "SIGSTOP");
  if (action === "exit") process.exit(1);
  if (action === "fail") throw new Error(`fault injected at ${point}`);
}
