"""The import table of the architecture page is the one that `tests/test_architecture.py` compares with the code."""

import re

from tests.docs.pages import ROOT
from tests.test_architecture import MAY_IMPORT

PAGE = (ROOT / "docs" / "architecture.md").read_text()
ROW = re.compile(r"^\| `(\w+)(?:/|\.py)` \| [^|]+ \|([^|]*)\|$", re.MULTILINE)
listed = {package: {name.strip() for name in names.split(",")} - {""} for package, names in ROW.findall(PAGE)}


def test_the_page_has_the_import_table() -> None:
    assert listed == MAY_IMPORT | {"cli": {"everything"}}


def test_a_row_names_only_rows_below_it() -> None:
    rows = list(listed)
    up = [(row, name) for row in rows[1:] for name in listed[row] if rows.index(name) <= rows.index(row)]
    assert up == []
