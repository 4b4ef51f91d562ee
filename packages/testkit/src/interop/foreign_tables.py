"""Tables written by pyiceberg alone. Each scenario gives the states it went through, as pyiceberg reads them."""

import os

from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import parse_transform
from pyiceberg.types import (
    BinaryType, BooleanType, DateType, DecimalType, DoubleType, FixedType, FloatType, IntegerType, ListType, LongType,
    MapType, NestedField, StringType, StructType, TimestampType, TimestamptzType, TimeType, UUIDType,
)  # fmt: skip

from foreign import arrow_table, table_rows


class Recorder:
    def __init__(self, root, fields, spec=None):
        os.makedirs(root, exist_ok=True)
        self.catalog = SqlCatalog("test", uri=f"sqlite:///{root}/catalog.db", warehouse=f"file://{root}")
        self.catalog.create_namespace("ns")
        schema = Schema(*fields)
        options = {} if spec is None else {"partition_spec": spec}
        self.table = self.catalog.create_table("ns.t", schema, **options)
        self.states = []

    def append(self, rows):
        """Rows in canonical form, in the order of the current schema."""
        self.table.append(self.arrow(rows))

    def arrow(self, rows):
        fields = self.table.schema().model_dump(by_alias=True)["fields"]
        return arrow_table(fields, rows)

    def note(self, name, filters=()):
        self.table.refresh()
        scan = self.table.scan()
        filtered = []
        for text in filters:
            one = self.table.scan(row_filter=text)
            filtered.append({"filter": text, "files": len(list(one.plan_files())), **table_rows(one.to_arrow())})
        self.states.append(
            {
                "name": name,
                "metadata": self.table.metadata_location,
                "snapshot": str(self.table.metadata.current_snapshot_id),
                "filtered": filtered,
                **table_rows(scan.to_arrow()),
            }
        )


def hexadecimal(number):
    import struct

    return struct.pack(">d", number).hex()


def all_types(root):
    kinds = [
        (BooleanType(), ["true", "false", None]), (IntegerType(), ["-2147483648", "2147483647", None]),
        (LongType(), ["-9223372036854775808", "9223372036854775807", None]),
        (FloatType(), [hexadecimal(0.5), hexadecimal(float("nan")), None]),
        (DoubleType(), [hexadecimal(0.1), hexadecimal(float("-inf")), None]),
        (DecimalType(9, 2), ["-999999999", "1", None]), (DecimalType(38, 10), ["9" * 38, "-1", None]),
        (DateType(), ["-719162", "2932896", None]), (TimeType(), ["0", "86399999999", None]),
        (TimestampType(), ["-1", "253402300799999999", None]), (TimestamptzType(), ["-1", "253402300799999999", None]),
        (StringType(), ["", "ü" * 40, None]), (FixedType(3), ["000000", "ff0001", None]),
        (BinaryType(), ["", "ff" * 40, None]), (UUIDType(), ["00" * 16, "ff" * 16, None]),
    ]  # fmt: skip
    fields = [NestedField(i + 1, f"c{i}", kind, required=False) for i, (kind, _) in enumerate(kinds)]
    recorder = Recorder(root, fields)
    recorder.note("empty")
    recorder.append([[values[r] for _, values in kinds] for r in range(3)])
    recorder.note("one append")
    recorder.append([[values[0] for _, values in kinds]])
    recorder.note("two appends")
    return recorder.states


def nested(root):
    struct = StructType(NestedField(10, "a", IntegerType(), required=False), NestedField(11, "b", StringType(), required=False))
    fields = [
        NestedField(1, "s", struct, required=False),
        NestedField(2, "l", ListType(20, LongType(), element_required=False), required=False),
        NestedField(3, "m", MapType(30, StringType(), 31, DoubleType(), value_required=False), required=False),
    ]
    recorder = Recorder(root, fields)
    recorder.append([[["1", "x"], ["1", None], [["k", hexadecimal(1.5)]]], [None, [], None]])
    recorder.note("nested")
    return recorder.states


PARTITIONED = {
    "identity": (StringType(), ["a", "b/c", "", None], ["v = 'a'", "v > 'a'", "v is null"]),
    "bucket[4]": (LongType(), ["0", "34", "-5", "1152921504606846976", None], ["v = 34", "v in (0, -5)", "v is null"]),
    "truncate[10]": (IntegerType(), ["0", "9", "10", "-1", "-11", None], ["v = 9", "v < 0", "v >= 10", "v is not null"]),
    "truncate[2]": (StringType(), ["abc", "abd", "b", None], ["v = 'abc'", "v < 'b'"]),
    "year": (DateType(), ["0", "364", "365", "-1", "20000", None], ["v = '1970-01-01'", "v < '1970-01-01'"]),
    "month": (TimestampType(), ["0", "-1", "2678400000000", None], ["v >= '1970-02-01T00:00:00'"]),
    "day": (TimestamptzType(), ["0", "86399999999", "86400000000", "-1", None], ["v < '1970-01-02T00:00:00+00:00'"]),
    "hour": (TimestampType(), ["0", "3599999999", "3600000000", "-1", None], ["v = '1970-01-01T01:00:00'"]),
}


def partitioned(transform):
    kind, values, filters = PARTITIONED[transform]

    def run(root):
        fields = [NestedField(1, "v", kind, required=False), NestedField(2, "id", IntegerType(), required=False)]
        spec = PartitionSpec(PartitionField(source_id=1, field_id=1000, transform=parse_transform(transform), name="part"))
        recorder = Recorder(root, fields, spec)
        recorder.append([[value, str(i)] for i, value in enumerate(values)])
        recorder.append([[values[0], "100"]])
        recorder.note(transform, filters)
        return recorder.states

    return run


def rewritten(root):
    fields = [NestedField(1, "id", IntegerType(), required=False), NestedField(2, "v", StringType(), required=False)]
    recorder = Recorder(root, fields)
    for start in (0, 100, 200):
        recorder.append([[str(i), f"v{i}"] for i in range(start, start + 100)])
    recorder.note("appended", ["id = 150", "id < 10", "v = 'v205'"])
    recorder.table.delete("id < 50")
    recorder.note("deleted", ["id < 60"])
    recorder.table.overwrite(recorder.arrow([["150", "new"]]), overwrite_filter="id = 150")
    recorder.note("overwritten", ["id = 150"])
    recorder.table.delete("id >= 200")
    recorder.note("a whole file deleted")
    with recorder.table.manage_snapshots() as snapshots:
        snapshots.create_tag(int(recorder.states[0]["snapshot"]), "first")
        snapshots.create_branch(int(recorder.states[1]["snapshot"]), "audit")
    recorder.note("tagged")
    return recorder.states


def evolved(root):
    fields = [
        NestedField(1, "id", IntegerType(), required=False),
        NestedField(2, "f", FloatType(), required=False),
        NestedField(3, "gone", StringType(), required=False),
    ]
    recorder = Recorder(root, fields)
    recorder.append([["1", hexadecimal(0.5), "x"], ["2", None, None]])
    with recorder.table.update_schema() as update:
        update.add_column("more", StringType())
        update.rename_column("f", "g")
    recorder.note("added and renamed")
    with recorder.table.update_schema() as update:
        update.update_column("id", LongType())
        update.update_column("g", DoubleType())
        update.delete_column("gone")
    recorder.append([["1099511627776", hexadecimal(0.1), "new"]])
    recorder.note("widened and dropped", ["id > 2", "id = 1"])
    with recorder.table.update_spec() as update:
        update.add_field("id", parse_transform("bucket[4]"), "id_bucket")
    recorder.append([["7", None, "partitioned"]])
    recorder.note("partitioned", ["id = 7", "id = 1"])
    return recorder.states


SCENARIOS = {
    "all types": all_types, "nested": nested, "rewritten": rewritten, "evolved": evolved,
    **{f"partitioned {transform}": partitioned(transform) for transform in PARTITIONED},
}  # fmt: skip
