/** The decoders against BigInt and Date arithmetic: every number and instant, in both forms. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { ColumnKind, FixedColumn, VarColumn } from "@spillway/base/columns";
import type { PgTypeFacts } from "@spillway/base/pg-types";
import type { ColumnBuilder } from "./builder.ts";
import { columnBuilder, planColumn } from "./plan.ts";
import { decimalText, textOf, unscaledAt } from "./text-out.ts";

const facts = (oid: number, typmod = -1): PgTypeFacts => ({
  oid,
  typmod,
  name: "x",
  typtype: "b",
  category: "X",
  schema: "pg_catalog",
});
const builderOf = (oid: number, typmod = -1): ColumnBuilder => columnBuilder(planColumn("c", facts(oid, typmod)));
const numericTypmod = (precision: number, scale: number): number => ((precision << 16) | (scale & 0x7ff)) + 4;

function appendText(builder: ColumnBuilder, text: string): void {
  const bytes = Buffer.from(`<${text}>`);
  builder.appendText(bytes, 1, bytes.length - 1);
}
function appendBinary(builder: ColumnBuilder, bytes: Buffer): void {
  const padded = Buffer.concat([Buffer.from([0xff]), bytes, Buffer.from([0xff])]);
  builder.appendBinary(padded, 1, 1 + bytes.length);
}
function int64(value: bigint): Buffer {
  const out = Buffer.alloc(8);
  out.writeBigInt64BE(value);
  return out;
}

/** numeric's binary form by its definition: base 10 000 digits around the point, zeros at both ends left out. */
function numericBinary(unscaled: bigint, scale: number): Buffer {
  const digits = (unscaled < 0n ? -unscaled : unscaled).toString().padStart(scale + 1, "0");
  const point = digits.length - scale;
  const whole = digits.slice(0, point);
  const padded = "0".repeat((4 - (whole.length % 4)) % 4) + whole;
  const fraction = digits.slice(point) + "0".repeat((4 - (scale % 4)) % 4);
  const groups = (padded + fraction).match(/\d{4}/g)?.map(Number) ?? [];
  let weight = padded.length / 4 - 1;
  while (groups[0] === 0) {
    groups.shift();
    weight--;
  }
  while (groups.at(-1) === 0) groups.pop();
  const out = Buffer.alloc(8 + 2 * groups.length);
  out.writeUInt16BE(groups.length, 0);
  out.writeInt16BE(groups.length === 0 ? 0 : weight, 2);
  out.writeUInt16BE(unscaled < 0n ? 0x4000 : 0, 4);
  out.writeUInt16BE(scale, 6);
  for (const [i, group] of groups.entries()) out.writeUInt16BE(group, 8 + 2 * i);
  return out;
}

const shape = fc.integer({ min: 1, max: 38 }).chain((precision) =>
  fc.integer({ min: 0, max: precision }).chain((scale) =>
    fc.record({
      precision: fc.constant(precision),
      scale: fc.constant(scale),
      values: fc.array(
        fc
          .integer({ min: 0, max: precision })
          .chain((digits) => fc.bigInt({ min: -(10n ** BigInt(digits)) + 1n, max: 10n ** BigInt(digits) - 1n })),
        { minLength: 1, maxLength: 10 },
      ),
    }),
  ),
);

describe("numbers", () => {
  test("decimals of every precision and scale, from both forms", () => {
    fc.assert(
      fc.property(shape, ({ precision, scale, values }) => {
        const [text, binary] = [
          builderOf(1700, numericTypmod(precision, scale)),
          builderOf(1700, numericTypmod(precision, scale)),
        ];
        for (const value of values) {
          appendText(text, decimalText(value, scale));
          appendBinary(binary, numericBinary(value, scale));
        }
        for (const column of [text.finish(), binary.finish()] as FixedColumn[]) {
          expect(values.map((_, i) => unscaledAt(column.data as BigInt64Array, i))).toEqual(values);
        }
      }),
      { numRuns: 500 },
    );
  });

  test("a decimal with more digits than its scale is refused, never rounded", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 12 }),
        fc.integer({ min: 1, max: 8 }),
        fc.bigInt({ min: -(10n ** 12n), max: 10n ** 12n }),
        (scale, more, value) => {
          const unscaled = value * 10n + 1n;
          const builder = builderOf(1700, numericTypmod(38, scale));
          expect(() => appendBinary(builder, numericBinary(unscaled, scale + more))).toThrow(/out of range/);
          expect(() => appendText(builder, decimalText(unscaled, scale + more))).toThrow(/out of range/);
        },
      ),
    );
  });

  test("numerics without a bound become the text that Postgres prints", () => {
    fc.assert(
      fc.property(
        fc.bigInt({ min: -(10n ** 60n), max: 10n ** 60n }),
        fc.integer({ min: 0, max: 50 }),
        (value, scale) => {
          const builder = builderOf(1700);
          appendBinary(builder, numericBinary(value, scale));
          expect(textOf(builder.finish(), 0)).toBe(decimalText(value, scale));
        },
      ),
    );
  });

  test("64-bit integers, from both forms", () => {
    const any = fc.oneof(
      fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }),
      fc.bigInt({ min: -1000n, max: 1000n }),
      fc.bigInt({ min: -(2n ** 53n), max: 2n ** 54n }),
    );
    fc.assert(
      fc.property(fc.array(any, { minLength: 1 }), (values) => {
        const [text, binary] = [builderOf(20), builderOf(20)];
        for (const value of values) {
          appendText(text, String(value));
          appendBinary(binary, int64(value));
        }
        expect([...(text.finish() as FixedColumn).data]).toEqual(values);
        expect([...(binary.finish() as FixedColumn).data]).toEqual(values);
      }),
    );
  });

  test.each([
    [20, "9223372036854775808", /out of range/],
    [20, "-9223372036854775809", /out of range/],
    [20, "99999999999999999999999999999999999999999999", /out of range/],
    [20, "", /int64/],
    [20, "1x", /int64/],
    [21, "32768", /int16/],
    [23, "2147483648", /int32/],
    [16, "true", /bool/],
    [700, "nothing", /float32/],
    [1082, "2024-13", /date/],
    [1083, "12:00", /time/],
    [1114, "2024-01-01", /timestamp/],
    [2950, "0123", /uuid/],
    [2950, "zzzzzzzz-zzzz-zzzz-zzzz-zzzzzzzzzzzz", /uuid/],
    [17, "\\x0", /bytes/],
    [17, "\\xzz", /bytes/],
  ])("type %i refuses the text %j", (oid, text, message) => {
    expect(() => appendText(builderOf(oid), text)).toThrow(message);
  });

  test.each([16, 20, 21, 23, 26, 700, 701, 1082, 1083, 1114, 1700, 2950])(
    "type %i refuses a value of a wrong size",
    (oid) => {
      expect(() => appendBinary(builderOf(oid, oid === 1700 ? numericTypmod(9, 2) : -1), Buffer.alloc(7))).toThrow(
        /column "c"/,
      );
    },
  );
});

describe("dates and instants", () => {
  test("timestamps are what Date says, from both forms", () => {
    const micros = fc.bigInt({ min: -62_000_000_000_000_000n, max: 8_640_000_000_000_000_000n / 100n });
    fc.assert(
      fc.property(micros, fc.integer({ min: -14, max: 14 }), (value, zone) => {
        const ms = value >= 0n ? value / 1000n : -((-value + 999n) / 1000n);
        const local = new Date(Number(ms) + zone * 3_600_000)
          .toISOString()
          .replace("T", " ")
          .replace(/^\+0*/, "")
          .slice(0, -4);
        const fraction = String(((value % 1_000_000n) + 1_000_000n) % 1_000_000n).padStart(6, "0");
        const sign = zone < 0 ? "-" : "+";
        const [text, binary] = [builderOf(1184), builderOf(1184)];
        appendText(text, `${local.replace(/\.\d*$/, "")}.${fraction}${sign}${String(Math.abs(zone)).padStart(2, "0")}`);
        appendBinary(binary, int64(value - 946_684_800_000_000n));
        expect([...(text.finish() as FixedColumn).data]).toEqual([value]);
        expect([...(binary.finish() as FixedColumn).data]).toEqual([value]);
      }),
      { numRuns: 500 },
    );
  });

  test("what is written is read again: dates of every year, times, timestamps", () => {
    const kinds: [ColumnKind, number, fc.Arbitrary<bigint>][] = [
      ["date", 1082, fc.bigInt({ min: -2_440_588n, max: 2_145_031_948n })],
      ["time", 1083, fc.bigInt({ min: 0n, max: 86_400_000_000n })],
      ["timestamp", 1114, fc.bigInt({ min: -210_866_803_200_000_000n, max: 2n ** 63n - 2n })],
      ["timestamptz", 1184, fc.bigInt({ min: -210_866_803_200_000_000n, max: 2n ** 63n - 2n })],
    ];
    for (const [kind, oid, values] of kinds) {
      fc.assert(
        fc.property(values, (value) => {
          const data = kind === "date" ? Int32Array.of(Number(value)) : BigInt64Array.of(value);
          const text = textOf({ spec: { name: "c", kind }, validity: null, data }, 0) ?? "";
          const builder = builderOf(oid);
          appendText(builder, text);
          expect([text, (builder.finish() as FixedColumn).data]).toEqual([text, data]);
        }),
        { numRuns: 300 },
      );
    }
  });
});

describe("builders", () => {
  test("grow, hand their memory over, and start again", () => {
    fc.assert(
      fc.property(
        fc.array(fc.array(fc.option(fc.string({ unit: "grapheme", maxLength: 60 })), { maxLength: 700 }), {
          maxLength: 4,
        }),
        (batches) => {
          const builder = builderOf(25);
          const finished = batches.map((values) => {
            for (const value of values) {
              if (value === null) builder.appendNull();
              else appendText(builder, value);
            }
            return builder.finish() as VarColumn;
          });
          // Earlier columns must not change when the builder goes on.
          for (const [i, values] of batches.entries()) {
            const column = finished[i];
            expect(column?.offsets.length).toBe(values.length + 1);
            expect(values.map((_, row) => column && textOf(column, row))).toEqual(values);
            expect(column?.validity === null).toBe(!values.includes(null));
          }
        },
      ),
      { numRuns: 50 },
    );
  });

  test("forget on reset", () => {
    const builder = builderOf(23);
    builder.appendNull();
    appendText(builder, "5");
    builder.reset();
    appendText(builder, "7");
    expect(builder.finish()).toMatchObject({ validity: null, data: Int32Array.of(7) });
  });
});
