"""Tables as Markdown and CSV."""

import csv
from io import StringIO

from taskres_cache.reporting.tables import Table, percent

TABLE = Table("accuracy", ("name", "where", "test %"), (("a|b", "x, y", "1.00"), ("c", "", "22.50")), left=2)


def test_markdown_aligns_numbers_and_escapes_bars() -> None:
    assert TABLE.as_markdown() == (
        "## accuracy\n\n| name | where | test % |\n| --- | --- | ---: |\n| a\\|b | x, y | 1.00 |\n| c |  | 22.50 |\n"
    )


def test_a_title_of_two_lines_is_one_heading() -> None:
    assert Table("digits\naccuracy", ("name",), ()).as_markdown().startswith("## digits, accuracy\n")


def test_csv_round_trip() -> None:
    assert list(csv.reader(StringIO(TABLE.as_csv()))) == [list(TABLE.columns), *map(list, TABLE.rows)]


def test_percent() -> None:
    assert [percent(value) for value in (None, 0.0, 66.666, 100.0)] == ["-", "0.00", "66.67", "100.00"]
