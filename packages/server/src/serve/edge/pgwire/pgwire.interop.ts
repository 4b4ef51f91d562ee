/** Real clients of Postgres, as a user whose role is mapped and as one who has none: psql, psycopg 3, SQLAlchemy, asyncpg, pgjdbc. */
import { execFile, execFileSync } from "node:child_process";
import { existsSync, mkdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { OWNER, startTestEdge, type TestEdge } from "./test-edge.ts";

const run = promisify(execFile);
const JDBC = "org.postgresql:postgresql:42.7.4";
const sees = (schema: string, name: string): object | null =>
  schema === "public" && name.startsWith("items") ? {} : null;
const USERS = [OWNER, { name: "ann", password: "ann", mapped: null, sees }];

let edge: TestEdge;
beforeAll(async () => {
  edge = await startTestEdge(USERS);
});
afterAll(() => edge.close());

/** The driver's jar, fetched once; null where there is no Java. */
function jdbcJar(): string | null {
  const dir = join(tmpdir(), "spillway-interop-jdbc");
  const jar = join(dir, "postgresql-42.7.4.jar");
  try {
    execFileSync("javac", ["-version"], { stdio: "ignore" });
    if (existsSync(jar)) return jar;
    mkdirSync(dir, { recursive: true });
    execFileSync("mvn", ["-q", "-B", "dependency:copy", `-Dartifact=${JDBC}`, `-DoutputDirectory=${dir}`], {
      stdio: "ignore",
    });
    return jar;
  } catch {
    return null;
  }
}
const jar = jdbcJar();

describe.each(USERS.map((user) => [user.name, user] as const))("as %s", (_, user) => {
  const mapped = user.mapped === null ? "none" : "mapped";

  test("psycopg 3, SQLAlchemy, asyncpg", async () => {
    const script = join(import.meta.dirname, "test-clients.py");
    const args = [script, String(edge.port), user.name, user.password, mapped];
    expect((await run(process.env["SPILLWAY_INTEROP"] ?? "python3", args)).stdout).toBe("ok\n");
  });

  test.skipIf(jar === null)("pgjdbc", async () => {
    const source = join(import.meta.dirname, "TestClient.java");
    const args = ["-cp", jar ?? "", source, String(edge.port), user.name, user.password, mapped];
    expect((await run("java", args)).stdout).toBe("ok\n");
  });

  const psql = async (...commands: string[]): Promise<string> => {
    const args = [
      edge.url(user.name),
      "-X",
      "-v",
      "ON_ERROR_STOP=1",
      ...commands.flatMap((command) => ["-c", command]),
    ];
    return (await run("psql", args)).stdout;
  };

  test("psql's commands", async () => {
    const tables = await psql("\\dt");
    expect(tables).toMatch(/public \| items +\| partitioned table/);
    expect(/plain/.test(tables)).toBe(user.mapped !== null);
    const described = await psql("\\d items");
    expect(described).toMatch(/ price +\| numeric\(10,2\) +\|/);
    expect(described).toMatch(/"items_pkey" PRIMARY KEY, btree \(id, k\)/);
    expect(await psql("\\l")).toMatch(user.mapped === null ? / db +\|/ : /template1/);
    for (const command of [
      "\\d",
      "\\di",
      "\\dn",
      "\\du",
      "\\df",
      "\\dv",
      "\\ds",
      "\\dT",
      "\\dp",
      "\\d+ items",
      "\\dt+",
      "\\dx",
      "\\conninfo",
      "\\des",
      "\\db",
      "\\dC int4",
      "\\do =",
      "\\dO",
      "\\sf pg_sleep",
    ]) {
      await psql(command);
    }
  });

  test("psql's completion", async () => {
    // The query behind the completion of table names, as psql of Postgres 15 sends it.
    const query = `SELECT c.relname, NULL::pg_catalog.text FROM pg_catalog.pg_class c
      WHERE (c.relname) LIKE 'it%' AND c.relkind IN ('r', 'S', 'v', 'm', 'f', 'p') AND c.relnamespace <>
      (SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = 'pg_catalog') AND pg_catalog.pg_table_is_visible(c.oid)
      UNION SELECT NULL::pg_catalog.text, n.nspname FROM pg_catalog.pg_namespace n WHERE n.nspname LIKE 'it%' LIMIT 1000`;
    expect(await psql(query)).toMatch(/ items /);
  });

  test("the queries with which Npgsql and DBeaver load types", async () => {
    const types = `SELECT ns.nspname, t.oid, t.typname, t.typtype, t.typnotnull, t.elemtypoid
      FROM (SELECT typ.oid, typ.typnamespace, typ.typname, typ.typtype, typ.typrelid, typ.typnotnull, typ.relkind, elemtyp.oid AS elemtypoid
        FROM (SELECT typ.oid, typnamespace, typname, typrelid, typnotnull, relkind, typelem AS elemoid,
            CASE WHEN proc.proname = 'array_recv' THEN 'a' ELSE typ.typtype END AS typtype
          FROM pg_type AS typ LEFT JOIN pg_class AS cls ON (cls.oid = typ.typrelid)
          LEFT JOIN pg_proc AS proc ON proc.oid = typ.typreceive LEFT JOIN pg_range ON (pg_range.rngtypid = typ.oid)) AS typ
        LEFT JOIN pg_type AS elemtyp ON elemtyp.oid = elemoid) AS t
      JOIN pg_namespace AS ns ON (ns.oid = typnamespace) WHERE typtype IN ('b', 'r', 'm', 'e', 'd') ORDER BY t.oid`;
    const shown = await psql(types);
    expect(shown).toMatch(/pg_catalog +\| +3802 +\| jsonb/);
    await psql("SELECT db.oid, db.* FROM pg_catalog.pg_database db WHERE datname = 'db'");
    await psql(
      "SELECT n.oid, n.*, d.description FROM pg_catalog.pg_namespace n LEFT OUTER JOIN pg_catalog.pg_description d ON d.objoid = n.oid AND d.objsubid = 0 AND d.classoid = 'pg_namespace'::regclass ORDER BY nspname",
    );
    await psql(
      "SELECT c.oid, c.*, d.description, pg_catalog.pg_get_expr(c.relpartbound, c.oid) AS partition_expr, pg_catalog.pg_get_partkeydef(c.oid) AS partition_key FROM pg_catalog.pg_class c LEFT OUTER JOIN pg_catalog.pg_description d ON d.objoid = c.oid AND d.objsubid = 0 AND d.classoid = 'pg_class'::regclass WHERE c.relkind NOT IN ('i', 'I', 'c')",
    );
  });
});
