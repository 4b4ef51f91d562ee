"""Clients of Postgres in Python against the edge: psycopg 3, SQLAlchemy's reflection, asyncpg. Exits with an assertion's error."""
import asyncio
import datetime
import decimal
import sys

import asyncpg
import psycopg
import psycopg.types
import sqlalchemy as sa

port, user, password = int(sys.argv[1]), sys.argv[2], sys.argv[3]
mapped = sys.argv[4] == "mapped"
where = {"host": "127.0.0.1", "port": port, "user": user, "password": password}


def with_psycopg():
    with psycopg.connect(dbname="db", **where) as c:
        cur = c.cursor()
        row = cur.execute("select count(*), min(day), max(price) from items where id < %s", (2500,)).fetchone()
        assert row == (2500, datetime.date(2024, 1, 1), decimal.Decimal("624.75")), row
        row = c.cursor(binary=True).execute("select id, k, label, price, day from items where id = %s", (7,)).fetchone()
        assert row == (7, 7, "label 0", decimal.Decimal("1.75"), datetime.date(2024, 1, 8)), row
        with cur.copy("COPY items (id, k, label, price, day) FROM STDIN") as copy:
            for i in range(5000, 5010):
                copy.write_row((i, i if i % 2 else i - 4000, f"new\t{i}", None, "2024-01-01"))
        assert cur.rowcount == 10
        rows = cur.execute("select count(*), min(k) from items where label like 'new%'").fetchone()
        assert rows == (10, 1000), rows
        c.rollback()
        with c.cursor("named") as named:
            named.itersize = 100
            named.execute("select id from items order by id")
            assert sum(r[0] for r in named) == 4498500
        c.commit()
        with c.pipeline():
            cur.execute("update items set label = 'pipe' where id = %s", (3,))
            cur.execute("update items set label = 'pipe' where id = %s", (2003,))
            assert cur.execute("select count(*) from items where label = 'pipe'").fetchone() == (2,)
        c.rollback()
        with c.transaction():
            cur.execute("update items set label = 'a' where id = 1")
            try:
                with c.transaction():
                    cur.execute("update items set label = 'b' where id = 2")
                    cur.execute("select nope from items")
            except psycopg.errors.UndefinedColumn as error:
                assert error.diag.statement_position == "8"
            rows = cur.execute("select label from items where id in (1, 2) order by id").fetchall()
            assert rows == [("a",), ("label 2",)], rows
            raise psycopg.Rollback()
        c.autocommit = True
        for i in range(12):
            row = cur.execute("select label from items where id = %s", (i * 200,), prepare=True).fetchone()
            assert row == (f"label {i * 200 % 7}",)
        assert psycopg.types.TypeInfo.fetch(c, "jsonb").oid == 3802
        cur.execute("set timezone to 'Europe/Berlin'")
        assert c.info.parameter_status("TimeZone") == "Europe/Berlin"
        row = cur.execute("select timestamptz '2024-07-01 12:00:00+00' from items limit 1").fetchone()
        assert row[0].hour == 14, row
    try:
        psycopg.connect(dbname="db", **{**where, "password": "wrong"})
        raise AssertionError("a wrong password got in")
    except psycopg.OperationalError as error:
        assert "password authentication failed" in str(error)


def with_sqlalchemy():
    engine = sa.create_engine(sa.engine.URL.create("postgresql+psycopg", user, password, "127.0.0.1", port, "db"))
    inspector = sa.inspect(engine)
    assert "public" in inspector.get_schema_names()
    tables = set(inspector.get_table_names())
    assert "items" in tables and ("plain" in tables) == mapped, tables
    columns = {c["name"]: str(c["type"]) for c in inspector.get_columns("items")}
    assert columns == {"id": "INTEGER", "k": "BIGINT", "label": "TEXT", "price": "NUMERIC(10, 2)", "day": "DATE"}, columns
    assert inspector.get_pk_constraint("items")["constrained_columns"] == ["id", "k"]
    inspector.get_indexes("items"), inspector.get_foreign_keys("items"), inspector.get_unique_constraints("items")
    inspector.get_check_constraints("items"), inspector.get_table_comment("items"), inspector.get_view_names()
    metadata = sa.MetaData()
    metadata.reflect(engine)
    items = metadata.tables["items"]
    with engine.begin() as c:
        query = sa.select(sa.func.count(), sa.func.min(items.c.day)).where(items.c.k.between(1990, 2010))
        assert c.execute(query).all() == [(21, datetime.date(2024, 1, 1))]
        rows = c.execute(sa.insert(items).returning(items.c.id), [{"id": 7001, "k": 7001}, {"id": 7002, "k": 2}]).all()
        assert rows == [(7001,), (7002,)], rows
        assert c.execute(sa.delete(items).where(items.c.id >= 7001)).rowcount == 2
    assert inspector.has_table("items") and inspector.has_table("plain") == mapped
    engine.dispose()


async def with_asyncpg():
    c = await asyncpg.connect(database="db", **where)
    row = await c.fetchrow("select id, k, label, price, day from items where id = $1", 7)
    assert tuple(row) == (7, 7, "label 0", decimal.Decimal("1.75"), datetime.date(2024, 1, 8)), row
    async with c.transaction():
        assert len([r async for r in c.cursor("select id from items order by id", prefetch=50)]) == 3000
    await c.copy_records_to_table(
        "items", records=[(8000 + i, 8000 + i, "c", None, None) for i in range(5)], columns=["id", "k", "label", "price", "day"]
    )
    assert await c.fetchval("select count(*) from items where id >= 8000") == 5
    assert await c.execute("delete from items where id >= 8000") == "DELETE 5"
    await c.reset()
    await c.close()


with_psycopg()
with_sqlalchemy()
asyncio.run(with_asyncpg())
print("ok")
