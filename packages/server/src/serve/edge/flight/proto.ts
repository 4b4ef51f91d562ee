/**
 * The messages of Arrow Flight and Flight SQL (https://arrow.apache.org/docs/format/Flight.html, FlightSql.html), described once. Only
 * what this edge reads or writes; `FlightData` has a codec of its own (flight-data.ts), because its body must not be copied.
 */
import protobuf from "protobufjs/light.js";
import { SpillwayError } from "@spillway/base/errors";

type FieldType =
  | "string"
  | "bytes"
  | "bool"
  | "int32"
  | "int64"
  | "uint32"
  | "uint64"
  | "double"
  | "sfixed64"
  | (string & {});

/** `[number, type]`, repeated with a third `"repeated"`, of presence with `"optional"`; a map as `[number, "map", value type]`. */
type Field = readonly [number, FieldType] | readonly [number, FieldType, string];

const MESSAGES: Readonly<Record<string, Readonly<Record<string, Field>>>> = {
  HandshakeRequest: { protocolVersion: [1, "uint64"], payload: [2, "bytes"] },
  HandshakeResponse: { protocolVersion: [1, "uint64"], payload: [2, "bytes"] },
  BasicAuth: { username: [2, "string"], password: [3, "string"] },
  ActionType: { type: [1, "string"], description: [2, "string"] },
  Action: { type: [1, "string"], body: [2, "bytes"] },
  Result: { body: [1, "bytes"] },
  SchemaResult: { schema: [1, "bytes"] },
  FlightDescriptor: { type: [1, "int32"], cmd: [2, "bytes"], path: [3, "string", "repeated"] },
  FlightInfo: {
    schema: [1, "bytes"],
    flightDescriptor: [2, "FlightDescriptor"],
    endpoint: [3, "FlightEndpoint", "repeated"],
    totalRecords: [4, "int64"],
    totalBytes: [5, "int64"],
    ordered: [6, "bool"],
    appMetadata: [7, "bytes"],
  },
  FlightEndpoint: {
    ticket: [1, "Ticket"],
    location: [2, "Location", "repeated"],
    expirationTime: [3, "Timestamp"],
    appMetadata: [4, "bytes"],
  },
  Timestamp: { seconds: [1, "int64"], nanos: [2, "int32"] },
  PollInfo: {
    info: [1, "FlightInfo"],
    flightDescriptor: [2, "FlightDescriptor"],
    progress: [3, "double", "optional"],
    expirationTime: [4, "Timestamp"],
  },
  Location: { uri: [1, "string"] },
  Ticket: { ticket: [1, "bytes"] },
  PutResult: { appMetadata: [1, "bytes"] },
  CancelFlightInfoRequest: { info: [1, "FlightInfo"] },
  CancelFlightInfoResult: { status: [1, "int32"] },
  StringListValue: { values: [1, "string", "repeated"] },
  SessionOptionValue: {
    stringValue: [1, "string", "optional"],
    boolValue: [2, "bool", "optional"],
    int64Value: [3, "sfixed64", "optional"],
    doubleValue: [4, "double", "optional"],
    stringListValue: [5, "StringListValue"],
  },
  SetSessionOptionsRequest: { sessionOptions: [1, "map", "SessionOptionValue"] },
  SessionOptionError: { value: [1, "int32"] },
  SetSessionOptionsResult: { errors: [1, "map", "SessionOptionError"] },
  GetSessionOptionsResult: { sessionOptions: [1, "map", "SessionOptionValue"] },
  CloseSessionResult: { status: [1, "int32"] },
  Any: { typeUrl: [1, "string"], value: [2, "bytes"] },
  CommandGetSqlInfo: { info: [1, "uint32", "repeated"] },
  CommandGetXdbcTypeInfo: { dataType: [1, "int32", "optional"] },
  CommandGetCatalogs: {},
  CommandGetDbSchemas: { catalog: [1, "string", "optional"], dbSchemaFilterPattern: [2, "string", "optional"] },
  CommandGetTables: {
    catalog: [1, "string", "optional"],
    dbSchemaFilterPattern: [2, "string", "optional"],
    tableNameFilterPattern: [3, "string", "optional"],
    tableTypes: [4, "string", "repeated"],
    includeSchema: [5, "bool"],
  },
  CommandGetTableTypes: {},
  CommandGetPrimaryKeys: {
    catalog: [1, "string", "optional"],
    dbSchema: [2, "string", "optional"],
    table: [3, "string"],
  },
  CommandGetExportedKeys: {
    catalog: [1, "string", "optional"],
    dbSchema: [2, "string", "optional"],
    table: [3, "string"],
  },
  CommandGetImportedKeys: {
    catalog: [1, "string", "optional"],
    dbSchema: [2, "string", "optional"],
    table: [3, "string"],
  },
  CommandGetCrossReference: {
    pkCatalog: [1, "string", "optional"],
    pkDbSchema: [2, "string", "optional"],
    pkTable: [3, "string"],
    fkCatalog: [4, "string", "optional"],
    fkDbSchema: [5, "string", "optional"],
    fkTable: [6, "string"],
  },
  CommandStatementQuery: { query: [1, "string"], transactionId: [2, "bytes", "optional"] },
  TicketStatementQuery: { statementHandle: [1, "bytes"] },
  CommandStatementUpdate: { query: [1, "string"], transactionId: [2, "bytes", "optional"] },
  CommandPreparedStatementQuery: { preparedStatementHandle: [1, "bytes"] },
  CommandPreparedStatementUpdate: { preparedStatementHandle: [1, "bytes"] },
  TableDefinitionOptions: { ifNotExist: [1, "int32"], ifExists: [2, "int32"] },
  CommandStatementIngest: {
    tableDefinitionOptions: [1, "TableDefinitionOptions"],
    table: [2, "string"],
    schema: [3, "string", "optional"],
    catalog: [4, "string", "optional"],
    temporary: [5, "bool"],
    transactionId: [6, "bytes", "optional"],
    options: [1000, "map", "string"],
  },
  ActionCreatePreparedStatementRequest: { query: [1, "string"], transactionId: [2, "bytes", "optional"] },
  ActionCreatePreparedStatementResult: {
    preparedStatementHandle: [1, "bytes"],
    datasetSchema: [2, "bytes"],
    parameterSchema: [3, "bytes"],
    isUpdate: [4, "bool", "optional"],
  },
  ActionClosePreparedStatementRequest: { preparedStatementHandle: [1, "bytes"] },
  ActionBeginTransactionRequest: {},
  ActionBeginTransactionResult: { transactionId: [1, "bytes"] },
  ActionBeginSavepointRequest: { transactionId: [1, "bytes"], name: [2, "string"] },
  ActionBeginSavepointResult: { savepointId: [1, "bytes"] },
  ActionEndTransactionRequest: { transactionId: [1, "bytes"], action: [2, "int32"] },
  ActionEndSavepointRequest: { savepointId: [1, "bytes"], action: [2, "int32"] },
  ActionCancelQueryRequest: { info: [1, "bytes"] },
  ActionCancelQueryResult: { result: [1, "int32"] },
  DoPutUpdateResult: { recordCount: [1, "int64"] },
  DoPutPreparedStatementResult: { preparedStatementHandle: [1, "bytes", "optional"] },
};

export type MessageName = keyof typeof MESSAGES & string;

/** A decoded message: fields that were not sent are absent, except lists and maps. */
export type Message = Readonly<Record<string, unknown>>;

const root = makeRoot();

function makeRoot(): protobuf.Root {
  const nested: Record<string, protobuf.IType> = {};
  for (const [name, fields] of Object.entries(MESSAGES)) {
    const entries = Object.entries(fields).map(([field, [id, type, extra]]) => {
      if (type === "map") return [field, { id, type: extra ?? "string", keyType: "string" }] as const;
      if (extra === "repeated") return [field, { id, type, rule: "repeated" }] as const;
      return [field, { id, type, ...(extra === "optional" ? { options: { proto3_optional: true } } : {}) }] as const;
    });
    // Presence is a oneof of one field, as protoc writes it.
    const optional = Object.entries(fields).flatMap(([field, [, , extra]]) => (extra === "optional" ? [field] : []));
    const oneofs = Object.fromEntries(optional.map((field) => [`_${field}`, { oneof: [field] }]));
    nested[name] = { fields: Object.fromEntries(entries), oneofs };
  }
  return protobuf.Root.fromJSON({ nested });
}

/** `values`: Buffers for bytes, numbers for integers. Absent fields keep their default. */
export function encodeMessage(name: MessageName, values: Message): Buffer {
  const type = root.lookupType(name);
  return Buffer.from(type.encode(type.fromObject(values as Record<string, unknown>)).finish());
}

/** Throws `flight_request_invalid`. */
export function decodeMessage(name: MessageName, bytes: Uint8Array): Message {
  const type = root.lookupType(name);
  try {
    return type.toObject(type.decode(bytes), { longs: Number, bytes: Buffer, arrays: true, objects: true }) as Message;
  } catch (error) {
    throw new SpillwayError("flight_request_invalid", `The bytes of the request are no ${name}.`, { cause: error });
  }
}

const SQL = "type.googleapis.com/arrow.flight.protocol.sql.";

/** A Flight SQL command inside its `Any`. */
export function encodeCommand(name: MessageName, values: Message): Buffer {
  return encodeMessage("Any", { typeUrl: `${SQL}${name}`, value: encodeMessage(name, values) });
}

/** Throws `flight_request_invalid`; the name is one of `MESSAGES`. */
export function decodeCommand(bytes: Uint8Array): { readonly name: MessageName; readonly values: Message } {
  const any = decodeMessage("Any", bytes);
  const url = text(any["typeUrl"]);
  const name = url.startsWith(SQL) ? url.slice(SQL.length) : "";
  if (!(name in MESSAGES)) {
    throw new SpillwayError("flight_unsupported", `The command ${JSON.stringify(url.slice(0, 120))} is not known.`);
  }
  return { name, values: decodeMessage(name, bytesOf(any["value"])) };
}

export function text(value: unknown): string {
  return typeof value === "string" ? value : "";
}

export function textOrNull(value: unknown): string | null {
  return typeof value === "string" ? value : null;
}

export function bytesOf(value: unknown): Buffer {
  return Buffer.isBuffer(value) ? value : Buffer.alloc(0);
}

export function textList(value: unknown): string[] {
  return Array.isArray(value) ? value.filter((v): v is string => typeof v === "string") : [];
}
