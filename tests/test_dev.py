"""dev.py: help, errors in plain words, and the environment that it makes, without a network."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import dev

ROOT = Path(dev.__file__).resolve().parent


def _run(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(cwd / "dev.py"), *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the project's tools, in which dev.py works as in the project."""
    shutil.copy(ROOT / "dev.py", tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    monkeypatch.delenv("LIVE_CACHE_VENV", raising=False)
    return tmp_path


@pytest.fixture
def without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away each pip of this machine and each configuration of it."""
    monkeypatch.setattr(dev, "local_pip_wheel", lambda: None)
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(dev, "pip_option", lambda name: os.environ.get("PIP_" + name.upper().replace("-", "_"), ""))


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Serve an empty package index: its URL, and the folder of its pages."""
    folder = tmp_path_factory.mktemp("index")
    handler = functools.partial(_QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/simple", folder
        server.shutdown()
        thread.join()


def _publish(folder: Path, content: bytes) -> None:
    (folder / "simple" / "pip").mkdir(parents=True)
    (folder / "files").mkdir()
    (folder / "files" / dev.PIP_WHEEL).write_bytes(content)
    page = f'<a href="../../files/{dev.PIP_WHEEL}#sha256=0">{dev.PIP_WHEEL}</a>'
    (folder / "simple" / "pip" / "index.html").write_text(page)


def test_help_names_every_command() -> None:
    """The help of dev.py lists the commands, and each has its own."""
    overview = _run("--help")
    assert overview.returncode == 0
    for name in dev.COMMANDS:
        assert f"\n  {name}" in overview.stdout
        own = _run(name, "--help")
        assert (own.returncode, own.stderr) == (0, "")
        assert own.stdout.startswith(f"usage: python3 dev.py {name}")


def test_no_command_is_a_usage_error() -> None:
    """Without a command the help is shown, and the exit status is 2."""
    done = _run()
    assert done.returncode == 2
    assert "usage:" in done.stdout


def test_an_unknown_command_is_named_with_those_there_are() -> None:
    """The error names the wrong word and the right ones, without a traceback."""
    done = _run("tset")
    assert done.returncode == 1
    assert "'tset'" in done.stderr
    assert "demo, test, lint" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_old_python_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With no newer Python on the machine, the error names both versions."""
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    monkeypatch.setattr(dev, "is_new_enough", lambda python: False)
    assert dev.main(["demo"]) == 1
    assert "needs 3.11 or newer" in capsys.readouterr().err


def test_an_old_python_hands_over_to_a_newer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a newer Python on the PATH, dev.py goes on with it and with the same arguments."""
    called: list[list[str]] = []
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    monkeypatch.setattr(sys, "argv", ["dev.py", "test", "-x"])
    monkeypatch.setattr(shutil, "which", lambda name: f"/somewhere/{name}")
    monkeypatch.setattr(dev, "is_new_enough", lambda python: python.endswith("3.12"))
    monkeypatch.setattr(os, "execv", lambda program, arguments: called.append([program, *arguments[2:]]))
    with pytest.raises(dev.Failure):  # execv does not return in earnest.
        dev.require_python()
    assert called == [["/somewhere/python3.12", "test", "-x"]]


def test_the_environment_is_made_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second call finds the environment and does nothing."""
    dev.make_venv()
    assert dev.version_of(project / ".venv" / "bin" / "python") == sys.version
    assert "Making .venv" in capsys.readouterr().out
    dev.make_venv()
    assert capsys.readouterr().out == ""


def test_an_environment_of_another_python_is_made_anew(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that dev.py made is replaced when its Python is gone."""
    dev.make_venv()
    (project / ".venv" / "bin" / "python").unlink()
    dev.make_venv()
    assert "Removing .venv" in capsys.readouterr().out
    assert dev.version_of(project / ".venv" / "bin" / "python") == sys.version


def test_a_foreign_folder_is_left_alone(project: Path) -> None:
    """A .venv that dev.py did not make is an error that says what to do, and stays."""
    (project / ".venv").mkdir()
    (project / ".venv" / "precious").touch()
    with pytest.raises(dev.Failure, match=r"was not made by dev\.py") as caught:
        dev.make_venv()
    assert "LIVE_CACHE_VENV" in caught.value.hint
    assert (project / ".venv" / "precious").exists()


def test_what_is_installed_is_not_installed_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pins and the version of Python decide: a changed pin installs again, nothing else does."""
    commands: list[list[str]] = []
    monkeypatch.setattr(dev, "install_pip", lambda: None)
    monkeypatch.setattr(dev, "run_quietly", lambda command, *rest: commands.append(command))
    (project / ".venv").mkdir()
    for _ in range(2):
        dev.install("dev")
    assert len(commands) == 1
    pins = project / "requirements" / "demo.txt"
    pins.write_text(pins.read_text() + "example==1.0\n")
    dev.install("dev")
    assert len(commands) == 2


def test_pip_comes_from_the_index_of_the_environment(
    without_pip: None, index: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pinned wheel is fetched from PIP_INDEX_URL, by a link relative to the page."""
    url, folder = index
    _publish(folder, b"the wheel")
    monkeypatch.setenv("PIP_INDEX_URL", url)
    monkeypatch.setattr(dev, "PIP_SHA256", hashlib.sha256(b"the wheel").hexdigest())
    assert dev.download_pip_wheel(tmp_path).read_bytes() == b"the wheel"


def test_a_changed_wheel_of_pip_is_refused(
    without_pip: None, index: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with another hash is neither run nor kept."""
    url, folder = index
    _publish(folder, b"something else")
    monkeypatch.setenv("PIP_INDEX_URL", url)
    with pytest.raises(dev.Failure, match="not the file that it should be"):
        dev.download_pip_wheel(tmp_path)
    assert not (tmp_path / dev.PIP_WHEEL).exists()


def test_an_index_out_of_reach_is_named(without_pip: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the page that could not be read and says what to do."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(dev.Failure, match=r"http://127\.0\.0\.1:9/simple/pip/") as caught:
        dev.download_pip_wheel(tmp_path)
    assert "PIP_INDEX_URL" in caught.value.hint


def test_options_of_pip_come_from_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment wins over the configuration file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://from.file/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    assert dev.pip_option("index-url") == "https://from.file/simple"
    monkeypatch.setenv("PIP_INDEX_URL", "https://from.environment/simple")
    assert dev.pip_option("index-url") == "https://from.environment/simple"


def test_the_newest_local_wheel_of_pip_is_taken(tmp_path: Path) -> None:
    """By number, not by letter; too old ones are left out."""
    for version in ("9.0.1", "22.0", "23.0.1", "100.1"):
        (tmp_path / f"pip-{version}-py3-none-any.whl").touch()
    names = [path.name.split("-")[1] for path in dev.pip_wheels_in(tmp_path)]
    assert names == ["100.1", "23.0.1"]


def test_arguments_are_passed_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything after the command reaches the program, also --help after two dashes."""
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(dev, "make_venv", lambda: None)
    monkeypatch.setattr(dev, "install", lambda requirements: None)
    monkeypatch.setattr(dev, "call", lambda *command: commands.append(command) or 0)
    monkeypatch.setattr(os, "chdir", lambda path: None)
    assert dev.main(["demo", "--once", "--redis", "redis://localhost/1"]) == 0
    assert dev.main(["test", "--", "--help"]) == 0
    assert commands == [
        ("python", "manage.py", "demo", "--once", "--redis", "redis://localhost/1"),
        ("python", "-m", "pytest", "--timeout=300", "--help"),
    ]


def test_a_failing_installation_shows_the_errors_only(capsys: pytest.CaptureFixture[str]) -> None:
    """Of what pip says the errors are shown, and the hint."""
    script = "import sys; print('WARNING: noise'); print('ERROR: no such version'); sys.exit(1)"
    with pytest.raises(dev.Failure, match="ERROR: no such version") as caught:
        dev.run_quietly([sys.executable, "-c", script], "Installing", "Try again.")
    assert "noise" not in str(caught.value)
    assert caught.value.hint == "Try again."
