"""Which packages are installed. All else stands in `pyproject.toml`, which has no way to say this.

`cli/` lies at the top level but is installed below the library, so that site-packages gains no package called `cli`.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["taskres_cache*"]), "taskres_cache.cli"],
    package_dir={"taskres_cache.cli": "cli"},
)
