/** A client that writes while something happens to a formation; afterwards every acknowledged row must be there, once. */
import { expect } from "vitest";
import { checkAcks, readIds, twoWritable } from "./checker.ts";
import type { Formation } from "./formation.ts";
import { sharedClock as clock } from "./shared-clock.ts";
import { Writer } from "./writer.ts";

export interface Writing {
  /** How long an acknowledgement may take before the connection is given up. */
  readonly timeoutMs: number;
  /** How long the formation may take to be stable again. */
  readonly stableMs: number;
}

let number = 0;

export async function writeWhile(
  formation: Formation,
  { timeoutMs, stableMs }: Writing,
  work: (writer: Writer) => Promise<void>,
): Promise<Writer> {
  number += 1;
  const own = number;
  const writer = new Writer({ uri: formation.uri, clock, everyMs: 20, writer: own, timeoutMs });
  writer.start();
  try {
    await writer.waitForAck(0, 10_000);
    await clock.sleep(200);
    await work(writer);
    await formation.waitStable(stableMs);
    await writer.waitForAck(clock.monotonicMs(), 10_000);
  } finally {
    await writer.stop();
  }
  const check = checkAcks(writer.acks, writer.unknown, await readIds(formation.uri, own));
  expect(check.lost).toEqual([]);
  expect(check.acked).toBeGreaterThan(10);
  expect(twoWritable(writer.acks)).toEqual([]);
  return writer;
}

/** The last words of each keeper, of a test that failed. */
export function showLogs(formation: Formation | undefined): void {
  for (const node of formation?.nodes ?? []) process.stderr.write(`--- ${node.name}\n${node.log().slice(-4000)}\n`);
}
