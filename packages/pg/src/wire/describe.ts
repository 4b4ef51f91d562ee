/**
 * What a statement takes and returns, without running it: Parse and Describe of the extended protocol.
 * Source: https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-EXT-QUERY
 */
import type { SpillwayError } from "@spillway/base/errors";
import type { Operation, RawConnection } from "./connection.ts";
import { guardOperation, parseRowDescription, type QueryOptions, type TextField } from "./query.ts";

export interface StatementShape {
  /** Type oids of $1, $2, … */
  readonly parameters: readonly number[];
  /** Null: it returns no rows. */
  readonly columns: readonly TextField[] | null;
}

/** Throws the server's error. `types`: oids of the parameters that are known; 0 = not known. */
export async function describeStatement(
  connection: RawConnection,
  sql: string,
  types: readonly number[] = [],
  options: QueryOptions = {},
): Promise<StatementShape> {
  const operation = new Describe();
  connection.begin(operation);
  connection.send(Buffer.concat([parseMessage(sql, types), DESCRIBE, SYNC]));
  const guard = guardOperation(connection, options);
  try {
    return await operation.done;
  } catch (error) {
    throw guard.reason() ?? error;
  } finally {
    await guard.release();
  }
}

class Describe implements Operation {
  readonly done: Promise<StatementShape>;
  #parameters: number[] = [];
  #columns: readonly TextField[] | null = null;
  #error: SpillwayError | null = null;
  #resolve: (shape: StatementShape) => void = () => {};
  #reject: (error: SpillwayError) => void = () => {};

  constructor() {
    this.done = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
  }

  message(type: number, buffer: Buffer, start: number): void {
    const letter = String.fromCharCode(type);
    if (letter === "t") {
      const count = buffer.readUInt16BE(start);
      this.#parameters = Array.from({ length: count }, (_, i) => buffer.readUInt32BE(start + 2 + i * 4));
    } else if (letter === "T") this.#columns = parseRowDescription(buffer, start);
    else if (letter === "Z") {
      if (this.#error) this.#reject(this.#error);
      else this.#resolve({ parameters: this.#parameters, columns: this.#columns });
    }
  }

  error(error: SpillwayError): void {
    this.#error ??= error;
  }

  fail(error: SpillwayError): void {
    this.#reject(error);
  }
}

function parseMessage(sql: string, types: readonly number[]): Buffer {
  const body = Buffer.alloc(2 + types.length * 4);
  body.writeUInt16BE(types.length, 0);
  types.forEach((oid, i) => body.writeUInt32BE(oid, 2 + i * 4));
  // An empty name: the statement is forgotten with the next one.
  return frame("P", Buffer.concat([Buffer.from(`\0${sql}\0`, "utf8"), body]));
}

function frame(type: string, body: Buffer): Buffer {
  const out = Buffer.alloc(5 + body.length);
  out.write(type, 0, "latin1");
  out.writeInt32BE(4 + body.length, 1);
  body.copy(out, 5);
  return out;
}

const DESCRIBE = frame("D", Buffer.from("S\0", "latin1"));
const SYNC = frame("S", Buffer.alloc(0));
