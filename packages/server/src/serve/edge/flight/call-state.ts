/** What commands and actions of one call share. */
import type { Caller } from "./auth.ts";
import type { FlightConnection } from "./connections.ts";
import type { Handles } from "./handles.ts";
import { bytesOf, type Message } from "./proto.ts";
import type { Running } from "./running.ts";

/** What an action or a command works with. */
export interface CallState {
  readonly caller: Caller;
  readonly connection: FlightConnection;
  readonly handles: Handles;
  readonly running: Running;
  readonly signal: AbortSignal;
  /** Ends the connection's state. */
  forget(): Promise<void>;
}

/** Hex of the transaction that a command names; null: none. */
export function transactionOf(values: Message): string | null {
  const id = bytesOf(values["transactionId"]);
  return id.length === 0 ? null : id.toString("hex");
}
