"""What is shipped: the metadata, the wheel, the pins."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import live_cache

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT: dict[str, Any] = PYPROJECT["project"]


def _pins() -> list[Requirement]:
    lines = [line for path in sorted((ROOT / "requirements").glob("*.txt")) for line in path.read_text().splitlines()]
    return [Requirement(line) for line in lines if "==" in line]


def test_the_core_needs_django_and_cbor2_only() -> None:
    """Everything else is an extra; Django has no upper cap."""
    assert {Requirement(text).name for text in PROJECT["dependencies"]} == {"django", "cbor2"}
    (django,) = (Requirement(text) for text in PROJECT["dependencies"] if text.startswith("django"))
    assert str(django.specifier) == ">=5.2"


def test_every_pin_is_exact() -> None:
    """A pin is one version; what is pinned twice differs by its marker."""
    for pin in _pins():
        assert re.fullmatch(r"==[^*,]+", str(pin.specifier)), pin


def test_pins_are_in_the_ranges_of_pyproject() -> None:
    """What the tests install is what pyproject.toml allows."""
    texts = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
    groups = [group for name, group in PYPROJECT["dependency-groups"].items() if name != "matrix"]
    texts += [text for group in groups for text in group if isinstance(text, str)]
    for requirement in map(Requirement, texts):
        if requirement.name == PROJECT["name"]:
            continue
        pinned = [pin for pin in _pins() if pin.name.lower() == requirement.name.lower()]
        assert pinned, requirement
        for pin in pinned:
            (specifier,) = pin.specifier
            assert requirement.specifier.contains(specifier.version), (requirement, pin)


def test_the_wheel_holds_the_package_only(tmp_path: Path) -> None:
    """live_cache with its type marker and the licence, and nothing of the tests."""
    pytest.importorskip("hatchling", reason="hatchling is not installed: the wheel cannot be built")
    if not (ROOT / "live_cache").exists():
        pytest.skip("the tests run against an installed wheel; there is nothing to build")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names} == {"live_cache", "django_live_cache-0.1.0.dist-info"}
    assert "live_cache/py.typed" in names
    assert "django_live_cache-0.1.0.dist-info/licenses/LICENSE" in names
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "live_cache").rglob("*.py")}
    assert sources == {name for name in names if name.endswith(".py")}


def test_the_installed_version_is_that_of_the_project() -> None:
    """When the tests run against an installed wheel, it is the one of this tree."""
    if (ROOT / "live_cache").exists():
        pytest.skip("the tests run against the source folder")
    assert "site-packages" in str(live_cache.__file__)
    assert importlib.metadata.version(PROJECT["name"]) == PROJECT["version"]


def test_all_names_what_is_there() -> None:
    """The public names are sorted, and each can be had."""
    assert sorted(live_cache.__all__) == list(live_cache.__all__)
    for name in live_cache.__all__:
        assert getattr(live_cache, name) is not None


def test_importing_the_package_needs_no_settings() -> None:
    """import live_cache reads no settings and imports no models: it works before Django is set up."""
    script = (
        "import sys, live_cache\n"
        "from django.conf import settings\n"
        "assert not settings.configured\n"
        "assert 'django.contrib.contenttypes' not in sys.modules\n"
    )
    environment = {"PYTHONPATH": str(Path(str(live_cache.__file__)).parent.parent)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
