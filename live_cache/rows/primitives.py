"""
Primitives to CBOR bytes and back, strictly. The only importer of cbor2.

A primitive is None, a bool, an int of 64 bits, a float, a str that UTF-8 can hold, bytes, a list of primitives, or a
dict from str to primitives. Nothing else is ever handed to cbor2, because it changes other types silently.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NoReturn

import cbor2

from live_cache.exceptions import FrameError

__all__ = ["dump", "load"]

_MAX_DEPTH: Final = 200


def dump(primitive: object) -> bytes:
    """Return *primitive* as CBOR without any tag. The caller vouches that it is one."""
    return cbor2.dumps(primitive)


def load(data: bytes | memoryview) -> Any:
    """
    Return the one primitive that *data* holds.

    Raises:
        FrameError: The CBOR is malformed or cut short, bytes follow it, or it has a tag, an indefinite length, a
            repeated map key, a map key other than text or bytes, or more than 200 levels.
    """
    stream = io.BytesIO(data)
    try:
        primitive = cbor2.CBORDecoder(
            stream,
            tag_hook=_refuse_tag,
            semantic_decoders=_REFUSE_ALL,
            max_depth=_MAX_DEPTH,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
        ).decode()
    except Exception as error:  # cbor2 raises more than its own errors, such as UnicodeDecodeError
        raise FrameError(f"The CBOR cannot be read: {error}") from error
    if stream.tell() != len(data):
        raise FrameError("Bytes follow the CBOR.")
    return primitive


def _refuse_tag(*_: object) -> NoReturn:
    raise FrameError("The CBOR has a tag.")


class _RefuseAll(Mapping[int, Callable[[Any, bool], Any]]):
    """Answers for every tag, also for those that a later cbor2 will learn; a list of known tags would not."""

    def __getitem__(self, tag: int) -> Callable[[Any, bool], Any]:
        return _refuse_tag

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 0


_REFUSE_ALL: Final = _RefuseAll()
