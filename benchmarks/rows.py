"""
Cost of an entry of 50 rows and 12 columns, beside pickle of the same rows in the same run.

    python benchmarks/rows.py [--rows 50] [--repeat 7]

Microseconds are the best of the repetitions. Compare the ratios: they hold on another machine, the times do not.
"""

from __future__ import annotations

import argparse
import pickle
import random
import sys
import timeit
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from live_cache.frame import KIND_ROWS, seal, unseal
from live_cache.ledger.clocks import Dependency, Stamp
from live_cache.rows import EntryHeader, decode_entry, encode_entry

KEY = "shop.product/5f3a9c0d2b7e/page_1x50"
MAC_KEYS = (b"thirty-two bytes of a secret key",)
HEADER = EntryHeader(
    1_790_000_000_000_000_000,
    None,
    (Dependency("default/shop_product"),),
    (Stamp("default/shop_product", bytes(16), 7),),
)


def make_rows(count: int) -> list[tuple[object, ...]]:
    """Return rows of int, four str, two Decimal, bool, datetime in UTC, date, UUID and JSON."""
    chance = random.Random(1)
    rows: list[tuple[object, ...]] = []
    for index in range(count):
        moment = datetime(2026, 1, 1, 12, 30, 1, 123456, tzinfo=UTC) + timedelta(seconds=977 * index)
        price = Decimal(chance.randrange(10**6)).scaleb(-2)
        names = [f"{word} of product {index}" for word in ("Name", "Maker's name", "Colour", "Short description")]
        details = {"color": "red", "tags": ["a", "b"], "dims": {"w": index, "h": 2.5}, "ok": True}
        key = uuid.UUID(int=chance.getrandbits(128))
        rows.append((index, *names, price, price / 2, index % 3 == 0, moment, moment.date(), key, details))
    return rows


def best_us(function: Callable[[], object], repeat: int) -> float:
    """Return the time of one call."""
    number = 200
    return min(timeit.repeat(function, number=number, repeat=repeat)) / number * 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    rows = make_rows(options.rows)
    pickled = pickle.dumps(rows, pickle.HIGHEST_PROTOCOL)
    entry = encode_entry(HEADER, rows, key=KEY)
    signed = encode_entry(HEADER, rows, key=KEY, mac_keys=MAC_KEYS)
    if decode_entry(entry, key=KEY).rows() != rows:
        sys.exit("The rows came back changed.")
    payload = bytes(unseal(entry, kinds=(KIND_ROWS,), key=KEY)[1])

    measured: list[tuple[str, Callable[[], object], str]] = [
        ("pickle, encode", lambda: pickle.dumps(rows, pickle.HIGHEST_PROTOCOL), "pickle, encode"),
        ("pickle, decode", lambda: pickle.loads(pickled), "pickle, decode"),
        ("entry, encode", lambda: encode_entry(HEADER, rows, key=KEY), "pickle, encode"),
        ("entry, encode with MAC", lambda: encode_entry(HEADER, rows, key=KEY, mac_keys=MAC_KEYS), "pickle, encode"),
        ("entry, decode", lambda: decode_entry(entry, key=KEY).rows(), "pickle, decode"),
        (
            "entry, decode with MAC",
            lambda: decode_entry(signed, key=KEY, mac_keys=MAC_KEYS).rows(),
            "pickle, decode",
        ),
        ("entry, header only", lambda: decode_entry(entry, key=KEY), "pickle, decode"),
        ("frame, seal", lambda: seal(payload, kind=KIND_ROWS, key=KEY), "pickle, encode"),
        ("frame, unseal", lambda: unseal(entry, kinds=(KIND_ROWS,), key=KEY), "pickle, decode"),
        (
            "frame, unseal with MAC",
            lambda: unseal(signed, kinds=(KIND_ROWS,), key=KEY, mac_keys=MAC_KEYS),
            "pickle, decode",
        ),
    ]
    times_us: dict[str, float] = {}
    print(
        f"{options.rows} rows x {len(rows[0]) if rows else 0} columns: entry {len(entry)} bytes, pickle {len(pickled)}"
    )
    print(f"{'':26}{'us':>8}  of pickle")
    for name, function, floor in measured:
        times_us[name] = best_us(function, options.repeat)
        print(f"{name:26}{times_us[name]:8.1f}  {times_us[name] / times_us[floor]:.2f}")


if __name__ == "__main__":
    main()
