import { createLogger } from "@spillway/base/log";
import { expect, test } from "vitest";
import { guardSlot, type SlotReading } from "./guard.ts";

test("warns at the threshold, is an error at four times it, and an invalid slot is an alarm", () => {
  const lines: string[] = [];
  const log = createLogger({ level: "debug", format: "text", write: (line) => lines.push(line), now: () => 0 });
  const at = (retained: number | null, invalid: string | null = null): SlotReading => ({
    slot: "s",
    active: true,
    retained,
    invalid,
  });
  expect(guardSlot(at(99), 100, log)).toBe("ok");
  expect(lines).toEqual([]);
  expect(guardSlot(at(100), 100, log)).toBe("warn");
  expect(guardSlot(at(399), 100, log)).toBe("warn");
  expect(guardSlot(at(400), 100, log)).toBe("error");
  expect(lines.at(-1)).toContain("runbook");
  expect(guardSlot(at(null, "wal_removed"), 100, log)).toBe("error");
  expect(lines.at(-1)).toContain("resync");
});
