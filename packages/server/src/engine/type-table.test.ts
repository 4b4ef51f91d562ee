/** The page of types is what the code says. `UPDATE_DOCS=1` writes it. */
import { readFileSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { expect, test } from "vitest";
import { typeTablePage } from "./type-table.ts";

test("docs/reference/types.md is current", () => {
  const path = resolve(import.meta.dirname, "../../../../docs/reference/types.md");
  if (process.env["UPDATE_DOCS"] === "1") writeFileSync(path, typeTablePage());
  expect(readFileSync(path, "utf8")).toBe(typeTablePage());
});
