/** The Avro schemas of manifests and manifest lists, with the spec's field ids, and the reader's shapes. */
import {
  avroName,
  logicalMap,
  optionalField,
  requiredField,
  type AvroField,
  type AvroRecord,
  type AvroSchema,
} from "./avro/schema.ts";
import type { Shape } from "./avro/codec.ts";
import type { FormatVersion, PartitionSpec, PrimitiveType } from "./model.ts";
import { decimalBytes } from "./types.ts";

/** A primitive type in Avro (spec, appendix A). */
export function avroType(type: PrimitiveType, name: string): AvroSchema {
  switch (type.kind) {
    case "decimal": {
      const { precision, scale } = type;
      return {
        type: "fixed",
        name: `decimal_${precision}_${scale}`,
        size: decimalBytes(precision),
        logicalType: "decimal",
        precision,
        scale,
      };
    }
    case "fixed":
      return { type: "fixed", name: `fixed_${name}`, size: type.length };
    case "uuid":
      return { type: "fixed", name: `uuid_${name}`, size: 16, logicalType: "uuid" };
    case "binary":
      return "bytes";
    case "date":
      return { type: "int", logicalType: "date" };
    case "time":
      return { type: "long", logicalType: "time-micros" };
    case "timestamp":
    case "timestamptz":
      return { type: "long", logicalType: "timestamp-micros", "adjust-to-utc": type.kind === "timestamptz" };
    case "timestamp_ns":
    case "timestamptz_ns":
      return { type: "long", logicalType: "timestamp-nanos", "adjust-to-utc": type.kind === "timestamptz_ns" };
    default:
      return type.kind;
  }
}

/** The partition tuple's record. Names that are no Avro names are made so, and kept beside. */
function partitionRecord(spec: PartitionSpec, types: readonly PrimitiveType[]): AvroRecord {
  const fields = spec.fields.map((field, i): AvroField => {
    const name = avroName(field.name);
    const type = types[i] ?? { kind: "int" };
    const avro = optionalField(field.fieldId, name, uniquelyNamed(avroType(type, name), field.fieldId));
    return name === field.name ? avro : { ...avro, "iceberg-field-name": field.name };
  });
  return { type: "record", name: "r102", fields };
}

/** Two fixed types of one name in a schema would be a redefinition. */
function uniquelyNamed(schema: AvroSchema, id: number): AvroSchema {
  if (typeof schema !== "object" || !("type" in schema) || schema.type !== "fixed") return schema;
  return { ...schema, name: `${schema.name}_${id}` };
}

export function manifestEntrySchema(
  formatVersion: FormatVersion,
  spec: PartitionSpec,
  types: readonly PrimitiveType[],
): AvroRecord {
  const dataFile: AvroField[] = [
    requiredField(134, "content", "int"),
    requiredField(100, "file_path", "string"),
    requiredField(101, "file_format", "string"),
    requiredField(102, "partition", partitionRecord(spec, types)),
    requiredField(103, "record_count", "long"),
    requiredField(104, "file_size_in_bytes", "long"),
    optionalField(108, "column_sizes", logicalMap(117, "int", 118, "long")),
    optionalField(109, "value_counts", logicalMap(119, "int", 120, "long")),
    optionalField(110, "null_value_counts", logicalMap(121, "int", 122, "long")),
    optionalField(137, "nan_value_counts", logicalMap(138, "int", 139, "long")),
    optionalField(125, "lower_bounds", logicalMap(126, "int", 127, "bytes")),
    optionalField(128, "upper_bounds", logicalMap(129, "int", 130, "bytes")),
    optionalField(131, "key_metadata", "bytes"),
    optionalField(132, "split_offsets", { type: "array", items: "long", "element-id": 133 }),
    optionalField(135, "equality_ids", { type: "array", items: "int", "element-id": 136 }),
    optionalField(140, "sort_order_id", "int"),
    ...(formatVersion >= 3 ? [optionalField(142, "first_row_id", "long")] : []),
    optionalField(143, "referenced_data_file", "string"),
    ...(formatVersion >= 3
      ? [optionalField(144, "content_offset", "long"), optionalField(145, "content_size_in_bytes", "long")]
      : []),
  ];
  return {
    type: "record",
    name: "manifest_entry",
    fields: [
      requiredField(0, "status", "int"),
      optionalField(1, "snapshot_id", "long"),
      optionalField(3, "sequence_number", "long"),
      optionalField(4, "file_sequence_number", "long"),
      requiredField(2, "data_file", { type: "record", name: "r2", fields: dataFile }),
    ],
  };
}

/** What the reader takes from an entry, in this order. The slots are named in manifest.ts. */
export function entryShape(spec: PartitionSpec): Shape {
  const partition: Shape = { fields: spec.fields.map((f) => ({ id: f.fieldId, name: avroName(f.name) })) };
  const file: Shape = {
    fields: [
      { id: 134, name: "content" },
      { id: 100, name: "file_path" },
      { id: 101, name: "file_format" },
      { id: 102, name: "partition", shape: partition },
      { id: 103, name: "record_count" },
      { id: 104, name: "file_size_in_bytes" },
      { id: 108, name: "column_sizes" },
      { id: 109, name: "value_counts" },
      { id: 110, name: "null_value_counts" },
      { id: 137, name: "nan_value_counts" },
      { id: 125, name: "lower_bounds" },
      { id: 128, name: "upper_bounds" },
      { id: 132, name: "split_offsets" },
      { id: 135, name: "equality_ids" },
      { id: 140, name: "sort_order_id" },
      { id: 142, name: "first_row_id" },
      { id: 143, name: "referenced_data_file" },
      { id: 144, name: "content_offset" },
      { id: 145, name: "content_size_in_bytes" },
    ],
  };
  return {
    fields: [
      { id: 0, name: "status" },
      { id: 1, name: "snapshot_id" },
      { id: 3, name: "sequence_number" },
      { id: 4, name: "file_sequence_number" },
      { id: 2, name: "data_file", shape: file },
    ],
  };
}

const FIELD_SUMMARY: AvroRecord = {
  type: "record",
  name: "r508",
  fields: [
    requiredField(509, "contains_null", "boolean"),
    optionalField(518, "contains_nan", "boolean"),
    optionalField(510, "lower_bound", "bytes"),
    optionalField(511, "upper_bound", "bytes"),
  ],
};

export function manifestFileSchema(formatVersion: FormatVersion): AvroRecord {
  return {
    type: "record",
    name: "manifest_file",
    fields: [
      requiredField(500, "manifest_path", "string"),
      requiredField(501, "manifest_length", "long"),
      requiredField(502, "partition_spec_id", "int"),
      requiredField(517, "content", "int"),
      requiredField(515, "sequence_number", "long"),
      requiredField(516, "min_sequence_number", "long"),
      requiredField(503, "added_snapshot_id", "long"),
      requiredField(504, "added_files_count", "int"),
      requiredField(505, "existing_files_count", "int"),
      requiredField(506, "deleted_files_count", "int"),
      requiredField(512, "added_rows_count", "long"),
      requiredField(513, "existing_rows_count", "long"),
      requiredField(514, "deleted_rows_count", "long"),
      optionalField(507, "partitions", { type: "array", items: FIELD_SUMMARY, "element-id": 508 }),
      optionalField(519, "key_metadata", "bytes"),
      ...(formatVersion >= 3 ? [optionalField(520, "first_row_id", "long")] : []),
    ],
  };
}

/** What the reader takes from a line of a manifest list; slots named in manifest-list.ts. */
export const MANIFEST_FILE_SHAPE: Shape = {
  fields: [
    { id: 500, name: "manifest_path" },
    { id: 501, name: "manifest_length" },
    { id: 502, name: "partition_spec_id" },
    { id: 517, name: "content" },
    { id: 515, name: "sequence_number" },
    { id: 516, name: "min_sequence_number" },
    { id: 503, name: "added_snapshot_id" },
    { id: 504, name: "added_files_count" },
    { id: 505, name: "existing_files_count" },
    { id: 506, name: "deleted_files_count" },
    { id: 512, name: "added_rows_count" },
    { id: 513, name: "existing_rows_count" },
    { id: 514, name: "deleted_rows_count" },
    {
      id: 507,
      name: "partitions",
      shape: {
        fields: [
          { id: 509, name: "contains_null" },
          { id: 518, name: "contains_nan" },
          { id: 510, name: "lower_bound" },
          { id: 511, name: "upper_bound" },
        ],
      },
    },
    { id: 520, name: "first_row_id" },
  ],
};
