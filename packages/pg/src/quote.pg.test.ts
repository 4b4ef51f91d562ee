import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { testMajors } from "@spillway/testkit/binaries";
import { createTestDatabase, type TestDatabase } from "@spillway/testkit/database";
import { quoteIdent, quoteLiteral, quoteQualified } from "./quote.ts";

/** Any text that Postgres can hold, heavy in what quoting is about. */
const text = fc
  .array(fc.oneof(fc.constantFrom("'", '"', "\\", "$$", "E'", "\n", " ", ";--", "%s", "é", "𝄞", "?", ":"), fc.string()))
  // Through UTF-8 and back: a lone surrogate is no text.
  .map((parts) => Buffer.from(parts.join("").replaceAll("\0", "")).toString());
/** Names are cut at 63 bytes. */
const name = text.filter((t) => t !== "" && Buffer.byteLength(t) <= 63);

describe.each(testMajors())("quoting on Postgres %i", (major) => {
  let db: TestDatabase;
  beforeAll(async () => {
    db = await createTestDatabase({ major });
  });
  afterAll(() => db.drop());

  test.each(["on", "off"])(
    "a literal is the text it was made of (standard_conforming_strings = %s)",
    async (setting) => {
      // Since 19 the setting cannot be off; up to then both must hold.
      await db.client.query(`SET standard_conforming_strings = ${setting}`);
      await db.client.query("SET escape_string_warning = off");
      await fc.assert(
        fc.asyncProperty(text, async (value) => {
          const { rows } = await db.client.query(`SELECT${quoteLiteral(value)} AS v`);
          expect(rows).toEqual([{ v: value }]);
        }),
        { numRuns: 200 },
      );
    },
  );

  test("an identifier names exactly that", async () => {
    await fc.assert(
      fc.asyncProperty(name, name, async (schema, column) => {
        const { fields } = await db.client.query(`SELECT 1 AS ${quoteIdent(column)}`);
        expect(fields[0]?.name).toBe(column);
        const { rows } = await db.client.query("SELECT parse_ident($1) AS parts", [quoteQualified(schema, column)]);
        expect(rows).toEqual([{ parts: [schema, column] }]);
      }),
      { numRuns: 200 },
    );
  });

  test("what Postgres cannot hold is refused", () => {
    expect(() => quoteIdent("")).toThrow(expect.objectContaining({ code: "pg_bad_name" }));
    expect(() => quoteIdent("a\0b")).toThrow(expect.objectContaining({ code: "pg_bad_name" }));
    expect(() => quoteLiteral("a\0b")).toThrow(expect.objectContaining({ code: "pg_bad_name" }));
  });
});
