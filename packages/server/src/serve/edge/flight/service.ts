/**
 * Flight SQL over sessions (https://arrow.apache.org/docs/format/FlightSql.html): commands become statements of the caller's connection. A
 * ticket says everything that a run needs, so that any manager can redeem it; nothing runs before it is redeemed.
 */
import { randomUUID } from "node:crypto";
import type { Clock } from "@spillway/base/clock";
import { SpillwayError } from "@spillway/base/errors";
import type { Logger } from "@spillway/base/log";
import type { Sessions, WireParam } from "../../session/session.ts";
import { ACTIONS, runAction } from "./actions.ts";
import { type CallState, transactionOf } from "./call-state.ts";
import { type Caller, callerOf, type FlightAuth, handshake } from "./auth.ts";
import * as catalog from "./catalog-results.ts";
import { type ConnectionLimits, FlightConnections } from "./connections.ts";
import { decodeFlightData } from "./flight-data.ts";
import { type Handle, Handles } from "./handles.ts";
import { ingest } from "./ingest.ts";
import { openPut, paramRows, type PutStream } from "./params.ts";
import { bytesOf, decodeCommand, decodeMessage, encodeCommand, encodeMessage, type Message, text } from "./proto.ts";
import { frames, runUpdate, schemaDigest, streamStatement, withStatement } from "./queries.ts";
import { Running } from "./running.ts";
import { EMPTY_SCHEMA } from "./schemas.ts";
import { type SmallColumn, type SmallResult, smallResult } from "./small-results.ts";
import { sqlInfo, xdbcTypeInfo } from "./sql-info.ts";
import type { CallContext, FlightService } from "./transport.ts";

export interface ServiceOptions {
  readonly sessions: Sessions;
  readonly auth: FlightAuth;
  /** Signs handles and tickets: the same at all managers. */
  readonly secret: Buffer;
  /** The database of a caller who names none. */
  readonly defaultDatabase: (caller: Caller) => Promise<string> | string;
  readonly version: string;
  readonly clock: Clock;
  readonly log: Logger;
  readonly limits?: ConnectionLimits;
}

/** Rows of parameters of one call. */
const MAX_PARAM_ROWS = 100_000;
/** Parameters that fit into a handle, so that they need no memory here. */
const HANDLE_PARAM_BYTES = 16 << 10;
/** How long a call that has its answer waits for the end of the client's side. */
const DRAIN_MS = 5000;

export class FlightSqlService implements FlightService {
  readonly #options: ServiceOptions;
  readonly #connections: FlightConnections;
  readonly #handles: Handles;
  readonly #running = new Running();

  constructor(options: ServiceOptions) {
    this.#options = options;
    this.#handles = new Handles(options.secret);
    this.#connections = new FlightConnections(options.clock, options.log, options.limits);
  }

  get connections(): number {
    return this.#connections.size;
  }

  sweep(): Promise<void> {
    return this.#connections.sweep();
  }

  close(): Promise<void> {
    return this.#connections.close();
  }

  async *handshake(call: CallContext, requests: AsyncIterable<Buffer>): AsyncIterable<Buffer> {
    for await (const { token } of handshake(this.#options.auth, call, requests)) {
      yield encodeMessage("HandshakeResponse", { protocolVersion: 0, payload: Buffer.from(token) });
    }
  }

  async getFlightInfo(call: CallContext, request: Buffer): Promise<Buffer> {
    return encodeMessage("FlightInfo", await this.#info(await this.#state(call), request));
  }

  async pollFlightInfo(call: CallContext, request: Buffer): Promise<Buffer> {
    const info = await this.#info(await this.#state(call), request);
    return encodeMessage("PollInfo", { info, progress: 1 });
  }

  async getSchema(call: CallContext, request: Buffer): Promise<Buffer> {
    const { schema } = await this.#info(await this.#state(call), request);
    return encodeMessage("SchemaResult", { schema });
  }

  async *doGet(call: CallContext, request: Buffer): AsyncIterable<Buffer> {
    const state = await this.#state(call);
    const { name, values } = decodeCommand(bytesOf(decodeMessage("Ticket", request)["ticket"]));
    const handle = this.#handleOf(state, name, values);
    if (handle === null) {
      yield* frames(await this.#catalog(state, name, values));
      return;
    }
    const bound = handle.params ?? state.connection.boundTo(handle.id)?.[0];
    const { signal, done } = this.#running.start(state.caller.principal.userId, handle.id, call.signal);
    try {
      const { sql, transaction, schema = null } = handle;
      yield* streamStatement(
        state.connection,
        { sql, transaction, schema, ...(bound ? { params: bound } : {}) },
        signal,
      );
    } finally {
      done();
    }
  }

  async *doPut(call: CallContext, requests: AsyncIterable<Buffer>): AsyncIterable<Buffer> {
    const state = await this.#state(call);
    const source = requests[Symbol.asyncIterator]();
    const { done, value: first } = await source.next();
    const descriptor = done === true ? null : decodeFlightData(first as Buffer).descriptor;
    if (descriptor === null) {
      throw new SpillwayError("flight_request_invalid", "The first message of a DoPut has no descriptor.");
    }
    const { name, values } = decodeCommand(bytesOf(decodeMessage("FlightDescriptor", descriptor)["cmd"]));
    if (name === "CommandStatementUpdate") {
      // Some clients end their side only when they have the answer.
      const request = { sql: text(values["query"]), transaction: transactionOf(values) };
      yield putResult(updateResult(await runUpdate(state.connection, request, [[]], state.signal)));
    } else {
      yield putResult(await this.#put(state, name, values, await openPut(first as Buffer, source)));
    }
    // Others write to the end before they read, and fail when the call is over before.
    await drain(source);
  }

  async *doAction(call: CallContext, request: Buffer): AsyncIterable<Buffer> {
    const action = decodeMessage("Action", request);
    const state = await this.#state(call);
    for (const body of await runAction(state, text(action["type"]), bytesOf(action["body"]))) {
      yield encodeMessage("Result", { body });
    }
  }

  async *listActions(call: CallContext): AsyncIterable<Buffer> {
    await callerOf(this.#options.auth, call);
    for (const [type, description] of Object.entries(ACTIONS)) yield encodeMessage("ActionType", { type, description });
  }

  async #state(call: CallContext): Promise<CallState> {
    const caller = await callerOf(this.#options.auth, call);
    const database = call.header("database") || (await this.#options.defaultDatabase(caller));
    const key = `${caller.key}\0${database}`;
    const connection = this.#connections.get(key, () => ({
      sessions: this.#options.sessions,
      principal: caller.principal,
      database,
      application: call.header("user-agent"),
      address: call.address,
    }));
    return {
      caller,
      connection,
      handles: this.#handles,
      running: this.#running,
      signal: call.signal,
      forget: () => this.#connections.drop(key),
    };
  }

  /** A `FlightInfo`: one endpoint, which is wherever the client is connected. */
  async #info(state: CallState, request: Buffer): Promise<Message> {
    const descriptor = decodeMessage("FlightDescriptor", request);
    const { name, values } = decodeCommand(bytesOf(descriptor["cmd"]));
    const { schema, ticket } = await this.#plan(state, name, values, bytesOf(descriptor["cmd"]));
    return {
      schema,
      flightDescriptor: descriptor,
      endpoint: [{ ticket: { ticket } }],
      totalRecords: -1,
      totalBytes: -1,
      ordered: true,
    };
  }

  async #plan(
    state: CallState,
    name: string,
    values: Message,
    command: Buffer,
  ): Promise<{ schema: Buffer; ticket: Buffer }> {
    if (name === "CommandStatementQuery") {
      const [sql, transaction] = [text(values["query"]), transactionOf(values)];
      const schema = await this.#schemaOf(state, sql, transaction);
      const handle = this.#handles.seal({
        kind: "statement",
        user: state.caller.principal.userId,
        sql,
        transaction,
        id: randomUUID(),
        schema: schemaDigest(schema),
      });
      return { schema, ticket: encodeCommand("TicketStatementQuery", { statementHandle: handle }) };
    }
    if (name === "CommandPreparedStatementQuery") {
      const { sql, transaction } = must(this.#handleOf(state, name, values));
      return { schema: await this.#schemaOf(state, sql, transaction), ticket: command };
    }
    const columns = CATALOG_COLUMNS[name]?.(values);
    if (columns) return { schema: smallResult(columns, []).schema, ticket: command };
    return { schema: (await this.#catalog(state, name, values)).schema, ticket: command };
  }

  #schemaOf(state: CallState, sql: string, transaction: string | null): Promise<Buffer> {
    return withStatement(state.connection, { sql, transaction }, state.signal, async (_session, prepared) =>
      Promise.resolve(prepared.arrowSchema ?? EMPTY_SCHEMA),
    );
  }

  /** Null: not a statement. */
  #handleOf(state: CallState, name: string, values: Message): Handle | null {
    const user = state.caller.principal.userId;
    if (name === "TicketStatementQuery")
      return this.#handles.open(bytesOf(values["statementHandle"]), "statement", user);
    if (name === "CommandPreparedStatementQuery" || name === "CommandPreparedStatementUpdate") {
      return this.#handles.open(bytesOf(values["preparedStatementHandle"]), "prepared", user);
    }
    if (name !== "CommandStatementQuery") return null;
    return {
      kind: "statement",
      user,
      sql: text(values["query"]),
      transaction: transactionOf(values),
      id: randomUUID(),
    };
  }

  async #catalog(state: CallState, name: string, values: Message): Promise<SmallResult> {
    switch (name) {
      case "CommandGetSqlInfo":
        return sqlInfo(Array.isArray(values["info"]) ? values["info"].map(Number) : [], this.#options.version);
      case "CommandGetXdbcTypeInfo":
        return xdbcTypeInfo(typeof values["dataType"] === "number" ? values["dataType"] : null);
      case "CommandGetTableTypes":
        return catalog.tableTypes();
      case "CommandGetImportedKeys":
      case "CommandGetExportedKeys":
      case "CommandGetCrossReference":
        return catalog.foreignKeys();
    }
    const lent = await state.connection.lend(null, false, state.signal);
    try {
      switch (name) {
        case "CommandGetCatalogs":
          return catalog.catalogs(lent.session);
        case "CommandGetDbSchemas":
          return await catalog.schemas(lent.session, values);
        case "CommandGetTables":
          return await catalog.tables(lent.session, values);
        case "CommandGetPrimaryKeys":
          return await catalog.primaryKeys(lent.session, values);
        default:
          throw new SpillwayError("flight_unsupported", `The command ${name} gives no rows.`);
      }
    } finally {
      lent.release();
    }
  }

  async #put(state: CallState, name: string, values: Message, stream: PutStream): Promise<Buffer> {
    const { connection, signal } = state;
    if (name === "CommandStatementIngest") return updateResult(await this.#ingest(state, values, stream));
    if (name !== "CommandPreparedStatementUpdate" && name !== "CommandPreparedStatementQuery") {
      throw new SpillwayError("flight_unsupported", `The command ${name} takes no rows.`);
    }
    const handle = must(this.#handleOf(state, name, values));
    // Without columns no rows come, and some clients end their side only when they have the answer.
    const rows = (stream.columns ?? []).length === 0 ? [] : await paramRows(stream, MAX_PARAM_ROWS);
    if (name === "CommandPreparedStatementQuery") return this.#bind(state, handle, rows);
    const given = rows.length > 0 ? rows : (connection.boundTo(handle.id) ?? [handle.params ?? []]);
    return updateResult(await runUpdate(connection, handle, given, signal));
  }

  /** The new handle holds the values, for any manager; the old one means them here, for clients that keep it. */
  #bind(state: CallState, handle: Handle, rows: readonly (readonly WireParam[])[]): Buffer {
    if (rows.length > 1) {
      throw new SpillwayError("flight_unsupported", "A query takes one row of parameters.");
    }
    const [params] = rows;
    state.connection.bind(handle.id, rows);
    if (!params) return encodeMessage("DoPutPreparedStatementResult", {});
    const sealed = this.#handles.seal({ ...handle, params });
    return encodeMessage(
      "DoPutPreparedStatementResult",
      sealed.length > HANDLE_PARAM_BYTES ? {} : { preparedStatementHandle: sealed },
    );
  }

  async #ingest(state: CallState, values: Message, stream: PutStream): Promise<number> {
    const { connection, signal } = state;
    const given = transactionOf(values);
    const transaction = given ?? (await connection.begin());
    let rows: number;
    try {
      const lent = await connection.lend(transaction, true, signal);
      try {
        rows = await ingest(lent.session, values, stream);
      } finally {
        lent.release();
      }
    } catch (error) {
      if (given === null) await connection.end(transaction, "ROLLBACK", signal).catch(() => {});
      throw error;
    }
    if (given === null) await connection.end(transaction, "COMMIT", signal);
    return rows;
  }
}

/** Of commands whose columns are known without asking anybody. */
const CATALOG_COLUMNS: Readonly<Record<string, (values: Message) => readonly SmallColumn[]>> = {
  CommandGetCatalogs: () => catalog.CATALOGS,
  CommandGetDbSchemas: () => catalog.SCHEMAS,
  CommandGetTables: (values) => (values["includeSchema"] === true ? catalog.TABLES_WITH_SCHEMA : catalog.TABLES),
  CommandGetPrimaryKeys: () => catalog.PRIMARY_KEYS,
};

/** Takes what a client still sends, for a while. */
async function drain(source: AsyncIterator<Buffer>): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<true>((resolve) => {
    timer = setTimeout(() => resolve(true), DRAIN_MS);
    timer.unref();
  });
  for (;;) {
    const next = await Promise.race([source.next(), late]);
    if (next === true || next.done === true) break;
  }
  clearTimeout(timer);
}

function putResult(appMetadata: Buffer): Buffer {
  return encodeMessage("PutResult", { appMetadata });
}

function updateResult(rows: number): Buffer {
  return encodeMessage("DoPutUpdateResult", { recordCount: rows });
}

function must(handle: Handle | null): Handle {
  if (handle === null) throw new SpillwayError("flight_handle_invalid", "The command has no handle.");
  return handle;
}
