"""Sphinx configuration. Build with `make docs`; every warning is an error."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

from taskres_cache import __version__  # noqa: E402, needs the path above

project = "taskres-cache"
author = "the taskres-cache authors"
copyright = f"{author}, MIT licence"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc", "command_reference", "root_pages"]
exclude_patterns = ["_build"]
root_doc = "index"

# Markdown
myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline"]
myst_heading_anchors = 3

# Python API: types stand in the docstrings, so signatures stay short
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
add_module_names = False
default_role = "code"  # `name` in a docstring
python_maximum_signature_line_length = 72
numpydoc_show_class_members = False
numpydoc_attributes_as_param_list = True

# Pages: no script or font from the network
html_theme = "furo"
html_title = "taskres-cache"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
