import type { Setting } from "../config.ts";

export const SERVE_SETTINGS = {
  pgwireListen: {
    name: "pgwire-listen",
    type: "string",
    default: "127.0.0.1:5439",
    help: "Where `spillway serve` takes clients of the Postgres wire: host:port, or off.",
  } as Setting<string>,
  flightListen: {
    name: "flight-listen",
    type: "string",
    default: "127.0.0.1:31338",
    help: "Where `spillway serve` takes Arrow Flight SQL: host:port, or off.",
  } as Setting<string>,
  httpListen: {
    name: "http-listen",
    type: "string",
    default: "127.0.0.1:20900",
    help: "Where `spillway serve` answers health, readiness and metrics: host:port, or off.",
  } as Setting<string>,
  serveTlsCert: {
    name: "serve-tls-cert",
    type: "string",
    default: null,
    help: "PEM file of the certificate of all listeners of `spillway serve`; read again when it changes.",
  } as Setting<string | null>,
  serveTlsKey: {
    name: "serve-tls-key",
    type: "string",
    default: null,
    help: "PEM file of its private key.",
  } as Setting<string | null>,
  serveStateDir: {
    name: "serve-state-dir",
    type: "string",
    default: null,
    help: "A private folder for the sockets, caches and logs of local nodes, and the control database that is started without --control-url. Default: in the home folder.",
  } as Setting<string | null>,
} as const satisfies Record<string, Setting>;
