import type { Setting } from "../config.ts";

export const CATALOG_SETTINGS = {
  catalogListen: {
    name: "catalog-listen",
    type: "string",
    default: "127.0.0.1:8181",
    help: "host:port of the Iceberg REST catalog; outside loopback it needs a token and TLS.",
  } as Setting<string>,
  catalogToken: {
    name: "catalog-token",
    type: "string",
    default: null,
    secret: true,
    noFlag: true,
    help: "The bearer token that clients of the Iceberg REST catalog must send.",
  } as Setting<string | null>,
  catalogTokenFile: {
    name: "catalog-token-file",
    type: "string",
    default: null,
    help: "A file with that token; it is read once, at the start.",
  } as Setting<string | null>,
  catalogTlsCert: {
    name: "catalog-tls-cert",
    type: "string",
    default: null,
    help: "The PEM file of the certificate of the Iceberg REST catalog, with its chain.",
  } as Setting<string | null>,
  catalogTlsKey: {
    name: "catalog-tls-key",
    type: "string",
    default: null,
    help: "The PEM file of that certificate's private key.",
  } as Setting<string | null>,
} as const satisfies Record<string, Setting>;
