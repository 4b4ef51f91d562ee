import { expect, test } from "vitest";
import { POLICY, policyLines, policyOf } from "./policy.ts";

test("every default can be read, own values come first, and what cannot be read counts as unset", () => {
  const plain = policyOf({ policy: {} });
  for (const line of policyLines({ policy: {} })) {
    expect([line.name, line.origin, line.value]).toEqual([line.name, "default", POLICY[line.name].default]);
    expect(Number.isNaN(plain.number(line.name))).toBe(false);
  }
  expect(plain.number("snapshot_retention")).toBe(86_400_000);
  expect(plain.number("rewrite_target_bytes")).toBe(128 << 20);
  expect(plain.on("rewrite_enabled")).toBe(true);
  const own = policyOf({
    policy: { rewrite_enabled: "false", fold_rows: "12", snapshot_retention: "soon", other: "x" },
  });
  expect([own.on("rewrite_enabled"), own.number("fold_rows"), own.number("snapshot_retention")]).toEqual([
    false,
    12,
    86_400_000,
  ]);
  expect(own.isOwn("fold_rows") && !own.isOwn("fold_enabled")).toBe(true);
});
