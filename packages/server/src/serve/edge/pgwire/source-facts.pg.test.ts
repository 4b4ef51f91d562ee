import { afterAll, beforeAll, expect, test } from "vitest";
import { systemClock } from "@spillway/base/clock";
import { silentLogger } from "@spillway/base/log";
import type { AccessRules } from "../../../control/control.ts";
import { accessSetOf } from "../../access/access-set.ts";
import { testPrincipal, testSource, type TestSource } from "../../session/test-serve.ts";
import { SourceFacts } from "./source-facts.ts";

let source: TestSource;
beforeAll(async () => {
  source = await testSource();
  await source.db.client.query(`
    CREATE TABLE secret (a int, ssn text); CREATE VIEW over_secret AS SELECT a FROM secret;
    CREATE VIEW over_over AS SELECT * FROM over_secret; CREATE TABLE open (id serial PRIMARY KEY, note text);
    CREATE VIEW over_items AS SELECT id FROM items; CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'`);
});
afterAll(() => source.close());

test("policies and tiers are inherited by views and partitions, what belongs to a table is seen with it", async () => {
  const set = accessSetOf({
    version: "1",
    isSuperuser: false,
    grants: ["secret", "over_secret", "over_over", "items", "items_p2", "open", "over_items"].map((table) => ({
      schema: "public",
      table,
      privileges: ["select"],
    })),
    policies: {
      "public\0secret": { rows: "a > 1", columns: [["ssn", null]] },
      "public\0items": { rows: null, columns: [["label", "'x'"]] },
    },
    policed: ["public\0secret", "public\0items"],
  });
  const rules = { version: 1n, loginUrl: null, database: { sourceUrl: source.db.url } } as unknown as AccessRules;
  const facts = new SourceFacts({
    access: { rules: async () => rules, setOf: async () => set },
    databaseId: async () => "1",
    secret: async (text) => text,
    clock: systemClock,
    log: silentLogger,
  });
  try {
    const view = await facts.view(testPrincipal(), "db");
    expect(await facts.view(testPrincipal(), "db")).toBe(view);
    const of = (name: string): unknown => {
      const found = view.relations.find((relation) => relation.name === name);
      return found && [found.visible, found.restricted, found.seam, found.hiddenColumns];
    };
    expect(of("secret")).toEqual([true, true, false, [2]]);
    expect(of("over_secret")).toEqual([true, true, false, []]);
    expect(of("over_over")).toEqual([true, true, false, []]);
    expect(of("items")).toEqual([true, true, true, []]);
    expect(of("items_p2")).toEqual([true, true, true, []]);
    expect(of("over_items")).toEqual([true, true, true, []]);
    expect(of("open")).toEqual([true, false, false, []]);
    expect(of("open_pkey")).toEqual([true, false, false, []]);
    expect(of("open_id_seq")).toEqual([true, false, false, []]);
    expect(of("plain")).toEqual([false, false, false, []]);
    expect(of("plain_pkey")).toEqual([false, true, false, []]);
    expect(of("relation")).toBeUndefined();
    expect(view.functions.get("mine")).toBe("user");
    expect(view.functions.get("count")).toBe("system");
  } finally {
    await facts.close();
  }
});
