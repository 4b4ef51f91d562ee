"""The REST catalog as pyiceberg and DuckDB use it: reading, and every way of writing that they have."""

import time
import uuid

from pyiceberg.catalog import load_catalog


def catalog(request):
    properties = {"type": "rest", "uri": request["uri"]}
    if request.get("token") is not None:
        properties["token"] = request["token"]
    if request.get("warehouse") is not None:
        properties["warehouse"] = request["warehouse"]
    return load_catalog(f"c{uuid.uuid4().hex}", **properties)


def names(request):
    found = catalog(request)
    return [[".".join(ns), sorted(".".join(t) for t in found.list_tables(ns))] for ns in found.list_namespaces()]


def scan(request):
    table = catalog(request).load_table(tuple(request["table"]))
    return table.scan(row_filter=request.get("where", "true")).to_arrow()


def attach(duck, request):
    name = f"rest_{uuid.uuid4().hex}"
    token = f", TOKEN '{request['token']}'" if request.get("token") else ", AUTHORIZATION_TYPE 'none'"
    duck.execute(f"ATTACH '{request.get('warehouse') or ''}' AS {name} (TYPE iceberg, ENDPOINT '{request['uri']}'{token})")
    return name


def duckdb_read(duck, request):
    name = attach(duck, request)
    schema, table = request["table"]
    try:
        return duck.execute(f'SELECT * FROM {name}."{schema}"."{table}"').to_arrow_table()
    finally:
        duck.execute(f"DETACH {name}")


def sums(request):
    """Sums of a column of several tables, loaded one after the other with a pause, through one catalog."""
    found = catalog(request)
    out = []
    for table in request["tables"]:
        out.append(str(sum(found.load_table(("public", table)).scan().to_arrow()[request["column"]].to_pylist())))
        time.sleep(request.get("pause", 0))
    return {"prefix": found.properties.get("prefix"), "sums": out}


def duckdb_sums(duck, request):
    name = attach(duck, request)
    out = []
    try:
        for table in request["tables"]:
            out.append(str(duck.execute(f'SELECT sum({request["column"]})::BIGINT FROM {name}.public."{table}"').fetchone()[0]))
            time.sleep(request.get("pause", 0))
        return {"sums": out}
    finally:
        duck.execute(f"DETACH {name}")


def duckdb_write(duck, request):
    name = attach(duck, request)
    try:
        duck.execute(request["sql"].replace("@", name))
    finally:
        duck.execute(f"DETACH {name}")
    return None


def write(request):
    """One way of writing by name; raises what pyiceberg raises."""
    found = catalog(request)
    identifier = tuple(request["table"])
    table = found.load_table(identifier)
    rows = table.scan(limit=1).to_arrow()
    what = request["what"]
    if what == "append":
        table.append(rows)
    elif what == "overwrite":
        table.overwrite(rows)
    elif what == "delete":
        table.delete(request.get("where", "true"))
    elif what == "add-column":
        from pyiceberg.types import LongType

        with table.update_schema() as update:
            update.add_column("foreign_column", LongType())
    elif what == "property":
        with table.transaction() as transaction:
            transaction.set_properties({"owner": "somebody"})
    elif what == "expire":
        with table.maintenance.expire_snapshots() as expire:
            expire.by_id(table.metadata.snapshots[0].snapshot_id)
    elif what == "drop":
        found.drop_table(identifier)
    elif what == "purge":
        found.purge_table(identifier)
    elif what == "rename":
        found.rename_table(identifier, (identifier[0], "renamed"))
    elif what == "create":
        found.create_table((identifier[0], "created"), table.schema())
    elif what == "create-namespace":
        found.create_namespace("created")
    elif what == "drop-namespace":
        found.drop_namespace(identifier[0])
    elif what == "tag":
        table.manage_snapshots().create_tag(table.metadata.current_snapshot_id, "mine").commit()
    else:
        raise ValueError(what)
    return None


def replace(request):
    """A compaction as pyiceberg can be made to write it: all files exchanged for one, as the operation `replace`."""
    from pyiceberg.io.pyarrow import _dataframe_to_data_files
    from pyiceberg.table.snapshots import Operation
    from pyiceberg.table.update import AddSnapshotUpdate
    from pyiceberg.table.update.snapshot import _OverwriteFiles

    table = catalog(request).load_table(tuple(request["table"]))
    rows = table.scan().to_arrow()
    if request.get("skip"):
        rows = rows.slice(request["skip"])
    with table.transaction() as transaction:
        producer = _OverwriteFiles(
            operation=Operation.OVERWRITE, transaction=transaction, io=table.io, commit_uuid=uuid.uuid4(), branch="main"
        )
        with producer as update:
            for task in table.scan().plan_files():
                update.delete_data_file(task.file)
            for file in _dataframe_to_data_files(table.metadata, rows, table.io, write_uuid=update.commit_uuid):
                update.append_data_file(file)
        # pyiceberg has no operation of its own for it: the snapshot is the same but for its name.
        for one in transaction._updates:
            if isinstance(one, AddSnapshotUpdate):
                object.__setattr__(one.snapshot.summary, "operation", Operation.REPLACE)
    return {"files": len(list(catalog(request).load_table(tuple(request["table"])).scan().plan_files()))}


def run(request, duck, table_rows):
    operations = {"names": lambda: names(request), "write": lambda: write(request), "replace": lambda: replace(request), "sums": lambda: sums(request)}
    what = request["do"]
    if what in operations:
        return operations[what]()
    if what == "read":
        return table_rows(scan(request))
    if what == "duckdb":
        return table_rows(duckdb_read(duck(), request))
    if what == "duckdb-sums":
        return duckdb_sums(duck(), request)
    if what == "duckdb-write":
        return duckdb_write(duck(), request)
    raise ValueError(what)
