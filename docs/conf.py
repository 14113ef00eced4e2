"""Configuration of Sphinx: MyST and Furo."""

from __future__ import annotations

import logging
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

import django  # noqa: E402  the path and the settings come first

# Autodoc imports modules that define models or read settings.
django.setup()

_metadata: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

project = _metadata["name"]
author = "The django-live-cache contributors"
copyright = "2026, the django-live-cache contributors"
release = version = _metadata["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {release}"
html_theme_options = {"source_edit_link": ""}

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

# A folder may be empty. Sphinx 9.0 gives this warning no type, so suppress_warnings cannot name it.
logging.getLogger("sphinx.sphinx.directives.other").addFilter(
    lambda record: "didn't match any documents" not in str(record.msg)
)
