"""
Fuzz the decoders of frames, entries and values for a while: python -m tests.fuzz.fuzz_frame --seconds 600

With atheris (pip install atheris) coverage guides it; without, seeds are mutated by chance. The first byte of an input
chooses the target. An input that fails is left in crash-<digest>; run it again by naming it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import random
import sys
import tempfile
import time
from pathlib import Path

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Fuzz, and return the exit status: 0 if nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="How long to fuzz.")
    parser.add_argument("--seed", type=int, default=0, help="0 takes another one each time.")
    parser.add_argument("--plain", action="store_true", help="Do without atheris.")
    parser.add_argument("inputs", nargs="*", type=Path, help="Files with inputs that failed, to try again.")
    options = parser.parse_args(arguments)
    if options.inputs:
        from tests.fuzz.targets import TARGETS

        for path in options.inputs:
            data = path.read_bytes()
            TARGETS[data[0] % len(TARGETS)](data[1:])
        return 0
    if options.plain or importlib.util.find_spec("atheris") is None:
        return _by_chance(options.seconds, options.seed)
    return _by_coverage(options.seconds, options.seed)


def _by_chance(seconds: int, seed: int) -> int:
    from tests.fuzz.targets import SEEDS, TARGETS

    chance = random.Random(seed or None)
    end_s = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end_s:
        number += 1
        index = chance.randrange(len(TARGETS))
        data = _mutate(chance, SEEDS[TARGETS[index]])
        try:
            TARGETS[index](data)
        except BaseException:
            path = Path(f"crash-{hashlib.sha1(data).hexdigest()}")
            path.write_bytes(bytes([index]) + data)
            print(f"Input {number} failed and is in {path}.", file=sys.stderr)  # noqa: T201  # It is a program.
            raise
    print(f"{number} inputs in {seconds} s, none failed.")  # noqa: T201
    return 0


def _mutate(chance: random.Random, seeds: list[bytes]) -> bytes:
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(5)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        elif kind == 2:
            data[at:at] = chance.randbytes(chance.randrange(1, 9))
        elif kind == 3:
            del data[at : at + chance.randrange(1, 9)]
        else:
            other = chance.choice(seeds)
            start = chance.randrange(len(other) + 1)
            data[at:at] = other[start : start + chance.randrange(1, 40)]
    return bytes(data)


def _by_coverage(seconds: int, seed: int) -> int:
    import atheris

    with atheris.instrument_imports(include=["live_cache.frame", "live_cache.rows"]):
        from tests.fuzz.targets import SEEDS, TARGETS

    def one(data: bytes) -> None:
        if data:
            TARGETS[data[0] % len(TARGETS)](data[1:])

    with tempfile.TemporaryDirectory() as corpus:
        for index, target in enumerate(TARGETS):
            for number, data in enumerate(SEEDS[target]):
                (Path(corpus) / f"{index}-{number}").write_bytes(bytes([index]) + data)
        # libFuzzer ends the process by itself.
        atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", f"-seed={seed}", "-max_len=2000", corpus], one)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
