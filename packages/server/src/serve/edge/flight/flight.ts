/** The Arrow Flight SQL listener of a manager. */
import type { Clock } from "@spillway/base/clock";
import { FlightSqlService, type ServiceOptions } from "./service.ts";
import { startTransport, type TransportOptions } from "./transport.ts";

export interface FlightServerOptions extends ServiceOptions, TransportOptions {
  readonly clock: Clock;
}

export interface FlightServer {
  readonly port: number;
  /** Tokens with state here. */
  readonly connections: () => number;
  /** Calls under way may finish for so long. */
  stop(graceMs: number): Promise<void>;
}

const SWEEP_MS = 60_000;

/** Throws `serve_listen_failed`. */
export async function startFlightServer(options: FlightServerOptions): Promise<FlightServer> {
  const service = new FlightSqlService(options);
  const transport = await startTransport(service, options);
  const timer = setInterval(() => void service.sweep(), SWEEP_MS);
  timer.unref();
  options.log.info("flight.listening", { host: options.host, port: transport.port, tls: options.tls !== null });
  return {
    port: transport.port,
    connections: () => service.connections,
    stop: async (graceMs) => {
      clearInterval(timer);
      await transport.stop(graceMs);
      await service.close();
      options.log.info("flight.stopped");
    },
  };
}

export type { FlightAuth } from "./auth.ts";
