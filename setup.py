"""The list of packages; everything else is in `pyproject.toml`, which cannot express this mapping.

`cli/` is a top-level folder, but is installed as `taskres_cache.cli`.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["taskres_cache*"]), "taskres_cache.cli"],
    package_dir={"taskres_cache.cli": "cli"},
)
