/** Sessions over one source in this process: for tests of the edges, and for a manager without pools. */
import type { Clock } from "@spillway/base/clock";
import type { Seam } from "../../seam/seam.ts";
import { NodeExecutor } from "../node/executor.ts";
import { ClientSession, type Guard } from "./client-session.ts";
import type { Principal, ServeSession, SessionOptions, Sessions } from "./session.ts";

/** Everything is allowed. */
export const OWNER: Guard = { check: () => Promise.resolve(null) };

export interface InProcessOptions {
  readonly seam: Seam;
  readonly clock: Clock;
  readonly guard?: Guard;
}

export function inProcessSessions({
  seam,
  clock,
  guard = OWNER,
}: InProcessOptions): Sessions & { close(): Promise<void> } {
  const runner = new NodeExecutor({ seam, clock });
  const open = new Set<ServeSession>();
  return {
    open: (principal: Principal, options: SessionOptions) => {
      const session = new ClientSession({
        ...options,
        principal,
        runner,
        guard,
        clock,
        outcome: (id) => seam.outcome(id),
        onClose: (closed) => open.delete(closed),
      });
      open.add(session);
      return Promise.resolve(session);
    },
    close: async () => {
      for (const session of open) await session.close();
      await runner.close();
    },
  };
}
