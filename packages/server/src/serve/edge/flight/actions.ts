/** The actions of Flight and Flight SQL. Flight SQL's bodies are wrapped in `Any`, Flight's are not. */
import { randomUUID } from "node:crypto";
import { SpillwayError } from "@spillway/base/errors";
import { quoteIdent, quoteLiteral } from "@spillway/pg/quote";
import { type CallState, transactionOf } from "./call-state.ts";
import { runText } from "./connections.ts";
import {
  bytesOf,
  decodeCommand,
  decodeMessage,
  encodeCommand,
  encodeMessage,
  type Message,
  text,
  textList,
} from "./proto.ts";
import { withStatement } from "./queries.ts";
import { arrowSchemaOf, EMPTY_SCHEMA } from "./schemas.ts";

export const ACTIONS: Readonly<Record<string, string>> = {
  CreatePreparedStatement: "Plans a statement; its handle can be run by any manager",
  ClosePreparedStatement: "Forgets a prepared statement",
  BeginTransaction: "Begins a transaction of its own",
  EndTransaction: "Commits or rolls back a transaction",
  BeginSavepoint: "Sets a savepoint in a transaction",
  EndSavepoint: "Releases a savepoint, or rolls back to it",
  CancelQuery: "Ends a running query (older clients)",
  CancelFlightInfo: "Ends a running query",
  SetSessionOptions: "Sets options of the session",
  GetSessionOptions: "Tells the options of the session",
  CloseSession: "Ends the session",
};

const COMMIT = 1;
const CANCELLED = 1;
const NOT_CANCELLABLE = 3;
const INVALID_NAME = 1;
const INVALID_VALUE = 2;
const CLOSED = 1;
const SHOWN = ["search_path", "TimeZone", "application_name", "statement_timeout"] as const;

/** The bodies of the results. */
export async function runAction(state: CallState, type: string, body: Buffer): Promise<Buffer[]> {
  switch (type) {
    case "CreatePreparedStatement":
      return [await createPrepared(state, decodeCommand(body).values)];
    case "ClosePreparedStatement": {
      const handle = bytesOf(decodeCommand(body).values["preparedStatementHandle"]);
      state.connection.unbind(state.handles.open(handle, "prepared", state.caller.principal.userId).id);
      return [];
    }
    case "BeginTransaction": {
      const id = await state.connection.begin();
      return [encodeCommand("ActionBeginTransactionResult", { transactionId: Buffer.from(id, "hex") })];
    }
    case "EndTransaction": {
      const { values } = decodeCommand(body);
      await state.connection.end(
        transaction(values),
        values["action"] === COMMIT ? "COMMIT" : "ROLLBACK",
        state.signal,
      );
      return [];
    }
    case "BeginSavepoint":
      return [await beginSavepoint(state, decodeCommand(body).values)];
    case "EndSavepoint":
      await endSavepoint(state, decodeCommand(body).values);
      return [];
    case "CancelQuery": {
      const info = decodeMessage("FlightInfo", bytesOf(decodeCommand(body).values["info"]));
      return [encodeCommand("ActionCancelQueryResult", { result: cancel(state, info) })];
    }
    case "CancelFlightInfo": {
      const info = decodeMessage("CancelFlightInfoRequest", body)["info"] as Message | undefined;
      return [encodeMessage("CancelFlightInfoResult", { status: cancel(state, info ?? {}) })];
    }
    case "SetSessionOptions":
      return [await setOptions(state, decodeMessage("SetSessionOptionsRequest", body))];
    case "GetSessionOptions":
      return [await getOptions(state)];
    case "CloseSession":
      await state.forget();
      return [encodeMessage("CloseSessionResult", { status: CLOSED })];
    default:
      throw new SpillwayError("flight_unsupported", `The action ${JSON.stringify(type.slice(0, 80))} is not offered.`);
  }
}

async function createPrepared(state: CallState, values: Message): Promise<Buffer> {
  const [sql, inTransaction] = [text(values["query"]), transactionOf(values)];
  const described = await withStatement(
    state.connection,
    { sql, transaction: inTransaction },
    state.signal,
    async (_session, prepared) =>
      Promise.resolve({
        datasetSchema: prepared.columns === null ? Buffer.alloc(0) : (prepared.arrowSchema ?? EMPTY_SCHEMA),
        parameterSchema: arrowSchemaOf(prepared.parameters),
        isUpdate: prepared.columns === null,
      }),
  );
  const handle = state.handles.seal({
    kind: "prepared",
    user: state.caller.principal.userId,
    sql,
    transaction: inTransaction,
    id: randomUUID(),
  });
  return encodeCommand("ActionCreatePreparedStatementResult", { preparedStatementHandle: handle, ...described });
}

function transaction(values: Message): string {
  const id = transactionOf(values);
  if (id === null) throw new SpillwayError("flight_request_invalid", "The action names no transaction.");
  return id;
}

async function beginSavepoint(state: CallState, values: Message): Promise<Buffer> {
  const [id, name] = [transaction(values), text(values["name"])];
  if (name === "") throw new SpillwayError("flight_request_invalid", "The savepoint has no name.");
  await inTransaction(state, id, `SAVEPOINT ${quoteIdent(name)}`);
  const savepointId = state.handles.seal({
    kind: "savepoint",
    user: state.caller.principal.userId,
    sql: name,
    transaction: id,
    id: randomUUID(),
  });
  return encodeCommand("ActionBeginSavepointResult", { savepointId });
}

async function endSavepoint(state: CallState, values: Message): Promise<void> {
  const sealed = bytesOf(values["savepointId"]);
  const { sql: name, transaction: id } = state.handles.open(sealed, "savepoint", state.caller.principal.userId);
  if (id === null) throw new SpillwayError("flight_handle_invalid", "The savepoint is of no transaction.");
  const verb = values["action"] === 1 ? "RELEASE SAVEPOINT" : "ROLLBACK TO SAVEPOINT";
  await inTransaction(state, id, `${verb} ${quoteIdent(name)}`);
}

async function inTransaction(state: CallState, id: string, sql: string): Promise<void> {
  const lent = await state.connection.lend(id, true, state.signal);
  try {
    await runText(lent.session, sql);
  } finally {
    lent.release();
  }
}

/** By the ticket of the info's endpoint. */
function cancel({ caller, handles, running }: CallState, info: Message): number {
  const user = caller.principal.userId;
  const endpoints = Array.isArray(info["endpoint"]) ? (info["endpoint"] as Message[]) : [];
  const found = endpoints.map((endpoint) => {
    const { name, values } = decodeCommand(bytesOf((endpoint["ticket"] as Message | undefined)?.["ticket"]));
    if (name === "TicketStatementQuery") return handles.open(bytesOf(values["statementHandle"]), "statement", user).id;
    if (name === "CommandPreparedStatementQuery") {
      return handles.open(bytesOf(values["preparedStatementHandle"]), "prepared", user).id;
    }
    return null;
  });
  const ended = found.map((id) => id !== null && running.cancel(user, id));
  return ended.includes(true) ? CANCELLED : NOT_CANCELLABLE;
}

async function setOptions(state: CallState, request: Message): Promise<Buffer> {
  const errors: Record<string, Message> = {};
  const lent = await state.connection.lend(null, true, state.signal);
  try {
    for (const [name, option] of Object.entries((request["sessionOptions"] ?? {}) as Record<string, Message>)) {
      const fault = await setOption(lent.session, name, valueOf(option));
      if (fault !== 0) errors[name] = { value: fault };
    }
    const path = lent.session.parameter("search_path");
    if (path !== null) state.connection.remember({ search_path: path });
  } finally {
    lent.release();
  }
  return encodeMessage("SetSessionOptionsResult", { errors });
}

async function setOption(session: Parameters<typeof runText>[0], name: string, value: string | null): Promise<number> {
  if (name === "catalog") return value === null || value === session.database ? 0 : INVALID_VALUE;
  const setting = name === "schema" ? "search_path" : name;
  if (!/^[A-Za-z_][A-Za-z0-9_.]*$/.test(setting)) return INVALID_NAME;
  try {
    await runText(session, value === null ? `RESET ${setting}` : `SET ${setting} = ${quoteLiteral(value)}`);
    return 0;
  } catch {
    return session.parameter(setting) === null ? INVALID_NAME : INVALID_VALUE;
  }
}

/** Null: back to the default. */
function valueOf(option: Message): string | null {
  for (const field of ["stringValue", "boolValue", "int64Value", "doubleValue"]) {
    const value = option[field];
    if (value !== undefined && value !== null) return String(value);
  }
  const list = option["stringListValue"] as Message | undefined;
  return list ? textList(list["values"]).join(", ") : null;
}

async function getOptions(state: CallState): Promise<Buffer> {
  const lent = await state.connection.lend(null, true, state.signal);
  try {
    const { session } = lent;
    const options: Record<string, Message> = { catalog: { stringValue: session.database } };
    for (const name of SHOWN) {
      const value = session.parameter(name);
      if (value !== null) options[name === "search_path" ? "schema" : name] = { stringValue: value };
    }
    return encodeMessage("GetSessionOptionsResult", { sessionOptions: options });
  } finally {
    lent.release();
  }
}
