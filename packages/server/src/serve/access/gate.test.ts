/** Every way past a policy or out of the engine that is known to have worked somewhere, one row each. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import { Engine } from "../../engine/engine.ts";
import { classify, splitStatements } from "../plan/classify.ts";
import { AccessControl, type AccessPlan } from "./access.ts";
import { type AccessImage, accessSetOf, tableKey } from "./access-set.ts";
import { HATCHES } from "./test-hatches.ts";
import { ALLOWED, DENIED } from "./test-statements.ts";
import { FUNCTIONS, SESSION_FUNCTIONS, TABLE_FUNCTIONS } from "./functions.ts";

const image: AccessImage = {
  version: "7",
  isSuperuser: false,
  grants: [
    { schema: "public", table: "orders", privileges: ["select"] },
    { schema: "public", table: "people", privileges: ["select"] },
    { schema: "public", table: "notes", privileges: ["select", "insert", "update", "delete", "ddl"] },
    { schema: "public", table: "inbox", privileges: ["insert"] },
    { schema: "public", table: "policed", privileges: ["select", "insert", "update", "delete", "ddl"] },
    { schema: "work", table: "*", privileges: ["select", "insert", "update", "delete", "ddl"] },
  ],
  policies: {
    [tableKey("public", "people")]: {
      rows: "owner = 'ann'",
      columns: [
        ["ssn", null],
        ["mail", "'***'"],
      ],
    },
    [tableKey("public", "policed")]: { rows: "owner = 'ann'", columns: [] },
  },
  policed: [tableKey("public", "people"), tableKey("public", "policed"), tableKey("work", "others")],
};
const wild: AccessImage = {
  ...image,
  grants: [{ schema: "*", table: "*", privileges: ["select", "insert", "update", "delete", "ddl"] }],
};
const admin: AccessImage = { ...image, isSuperuser: true, grants: [], policies: {} };

let engine: Engine;
let gate: AccessControl;
beforeAll(async () => {
  engine = await Engine.open({ memoryBytes: 128 << 20, threads: 1 });
  gate = new AccessControl({ control: null as never, engine, log: silentLogger });
});
afterAll(() => {
  gate.close();
  engine.close();
});

/** As a session does it: split, classified, checked; the whole text is refused before any of it runs. */
async function ask(sql: string, set: AccessImage = image): Promise<AccessPlan[]> {
  const plans: AccessPlan[] = [];
  for (const text of await splitStatements(sql)) {
    const { kind, writes, tree } = await classify(text);
    plans.push(
      await gate.check({
        sql: text,
        kind,
        writes,
        tree,
        access: accessSetOf(set),
        searchPath: ["public"],
        database: "sales",
        session: (name, setting) => (setting === null ? `<${name}>` : `<${setting}>`),
      }),
    );
  }
  return plans;
}

const code = (sql: string, set?: AccessImage): Promise<string> =>
  ask(sql, set).then(
    () => "allowed",
    (error: { code?: string }) => error.code ?? String(error),
  );

describe("escape hatches are shut, also for those who may everything", () => {
  test.each(HATCHES)("%s", async (sql) => {
    // These name a table that somebody may be granted.
    const byGrant = /^(EXPLAIN|DECLARE)/.test(sql);
    for (const set of byGrant ? [image] : [image, wild, admin]) {
      expect(await code(sql, set)).toMatch(/^(access_\w+|sql_syntax|sql_unsupported)$/);
    }
  });

  test("none of a text runs when one of it is refused", async () => {
    expect(await code("SELECT 1; COPY notes FROM '/etc/passwd'")).toBe("access_statement_refused");
    expect(await code("SELECT ';'; SELECT * FROM read_text('x')")).toBe("access_function_refused");
    expect(await code("SELECT 1 /* ; */; DROP TABLE secret")).toBe("access_denied");
  });
});

describe("policies cannot be walked around", () => {
  test.each(DENIED)("%s", async (sql, expected) => {
    expect(await code(sql)).toBe(expected);
  });

  test("a table that exists and one that does not are refused in the same words", async () => {
    const message = (name: string) => ask(`SELECT * FROM ${name}`).catch((e: Error) => e.message.replaceAll(name, "?"));
    expect(await message("secret")).toBe(await message("no_such_table"));
    await expect(ask("SELECT * FROM secret")).rejects.toMatchObject({ details: { sqlstate: "42P01", position: 15 } });
    await expect(ask("DELETE FROM orders")).rejects.toMatchObject({ details: { sqlstate: "42501" } });
  });
});

describe("what is granted runs", () => {
  test.each(ALLOWED)("%s", async (sql) => {
    await ask(sql);
  });

  test("the plan names the tables with what they are for this user", async () => {
    const [plan] = await ask("SELECT * FROM people p, orders o");
    expect(plan?.tables.map((t) => [t.schema, t.name, t.privilege, t.access.rows])).toEqual([
      ["public", "people", "select", "owner = 'ann'"],
      ["public", "orders", "select", null],
    ]);
    expect(plan?.tables[0]?.access.columns.get("SSN")).toBeNull();
    expect(plan?.tables[0]?.access.columns.get("mail")).toBe("'***'");
    expect(plan?.tables[0]?.access.columns.get("name")).toBeUndefined();
  });

  test("the session's values stand in the statement as constants", async () => {
    const [plan] = await ask(
      "SELECT current_user AS me, current_schema(), current_setting('TimeZone') tz, session_user",
    );
    const session = await engine.session();
    expect(await session.rows(plan?.sql ?? "")).toEqual([
      ["<current_user>", "<current_schema>", "<timezone>", "<session_user>"],
    ]);
    session.close();
    const [quoted] = await gateWith("SELECT current_user", 'o\'neill "x" ); DROP');
    expect(quoted).toEqual(['o\'neill "x" ); DROP']);
  });
});

async function gateWith(sql: string, user: string): Promise<unknown[][]> {
  const access = accessSetOf(image);
  const request = {
    sql,
    kind: "select" as const,
    writes: false,
    tree: null,
    access,
    searchPath: ["public"],
    database: "sales",
  };
  const plan = await gate.check({ ...request, session: () => user });
  const session = await engine.session();
  const rows = await session.rows(plan.sql);
  session.close();
  return rows;
}

describe("the lists of functions", () => {
  const DANGEROUS =
    /file|read|write|copy|log|secret|setting|setseed|var(iable)?$|getvar|query|exec|pragma|sleep|nextval|currval|serialize|attach|load|install|export|import|connection|privilege|pg_(?!typeof|size_pretty)|txid|scan|checkpoint|error|internal|stats/;
  const REVIEWED = new Set([
    "log", "log2", "log10", "parse_filename", "variant_typeof", "variant_extract", "enum_range", "list_var_pop", "list_var_samp", "formatreadabledecimalsize", "formatreadablesize",
  ]); // prettier-ignore

  test("none looks like it reads, waits or runs anything", () => {
    const odd = [...FUNCTIONS, ...TABLE_FUNCTIONS].filter((f) => DANGEROUS.test(f) && !REVIEWED.has(f));
    expect(odd).toEqual([]);
  });

  test("each is known to this engine, to Postgres, or both, and no table function is among them", async () => {
    const session = await engine.session();
    const rows = await session.rows("SELECT DISTINCT function_name, function_type FROM duckdb_functions()");
    const known = new Map(rows.map(([name, type]) => [String(name).toLowerCase(), String(type)]));
    const ofPostgres = new Set(
      (
        "btrim overlay initcap make_interval statement_timestamp clock_timestamp to_char array_remove array_replace array_upper " +
        "array_lower array_ndims jsonb_build_object jsonb_build_array json_build_object json_build_array to_jsonb every " +
        "jsonb_array_length jsonb_typeof json_typeof json_strip_nulls jsonb_set json_agg jsonb_agg json_object_agg " +
        "jsonb_object_agg percentile_cont percentile_disc coalesce grouping grouping_id current_date current_time " +
        "current_timestamp localtime localtimestamp -> ~* !~ !~* = <> != < > <= >= is_distinct_from between in not like ilike " +
        "similar unnest current_localtime cume_dist dense_rank fill first_value lag last_value lead nth_value ntile percent_rank " +
        "rank rank_dense row_number"
      ).split(" "),
    );
    const unknown = [...FUNCTIONS, ...SESSION_FUNCTIONS].filter((f) => !known.has(f) && !ofPostgres.has(f));
    expect(unknown).toEqual([]);
    session.close();
  });
});

test("the check is fast where it was made before", async () => {
  await ask("SELECT * FROM orders WHERE id = 1");
  const startMs = systemClock.monotonicMs();
  for (let i = 0; i < 200; i++) await ask("SELECT * FROM orders WHERE id = 1");
  expect((systemClock.monotonicMs() - startMs) / 200).toBeLessThan(5);
});
