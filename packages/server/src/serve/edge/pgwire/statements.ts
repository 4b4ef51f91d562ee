/**
 * One planned statement run to rows or to nothing: by the session, or here. What goes to the source as it is, is relayed elsewhere
 * (`client.ts`); it never comes through here.
 */
import type { Prepared, ServeSession, WireColumn, WireParam } from "../../session/session.ts";
import { columnNames } from "./column-names.ts";
import type { Engines } from "./engines.ts";
import type { Plan } from "./plans.ts";
import { RowCursor } from "./row-cursor.ts";
import { pgError } from "./wire-errors.ts";

export interface Outcome {
  readonly cursor: RowCursor | null;
  /** The command tag, once all rows are sent. */
  tag(rows: number): string;
}

export function plainOutcome(tag: string): Outcome {
  return { cursor: null, tag: () => tag };
}

/** A statement, as far as the session and errors about it need it. */
export type Checked = Pick<Plan, "text" | "offset" | "syntax"> &
  Partial<Pick<Plan, "references" | "position" | "type" | "body">>;

/** Checks a statement by the session; errors get their position in what the client sent. */
export async function prepareBySession(
  session: ServeSession,
  plan: Checked,
  types?: readonly number[],
): Promise<Prepared> {
  try {
    return named(await session.prepare(plan.text, types), plan);
  } catch (error) {
    throw placed(error, plan);
  }
}

/** Checks and runs at once: what its columns are, its result says, and that saves asking for them before. */
export async function runTextBySession(engines: Engines, plan: Checked): Promise<Outcome> {
  try {
    return await runBySession(engines, await engines.session.prepare(plan.text, [], { describe: false }), [], plan);
  } catch (error) {
    throw placed(error, plan);
  }
}

/** The error with its position in what the client sent. */
function placed(error: unknown, plan: Checked): unknown {
  const details = (error as { details?: Readonly<Record<string, unknown>> }).details;
  const isSyntax = details?.["sqlstate"] === "42601" || (error as { code?: string }).code === "sql_syntax";
  // Neither grammar knows it: the words of Postgres are what its clients expect.
  if (plan.syntax !== null && isSyntax) return plan.syntax;
  const own = Number(details?.["position"] ?? 0);
  const position = own > 0 ? own + plan.offset : placeOf(error, plan);
  if (position > 0) Object.assign(error as object, { details: { ...details, position } });
  return error;
}

/** Columns that the statement gives no name are called as Postgres calls them. */
function named(prepared: Prepared, plan: Checked): Prepared {
  return { ...prepared, columns: columnsNamed(prepared.columns, plan) };
}

function columnsNamed(
  columns: readonly WireColumn[] | null,
  { type, body }: Partial<Pick<Plan, "type" | "body">>,
): readonly WireColumn[] | null {
  const names = columns !== null && type && body ? columnNames(type, body) : null;
  if (columns === null || names?.length !== columns.length) return columns;
  return columns.map((column, i) => Object.assign({}, column, { name: names[i] ?? column.name }));
}

/** Where the name stands that an error quotes; 0: nowhere that is known. */
function placeOf(error: unknown, { references, position }: Checked): number {
  if (!references || !position || !(error instanceof Error)) return 0;
  const quoted =
    /(?:column|name|Table|Function with name) "?([^"!]+?)"?[! ](?:not found|does not exist|could not)/i.exec(
      error.message,
    )?.[1];
  if (quoted === undefined) return 0;
  const name = quoted.toLowerCase();
  const all = [...references.columns, ...references.relations, ...references.functions];
  const found = all.find((ref) => ref.name.toLowerCase() === name && ref.location > 0);
  return found ? position(found.location) : 0;
}

/** Runs by the session, inside of the client's transaction when there is one. */
export async function runBySession(
  engines: Engines,
  prepared: Prepared,
  params: readonly WireParam[] = [],
  plan: Partial<Pick<Plan, "type" | "body">> = {},
): Promise<Outcome> {
  await engines.freeSession();
  await engines.transaction.joinSession(prepared.writes);
  const result = await engines.session.run(prepared, params.length > 0 ? { params } : {});
  const tagOf = (rows: number): string => (COUNTED.test(result.command) ? `${result.command} ${rows}` : result.command);
  const columns = prepared.columns ?? columnsNamed(result.columns, plan);
  if (columns === null) {
    const rows = await drain(result);
    return plainOutcome(tagOf(rows));
  }
  const cursor = new RowCursor(result, columns);
  engines.occupy(cursor);
  return { cursor, tag: tagOf };
}

const COUNTED = /^(SELECT|INSERT \d+|UPDATE|DELETE|MERGE|COPY|FETCH|MOVE)$/;

async function drain(result: Awaited<ReturnType<ServeSession["run"]>>): Promise<number> {
  try {
    for await (const batch of result.batches()) void batch;
    return await result.rowCount;
  } finally {
    await result.close();
  }
}

/** A transaction that failed takes nothing but its end. */
export function requireAlive(engines: Engines, plan: Pick<Plan, "type" | "body"> | null): void {
  if (engines.transaction.status !== "E") return;
  const kind = String(plan?.body["kind"] ?? "");
  const ends = plan?.type === "TransactionStmt" && /^TRANS_STMT_(COMMIT|ROLLBACK|ROLLBACK_TO|PREPARE)$/.test(kind);
  if (!ends) throw pgError("25P02", "current transaction is aborted, commands ignored until end of transaction block");
}

export function sameColumns(a: readonly WireColumn[], b: readonly WireColumn[]): boolean {
  return (
    a.length === b.length && a.every((column, i) => column.name === b[i]?.name && column.typeOid === b[i]?.typeOid)
  );
}
