"""Each setting, option, check, exception and option of the command has its heading, and no heading is without one."""

from __future__ import annotations

import re
from argparse import ArgumentParser, _SubParsersAction
from pathlib import Path
from typing import Any

import pytest

from live_cache import checks, exceptions, setting_checks
from live_cache.cache_options import KNOWN_OPTIONS, Options
from live_cache.conf import DEFAULTS
from live_cache.location import SCHEMES
from live_cache.management.commands.live_cache import Command

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"


def headings(page: str, level: int) -> list[str]:
    """Return the headings of one level of a page, in its order."""
    text = re.sub(r"^```.*?^```", "", (REFERENCE / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(rf"^#{{{level}}} (.+)$", text, flags=re.MULTILINE)


def section(page: str, heading: str) -> str:
    """Return what stands under a heading."""
    text = (REFERENCE / page).read_text()
    return re.split(r"^#{2,3} ", text.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def test_each_setting_has_its_heading() -> None:
    """And each heading its setting."""
    of_django = ["LOCATION", "TIMEOUT", "KEY_PREFIX", "VERSION and KEY_FUNCTION"]
    assert sorted([*of_django, *KNOWN_OPTIONS, *DEFAULTS]) == sorted(headings("settings.md", 3))


@pytest.mark.parametrize("name", [*KNOWN_OPTIONS, *DEFAULTS])
def test_each_setting_names_its_default(name: str) -> None:
    """The one of the code."""
    default = DEFAULTS[name] if name in DEFAULTS else getattr(Options(), name.lower())
    shown = "empty" if default == () else f'`"{default}"`' if isinstance(default, str) else f"`{default!r}`"
    assert shown in section("settings.md", name)


def test_each_scheme_is_described() -> None:
    """Of LOCATION."""
    assert [] == [scheme for scheme in SCHEMES if f"`{scheme}://" not in section("settings.md", "LOCATION")]


def test_each_check_has_its_heading() -> None:
    """Ids are found in the code, so a new one cannot be forgotten."""
    source = "".join(Path(module.__file__).read_text() for module in (checks, setting_checks))
    ids = set(re.findall(r'"live_cache\.([EWI]\d{3})"', source)) | set(re.findall(r'"(E\d{3})", parse', source))
    assert len(ids) > 10
    assert sorted(f"live_cache.{check_id}" for check_id in ids) == sorted(headings("checks.md", 3))


def test_each_exception_has_its_heading() -> None:
    """And stands in the tree on the page."""
    assert sorted(exceptions.__all__) == sorted(headings("exceptions.md", 2))
    tree = (REFERENCE / "exceptions.md").read_text().split("## ", 1)[0]
    assert [] == [name for name in exceptions.__all__ if name not in tree]


def _subcommands() -> dict[str, ArgumentParser]:
    parser = Command().create_parser("manage.py", "live_cache")
    (actions,) = [action for action in parser._actions if isinstance(action, _SubParsersAction)]
    found: dict[str, Any] = dict(actions.choices)
    return found


def test_each_subcommand_and_option_has_its_heading() -> None:
    """An option that two subcommands have in different meanings has a heading for each."""
    subcommands = _subcommands()
    assert ["Options of all subcommands", *subcommands] == headings("command.md", 2)
    common = {"--using", "--format"}
    inherited = {option for action in Command().create_parser("", "")._actions for option in action.option_strings}
    expected = set(common)
    for name, parser in subcommands.items():
        options = [action.option_strings[0] for action in parser._actions if action.option_strings]
        own = [option for option in options if option not in common | inherited]
        expected |= {f"keys {option}" for option in own} if name == "keys" else set(own)
    assert expected == set(headings("command.md", 3))


def test_links_between_pages_lead_somewhere() -> None:
    """Relative links of the reference."""
    broken = [
        f"{page.name}: {link}"
        for page in REFERENCE.glob("*.md")
        for link in re.findall(r"\]\(([^)#:]+\.md)", page.read_text())
        if not (page.parent / link).exists()
    ]
    assert [] == broken
