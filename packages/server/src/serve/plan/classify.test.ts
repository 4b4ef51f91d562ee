import { expect, test } from "vitest";
import { classify, splitStatements } from "./classify.ts";

test.each([
  ["SELECT 1", "select", false],
  ["with x as (insert into t values (1) returning *) select * from x", "select", true],
  ["WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a", "insert", true],
  ["select * from (with x as (delete from t returning *) select * from x) q", "select", true],
  ["SELECT 1 INTO t", "ddl", true],
  ["SELECT * FROM t FOR UPDATE", "select", true],
  ["EXPLAIN DELETE FROM t", "explain", false],
  ["EXPLAIN ANALYZE DELETE FROM t", "explain", true],
  ["EXPLAIN (ANALYZE false) DELETE FROM t", "explain", false],
  ["explain (analyze on, verbose) update t set a = 1", "explain", true],
  ["EXPLAIN ANALYZE SELECT 1", "explain", false],
  ["/* select */ -- select\n DELETE FROM t", "delete", true],
  ["BEGIN ISOLATION LEVEL SERIALIZABLE", "begin", false],
  ["START TRANSACTION READ ONLY", "begin", false],
  ["END", "commit", false],
  ["ABORT", "rollback", false],
  ["SAVEPOINT a", "savepoint", false],
  ["ROLLBACK TO SAVEPOINT a", "rollback-to", false],
  ["RELEASE a", "release", false],
  ["PREPARE TRANSACTION 'x'", "utility", true],
  ["SET search_path TO a, b", "set", false],
  ["USE sales", "set", false],
  ["RESET ALL", "reset", false],
  ["SHOW TimeZone", "show", false],
  ["DISCARD ALL", "discard", false],
  ["COPY t TO STDOUT", "copy", false],
  ["COPY t FROM STDIN", "copy", true],
  ["TRUNCATE t", "truncate", true],
  ["MERGE INTO t USING s ON t.a = s.a WHEN MATCHED THEN DELETE", "merge", true],
  ["CREATE TABLE t AS SELECT 1", "ddl", true],
  ["DO $$ begin end $$", "utility", true],
  ["CALL f()", "utility", true],
  ["FROM t SELECT a", "select", false],
  ["SELECT * EXCLUDE (a) FROM t", "select", false],
  ["SELECT * FROM t AT (VERSION => 3)", "select", false],
  ["  ; ", "empty", false],
])("%s", async (sql, kind, writes) => {
  const found = await classify(sql);
  expect([found.kind, found.writes]).toEqual([kind, writes]);
});

test.each(["ATTACH 'x' AS y", "PRAGMA database_list", "INSTALL httpfs", "DELETE FORM t", "VACUUMM"])(
  "%s is in no grammar that is taken",
  async (sql) => {
    await expect(classify(sql)).rejects.toMatchObject({ code: "sql_syntax", details: { sqlstate: "42601" } });
  },
);

test("an error says where, in characters from 1", async () => {
  await expect(classify("DELETE FORM t")).rejects.toMatchObject({ details: { position: 8 } });
});

test("parameters are counted where they are parameters", async () => {
  expect((await classify("SELECT $2::int, '$9', $1 -- $12")).parameters).toBe(2);
});

test.each([
  ["SELECT 1; SELECT 2", ["SELECT 1", "SELECT 2"]],
  ["SELECT ';'; -- ; \n SELECT $$;$$ ;;", ["SELECT ';'", "-- ; \n SELECT $$;$$"]],
  ["SELECT 'é;' ; SELECT \"ü;\"", ["SELECT 'é;'", 'SELECT "ü;"']],
  [";", []],
  ["", []],
  ["/* ; */ SELECT 1", ["/* ; */ SELECT 1"]],
])("%j splits", async (sql, parts) => {
  expect(await splitStatements(sql)).toEqual(parts);
});
