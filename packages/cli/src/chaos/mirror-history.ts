/**
 * What Postgres held at every position: triggers write each change of the chaos run's tables into a table of their own, whose
 * inserts come back, in the order of the commits and with their positions, from a slot of their own.
 * Source: https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html (Begin, Insert, Commit)
 */
import type { Client } from "../bench/scratch.ts";

export const HISTORY_SLOT = "chaos_history";

export interface HistoryEvent {
  readonly table: string;
  /** I, U, D, T; of DDL: add, drop, bump. */
  readonly op: string;
  readonly key: string | null;
  readonly row: Readonly<Record<string, unknown>> | string | null;
}

export interface HistoryCommit {
  /** Behind the commit record. */
  readonly end: bigint;
  readonly events: readonly HistoryEvent[];
}

export async function makeHistory(client: Client): Promise<void> {
  await client.query(`
    create table chaos_history (n bigint generated always as identity primary key, tab text not null, op text not null, k text, row jsonb);
    create publication chaos_history for table chaos_history;
    create function chaos_note() returns trigger language plpgsql as $$
    begin
      if tg_op = 'TRUNCATE' then insert into chaos_history (tab, op) values (tg_table_name, 'T');
      elsif tg_op = 'DELETE' then insert into chaos_history (tab, op, k) values (tg_table_name, 'D', old.id);
      elsif tg_op = 'UPDATE' then insert into chaos_history (tab, op, k, row) values (tg_table_name, 'U', old.id, to_jsonb(new));
      else insert into chaos_history (tab, op, row) values (tg_table_name, 'I', to_jsonb(new));
      end if;
      return null;
    end $$`);
  await client.query("select pg_create_logical_replication_slot($1, 'pgoutput')", [HISTORY_SLOT]);
}

export async function watchTable(client: Client, table: string): Promise<void> {
  await client.query(`
    create trigger note after insert or update or delete on ${table} for each row execute function chaos_note();
    create trigger note_truncate after truncate on ${table} for each statement execute function chaos_note()`);
}

/** Everything that was committed, in order. */
export async function readHistory(client: Client): Promise<HistoryCommit[]> {
  // The large transactions of the others would be written to disk, and they are not even wanted.
  await client.query("set logical_decoding_work_mem = '512MB'");
  const { rows } = await client.query<{ data: Buffer }>(
    `select data from pg_logical_slot_peek_binary_changes($1, null, null, 'proto_version', '1', 'publication_names', 'chaos_history')`,
    [HISTORY_SLOT],
  );
  const commits: HistoryCommit[] = [];
  let events: HistoryEvent[] = [];
  for (const { data } of rows) {
    const type = String.fromCharCode(data[0] ?? 0);
    if (type === "B") events = [];
    else if (type === "I") events.push(eventOf(data));
    else if (type === "C" && events.length > 0) commits.push({ end: data.readBigUInt64BE(10), events });
  }
  return commits;
}

/** An insert: oid, 'N', the number of columns, and each as its kind and text. */
function eventOf(data: Buffer): HistoryEvent {
  let at = 8;
  const values: (string | null)[] = [];
  for (let i = data.readUInt16BE(6); i > 0; i--) {
    const kind = data[at++];
    if (kind !== 0x74) {
      values.push(null);
      continue;
    }
    const length = data.readInt32BE(at);
    values.push(data.toString("utf8", at + 4, at + 4 + length));
    at += 4 + length;
  }
  const [, table, op, key, row] = values;
  return {
    table: table ?? "",
    op: op ?? "",
    key: key ?? null,
    row: row === null || row === undefined ? null : (JSON.parse(row) as HistoryEvent["row"]),
  };
}

export type HeldRow = Readonly<Record<string, string | null>>;

/** The tables, as commits are applied one after the other. */
export class HistoryModel {
  readonly #tables = new Map<string, Map<string, HeldRow>>();

  rows(table: string): HeldRow[] {
    return [...(this.#tables.get(table)?.values() ?? [])];
  }

  apply({ table, op, key, row }: HistoryEvent): void {
    const rows = this.#tables.get(table) ?? new Map<string, HeldRow>();
    this.#tables.set(table, rows);
    if (op === "T") rows.clear();
    if (op === "D" || op === "U") rows.delete(key ?? "");
    if (op === "I" || op === "U") {
      const held = Object.fromEntries(
        Object.entries((row ?? {}) as Record<string, unknown>).map(([name, v]) => [
          name,
          v === null ? null : String(v),
        ]),
      );
      rows.set(held["id"] ?? "", held);
    }
    if (!["add", "drop", "bump"].includes(op)) return;
    const column = key ?? "";
    for (const [id, held] of rows) {
      const { [column]: was, ...others } = held;
      if (op === "drop") rows.set(id, others);
      else if (op === "add") rows.set(id, { ...held, [column]: row === null ? null : String(row as string) });
      else
        rows.set(id, {
          ...held,
          [column]: was === null || was === undefined ? null : String(BigInt(was) + 1_000_000n),
        });
    }
  }
}
