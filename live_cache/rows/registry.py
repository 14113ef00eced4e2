"""The codecs that a project registers for types of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

__all__ = ["Codec", "codec_by_name", "codec_for_type", "register_codec"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Codec:
    """How one Python type is stored."""

    python_type: type
    name: str
    encode: Callable[[Any], object]
    decode: Callable[[Any], Any]


_by_type: Final[dict[type, Codec]] = {}
_by_name: Final[dict[str, Codec]] = {}
_lock: Final = threading.Lock()
_built_in: Final[set[type]] = set()


def register_codec(
    python_type: type[T], *, name: str, encode: Callable[[T], object], decode: Callable[[Any], T]
) -> None:
    """
    Store values of *python_type* through *encode* and *decode*, which must be exact in value and type.

    Call it once per process before the first read, for example in AppConfig.ready(). It covers that type itself and no
    subclass. An entry whose codec is not registered in the reading process is a miss. Calling it again with the same
    arguments changes nothing.

    Args:
        name: Stands in the stored bytes. Change it whenever what *encode* returns changes its meaning.
        encode: From the value to a value of any type that can be stored already, such as bytes or a dict.
        decode: From what *encode* returned to an equal value of the same type.

    Raises:
        ValueError: The type has a codec already, the name is taken by another type, or it is empty.
    """
    if not name or not isinstance(name, str):
        raise ValueError(f"The codec of {python_type.__qualname__} needs a name that is a non-empty str, not {name!r}.")
    codec = Codec(python_type, name, encode, decode)
    with _lock:
        if python_type in _built_in:
            raise ValueError(f"{python_type.__qualname__} is stored by a built-in codec, which cannot be replaced.")
        for known in (_by_type.get(python_type), _by_name.get(name)):
            if known is not None and known != codec:
                raise ValueError(
                    f"The codec {name!r} of {_full_name(python_type)} conflicts with the registered codec"
                    f" {known.name!r} of {_full_name(known.python_type)}. Register each type and each name once."
                )
        _by_name[name] = codec
        _by_type[python_type] = codec


def codec_for_type(python_type: type) -> Codec | None:
    """Return the registered codec of exactly *python_type*."""
    return _by_type.get(python_type)


def codec_by_name(name: str) -> Codec | None:
    """Return the registered codec called *name*."""
    return _by_name.get(name)


def reserve(types: set[type]) -> None:
    """Keep *types* for the built-in codecs."""
    _built_in.update(types)


def _full_name(python_type: type) -> str:
    return f"{python_type.__module__}.{python_type.__qualname__}"
