#!/usr/bin/env python3
"""
One door to everything that is done with this repository; it needs python3 and nothing else.

    python3 dev.py demo [--once] [--redis URL] [--database URL] [--port N]
    python3 dev.py test [arguments of pytest]
    python3 dev.py lint | types | docs | bench

It makes ``.venv``, installs the exact versions of ``requirements/`` there, and runs the command in it. What is in place
already is not done again. LIVE_CACHE_VENV names another folder than ``.venv``.

Standard library only, and readable by old versions of Python, so that they can say that they are too old.
"""

import configparser
import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

__all__ = ["main"]

ROOT = Path(__file__).resolve().parent
OLDEST = (3, 11)
# Fetched when this machine has no pip in any form; pip checks everything that comes after.
PIP_WHEEL = "pip-26.3-py3-none-any.whl"
PIP_SHA256 = "f3b60b20ffaadd4415ed7957212a38ac63fa4c5fa375bd0f4a797777940fad13"
DEFAULT_INDEX = "https://pypi.org/simple"
DOWNLOAD_TIMEOUT_S = 60
STAMP = "live-cache-%s.stamp"


class Failure(Exception):
    """Something that the user can do something about. The message says what happened, the hint what to do."""

    def __init__(self, message, hint=""):
        super().__init__(message)
        self.hint = hint


class Step:
    """Prints one line for a step: what is done, and the seconds that it took."""

    def __init__(self, text):
        self.text = text

    def __enter__(self):
        self.start = time.monotonic()
        print("-> %s ..." % self.text, end=" " if sys.stdout.isatty() else "\n", flush=True)
        return self

    def __exit__(self, kind, *rest):
        seconds = time.monotonic() - self.start
        if sys.stdout.isatty():
            print("failed" if kind else "%.1f s" % seconds, flush=True)
        elif not kind:
            print("   %.1f s" % seconds, flush=True)


def run_quietly(command, what, hint, env=None):
    """Run *command*; show its output only if it fails."""
    environment = dict(os.environ if env is None else env)
    # A project or a tool around this one must not leak into the environment of this one.
    environment.pop("PYTHONHOME", None)
    done = subprocess.run(
        [str(part) for part in command],
        cwd=str(ROOT),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        lines = done.stdout.decode(errors="replace").strip().splitlines()
        # Of what pip says, the errors tell most.
        lines = [line for line in lines if line.startswith("ERROR")] or lines
        tail = "\n".join("   | " + line[:300] for line in lines[-15:])
        raise Failure("%s did not work:\n%s" % (what, tail), hint)


# ---- Python --------------------------------------------------------------------------------------------------------


def is_new_enough(python):
    """Return whether the program *python* runs and is new enough for this project."""
    check = "import sys; sys.exit(sys.version_info < %r)" % (OLDEST,)
    try:
        done = subprocess.run([python, "-c", check], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError:
        return False
    return done.returncode == 0


def require_python():
    """Go on with a newer Python of this machine if this one is too old; say so if there is none."""
    if sys.version_info >= OLDEST:
        return
    for minor in range(13, OLDEST[1] - 1, -1):
        found = shutil.which("python3.%d" % minor)
        if found and is_new_enough(found):
            print("-> Python %s is too old; going on with %s" % (sys.version.split()[0], found), flush=True)
            os.execv(found, [found, str(ROOT / "dev.py"), *sys.argv[1:]])
    raise Failure(
        "This is Python %s; django-live-cache needs %d.%d or newer." % (sys.version.split()[0], *OLDEST),
        "Install a newer Python and call it by its name, for example: python3.13 dev.py demo",
    )


# ---- virtual environment -------------------------------------------------------------------------------------------


def venv_folder():
    """Return the folder of the virtual environment."""
    return Path(os.environ.get("LIVE_CACHE_VENV") or ROOT / ".venv").absolute()


def venv_program(name):
    """Return the path of a program in the virtual environment."""
    if os.name == "nt":
        return venv_folder() / "Scripts" / (name + ".exe")
    return venv_folder() / "bin" / name


def version_of(python):
    """Return the version of the program *python*, or None if it does not run."""
    try:
        done = subprocess.run([str(python), "-c", "import sys; print(sys.version)"], stdout=subprocess.PIPE)
    except OSError:
        return None
    return done.stdout.decode().strip() if done.returncode == 0 else None


def make_venv():
    """Make the virtual environment, unless one is there that works."""
    folder = venv_folder()
    python = venv_program("python")
    if folder.exists():
        if version_of(python) == sys.version:
            return
        if not list(folder.glob(STAMP % "*")):
            raise Failure(
                "%s is there, but was not made by dev.py, or not with Python %s." % (folder, sys.version.split()[0]),
                "Move it away, or choose another folder, for example: LIVE_CACHE_VENV=.venv-dev",
            )
        with Step("Removing %s, which belongs to another Python" % folder.name):
            shutil.rmtree(str(folder))
    with Step("Making %s with Python %s" % (folder.name, sys.version.split()[0])):
        folder.mkdir(parents=True)
        # First, so that a second start knows whose it is, should this one be interrupted.
        (folder / (STAMP % "venv")).touch()
        # Without pip: ensurepip is missing on Debian and Ubuntu, and takes seconds elsewhere.
        run_quietly(
            [sys.executable, "-m", "venv", "--without-pip", folder],
            "Making a virtual environment",
            "If the module venv is missing, install it; on Debian and Ubuntu: apt-get install python3-venv",
        )


def has_pip(python):
    """Return whether the program *python* has a pip that can be run."""
    command = [str(python), "-c", "import pip"]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def install_pip():
    """Put pip into the virtual environment, from wherever this machine or its package index has one."""
    python = venv_program("python")
    if has_pip(python):
        return
    with Step("Installing pip"):
        wheel = local_pip_wheel()
        if wheel is None:
            with tempfile.TemporaryDirectory(prefix="live-cache-pip-") as folder:
                return run_pip_wheel(download_pip_wheel(Path(folder)))
        return run_pip_wheel(wheel)


def run_pip_wheel(wheel):
    """Let the pip inside *wheel* install itself: a wheel is a zip file, which Python can run."""
    command = [venv_program("python"), wheel / "pip", "install", "--quiet", "--no-index", "--no-deps", wheel]
    run_quietly(command, "Installing pip from %s" % wheel, "Remove .venv and try again.")


def pip_wheels_in(folder):
    """Return the wheels of pip in *folder*, the newest first."""
    wheels = [(re.findall(r"\d+", path.name), path) for path in folder.glob("pip-*-none-any.whl")]
    ordered = sorted(((tuple(map(int, numbers[:3])), path) for numbers, path in wheels), reverse=True)
    # Older ones do not know how to install what they are asked for.
    return [path for numbers, path in ordered if numbers >= (22, 3)]


def local_pip_wheel():
    """Return a wheel of pip that lies on this machine, or None."""
    folders = [Path(link) for link in pip_option("find-links").split() if "://" not in link]
    spec = importlib.util.find_spec("ensurepip")
    if spec and spec.origin:
        folders.append(Path(spec.origin).parent / "_bundled")
    folders += [Path("/usr/share/python-wheels"), Path("/usr/share/python3-wheels")]
    for folder in folders:
        for wheel in pip_wheels_in(folder):
            return wheel
    return None


def pip_option(name):
    """Return what pip would take for its option *name*: from the environment, else from its configuration files."""
    value = os.environ.get("PIP_" + name.upper().replace("-", "_"))
    if value:
        return value
    home = Path.home()
    files = [
        "/etc/xdg/pip/pip.conf",
        "/etc/pip.conf",
        home / ".pip" / "pip.conf",
        Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf",
        home / "Library" / "Application Support" / "pip" / "pip.conf",
        Path(os.environ.get("APPDATA") or home) / "pip" / "pip.ini",
        os.environ.get("PIP_CONFIG_FILE") or os.devnull,
    ]
    parser = configparser.RawConfigParser()
    with contextlib.suppress(configparser.Error):
        parser.read([str(path) for path in files])
    for section in ("install", "global"):
        if parser.has_option(section, name):
            return parser.get(section, name)
    return ""


def open_url(url):
    """Open *url* as pip would: with its certificates, and through the proxy of the environment."""
    certificates = pip_option("cert") or None
    context = ssl.create_default_context(cafile=certificates) if url.startswith("https:") else None
    return urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_S, context=context)


def download_pip_wheel(folder):
    """Fetch the pinned wheel of pip from the package index into *folder*, and check it."""
    indexes = [pip_option("index-url") or DEFAULT_INDEX, *pip_option("extra-index-url").split()]
    errors = []
    for index in indexes:
        page = index.rstrip("/") + "/pip/"
        try:
            with open_url(page) as answer:
                links = re.findall(r'href="([^"]*%s[^"]*)"' % re.escape(PIP_WHEEL), answer.read().decode())
            if not links:
                errors.append("%s has no %s" % (page, PIP_WHEEL))
                continue
            with open_url(urllib.parse.urljoin(page, links[0].partition("#")[0])) as answer:
                content = answer.read()
        except (OSError, ValueError) as error:
            errors.append("%s: %s" % (page, error))
            continue
        if hashlib.sha256(content).hexdigest() != PIP_SHA256:
            raise Failure("%s of %s is not the file that it should be." % (PIP_WHEEL, index), "Do not use that index.")
        wheel = folder / PIP_WHEEL
        wheel.write_bytes(content)
        return wheel
    raise Failure(
        "There is no pip here, and none could be fetched:\n   | " + "\n   | ".join(errors),
        "Check the network (proxies: HTTPS_PROXY, another index: PIP_INDEX_URL), or install pip; "
        "on Debian and Ubuntu: apt-get install python3-pip python3-venv",
    )


def install(requirements):
    """Install the pinned versions of *requirements*, unless that was done."""
    files = [ROOT / "requirements" / name for name in ("demo.txt", "dev.txt")]
    pins = b"".join(path.read_bytes() for path in files[: 1 if requirements == "demo" else 2])
    wanted = hashlib.sha256(pins + sys.version.encode()).hexdigest()
    stamp = venv_folder() / (STAMP % requirements)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    install_pip()
    path = ROOT / "requirements" / (requirements + ".txt")
    count = sum(1 for line in pins.decode().splitlines() if "==" in line)
    with Step("Installing %d pinned packages" % count):
        run_quietly(
            [venv_program("python"), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "-r", path],
            "Installing the packages of %s" % path.relative_to(ROOT),
            "Check the network (proxies: HTTPS_PROXY, another index: PIP_INDEX_URL) and try again; "
            "what is installed stays.",
        )
    stamp.write_text(wanted)


# ---- commands ------------------------------------------------------------------------------------------------------


def call(*command):
    """Run a program of the virtual environment in the project's folder and return its exit status."""
    print("-> %s" % " ".join(str(part) for part in command), flush=True)
    arguments = [str(venv_program(command[0])), *[str(part) for part in command[1:]]]
    process = subprocess.Popen(arguments, cwd=str(ROOT))
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # The terminal has told the program too; it ends in its own way.


def demo(arguments):
    """Show a real table served cold, warm and fresh: as a web page, or with --once in the terminal."""
    install("demo")
    return call("python", "manage.py", "demo", *arguments)


def test(arguments):
    """Run the tests. Servers are found, or started; LIVE_CACHE_TEST_POSTGRESQL, _MARIADB and _REDIS name others."""
    install("dev")
    if "--orm-suite" in arguments:  # Django's own tests, with every read live; the other arguments are its
        return call("python", "-m", "tests.orm_suite", *[each for each in arguments if each != "--orm-suite"])
    if "--django-suite" in arguments:  # Django's own tests of caches, over our backend
        return call("python", "-m", "tests.django_suite", *[each for each in arguments if each != "--django-suite"])
    if "--deep" in arguments:  # the state machine, crash loops and fuzzing in their long forms: hours
        os.environ["LIVE_CACHE_DEEP"] = "1"
        rest = [each for each in arguments if each != "--deep"]
        tests = ["state_machine", "faults", "store_disk", "frame"]
        paths = ["tests/fuzz", "tests/precision", *[f"tests/test_{name}.py" for name in tests]]
        return call("python", "-m", "pytest", "--timeout=0", *paths, *rest)
    return call("python", "-m", "pytest", "--timeout=300", *arguments)


def lint(arguments):
    """Check style and format with ruff."""
    install("dev")
    paths = arguments or ["."]
    return call("ruff", "check", *paths) or call("ruff", "format", "--check", *paths)


def types(arguments):
    """Check types with mypy, strictly."""
    install("dev")
    paths = arguments or [path for path in ("live_cache", "tests/typing") if (ROOT / path).exists()]
    return call("python", "-m", "mypy", "--strict", *paths)


def docs(arguments):
    """Build the documentation into docs/_build/html; a warning is an error."""
    install("dev")
    return call("python", "-m", "sphinx", "-W", "--keep-going", "-q", *arguments, "docs", "docs/_build/html")


def bench(arguments):
    """Run a benchmark, a program of benchmarks/; without a name, list them."""
    programs = {path.stem: path for path in sorted((ROOT / "benchmarks").glob("[a-z]*.py"))}
    if not arguments:
        print("Benchmarks: %s" % (", ".join(programs) or "none yet"))
        return 0
    if arguments[0] not in programs:
        raise Failure("There is no benchmark %r." % arguments[0], "There are: %s" % (", ".join(programs) or "none yet"))
    install("dev")
    return call("python", "-m", "benchmarks." + arguments[0], *arguments[1:])


COMMANDS = {"demo": demo, "test": test, "lint": lint, "types": types, "docs": docs, "bench": bench}
USAGES = {
    "demo": "[--once] [--redis URL] [--database URL] [--port N]",
    "test": "[--deep] [arguments of pytest] | --django-suite [composition ...]"
    " | --orm-suite [--database sqlite|postgresql|mariadb] [app ...]",
    "lint": "[paths]",
    "types": "[paths]",
    "docs": "[arguments of sphinx-build]",
    "bench": "[name [arguments of the benchmark]]",
}


def usage():
    """Return the help of this program."""
    lines = ["usage: python3 dev.py command [arguments]", ""]
    for name, function in COMMANDS.items():
        lines += ["  %-6s %s" % (name, USAGES[name]), "         %s" % function.__doc__]
    return "\n".join(lines)


def parse(argv):
    """Return the command and the arguments that it passes on; no command if all that was asked for was help."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return None, []
    name, arguments = argv[0], argv[1:]
    if name not in COMMANDS:
        raise Failure("There is no command %r." % name, "There are: %s" % ", ".join(COMMANDS))
    if arguments[:1] in (["-h"], ["--help"]):
        print("usage: python3 dev.py %s %s\n\n%s" % (name, USAGES[name], COMMANDS[name].__doc__))
        print("Arguments are passed on; after -- even --help is.")
        return None, []
    return name, arguments[1:] if arguments[:1] == ["--"] else arguments


def main(argv=None):
    """Run one command and return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        command, arguments = parse(argv)
        if command is None:
            return 0 if argv else 2
        require_python()
        os.chdir(str(ROOT))
        if command != "bench" or arguments:
            make_venv()
        return COMMANDS[command](arguments)
    except Failure as failure:
        print("\ndev.py: %s" % failure, file=sys.stderr)
        if failure.hint:
            print("        %s" % failure.hint, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
