#!/usr/bin/env python3
"""Run a management command of the example project."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path


def use_virtual_environment() -> None:
    """Go on with the Python of the environment that dev.py made; say how to make it if it is not there."""
    folder = Path(os.environ.get("LIVE_CACHE_VENV") or Path(__file__).resolve().parent / ".venv").absolute()
    python = folder / "bin" / "python"
    if not python.exists() or sys.prefix == str(folder):
        sys.exit("manage.py: Django is not installed. Run 'python3 dev.py demo --once' first: it makes .venv.")
    os.execv(python, [str(python), *sys.argv])


def main() -> None:
    """Run the command that the arguments name."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example_project.settings")
    if importlib.util.find_spec("django") is None:
        use_virtual_environment()
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
