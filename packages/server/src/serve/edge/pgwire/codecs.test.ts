/** The edge's codecs and its SCRAM, without a server. */
import type { Socket } from "node:net";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { systemClock } from "@spillway/base/clock";
import { scramClient } from "@spillway/pg/wire/scram";
import { copyLine, CopyParser } from "./copy-format.ts";
import { copyOptions } from "./copy-options.ts";
import { float4Text, float8Text } from "./float-text.ts";
import { parseOptions } from "./handshake.ts";
import { readNumeric, writeNumeric } from "./numeric-binary.ts";
import { OutBuffer } from "./out-buffer.ts";
import { fakeVerifier, parseVerifier, scramServer } from "./scram-server.ts";
import { verifierOf } from "./test-edge.ts";

const scratch = (): OutBuffer => new OutBuffer(null as unknown as Socket, systemClock, 0);

describe("SCRAM", () => {
  const verifier = parseVerifier(verifierOf("secret"));
  const exchange = async (
    password: string,
    mechanism = "SCRAM-SHA-256",
    endPoint: Buffer | null = null,
  ): Promise<void> => {
    if (!verifier) throw new Error("no verifier");
    const server = scramServer({ mechanism, verifier, endPoint });
    const client = scramClient(password);
    client.verify(server.final(await client.final(server.first(client.first))));
  };

  test("a right password is proved both ways, a wrong one is not", async () => {
    await exchange("secret");
    await expect(exchange("Secret")).rejects.toMatchObject({ details: { sqlstate: "28P01" } });
  });

  test("a client that was told of no channel binding where there is one is refused", () => {
    if (!verifier) throw new Error("no verifier");
    const server = scramServer({ mechanism: "SCRAM-SHA-256", verifier, endPoint: Buffer.alloc(32) });
    expect(() => server.first("y,,n=,r=abc")).toThrow(
      expect.objectContaining({ details: { sqlstate: "28000" } }) as Error,
    );
    const bound = scramServer({ mechanism: "SCRAM-SHA-256-PLUS", verifier, endPoint: Buffer.alloc(32) });
    expect(() => bound.first("n,,n=,r=abc")).toThrow(/does not fit/);
  });

  test("who does not exist has the same salt at every try, and no password", async () => {
    const secret = Buffer.alloc(32, 7);
    expect(fakeVerifier("bob", secret).salt).toEqual(fakeVerifier("bob", secret).salt);
    expect(fakeVerifier("bob", secret).salt).not.toEqual(fakeVerifier("eve", secret).salt);
    const server = scramServer({ mechanism: "SCRAM-SHA-256", verifier: fakeVerifier("bob", secret), endPoint: null });
    const client = scramClient("");
    const final = await client.final(server.first(client.first));
    expect(() => server.final(final)).toThrow(/authentication failed/);
  });

  test("verifiers of another form are none", () => {
    for (const text of ["", "md5abc", "SCRAM-SHA-256$4096:c2FsdA==$AAAA:BBBB"]) expect(parseVerifier(text)).toBeNull();
  });
});

const value = fc.option(
  fc.string({ unit: "binary" }).filter((text) => !text.includes("\0")),
  { nil: null },
);
const option = (name: string, text: string): object => ({
  DefElem: { defname: name, arg: { String: { sval: text } } },
});

test.each([
  ["text", []],
  ["text, other delimiter and null", [option("delimiter", "|"), option("null", "nil")]],
  ["csv", [option("format", "csv")]],
  [
    "csv, other quote and escape",
    [option("format", "csv"), option("quote", "'"), option("escape", "!"), option("null", "N")],
  ],
] as const)("rows by COPY come back, however they are cut: %s", (_, list) => {
  const options = copyOptions(list);
  fc.assert(
    fc.property(
      fc.array(fc.tuple(value, value, value), { maxLength: 8 }),
      fc.integer({ min: 1, max: 9 }),
      (rows, size) => {
        const names = ["a", "b", "c"];
        const bytes = Buffer.from(rows.map((row) => copyLine(row, names, options)).join(""), "utf8");
        const parser = new CopyParser(options, names);
        const seen: unknown[] = [];
        for (let at = 0; at < bytes.length; at += size) seen.push(...parser.push(bytes.subarray(at, at + size)));
        seen.push(...parser.finish());
        expect(seen).toEqual(rows);
      },
    ),
  );
});

test("numeric in binary comes back", () => {
  const digits = (max: number): fc.Arbitrary<string> =>
    fc.string({ unit: fc.constantFrom(..."0123456789"), maxLength: max });
  fc.assert(
    fc.property(fc.boolean(), digits(40), digits(30), (negative, whole, fraction) => {
      const head = whole.replace(/^0+/, "") || "0";
      const isZero = /^0*$/.test(head + fraction);
      const text = `${negative && !isZero ? "-" : ""}${head}${fraction === "" ? "" : `.${fraction}`}`;
      const out = scratch();
      writeNumeric(out, text);
      expect(readNumeric(out.buffer.subarray(4, out.at))).toBe(text);
    }),
  );
});

test("floats are read back as they were", () => {
  fc.assert(fc.property(fc.double(), (x) => void expect(Number(float8Text(x))).toBe(x)));
  fc.assert(fc.property(fc.float(), (x) => void expect(Math.fround(Number(float4Text(x)))).toBe(x)));
  expect([1e15, 1e14, 0.0001, 0.00001, -1.5e-7].map(float8Text)).toEqual([
    "1e+15",
    "100000000000000",
    "0.0001",
    "1e-05",
    "-1.5e-07",
  ]);
});

test("options of the start-up", () => {
  expect(parseOptions("-c search_path=a,b --statement-timeout=5 -cTimeZone=UTC -c x=a\\ b")).toEqual([
    ["search_path", "a,b"],
    ["statement_timeout", "5"],
    ["TimeZone", "UTC"],
    ["x", "a b"],
  ]);
  expect(() => parseOptions("-z")).toThrow(/invalid command-line/);
});
