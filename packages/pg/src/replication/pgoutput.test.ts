/** Random message sequences through an encoder of their own, and broken ones. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { isSpillwayError } from "@spillway/base/errors";
import { PgOutputDecoder, type OldTuple, type PgOutputSink, type PgRelation, type Tuple } from "./pgoutput.ts";

// ---- the encoder: the message formats of the documentation, with nothing of the decoder's ----

type Cell = null | "unchanged" | { text: string } | { binary: Uint8Array };
type Row = readonly Cell[];
interface Col {
  name: string;
  oid: number;
  typmod: number;
  key: boolean;
}
type Msg =
  | { t: "B"; xid: number; lsn: bigint; time: bigint }
  | { t: "C"; lsn: bigint; end: bigint; time: bigint }
  | { t: "R"; oid: number; schema: string; name: string; identity: string; columns: Col[] }
  | { t: "I"; oid: number; row: Row }
  | { t: "U"; oid: number; old: { kind: "K" | "O"; row: Row } | null; row: Row }
  | { t: "D"; oid: number; kind: "K" | "O"; row: Row }
  | { t: "T"; oids: number[]; flags: number }
  | { t: "M"; flags: number; lsn: bigint; prefix: string; content: Uint8Array }
  | { t: "S"; xid: number; first: boolean }
  | { t: "E" }
  | { t: "c"; xid: number; lsn: bigint; end: bigint; time: bigint }
  | { t: "A"; xid: number; subxid: number; extra: boolean }
  | { t: "O"; lsn: bigint; name: string }
  | { t: "Y"; oid: number; schema: string; name: string };

const u8 = (v: number): Buffer => Buffer.from([v]);
const u16 = (v: number): Buffer => Buffer.from([v >> 8, v & 255]);
const u32 = (v: number): Buffer => Buffer.from([v >>> 24, (v >>> 16) & 255, (v >>> 8) & 255, v & 255]);
const u64 = (v: bigint): Buffer => Buffer.concat([u32(Number((v >> 32n) & 0xffffffffn)), u32(Number(v & 0xffffffffn))]);
const str = (v: string): Buffer => Buffer.concat([Buffer.from(v, "utf8"), u8(0)]);

function encodeRow(row: Row): Buffer {
  const cells = row.map((cell) => {
    if (cell === null) return Buffer.from("n");
    if (cell === "unchanged") return Buffer.from("u");
    const bytes = "text" in cell ? Buffer.from(cell.text, "utf8") : Buffer.from(cell.binary);
    return Buffer.concat([Buffer.from("text" in cell ? "t" : "b"), u32(bytes.length), bytes]);
  });
  return Buffer.concat([u16(row.length), ...cells]);
}

function encode(m: Msg, xid: number): Buffer {
  const head = xid === 0 ? [Buffer.from(m.t)] : [Buffer.from(m.t), u32(xid)];
  switch (m.t) {
    case "B":
      return Buffer.concat([u8(0x42), u64(m.lsn), u64(m.time), u32(m.xid)]);
    case "C":
      return Buffer.concat([u8(0x43), u8(0), u64(m.lsn), u64(m.end), u64(m.time)]);
    case "R": {
      const columns = m.columns.map((c) => Buffer.concat([u8(c.key ? 1 : 0), str(c.name), u32(c.oid), u32(c.typmod)]));
      const names = [u32(m.oid), str(m.schema), str(m.name), Buffer.from(m.identity), u16(m.columns.length)];
      return Buffer.concat([...head, ...names, ...columns]);
    }
    case "I":
      return Buffer.concat([...head, u32(m.oid), Buffer.from("N"), encodeRow(m.row)]);
    case "U": {
      const old = m.old === null ? [] : [Buffer.from(m.old.kind), encodeRow(m.old.row)];
      return Buffer.concat([...head, u32(m.oid), ...old, Buffer.from("N"), encodeRow(m.row)]);
    }
    case "D":
      return Buffer.concat([...head, u32(m.oid), Buffer.from(m.kind), encodeRow(m.row)]);
    case "T":
      return Buffer.concat([...head, u32(m.oids.length), u8(m.flags), ...m.oids.map(u32)]);
    case "M":
      return Buffer.concat([...head, u8(m.flags), u64(m.lsn), str(m.prefix), u32(m.content.length), m.content]);
    case "S":
      return Buffer.concat([u8(0x53), u32(m.xid), u8(m.first ? 1 : 0)]);
    case "E":
      return u8(0x45);
    case "c":
      return Buffer.concat([u8(0x63), u32(m.xid), u8(0), u64(m.lsn), u64(m.end), u64(m.time)]);
    case "A": {
      const extra = m.extra ? [u64(1n), u64(2n)] : [];
      return Buffer.concat([u8(0x41), u32(m.xid), u32(m.subxid), ...extra]);
    }
    case "O":
      return Buffer.concat([u8(0x4f), u64(m.lsn), str(m.name)]);
    case "Y":
      return Buffer.concat([...head, u32(m.oid), str(m.schema), str(m.name)]);
  }
}

// ---- what the decoder says, as values ----

const EPOCH = 946_684_800_000_000n;

function rowOf(tuple: Tuple): Cell[] {
  return Array.from({ length: tuple.length }, (_, i): Cell => {
    if (tuple.isNull(i)) return null;
    if (tuple.isUnchanged(i)) return "unchanged";
    const bytes = Buffer.from(tuple.buffer.subarray(tuple.start[i], tuple.end[i]));
    return tuple.kind[i] === 0x74 ? { text: bytes.toString("utf8") } : { binary: new Uint8Array(bytes) };
  });
}

class Recorder implements PgOutputSink {
  readonly seen: unknown[] = [];
  onBegin(xid: number, lsn: bigint, time: bigint): void {
    this.seen.push({ t: "B", xid, lsn, time: time - EPOCH });
  }
  onCommit(lsn: bigint, end: bigint, time: bigint): void {
    this.seen.push({ t: "C", lsn, end, time: time - EPOCH });
  }
  onRelation(r: PgRelation, xid: number): void {
    const columns = r.columns.map((c) => ({ name: c.name, oid: c.typeOid, typmod: c.typmod, key: c.isKey }));
    this.seen.push({ t: "R", oid: r.oid, schema: r.schema, name: r.name, identity: r.replicaIdentity, columns, xid });
  }
  onInsert(r: PgRelation, tuple: Tuple, xid: number): void {
    this.seen.push({ t: "I", oid: r.oid, row: rowOf(tuple), xid, name: r.name });
  }
  onUpdate(r: PgRelation, kind: OldTuple | null, old: Tuple | null, tuple: Tuple, xid: number): void {
    const before = old === null ? null : { kind: kind === "key" ? "K" : "O", row: rowOf(old) };
    this.seen.push({ t: "U", oid: r.oid, old: before, row: rowOf(tuple), xid, name: r.name });
  }
  onDelete(r: PgRelation, kind: OldTuple, old: Tuple, xid: number): void {
    this.seen.push({ t: "D", oid: r.oid, kind: kind === "key" ? "K" : "O", row: rowOf(old), xid, name: r.name });
  }
  onTruncate(rs: readonly PgRelation[], cascade: boolean, restart: boolean, xid: number): void {
    this.seen.push({ t: "T", oids: rs.map((r) => r.oid), flags: (cascade ? 1 : 0) | (restart ? 2 : 0), xid });
  }
  onMessage(transactional: boolean, lsn: bigint, prefix: string, content: Buffer, xid: number): void {
    this.seen.push({ t: "M", flags: transactional ? 1 : 0, lsn, prefix, content: new Uint8Array(content), xid });
  }
  onStreamStart(xid: number, first: boolean): void {
    this.seen.push({ t: "S", xid, first });
  }
  onStreamStop(): void {
    this.seen.push({ t: "E" });
  }
  onStreamCommit(xid: number, lsn: bigint, end: bigint, time: bigint): void {
    this.seen.push({ t: "c", xid, lsn, end, time: time - EPOCH });
  }
  onStreamAbort(xid: number, subxid: number): void {
    this.seen.push({ t: "A", xid, subxid });
  }
  onOrigin(name: string, lsn: bigint): void {
    this.seen.push({ t: "O", lsn, name });
  }
  onType(oid: number, schema: string, name: string): void {
    this.seen.push({ t: "Y", oid, schema, name });
  }
}

// ---- random sequences ----

const lsn = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
const time = fc.bigInt({ min: 0n, max: 2n ** 60n });
const xid = fc.integer({ min: 1, max: 2 ** 32 - 1 });
const word = fc.string({ unit: "grapheme", minLength: 1, maxLength: 12 }).map((s) => s.replaceAll("\0", "_"));
const cell: fc.Arbitrary<Cell> = fc.oneof(
  fc.constant(null),
  fc.constant("unchanged" as const),
  fc.string({ unit: "grapheme" }).map((text) => ({ text })),
  fc.uint8Array({ maxLength: 40 }).map((binary) => ({ binary })),
);
const row = fc.oneof(fc.array(cell, { maxLength: 6 }), fc.array(cell, { minLength: 65, maxLength: 70 }));
const oid = fc.integer({ min: 16384, max: 16386 });
const relation: fc.Arbitrary<Msg> = fc.record({
  t: fc.constant("R" as const),
  oid,
  schema: word,
  name: word,
  identity: fc.constantFrom("d", "n", "f", "i"),
  columns: fc.array(fc.record({ name: word, oid: xid, typmod: fc.integer(), key: fc.boolean() }), { maxLength: 5 }),
});
const oldRow = fc.record({ kind: fc.constantFrom("K" as const, "O" as const), row });
const change: fc.Arbitrary<Msg> = fc.oneof(
  relation,
  fc.record({ t: fc.constant("I" as const), oid, row }),
  fc.record({ t: fc.constant("U" as const), oid, old: fc.option(oldRow), row }),
  fc.record({ t: fc.constant("D" as const), oid, kind: fc.constantFrom("K" as const, "O" as const), row }),
  fc.record({
    t: fc.constant("T" as const),
    oids: fc.array(oid, { maxLength: 3 }),
    flags: fc.integer({ min: 0, max: 3 }),
  }),
  fc.record({
    t: fc.constant("M" as const),
    flags: fc.integer({ min: 0, max: 1 }),
    lsn,
    prefix: word,
    content: fc.uint8Array(),
  }),
  fc.record({ t: fc.constant("Y" as const), oid, schema: word, name: word }),
);

interface Step {
  readonly message: Msg;
  readonly xid: number;
}

const plainTransaction = fc
  .record({ xid, lsn, time, end: lsn, origin: fc.option(fc.record({ lsn, name: word })), changes: fc.array(change) })
  .map(({ xid, lsn, time, end, origin, changes }): Step[] => {
    const messages: Msg[] = [{ t: "B", xid, lsn, time }];
    if (origin) messages.push({ t: "O", lsn: origin.lsn, name: origin.name });
    messages.push(...changes, { t: "C", lsn, end, time });
    return messages.map((message) => ({ message, xid: 0 }));
  });
const streamedTransaction = fc
  .record({
    xid,
    lsn,
    time,
    blocks: fc.array(fc.array(fc.tuple(change, xid)), { minLength: 1, maxLength: 3 }),
    aborted: fc.option(fc.record({ subxid: xid, extra: fc.boolean() })),
  })
  .map(({ xid, blocks, aborted, lsn, time }): Step[] =>
    blocks
      .flatMap((block, i): Step[] => [
        { message: { t: "S", xid, first: i === 0 }, xid: 0 },
        ...block.map(([message, sub]) => ({ message, xid: sub })),
        { message: { t: "E" }, xid: 0 },
      ])
      .concat([
        aborted
          ? { message: { t: "A", xid, subxid: aborted.subxid, extra: aborted.extra }, xid: 0 }
          : { message: { t: "c", xid, lsn, end: lsn, time }, xid: 0 },
      ]),
  );
const sequence = fc.array(fc.oneof(plainTransaction, streamedTransaction), { maxLength: 6 }).map((list) => list.flat());

/** A description of every table first, so that changes always find theirs. */
const DESCRIBED: Step[] = [16384, 16385, 16386].map((oid) => ({
  message: { t: "R", oid, schema: "public", name: `t${oid}`, identity: "d", columns: [] },
  xid: 0,
}));

function decodeAll(steps: readonly Step[]): unknown[] {
  const recorder = new Recorder();
  const decoder = new PgOutputDecoder(recorder);
  for (const { message, xid } of steps) {
    // Somewhere inside a larger buffer, as it is in the socket's.
    const bytes = encode(message, xid);
    const buffer = Buffer.concat([Buffer.from("before"), bytes, Buffer.from("after")]);
    decoder.decode(buffer, 6, 6 + bytes.length);
  }
  return recorder.seen;
}

function expected(step: Step): object {
  const { t } = step.message;
  const { extra: _, ...message } = { extra: null, ...step.message };
  return "RIUDTM".includes(t) ? { ...message, xid: step.xid } : message;
}

describe("pgoutput", () => {
  test("every message is read as it was written", () => {
    fc.assert(
      fc.property(sequence, (steps) => {
        const seen = decodeAll([...DESCRIBED, ...steps]).slice(DESCRIBED.length);
        for (const [i, step] of steps.entries()) expect(seen[i]).toMatchObject(expected(step));
        expect(seen.length).toBe(steps.length);
      }),
      { numRuns: 300 },
    );
  });

  test("a message that ends too early is an error, never a wrong row", () => {
    fc.assert(
      fc.property(change, fc.nat(), (message, cut) => {
        const bytes = encode(message, 0);
        const decoder = new PgOutputDecoder(new Recorder());
        for (const { message } of DESCRIBED) decoder.decode(encode(message, 0), 0, encode(message, 0).length);
        const end = 1 + (cut % (bytes.length - 1));
        // What lies behind the end in the buffer is the next message, and must not be taken for this one's.
        const run = (): void => decoder.decode(bytes, 0, end);
        if (end < bytes.length) expect(run).toThrow();
      }),
    );
  });

  test("a table's new form inside a streamed transaction is its own until it commits", () => {
    const described = (name: string): Msg => ({ t: "R", oid: 16384, schema: "s", name, identity: "d", columns: [] });
    const insert: Msg = { t: "I", oid: 16384, row: [] };
    const begin: Step = { message: { t: "B", xid: 1, lsn: 1n, time: 0n }, xid: 0 };
    const commit: Step = { message: { t: "C", lsn: 1n, end: 1n, time: 0n }, xid: 0 };
    const open = (xid: number): Step => ({ message: { t: "S", xid, first: true }, xid: 0 });
    const close: Step = { message: { t: "E" }, xid: 0 };
    const streamed = [open(7), { message: described("new"), xid: 8 }, { message: insert, xid: 8 }, close];
    const other = [begin, { message: insert, xid: 0 }, commit];
    const names = (ending: Msg): unknown[] =>
      decodeAll([{ message: described("old"), xid: 0 }, ...streamed, ...other, { message: ending, xid: 0 }, ...other])
        .filter((s) => (s as { t: string }).t === "I")
        .map((s) => (s as { name: string }).name);
    expect(names({ t: "c", xid: 7, lsn: 1n, end: 1n, time: 0n })).toEqual(["new", "old", "new"]);
    expect(names({ t: "A", xid: 7, subxid: 7, extra: false })).toEqual(["new", "old", "old"]);
  });

  test.each(["b", "P", "K", "r", "p", "?"])("message %s is refused with a typed error", (type) => {
    const decoder = new PgOutputDecoder(new Recorder());
    let error: unknown;
    try {
      decoder.decode(Buffer.from(`${type}xxxxxxxxxxxxxxxxxxxxxxxxxx`), 0, 27);
    } catch (e) {
      error = e;
    }
    expect(isSpillwayError(error, "pg_protocol_error")).toBe(true);
  });

  test("a change of a table that was never described is refused", () => {
    const decoder = new PgOutputDecoder(new Recorder());
    const bytes = encode({ t: "I", oid: 5, row: [] }, 0);
    expect(() => decoder.decode(bytes, 0, bytes.length)).toThrow(/relation 5/);
  });
});
