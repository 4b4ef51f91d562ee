/** The messages that a server sends. Source: https://www.postgresql.org/docs/current/protocol-message-formats.html */
import type { WireColumn } from "../../session/session.ts";
import type { Format } from "./cell-writers.ts";
import type { OutBuffer } from "./out-buffer.ts";
import { typeLength } from "./types.ts";

export type TransactionStatus = "I" | "T" | "E";

export function writeAuthentication(out: OutBuffer, code: number, data?: Uint8Array): void {
  out.begin("R").int32(code);
  if (data) out.bytes(data);
  out.end();
}

export function writeParameterStatus(out: OutBuffer, name: string, value: string): void {
  out.begin("S").zeroed(name).zeroed(value).end();
}

export function writeBackendKey(out: OutBuffer, processId: number, key: Uint8Array): void {
  out.begin("K").int32(processId).bytes(key).end();
}

export function writeNegotiateProtocol(out: OutBuffer, version: number, options: readonly string[]): void {
  out.begin("v").int32(version).int32(options.length);
  for (const option of options) out.zeroed(option);
  out.end();
}

export function writeReady(out: OutBuffer, status: TransactionStatus): void {
  out.begin("Z").byte(status.charCodeAt(0)).end();
}

export function writeComplete(out: OutBuffer, tag: string): void {
  out.begin("C").zeroed(tag).end();
}

/** A message without a body: ParseComplete `1`, BindComplete `2`, CloseComplete `3`, NoData `n`, PortalSuspended `s`, … */
export function writeBare(out: OutBuffer, type: string): void {
  out.begin(type).end();
}

export function writeParameterDescription(out: OutBuffer, oids: readonly number[]): void {
  out.begin("t").int16(oids.length);
  for (const oid of oids) out.int32(oid);
  out.end();
}

export function writeRowDescription(out: OutBuffer, columns: readonly WireColumn[], formats: readonly Format[]): void {
  out.begin("T").int16(columns.length);
  for (const [i, column] of columns.entries()) {
    out.zeroed(column.name).int32(0).int16(0).int32(column.typeOid);
    out
      .int16(typeLength(column.typeOid))
      .int32(column.typmod)
      .int16(formats[i] ?? 0);
  }
  out.end();
}
