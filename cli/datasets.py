"""`taskres datasets`: what is known and what is there."""

from pathlib import Path

from .options import Json, Root


def datasets(root: Root = Path("."), as_json: Json = False) -> None:
    """List the known data sets, which are installed below --root, and how to get the others.

    A folder with one folder of images a class needs no name: pass its path to `taskres extract`.
    """
    from taskres_cache.datasets import ENTRIES

    from .console import print_json, print_table

    rows = [
        {
            "name": entry.name,
            "title": entry.title,
            "missing": entry.missing(root),
            "backbone": entry.backbone,
            "how_to_get": entry.how_to_get,
        }
        for entry in ENTRIES.values()
    ]
    if as_json:
        print_json(rows)
        return
    table = [
        [
            str(row["name"]),
            "ready" if row["missing"] is None else str(row["missing"]),
            str(row["title"]),
            str(row["how_to_get"]),
        ]
        for row in rows
    ]
    print_table("known data sets", ["name", "state", "what", "how to get it"], table, left=4)
    print("Or any folder of images: folder/<class>/* (split for you) or folder/{train,val,test}/<class>/*")
