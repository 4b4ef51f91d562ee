"""Foreign Iceberg readers and writers behind one pipe: a JSON request a line, a JSON answer a line.

Values travel in a canonical form that loses nothing: integers, times (in units since the epoch) and
unscaled decimals as decimal text, floats as the hexadecimal of their bits as a double, uuid, fixed and
binary as hexadecimal, lists as lists, structs as lists of their fields, maps as lists of pairs.
"""

import decimal
import glob
import importlib
import json
import os
import struct
import sys
import traceback

import pyarrow as pa
import pyarrow.parquet as pq

decimal.getcontext().prec = 60


# --- Arrow <-> canonical -------------------------------------------------------------------------


def canonical(array):
    """A pyarrow Array as canonical values."""
    if isinstance(array, pa.ChunkedArray):
        return [value for chunk in array.chunks for value in canonical(chunk)]
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return canonical(array.storage)
    if pa.types.is_dictionary(kind):
        return canonical(array.dictionary_decode())
    if pa.types.is_struct(kind):
        columns = [canonical(array.field(i)) for i in range(kind.num_fields)]
        valid = array.is_valid().to_pylist()
        return [[column[i] for column in columns] if ok else None for i, ok in enumerate(valid)]
    if pa.types.is_map(kind):
        return [None if v is None else v for v in _offsets(array, list(zip(canonical(array.keys), canonical(array.items))))]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _offsets(array, canonical(array.values))
    return _scalars(array)


def _offsets(array, values):
    offsets = array.offsets.to_pylist()
    valid = array.is_valid().to_pylist()
    return [list(values[offsets[i] : offsets[i + 1]]) if ok else None for i, ok in enumerate(valid)]


def _scalars(array):
    kind = array.type
    if pa.types.is_timestamp(kind) or pa.types.is_time64(kind):
        return _text(array.cast(pa.int64()))
    if pa.types.is_date32(kind):
        return _text(array.cast(pa.int32()))
    if pa.types.is_integer(kind):
        return _text(array)
    if pa.types.is_floating(kind):
        return [None if v is None else struct.pack(">d", v).hex() for v in array.to_pylist()]
    if pa.types.is_decimal(kind):
        return [None if v is None else str(int(v.scaleb(kind.scale))) for v in array.to_pylist()]
    if pa.types.is_boolean(kind):
        return [None if v is None else ("true" if v else "false") for v in array.to_pylist()]
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return [None if v is None else v.hex() for v in array.to_pylist()]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return array.to_pylist()
    if pa.types.is_null(kind):
        return [None] * len(array)
    raise TypeError(f"no canonical form of {kind}")


def _text(array):
    return [None if v is None else str(v) for v in array.to_pylist()]


def table_rows(table):
    columns = [canonical(table.column(i)) for i in range(table.num_columns)]
    return {"names": table.column_names, "rows": [list(row) for row in zip(*columns)] if columns else []}


def arrow_type(kind):
    """An Iceberg type, as its JSON says it, in Arrow, with field ids inside."""
    if isinstance(kind, dict):
        if kind["type"] == "struct":
            return pa.struct([arrow_field(f) for f in kind["fields"]])
        if kind["type"] == "list":
            return pa.list_(field_of("element", kind["element"], kind["element-id"], not kind["element-required"]))
        key = field_of("key", kind["key"], kind["key-id"], False)
        return pa.map_(key, field_of("value", kind["value"], kind["value-id"], not kind["value-required"]))
    simple = {
        "boolean": pa.bool_(), "int": pa.int32(), "long": pa.int64(), "float": pa.float32(), "double": pa.float64(),
        "date": pa.date32(), "time": pa.time64("us"), "timestamp": pa.timestamp("us"),
        "timestamptz": pa.timestamp("us", tz="UTC"), "timestamp_ns": pa.timestamp("ns"),
        "timestamptz_ns": pa.timestamp("ns", tz="UTC"), "string": pa.string(), "uuid": pa.uuid(), "binary": pa.binary(),
    }  # fmt: skip
    if kind in simple:
        return simple[kind]
    numbers = [int(n) for n in "".join(c if c.isdigit() else " " for c in kind).split()]
    return pa.decimal128(*numbers) if kind.startswith("decimal") else pa.binary(numbers[0])


def field_of(name, kind, field_id, nullable):
    return pa.field(name, arrow_type(kind), nullable, {"PARQUET:field_id": str(field_id)})


def arrow_field(field):
    return field_of(field["name"], field["type"], field["id"], not field["required"])


def from_canonical(kind, value):
    """What pa.array takes for a canonical value of an Iceberg type."""
    if value is None:
        return None
    if isinstance(kind, dict):
        if kind["type"] == "struct":
            return {f["name"]: from_canonical(f["type"], v) for f, v in zip(kind["fields"], value)}
        if kind["type"] == "list":
            return [from_canonical(kind["element"], v) for v in value]
        return [(from_canonical(kind["key"], k), from_canonical(kind["value"], v)) for k, v in value]
    if kind == "boolean":
        return value == "true"
    if kind in ("float", "double"):
        return struct.unpack(">d", bytes.fromhex(value))[0]
    if kind.startswith("decimal"):
        scale = int("".join(c if c.isdigit() else " " for c in kind).split()[1])
        return decimal.Decimal(int(value)).scaleb(-scale)
    if kind == "string":
        return value
    if kind in ("uuid", "binary") or kind.startswith("fixed"):
        return bytes.fromhex(value)
    return int(value)


def arrow_table(fields, rows):
    columns = []
    for i, field in enumerate(fields):
        kind = arrow_type(field["type"])
        values = [from_canonical(field["type"], row[i]) for row in rows]
        if field["type"] == "uuid":
            columns.append(pa.ExtensionArray.from_storage(kind, pa.array(values, pa.binary(16))))
        else:
            columns.append(pa.array(values, kind))
    return pa.Table.from_arrays(columns, schema=pa.schema([arrow_field(f) for f in fields]))


# --- Requests ------------------------------------------------------------------------------------


def write_parquet(request):
    table = arrow_table(request["fields"], request["rows"])
    os.makedirs(os.path.dirname(request["path"]), exist_ok=True)
    pq.write_table(table, request["path"], row_group_size=request.get("rowGroup", 1000), compression="zstd")
    return {"size": os.path.getsize(request["path"])}


def read_parquet(request):
    table = pq.ParquetFile(request["path"]).read()
    ids = [int(field.metadata[b"PARQUET:field_id"]) for field in table.schema]
    return {"ids": ids, **table_rows(table)}


_duck = None


def duck():
    global _duck
    if _duck is None:
        import duckdb

        _duck = duckdb.connect(config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"})
        for name in ("avro", "httpfs", "iceberg"):
            package = importlib.import_module(f"duckdb_extension_{name}")
            folder = os.path.join(list(package.__path__)[0], "extensions")
            _duck.execute(f"LOAD '{glob.glob(folder + '/*/*.duckdb_extension')[0]}'")
        _duck.execute("SET TimeZone = 'UTC'")
    return _duck


def read_duckdb(request):
    options = ""
    if "snapshot" in request:
        options = f", snapshot_from_id = {int(request['snapshot'])}"
    where = f" WHERE {request['where']}" if "where" in request else ""
    sql = f"SELECT {request.get('select', '*')} FROM iceberg_scan('{request['metadata']}'{options}){where}"
    return table_rows(duck().execute(sql).to_arrow_table())


def read_pyiceberg(request):
    from pyiceberg.table import StaticTable

    table = StaticTable.from_metadata(request["metadata"])
    snapshot = int(request["snapshot"]) if "snapshot" in request else None
    if "ref" in request:
        snapshot = table.metadata.refs[request["ref"]].snapshot_id
    scan = table.scan(snapshot_id=snapshot, row_filter=request.get("where", "true"))
    answer = table_rows(scan.to_arrow())
    answer["files"] = len(list(scan.plan_files()))
    return answer


def metrics(request):
    """What pyiceberg reads from the manifests: bounds as values, and counts, of each data file."""
    from pyiceberg.table import StaticTable

    table = StaticTable.from_metadata(request["metadata"])
    rows = table.inspect.files().to_pylist()
    keep = ("content", "file_path", "record_count", "file_size_in_bytes", "readable_metrics")
    return [{key: plain(row[key]) for key in keep} for row in rows]


def plain(value):
    """Python's own values without what JSON cannot say."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, float):
        return struct.pack(">d", value).hex()
    if isinstance(value, int) and abs(value) >= 2**53:
        return str(value)
    return value.hex() if isinstance(value, bytes) else value


def puffin(request):
    """The deleted positions in a Puffin file, as pyiceberg reads them."""
    from pyiceberg.table.puffin import PuffinFile

    with open(request["path"], "rb") as file:
        vectors = PuffinFile(file.read()).to_vector()
    return {path: canonical(positions) for path, positions in vectors.items()}


def query(request):
    return table_rows(duck().execute(request["sql"]).to_arrow_table())


def versions(_request):
    import duckdb
    import pyiceberg

    return {"pyiceberg": pyiceberg.__version__, "duckdb": duckdb.__version__, "pyarrow": pa.__version__}


def scenario(request):
    import foreign_tables

    return foreign_tables.SCENARIOS[request["name"]](request["root"])


def rest(request):
    import foreign_rest

    return foreign_rest.run(request, duck, table_rows)


OPERATIONS = {
    "rest": rest,
    "write-parquet": write_parquet, "read-parquet": read_parquet, "pyiceberg": read_pyiceberg, "duckdb": read_duckdb,
    "query": query, "metrics": metrics, "puffin": puffin, "versions": versions, "scenario": scenario,
}  # fmt: skip


def main():
    # Libraries print warnings on standard output; the answers have it for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"ok": OPERATIONS[request["op"]](request)}
        except Exception as error:  # noqa: BLE001 - the test names what it expects
            answer = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        answers.write(json.dumps(answer, default=str) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
