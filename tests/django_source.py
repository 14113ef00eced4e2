"""
The source of the installed Django, with its tests, which its wheel leaves out.

pip fetches it once per version into a cache folder outside of the project: LIVE_CACHE_TEST_SOURCES, or
``django-live-cache`` in the user's cache folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import django

__all__ = ["django_tests"]


def django_tests() -> Path:
    """
    Return the folder ``tests`` of the source of the installed Django, fetched if need be.

    Raises:
        RuntimeError: pip could not fetch it. The message holds what pip said.
    """
    version = django.get_version()
    folder = _cache_folder() / f"django-{version}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as directory:
            _fetch(version, Path(directory))
            (unpacked,) = (path for path in Path(directory).iterdir() if path.is_dir())
            try:
                # In one step, so that nobody meets a folder that is half there.
                unpacked.rename(folder)
            except OSError:
                if not folder.is_dir():  # Otherwise another run was quicker.
                    raise
    return folder / "tests"


def _cache_folder() -> Path:
    chosen = os.environ.get("LIVE_CACHE_TEST_SOURCES")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "django-live-cache"


def _fetch(version: str, directory: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", "django", "--dest", str(directory), f"Django=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = list(directory.glob("*.tar.gz"))
    if done.returncode or not archives:
        raise RuntimeError(f"pip could not fetch the source of Django {version}:\n{done.stderr.strip()}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(directory, filter="data")
    archives[0].unlink()
