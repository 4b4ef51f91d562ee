/**
 * Hooks on role change: a program of the operator's, run with the new role as its arguments, bounded in
 * time, never waited for by anything. One at a time, in order; when several changes pile up, only the
 * newest is run, since a hook acts on what is and not on what was.
 */
import { messageOf } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import type { State } from "../fsm/states.ts";
import { isWritable } from "../fsm/states.ts";
import { runProgram, tellingLine } from "../postgres/programs.ts";

export type Role = "primary" | "standby" | "none";

const STANDBY_STATES: ReadonlySet<State> = new Set<State>(["catchingup", "secondary", "wait_maintenance"]);
const HOOK_TIMEOUT_MS = 10_000;

export function roleOf(state: State): Role {
  if (isWritable(state)) return "primary";
  return STANDBY_STATES.has(state) ? "standby" : "none";
}

export interface HookFacts {
  readonly program: string | null;
  readonly formation: string;
  readonly name: string;
  readonly host: string;
  readonly port: number;
}

export class RoleHooks {
  readonly #facts: HookFacts;
  readonly #log: Logger;
  #role: Role | null = null;
  #pending: { role: Role; state: State } | null = null;
  #running = false;

  constructor(facts: HookFacts, log: Logger) {
    this.#facts = facts;
    this.#log = log;
  }

  /** The node is in this state now. The first call only remembers. */
  onState(state: State): void {
    const role = roleOf(state);
    const before = this.#role;
    this.#role = role;
    if (before === null || before === role || this.#facts.program === null) return;
    this.#pending = { role, state };
    if (!this.#running) void this.#drain(this.#facts.program);
  }

  async #drain(program: string): Promise<void> {
    this.#running = true;
    for (let next = this.#pending; next !== null; next = this.#pending) {
      this.#pending = null;
      const { formation, name, host, port } = this.#facts;
      try {
        const result = await runProgram(program, [next.role, next.state, formation, name, `${host}:${port}`], {
          timeoutMs: HOOK_TIMEOUT_MS,
          env: {
            SPILLWAY_ROLE: next.role,
            SPILLWAY_STATE: next.state,
            SPILLWAY_FORMATION: formation,
            SPILLWAY_NODE: name,
          },
        });
        const fields = { role: next.role, code: result.code, signal: result.signal, said: tellingLine(result.stderr) };
        if (result.code === 0) this.#log.info("hook done", { role: next.role });
        else this.#log.warn("hook failed", fields);
      } catch (error) {
        this.#log.warn("hook failed", { role: next.role, error: messageOf(error) });
      }
    }
    this.#running = false;
  }
}
