/** Runs the command line with a fault armed at one of the named points (`@spillway/base/fault`). */
import { FAULT_POINTS, type FaultAction, type FaultPoint } from "@spillway/base/fault";
import { type ProcessOptions, type ProcessResult, runCli, spawnCli, type TestProcess } from "./processes.ts";

export interface Fault {
  readonly point: FaultPoint;
  readonly action: FaultAction;
  /** At which visit; default the first. */
  readonly nth?: number;
}

/** The points whose name begins with `prefix`, in the order in which a movement passes them. Never empty. */
export function faultPointsOf(prefix: string): FaultPoint[] {
  const points = FAULT_POINTS.filter((point) => point.startsWith(prefix));
  if (points.length === 0) throw new Error(`no fault point begins with ${prefix}`);
  return points;
}

export function faultEnv(fault: Fault): { SPILLWAY_FAULT: string } {
  return { SPILLWAY_FAULT: `${fault.point}:${fault.action}:${fault.nth ?? 1}` };
}

export function spawnCliWithFault(fault: Fault, args: readonly string[], options: ProcessOptions = {}): TestProcess {
  return spawnCli(args, { ...options, env: { ...options.env, ...faultEnv(fault) } });
}

export async function runCliWithFault(
  fault: Fault,
  args: readonly string[],
  options: ProcessOptions & { readonly timeoutMs?: number } = {},
): Promise<ProcessResult> {
  return runCli(args, { ...options, env: { ...options.env, ...faultEnv(fault) } });
}
