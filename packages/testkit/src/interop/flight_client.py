"""What real Flight clients do with a server: each check is a function; one JSON line for each, with what it saw.

Usage: flight_client.py URI USER PASSWORD [CHECK ...]. Checks use the DBAPI of adbc-driver-flightsql, pyarrow.flight, pandas and polars.
"""
import json
import sys
import threading
import time
import traceback

import adbc_driver_flightsql
import adbc_driver_flightsql.dbapi as dbapi
import adbc_driver_manager
import pyarrow as pa
import pyarrow.flight as flight

URI, USER, PASSWORD = sys.argv[1:4]
ONLY = sys.argv[4:]
CHECKS = []


def check(f):
    CHECKS.append(f)
    return f


def connect(autocommit=True, **options):
    kwargs = {"username": USER, "password": PASSWORD}
    kwargs.update(options)
    return dbapi.connect(URI, db_kwargs=kwargs, autocommit=autocommit)


@check
def select():
    with connect() as c, c.cursor() as cur:
        cur.execute("SELECT 1 AS a, 'x' AS b, NULL::double AS d, 1.50::decimal(5,2) AS e, DATE '2024-02-29' AS f")
        return {"rows": [[str(v) for v in r] for r in cur.fetchall()], "names": [d[0] for d in cur.description]}


@check
def many_rows():
    with connect() as c, c.cursor() as cur:
        cur.execute("SELECT i, 't' || i AS t, i % 3 = 0 AS b FROM range(300000) r(i)")
        table = cur.fetch_arrow_table()
        total = sum(table["i"].to_pylist())
        return {"rows": table.num_rows, "sum": total, "last": table["t"][299999].as_py(), "trues": sum(table["b"].to_pylist())}


@check
def pandas_and_polars():
    import polars as pl

    with connect() as c, c.cursor() as cur:
        cur.execute("SELECT i, i * 1.5 AS x FROM range(1000) r(i)")
        df = cur.fetch_df()
        cur.execute("SELECT i, 'n' || i AS n FROM range(10) r(i)")
        frame = pl.from_arrow(cur.fetch_arrow_table())
        return {"pandas": float(df["x"].sum()), "polars": frame["n"].to_list()[-1]}


@check
def ddl_and_update():
    with connect() as c, c.cursor() as cur:
        cur.execute("CREATE TABLE upd (id int, v text)")
        cur.execute("INSERT INTO upd VALUES (1, 'a'), (2, 'b'), (3, 'c')")
        cur.adbc_statement.set_sql_query("UPDATE upd SET v = 'z' WHERE id > 1")
        changed = cur.adbc_statement.execute_update()
        cur.execute("SELECT count(*), max(v) FROM upd")
        row = cur.fetchone()
        cur.execute("DROP TABLE upd")
        return {"changed": changed, "row": list(row)}


@check
def parameters():
    with connect() as c, c.cursor() as cur:
        cur.execute("CREATE TABLE par (id int, v text)")
        cur.executemany("INSERT INTO par VALUES ($1::int, $2::text)", [(1, "one"), (2, None), (3, "three")])
        cur.execute("SELECT v FROM par WHERE id = $1::int", (3,))
        one = cur.fetchone()
        cur.execute("SELECT count(*) FROM par WHERE v IS NULL")
        nulls = cur.fetchone()[0]
        cur.execute("DROP TABLE par")
        return {"one": one[0], "nulls": nulls}


@check
def transactions():
    with connect() as setup, setup.cursor() as cur:
        cur.execute("CREATE TABLE tx (id int)")
    with connect(autocommit=False) as c:
        with c.cursor() as cur:
            cur.execute("INSERT INTO tx VALUES (1)")
            cur.execute("SELECT count(*) FROM tx")
            own = cur.fetchone()[0]
        with connect() as other, other.cursor() as cur:
            cur.execute("SELECT count(*) FROM tx")
            others = cur.fetchone()[0]
        c.rollback()
        with c.cursor() as cur:
            cur.execute("INSERT INTO tx VALUES (2)")
        c.commit()
    with connect() as c, c.cursor() as cur:
        cur.execute("SELECT id FROM tx")
        left = [r[0] for r in cur.fetchall()]
        cur.execute("DROP TABLE tx")
        return {"own": own, "others": others, "left": left}


@check
def ingest():
    table = pa.table(
        {
            "id": pa.array([1, 2, 3], pa.int32()),
            "name": pa.array(["a", None, "c"]),
            "at": pa.array([0, 1_700_000_000_000_000, None], pa.timestamp("us", "UTC")),
            "d": pa.array([None, 19000, 1], pa.date32()),
            "x": pa.array([1.5, float("nan"), None]),
            "n": pa.array([__import__("decimal").Decimal("1.25"), None, __import__("decimal").Decimal("-3.00")], pa.decimal128(10, 2)),
            "b": pa.array([True, False, None]),
            "raw": pa.array([b"\x00\xff", b"", None]),
        }
    )
    seen = {}
    with connect() as c, c.cursor() as cur:
        seen["create"] = cur.adbc_ingest("ing", table, mode="create")
        try:
            cur.adbc_ingest("ing", table, mode="create")
            seen["twice"] = "accepted"
        except adbc_driver_manager.Error as e:
            seen["twice"] = type(e).__name__
        seen["append"] = cur.adbc_ingest("ing", table, mode="append")
        cur.execute("SELECT count(*), sum(id), min(name), sum(n), count(x), count(raw) FROM ing")
        seen["row"] = [str(v) for v in cur.fetchone()]
        seen["replace"] = cur.adbc_ingest("ing", table.slice(0, 1), mode="replace")
        cur.execute("SELECT id, name, n, b FROM ing")
        seen["after"] = [[str(v) for v in r] for r in cur.fetchall()]
        seen["create_append"] = cur.adbc_ingest("ing2", table, mode="create_append")
        try:
            cur.adbc_ingest("nowhere", table, mode="append")
            seen["absent"] = "accepted"
        except adbc_driver_manager.Error as e:
            seen["absent"] = type(e).__name__
        big = pa.table({"i": pa.array(range(20000), pa.int64())})
        seen["big"] = cur.adbc_ingest("ing3", big, mode="create")
        cur.execute("SELECT sum(i) FROM ing3")
        seen["sum"] = int(cur.fetchone()[0])
        for t in ("ing", "ing2", "ing3"):
            cur.execute(f"DROP TABLE {t}")
    return seen


@check
def metadata():
    with connect() as c:
        with c.cursor() as cur:
            cur.execute("CREATE TABLE meta (id int, v text)")
        info = c.adbc_get_info()
        types = c.adbc_get_table_types()
        objects = c.adbc_get_objects(depth="all", table_name_filter="meta").read_all().to_pylist()
        schema = c.adbc_get_table_schema("meta")
        with c.cursor() as cur:
            cur.execute("DROP TABLE meta")
        tables = [t for o in objects for s in o["catalog_db_schemas"] or [] for t in s["db_schema_tables"] or []]
        return {
            "vendor": info.get("vendor_name"),
            "types": types,
            "tables": [t["table_name"] for t in tables],
            "columns": [col["column_name"] for t in tables for col in t["table_columns"] or []],
            "schema": [f"{f.name}:{f.type}" for f in schema],
        }


@check
def errors():
    seen = {}
    with connect() as c, c.cursor() as cur:
        for name, sql in {"syntax": "SELEC 1", "table": "SELECT * FROM no_such_table"}.items():
            try:
                cur.execute(sql)
                cur.fetchall()
                seen[name] = "accepted"
            except adbc_driver_manager.Error as e:
                seen[name] = [type(e).__name__, str(e)[:120]]
        cur.execute("SELECT 1")
        seen["after"] = cur.fetchone()[0]
    try:
        with dbapi.connect(URI, db_kwargs={"username": USER, "password": "wrong"}, autocommit=True) as c, c.cursor() as cur:
            cur.execute("SELECT 1")
        seen["password"] = "accepted"
    except adbc_driver_manager.Error as e:
        seen["password"] = str(e)[:80]
    return seen


@check
def cancel():
    with connect() as c, c.cursor() as cur:
        timer = threading.Timer(0.5, cur.adbc_cancel)
        start = time.monotonic()
        timer.start()
        try:
            cur.execute("SELECT sum(a.i * b.i) FROM range(400000) a(i), range(400000) b(i) WHERE (a.i + b.i) % 7 = 3")
            cur.fetchall()
            outcome = "finished"
        except adbc_driver_manager.Error as e:
            outcome = type(e).__name__
        return {"outcome": outcome, "seconds_ok": time.monotonic() - start < 3}


@check
def concurrent():
    """Several cursors of one connection, read in turns."""
    with connect() as c:
        cursors = [c.cursor() for _ in range(4)]
        readers = []
        for i, cur in enumerate(cursors):
            cur.execute(f"SELECT i + {i} AS i FROM range(100000) r(i)")
            readers.append(cur.fetch_record_batch())
        sums = [0] * 4
        live = list(range(4))
        while live:
            for i in list(live):
                try:
                    sums[i] += sum(readers[i].read_next_batch()["i"].to_pylist())
                except StopIteration:
                    live.remove(i)
        for cur in cursors:
            cur.close()
        return {"sums": sums}


@check
def pyarrow_flight():
    client = flight.connect(URI)
    pair = client.authenticate_basic_token(USER, PASSWORD)
    options = flight.FlightCallOptions(headers=[pair])
    actions = sorted(a.type for a in client.list_actions(options))
    # CommandStatementQuery{query} inside Any, by hand.
    sql = b"SELECT i FROM range(5) r(i)"
    inner = b"\x0a" + bytes([len(sql)]) + sql
    url = b"type.googleapis.com/arrow.flight.protocol.sql.CommandStatementQuery"
    command = b"\x0a" + bytes([len(url)]) + url + b"\x12" + bytes([len(inner)]) + inner
    info = client.get_flight_info(flight.FlightDescriptor.for_command(command), options)
    read = client.do_get(info.endpoints[0].ticket, options).read_all()
    again = client.do_get(info.endpoints[0].ticket, options).read_all()
    same = read.schema.equals(info.schema)
    schema = client.get_schema(flight.FlightDescriptor.for_command(command), options).schema
    try:
        client.do_get(info.endpoints[0].ticket)
        anonymous = "accepted"
    except flight.FlightUnauthenticatedError:
        anonymous = "refused"
    try:
        list(client.do_get(flight.Ticket(b"nonsense"), options))
        nonsense = "accepted"
    except pa.ArrowInvalid:
        nonsense = "invalid"
    except Exception as e:
        nonsense = type(e).__name__
    return {"actions": actions, "rows": read["i"].to_pylist(), "again": again.equals(read), "same": same,
            "schema": schema.equals(read.schema), "anonymous": anonymous, "nonsense": nonsense}


@check
def options():
    with connect() as c:
        conn = c.adbc_connection
        before = conn.get_option("adbc.connection.db_schema") if hasattr(conn, "get_option") else None
        conn.set_options(**{"adbc.connection.db_schema": "other"})
        return {"before": before, "after": conn.get_option("adbc.connection.db_schema")}


for f in CHECKS:
    if ONLY and f.__name__ not in ONLY:
        continue
    try:
        print(json.dumps({"check": f.__name__, "seen": f()}), flush=True)
    except Exception as e:
        print(json.dumps({"check": f.__name__, "error": f"{type(e).__name__}: {e}", "trace": traceback.format_exc()[-600:]}), flush=True)
