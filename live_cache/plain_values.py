"""
Values of the plain cache API as bytes. The only importer of ``pickle``.

An integer of 64 bits is an ASCII decimal, which a store increments atomically. Everything else is in a frame that holds
CBOR where CBOR is exact, and a pickle elsewhere.
"""

from __future__ import annotations

import pickle  # noqa: TID251 - the plain cache API stores any object, as every Django backend does
import re
from dataclasses import dataclass
from typing import Any, Final

from django.core.exceptions import SynchronousOnlyOperation

from live_cache.exceptions import FrameError, UncachableValueError
from live_cache.frame import KIND_CBOR, KIND_PICKLE, seal, unseal
from live_cache.rows import decode_value, encode_value

__all__ = ["INT64", "PlainValues"]

INT64: Final = range(-(2**63), 2**63)
_DECIMAL: Final = re.compile(rb"-?[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class PlainValues:
    """
    Encodes and decodes.

    Args:
        mac_keys: The first one signs, every one verifies. Empty: frames have a checksum only.
        is_pickling: Whether what CBOR does not hold exactly may be a pickle.
        is_kept: False for a store that keeps nothing, which takes any value, as Django's DummyCache does.
    """

    mac_keys: tuple[bytes, ...]
    is_pickling: bool
    is_kept: bool = True

    def encode(self, store_key: str, value: Any) -> bytes:
        """
        Return *value* as the bytes to store under *store_key*; nothing done to *value* later changes them.

        Raises:
            UncachableValueError: CBOR does not hold it exactly, and pickles are not allowed.
            Exception: What pickling it raised.
        """
        if not self.is_kept:
            return b""
        if type(value) is int and value in INT64:
            return b"%d" % value
        try:
            return encode_value(value, key=store_key, mac_keys=self.mac_keys)
        except UncachableValueError as error:
            if not self.is_pickling:
                raise UncachableValueError(
                    f"A value of type {type(value).__qualname__} is not exact in CBOR, and OPTIONS['PICKLE'] is False: "
                    f"{error} Cache plain values (numbers, text, bytes, lists, dicts), or set PICKLE to True."
                ) from error
        payload = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        return seal(payload, kind=KIND_PICKLE, key=store_key, mac_keys=self.mac_keys)

    def decode(self, store_key: str, data: bytes) -> Any:
        """
        Return the value.

        Raises:
            FrameError: The bytes are not what encode() made for this key and these secrets.
        """
        # A frame starts with its magic, which is no digit.
        if _DECIMAL.fullmatch(data):
            return int(data)
        kinds = (KIND_CBOR, KIND_PICKLE) if self.is_pickling else (KIND_CBOR,)
        # Before a byte of the payload is looked at, unseal() has compared its checksum, with MAC_KEYS its MAC.
        kind, payload = unseal(data, kinds=kinds, key=store_key, mac_keys=self.mac_keys)
        if kind == KIND_CBOR:
            return decode_value(data, key=store_key, mac_keys=self.mac_keys)
        try:
            return pickle.loads(payload)
        except SynchronousOnlyOperation:
            raise  # Says nothing about the bytes: an object asked the database inside an event loop.
        except Exception as error:
            # A class that a deploy has moved or changed can raise anything.
            raise FrameError(f"Its pickle does not load: {error!r}.") from error
