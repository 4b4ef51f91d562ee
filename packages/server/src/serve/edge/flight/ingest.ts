/** CommandStatementIngest: rows of Arrow into a table, made first where the client says so, in one transaction. */
import { SpillwayError } from "@spillway/base/errors";
import type { ColumnBatch, ColumnSpec } from "@spillway/base/columns";
import { quoteIdent, quoteLiteral, quoteQualified } from "@spillway/pg/quote";
import type { ServeSession, WireParam } from "../../session/session.ts";
import { runText } from "./connections.ts";
import { paramAt, type PutStream } from "./params.ts";
import { type Message, text, textOrNull } from "./proto.ts";
import { rowsOf } from "./rows.ts";
import { typeName } from "./schemas.ts";

/** `TableNotExistOption` and `TableExistsOption`. */
const CREATE = 1;
const FAIL_WHERE_ABSENT = 2;
const FAIL_WHERE_THERE = 1;
const REPLACE = 3;
/** Of one INSERT: Postgres takes at most 65 535. */
const MAX_PARAMS = 30_000;
const MAX_ROWS = 1000;

/** Returns the rows that were put in. */
export async function ingest(session: ServeSession, command: Message, stream: PutStream): Promise<number> {
  const { columns } = stream;
  if (columns === null || columns.length === 0) {
    throw new SpillwayError("flight_request_invalid", "An ingest was sent without a schema of at least one column.");
  }
  const target = targetOf(session, command);
  await prepareTable(session, command, target, columns);
  const names = columns.map((c) => quoteIdent(c.name)).join(", ");
  const rowsEach = Math.max(1, Math.min(MAX_ROWS, Math.floor(MAX_PARAMS / columns.length)));
  let total = 0;
  for await (const batch of stream.batches()) {
    for (let from = 0; from < batch.length; from += rowsEach) {
      const count = Math.min(rowsEach, batch.length - from);
      await insert(session, `INSERT INTO ${target} (${names}) VALUES`, columns, batch, from, count);
      total += count;
    }
  }
  return total;
}

function targetOf(session: ServeSession, command: Message): string {
  const [catalog, schema, table] = [
    textOrNull(command["catalog"]),
    textOrNull(command["schema"]),
    text(command["table"]),
  ];
  if (table === "") throw new SpillwayError("flight_request_invalid", "An ingest names no table.");
  if (catalog !== null && catalog !== "" && catalog !== session.database) {
    throw new SpillwayError("table_unknown", `There is no catalog ${JSON.stringify(catalog)} in this session.`);
  }
  return schema === null || schema === "" ? quoteIdent(table) : quoteQualified(schema, table);
}

async function prepareTable(
  session: ServeSession,
  command: Message,
  target: string,
  columns: readonly ColumnSpec[],
): Promise<void> {
  const options = (command["tableDefinitionOptions"] ?? {}) as Message;
  const ifAbsent = Number(options["ifNotExist"] ?? 0);
  const ifThere = Number(options["ifExists"] ?? 0);
  const named = textOrNull(command["schema"]);
  const there = await exists(session, named === "" ? null : named, text(command["table"]));
  if (there && ifThere === FAIL_WHERE_THERE) {
    throw new SpillwayError("control_exists", `The table ${target} exists already.`, {
      details: { sqlstate: "42P07" },
    });
  }
  if (!there && ifAbsent === FAIL_WHERE_ABSENT) {
    throw new SpillwayError("table_unknown", `There is no table ${target}.`, { details: { sqlstate: "42P01" } });
  }
  if (there && ifThere === REPLACE) await runText(session, `DROP TABLE ${target}`);
  if (there && ifThere !== REPLACE) return;
  if (!there && ifAbsent !== CREATE && ifThere !== REPLACE) {
    throw new SpillwayError("table_unknown", `There is no table ${target}.`, { details: { sqlstate: "42P01" } });
  }
  const list = columns.map((c) => `${quoteIdent(c.name)} ${typeName(c)}`).join(", ");
  const temporary = command["temporary"] === true ? "TEMPORARY " : "";
  await runText(session, `CREATE ${temporary}TABLE ${target} (${list})`);
}

/** Asked of the catalog: a statement that fails would end the transaction. */
async function exists(session: ServeSession, schema: string | null, table: string): Promise<boolean> {
  const where = schema === null ? "" : ` AND table_schema = ${quoteLiteral(schema)}`;
  const rows = await rowsOf(
    session,
    `SELECT table_schema::text FROM information_schema.tables WHERE table_name = ${quoteLiteral(table)}${where}`,
  );
  if (schema !== null || rows.length === 0) return rows.length > 0;
  const path = session.parameter("search_path") ?? "";
  return rows.some(([found]) => path.split(",").some((name) => name.trim().replaceAll('"', "") === found));
}

async function insert(
  session: ServeSession,
  head: string,
  columns: readonly ColumnSpec[],
  batch: ColumnBatch,
  from: number,
  count: number,
): Promise<void> {
  const params: WireParam[] = [];
  const tuples: string[] = [];
  for (let row = from; row < from + count; row++) {
    const marks = columns.map((spec, c) => {
      params.push(paramAt(batch, c, row));
      return `$${params.length}::${typeName(spec)}`;
    });
    tuples.push(`(${marks.join(", ")})`);
  }
  const prepared = await session.prepare(`${head} ${tuples.join(", ")}`);
  const result = await session.run(prepared, { params });
  try {
    await result.rowCount;
  } finally {
    await result.close();
  }
}
