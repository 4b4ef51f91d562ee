/** The SQLSTATEs that clients see from Spillway's triggers and functions. Generated into the reference. */
export interface SqlState {
  readonly cause: string;
  readonly remedy: string;
}

export const SQL_STATES = {
  SPW01: {
    cause: "a plain INSERT or correction of a direct table's row below its cut-line",
    remedy: "Use `spillway sql` or the library: they commit to the lake in the same transaction.",
  },
  SPW02: {
    cause: "a row below the retention line, whose lake rows were expired on purpose",
    remedy: "Do not write rows that old; the line is shown by `spillway status`.",
  },
  SPW03: {
    cause: "a row whose tier key is -infinity, which the lake does not hold",
    remedy: "Give the row a finite tier key.",
  },
  SPW04: {
    cause: "a TRUNCATE that cannot reach the lake, or cannot see all that it removes",
    remedy: "Truncate single partitions, in READ COMMITTED; use `spillway unregister` to give up the table.",
  },
  SPW05: {
    cause: "a jsonb row that is no object, names unknown columns, or lacks one of the primary key",
    remedy: "Give an object with the table's own column names.",
  },
  SPW06: {
    cause: "a table that is not registered",
    remedy: "Register it first: spillway register --table ...",
  },
  SPW07: {
    cause: "a plain INSERT of a historical row into a table that refuses them",
    remedy: "Use spillway.upsert(regclass, jsonb), or register with --historical-inserts upsert.",
  },
  SPW08: {
    cause: "insert_if_absent of a row below the cut-line: SQL in Postgres cannot look into the lake",
    remedy: 'Use `spillway sql "INSERT ... ON CONFLICT DO NOTHING"`.',
  },
  SPW09: {
    cause: "an attempt to move a cut-line, a retention line or a frontier back",
    remedy: "Only `spillway restore` does that, on purpose.",
  },
} as const satisfies Record<string, SqlState>;
