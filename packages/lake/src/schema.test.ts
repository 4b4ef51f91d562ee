import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { evolveSchema, type EvolutionBase, type SchemaChange } from "./evolve.ts";
import { parseJson, printJson } from "./json.ts";
import type { IcebergType, NestedField, Schema } from "./model.ts";
import {
  allPlaces,
  fieldByName,
  highestFieldId,
  nameMappingFromJson,
  nameMappingOf,
  nameMappingToJson,
  sameSchema,
  schemaFromJson,
  schemaToJson,
} from "./schema.ts";
import { parsePrimitiveType } from "./types.ts";

const t = parsePrimitiveType;
const SCHEMA: Schema = {
  schemaId: 3,
  identifierFieldIds: [1],
  fields: [
    { id: 1, name: "id", required: true, type: t("int") },
    { id: 2, name: "price", required: false, type: t("decimal(9,2)"), doc: "in €" },
    {
      id: 3,
      name: "point",
      required: false,
      type: {
        kind: "struct",
        fields: [
          { id: 4, name: "x", required: false, type: t("float"), initialDefault: 0, writeDefault: 1.5 },
          { id: 5, name: "y", required: false, type: t("float") },
        ],
      },
    },
    {
      id: 6,
      name: "tags",
      required: false,
      type: { kind: "list", elementId: 7, elementRequired: true, element: t("string") },
    },
    {
      id: 8,
      name: "attrs",
      required: false,
      type: { kind: "map", keyId: 9, key: t("string"), valueId: 10, valueRequired: false, value: t("long") },
      initialDefault: { entries: [["a", 2n ** 60n]] },
    },
    { id: 11, name: "ts", required: false, type: t("timestamptz") },
  ],
};
const BASE: EvolutionBase = {
  formatVersion: 3,
  schema: SCHEMA,
  lastColumnId: 11,
  partitionSpecs: [
    { specId: 0, fields: [{ fieldId: 1000, sourceId: 11, name: "ts_day", transform: { kind: "day" } }] },
  ],
};
const evolve = (changes: SchemaChange[], base: EvolutionBase = BASE) => evolveSchema(base, changes);
const refused = (changes: SchemaChange[], why: RegExp, base: EvolutionBase = BASE): void => {
  expect(() => evolve(changes, base)).toThrow(
    expect.objectContaining({ code: "lake_schema_change_refused", message: expect.stringMatching(why) }),
  );
};

test("JSON round-trips exactly, defaults included", () => {
  expect(schemaFromJson(parseJson(printJson(schemaToJson(SCHEMA))))).toEqual(SCHEMA);
});

test("lookups reach nested fields", () => {
  expect(fieldByName(SCHEMA, "point.x")?.id).toBe(4);
  expect(fieldByName(SCHEMA, "tags.element")?.id).toBe(7);
  expect(fieldByName(SCHEMA, "attrs.value")?.id).toBe(10);
  expect(highestFieldId(SCHEMA)).toBe(11);
});

test("the name mapping round-trips", () => {
  const mapping = nameMappingOf(SCHEMA);
  expect(nameMappingFromJson(nameMappingToJson(mapping))).toEqual(mapping);
});

test("invalid schemas are refused", () => {
  const twice = { ...SCHEMA, fields: [...SCHEMA.fields, { id: 1, name: "again", required: false, type: t("int") }] };
  expect(() => schemaFromJson(schemaToJson(twice))).toThrow(/twice/);
  expect(() =>
    schemaFromJson({ type: "struct", fields: [{ id: 1, name: "g", required: false, type: "geometry" }] }),
  ).toThrow(expect.objectContaining({ code: "lake_format_unsupported" }));
  expect(() => schemaFromJson(schemaToJson({ ...SCHEMA, identifierFieldIds: [2] }))).toThrow(/identifier/);
});

describe("evolution", () => {
  test("add, with fresh ids inside and a default", () => {
    const list: IcebergType = { kind: "list", elementId: 0, elementRequired: false, element: t("int") };
    const { schema, lastColumnId } = evolve([
      { kind: "add", name: "l", type: list, default: [1, null] },
      { kind: "add", name: "z", type: t("long"), required: true, default: 5n, parent: "point" },
    ]);
    expect(lastColumnId).toBe(14);
    expect(fieldByName(schema, "l")).toEqual({
      id: 12,
      name: "l",
      required: false,
      type: { ...list, elementId: 13 },
      initialDefault: [1, null],
      writeDefault: [1, null],
    });
    expect(fieldByName(schema, "point.z")).toMatchObject({ id: 14, required: true, initialDefault: 5n });
  });

  test("drop and add again takes a new id", () => {
    const { schema, lastColumnId } = evolve([
      { kind: "drop", column: "price" },
      { kind: "add", name: "price", type: t("string") },
    ]);
    expect(fieldByName(schema, "price")?.id).toBe(12);
    expect(lastColumnId).toBe(12);
  });

  test("rename, widen, make nullable, write default, by name or id", () => {
    const { schema } = evolve([
      { kind: "rename", column: 2, to: "cost" },
      { kind: "widen", column: "cost", to: t("decimal(18,2)") },
      { kind: "widen", column: "point.x", to: t("double") },
      { kind: "set-write-default", column: "cost", value: 100n },
      { kind: "widen", column: "id", to: t("long") },
    ]);
    expect(fieldByName(schema, "cost")).toMatchObject({ id: 2, type: t("decimal(18,2)"), writeDefault: 100n });
    expect(fieldByName(schema, "point.x")).toMatchObject({ type: t("double"), initialDefault: 0 });
    const plain = { ...BASE, schema: { ...SCHEMA, identifierFieldIds: [] } };
    expect(fieldByName(evolve([{ kind: "make-nullable", column: "id" }], plain).schema, "id")?.required).toBe(false);
  });

  test("a widened default keeps its value in the new type", () => {
    const base = evolve([{ kind: "add", name: "n", type: t("int"), default: 7 }]);
    const { schema } = evolve([{ kind: "widen", column: "n", to: t("long") }], { ...BASE, ...base });
    expect(fieldByName(schema, "n")).toMatchObject({ initialDefault: 7n, writeDefault: 7n });
    expect(schemaFromJson(parseJson(printJson(schemaToJson(schema))))).toEqual(schema);
  });

  test("what cannot be is refused with its reason", () => {
    refused([{ kind: "drop", column: "ts" }], /partition spec 0/);
    refused([{ kind: "drop", column: "id" }], /identifier/);
    refused([{ kind: "drop", column: "none" }], /no column/);
    refused([{ kind: "drop", column: "tags.element" }], /element/);
    refused([{ kind: "widen", column: "attrs.key", to: t("string") }], /key/);
    refused([{ kind: "widen", column: "price", to: t("decimal(18,3)") }], /cannot change/);
    refused([{ kind: "widen", column: "price", to: t("decimal(5,2)") }], /cannot change/);
    refused([{ kind: "widen", column: "id", to: t("string") }], /cannot change/);
    refused([{ kind: "rename", column: "id", to: "price" }], /already/);
    refused([{ kind: "add", name: "r", type: t("int"), required: true }], /needs a default/);
    refused([{ kind: "make-nullable", column: "id" }], /identifier/);
    const v2 = { ...BASE, formatVersion: 2 as const };
    refused([{ kind: "add", name: "d", type: t("int"), default: 1 }], /version 2 cannot/, v2);
    refused([{ kind: "add", name: "d", type: t("timestamp_ns") }], /needs format version 3/, v2);
  });

  test("whatever the changes, ids stay unique and are never used again", () => {
    const names = fc.constantFrom("a", "b", "c", "id", "price");
    const change = fc.oneof(
      names.map((name): SchemaChange => ({ kind: "add", name, type: t("int") })),
      names.map((column): SchemaChange => ({ kind: "drop", column })),
      fc.tuple(names, names).map(([column, to]): SchemaChange => ({ kind: "rename", column, to })),
      names.map((column): SchemaChange => ({ kind: "widen", column, to: t("long") })),
    );
    fc.assert(
      fc.property(fc.array(change, { maxLength: 30 }), (changes) => {
        let base: EvolutionBase = { ...BASE, schema: { ...SCHEMA, identifierFieldIds: [] } };
        const everUsed = new Map<number, string>([...allPlaces(SCHEMA)].map((p) => [p.field.id, p.path]));
        for (const c of changes) {
          const before = new Set(base.schema.fields.map((f: NestedField) => f.id));
          try {
            base = Object.assign({}, base, evolve([c], base));
          } catch {
            continue;
          }
          for (const f of base.schema.fields) {
            if (!before.has(f.id)) expect(everUsed.has(f.id)).toBe(false);
            everUsed.set(f.id, f.name);
          }
          expect(highestFieldId(base.schema)).toBeLessThanOrEqual(base.lastColumnId);
        }
      }),
    );
  });

  test("equal schemas are recognised whatever their ids", () => {
    expect(sameSchema(SCHEMA, { ...SCHEMA, schemaId: 9 })).toBe(true);
    expect(sameSchema(SCHEMA, evolve([{ kind: "rename", column: 2, to: "x" }]).schema)).toBe(false);
  });
});
