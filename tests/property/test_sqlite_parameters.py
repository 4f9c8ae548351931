from __future__ import annotations

import sqlite3
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from forebay.sqlite.parameters import numbered
from forebay.sqlite.transaction import SqliteTransaction

VALUES: dict[str, Any] = {"a": 1, "b": "two", "c_3": b"3", "_d": None, "größe": 5.0, "A": 6}
EXPRESSIONS = st.sampled_from(
    [
        ":a",
        ":b",
        ":c_3",
        ":_d",
        ":A",
        ":größe",
        "@a",
        "$b",
        "':a'",
        "'it''s :b'",
        '":a"',
        "`c:x`",
        "[c:x]",
        "1 as [x:y]",
        "1 as a$b",
        ":a || ':a' || :b",
        "-1 -- :b it's\n",
        "/* :a ' */ :b",
        "x'00'",
        ":a/:a",
        ":a-:a",
        "json_extract('{\"a\":{\":b\":7}}', '$.a.:b')",
        ":missing",
        ":a::b",
        "?",
        "?2",
        ":1",
        ":a:b",
        "'open",
        "/* open",
    ]
)
TABLE = "(select 'column' as \"c:x\")"


def answer(connection: sqlite3.Connection, text: str, values: Any) -> Any:
    try:
        return [tuple(row) for row in connection.execute(text, values)]
    except sqlite3.Error as error:
        return type(error)


@given(st.lists(EXPRESSIONS, min_size=1, max_size=6))
@example([":b", ":a", ":b"])
@example(["'open", ":a"])
def test_a_statement_by_number_says_what_it_says_by_name(expressions: list[str]) -> None:
    connection = sqlite3.connect(":memory:")
    sql = f"select {', '.join(expressions)} from {TABLE}"
    text, values = numbered(sql)
    try:
        bound = values(VALUES)
    except KeyError:
        assert ":missing" in sql
    else:
        assert answer(connection, text, bound) == answer(connection, sql, VALUES)
    connection.close()


def test_names_become_numbers_in_the_order_in_which_they_are_first_met() -> None:
    text, values = numbered("insert into t (x, y, z) values (:x, ':y', :z, :x)")
    assert text == "insert into t (x, y, z) values (?1, ':y', ?2, ?1)"
    assert values({"z": 1, "x": 2, "more": 3}) == (2, 1)
    assert numbered("delete from t where x = :x")[1]({"x": 1}) == (1,)
    assert numbered("select 1")[1]({}) == {}


def test_a_missing_parameter_is_named_also_among_many_rows() -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.row_factory = sqlite3.Row
    connection.execute("create table t (x, y)")
    connection.execute("begin")
    tx = SqliteTransaction(connection, "opening")
    for names in ({}, {"x": 1}):
        with pytest.raises(sqlite3.ProgrammingError, match=f":{'y' if names else 'x'}"):
            tx.execute("insert into t (x, y) values (:x, :y)", **names)
    with pytest.raises(sqlite3.ProgrammingError, match=":y"):
        tx.executemany("insert into t (x, y) values (:x, :y)", [{"x": 1, "y": 2}, {"x": 3}])
    tx.executemany("insert into t (x, y) values (:x, :y)", ({"x": at, "y": 0} for at in (4, 5)))
    tx.executemany("insert into t (x, y) values (:x, :y)", [{"x": 6, "y": 0, "more": 1}])
    assert [row["x"] for row in tx.execute("select x from t where x > :x", x=1)] == [4, 5, 6]
    connection.close()
