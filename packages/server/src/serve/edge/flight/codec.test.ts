import { tableFromIPC } from "apache-arrow";
import { randomBytes } from "node:crypto";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { like } from "./catalog-results.ts";
import * as catalog from "./catalog-results.ts";
import { decodeFlightData, encodeFlightData } from "./flight-data.ts";
import { Handles } from "./handles.ts";
import { decodeCommand, decodeMessage, encodeCommand, encodeMessage } from "./proto.ts";
import { smallResult, split } from "./small-results.ts";
import { sqlInfo, sqlInfoValues, xdbcTypeInfo } from "./sql-info.ts";

const bytes = fc.uint8Array({ maxLength: 300 }).map((b) => Buffer.from(b));

describe("FlightData", () => {
  test("comes back as it was, also beside fields that nobody knows", () => {
    fc.assert(
      fc.property(bytes, bytes, bytes, fc.boolean(), (header, body, metadata, extra) => {
        const unknown = extra ? Buffer.from([0x58, 0x96, 0x01, 0x62, 0x02, 0x41, 0x42]) : Buffer.alloc(0);
        const read = decodeFlightData(Buffer.concat([unknown, encodeFlightData(header, body, metadata)]));
        expect(read).toEqual({ descriptor: null, header, metadata, body });
      }),
    );
  });

  test("lengths of several varint bytes", () => {
    const body = randomBytes(3_000_000);
    expect(decodeFlightData(encodeFlightData(Buffer.from("h"), body)).body.equals(body)).toBe(true);
  });

  test("cut or made-up bytes are refused, never read beyond their end", () => {
    const whole = encodeFlightData(Buffer.from("header"), Buffer.from("body"));
    for (let cut = 1; cut < whole.length; cut++) {
      const read = (): unknown => decodeFlightData(whole.subarray(0, cut));
      try {
        read();
      } catch (error) {
        expect(error).toMatchObject({ code: "flight_request_invalid" });
      }
    }
    fc.assert(
      fc.property(bytes, (noise) => {
        try {
          decodeFlightData(noise);
        } catch (error) {
          expect(error).toMatchObject({ code: "flight_request_invalid" });
        }
      }),
    );
  });

  test("agrees with the general protobuf encoding of the same fields", () => {
    // Field numbers of Ticket and FlightData.descriptor are both 1, so the one reads the other.
    const descriptor = encodeMessage("FlightDescriptor", { type: 2, cmd: Buffer.from("c"), path: [] });
    const data = decodeFlightData(encodeMessage("Ticket", { ticket: descriptor }));
    expect(data.descriptor?.equals(descriptor)).toBe(true);
  });
});

describe("messages", () => {
  test("an absent field and an empty one are told apart where that counts", () => {
    expect(decodeMessage("CommandGetTables", Buffer.alloc(0))).toMatchObject({ tableTypes: [] });
    expect(decodeMessage("CommandGetTables", Buffer.alloc(0))["catalog"]).toBeUndefined();
    const empty = encodeMessage("CommandGetTables", { catalog: "" });
    expect(decodeMessage("CommandGetTables", empty)["catalog"]).toBe("");
  });

  test("commands keep their name; others are refused", () => {
    const command = encodeCommand("CommandStatementQuery", { query: "select 1" });
    expect(decodeCommand(command)).toMatchObject({ name: "CommandStatementQuery", values: { query: "select 1" } });
    expect(() => decodeCommand(encodeMessage("Any", { typeUrl: "x/y", value: Buffer.alloc(0) }))).toThrow(/not known/);
    expect(() => decodeMessage("Any", Buffer.from([0xff, 0xff]))).toThrow(/no Any/);
  });

  test("a 64-bit count beyond 32 bits", () => {
    const sent = encodeMessage("DoPutUpdateResult", { recordCount: 5_000_000_000 });
    expect(decodeMessage("DoPutUpdateResult", sent)["recordCount"]).toBe(5_000_000_000);
    expect(decodeMessage("DoPutUpdateResult", encodeMessage("DoPutUpdateResult", { recordCount: -1 }))).toEqual({
      recordCount: -1,
    });
  });
});

describe("handles", () => {
  const handles = new Handles(randomBytes(32));
  const handle = { kind: "prepared", user: "u1", sql: "select $1", transaction: null, id: "i" } as const;

  test("come back with their parameters, exactly", () => {
    const params = [1n << 62n, "text", null, true, 1.5, Buffer.from([0, 255])];
    expect(handles.open(handles.seal({ ...handle, params }), "prepared", "u1")).toEqual({ ...handle, params });
  });

  test("of another user, of another kind, changed, cut, or of another key: refused", () => {
    const sealed = handles.seal(handle);
    const refused = (bytes: Buffer, kind: "prepared" | "statement", user: string): void => {
      expect(() => handles.open(bytes, kind, user)).toThrow(/was not made here/);
    };
    refused(sealed, "prepared", "u2");
    refused(sealed, "statement", "u1");
    for (let i = 0; i < sealed.length; i++) {
      const changed = Buffer.from(sealed);
      changed[i] = (changed[i] ?? 0) ^ 1;
      refused(changed, "prepared", "u1");
    }
    for (const length of [0, 5, 16, sealed.length - 1]) refused(sealed.subarray(0, length), "prepared", "u1");
    refused(new Handles(randomBytes(32)).seal(handle), "prepared", "u1");
  });
});

describe("patterns", () => {
  test.each([
    ["%", "", true],
    ["a%", "abc", true],
    ["a_c", "abc", true],
    ["a_c", "ac", false],
    ["a.c", "abc", false],
    ["a\\%", "a%", true],
    ["a\\%", "ab", false],
    ["(x|y)", "x", false],
    ["é%", "été", true],
    ["", "", true],
  ])("%j over %j is %s", (pattern, value, expected) => {
    expect(like(pattern, value)).toBe(expected);
  });
});

describe("results made here", () => {
  const whole = (result: ReturnType<typeof split>): Buffer => Buffer.concat([result.schema, ...result.batches]);

  test("a foreign reader reads the rows, and an empty one has the same schema", () => {
    const some = smallResult(catalog.TABLES, [["c", null, "t", "TABLE"]]);
    const none = smallResult(catalog.TABLES, []);
    expect(some.schema.equals(none.schema)).toBe(true);
    expect(tableFromIPC(whole(none)).numRows).toBe(0);
    expect(tableFromIPC(whole(some)).toArray().map(String)).toEqual([
      '{"catalog_name": "c", "db_schema_name": null, "table_name": "t", "table_type": "TABLE"}',
    ]);
  });

  test("SqlInfo: every value in the member of its kind", () => {
    const table = tableFromIPC(whole(sqlInfo([], "1.2.3")));
    const found = new Map(table.toArray().map((row) => [Number(row.info_name), row.value as unknown]));
    const wanted = sqlInfoValues("1.2.3");
    expect([...found.keys()]).toEqual([...wanted.keys()]);
    for (const [name, value] of wanted) {
      const read = found.get(name);
      expect(Array.isArray(value) ? [...(read as Iterable<string>)] : read).toEqual(value);
    }
    expect(tableFromIPC(whole(sqlInfo([8, 99999, 0], "1"))).toArray()).toHaveLength(2);
  });

  test("types by code", () => {
    expect(tableFromIPC(whole(xdbcTypeInfo(null))).numRows).toBeGreaterThan(10);
    const times = tableFromIPC(whole(xdbcTypeInfo(93))).toArray();
    expect(times.map((t) => t.type_name)).toEqual(["timestamp without time zone", "timestamp with time zone"]);
  });
});
