/** Results as an edge sees them. */
import type { ColumnBatch, ColumnSpec } from "@spillway/base/columns";
import { SpillwayError } from "@spillway/base/errors";
import { decodeArrowBatch, encodeArrowBatch, encodeArrowSchema, ownArrowFields } from "../../engine/engine.ts";
import type { NodeResult } from "../node/request.ts";
import { textBatch, textColumns } from "../node/text-rows.ts";
import type { RunResult, WireColumn } from "./session.ts";

export function specsOf(columns: readonly WireColumn[]): ColumnSpec[] {
  return columns.map(({ name, kind, decimal }) => (decimal ? { name, kind, decimal } : { name, kind }));
}

/** `onEnd` is told once how the result ended: null when its last byte was given, or it has none. */
export function resultOf(node: NodeResult, onEnd: (error: unknown) => void): RunResult {
  let settle: { resolve: (rows: number) => void; reject: (error: unknown) => void } = {
    resolve: () => {},
    reject: () => {},
  };
  const rowCount = new Promise<number>((resolve, reject) => (settle = { resolve, reject }));
  rowCount.catch(() => {});
  let ended = false;
  const end = (error: unknown): void => {
    if (ended) return;
    ended = true;
    if (error === null) settle.resolve(node.stats().rows);
    else settle.reject(error);
    onEnd(error);
  };
  async function* messages(): AsyncIterable<Buffer> {
    try {
      yield* node.messages();
      end(null);
    } catch (error) {
      end(error);
      throw error;
    } finally {
      if (!ended) await close();
    }
  }
  const close = async (): Promise<void> => {
    if (!ended) {
      await node.close().catch(() => {});
      end(new SpillwayError("statement_canceled", "The result was given up.", { details: { sqlstate: "57014" } }));
    }
  };
  if (node.columns === null) end(null);
  return {
    command: node.command,
    columns: node.columns,
    arrowSchema: node.arrowSchema,
    messages,
    batches: () => decode(messages(), node.columns ?? []),
    rowCount,
    close,
  };
}

async function* decode(messages: AsyncIterable<Buffer>, columns: readonly WireColumn[]): AsyncIterable<ColumnBatch> {
  const fields = ownArrowFields(specsOf(columns));
  for await (const message of messages) yield decodeArrowBatch(fields, message);
}

/** An answer of the session itself. */
export function textResult(
  command: string,
  names: readonly string[],
  rows: readonly (readonly (string | null)[])[],
): NodeResult {
  const fields = names.map((name) => ({ name, typeOid: 25, typmod: -1 }));
  const columns = textColumns(fields);
  const message = rows.length === 0 ? [] : [encodeArrowBatch([textBatch(fields, rows)])];
  return {
    command,
    columns,
    parameters: [],
    arrowSchema: encodeArrowSchema(specsOf(columns)),
    messages: () => each(message),
    stats: () => ({ rows: rows.length, bytes: 0, engineMs: 0 }),
    close: () => Promise.resolve(),
  };
}

export function emptyResult(command: string, rows = 0): NodeResult {
  return {
    command,
    columns: null,
    parameters: [],
    arrowSchema: null,
    messages: () => each([]),
    stats: () => ({ rows, bytes: 0, engineMs: 0 }),
    close: () => Promise.resolve(),
  };
}

async function* each(messages: readonly Buffer[]): AsyncIterable<Buffer> {
  yield* messages;
}
