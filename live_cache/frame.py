"""
The frame around every payload that is stored: magic, version, kind, length and checksum, or a MAC.

docs/reference/entry-format.md describes the bytes. A frame is bound to the key that it is stored under, so bytes that
turn up under another key are refused like any other damage.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Container, Sequence
from hashlib import blake2b
from typing import Final
from zlib import crc32

from live_cache.exceptions import FrameError

__all__ = ["KIND_CBOR", "KIND_PICKLE", "KIND_ROWS", "VERSION", "seal", "unseal"]

KIND_ROWS: Final = 1
"""An entry of a live queryset."""
KIND_CBOR: Final = 2
"""One value of the cache API, as CBOR."""
KIND_PICKLE: Final = 3
"""One value of the cache API, as a pickle. Never used for live rows."""

VERSION: Final = 1

# The first byte is neither an ASCII digit nor a minus sign, which begin the integers that the cache API stores
# unframed, and is not valid as the first byte of UTF-8 text.
_MAGIC: Final = b"\xf5LCF"
_HEAD: Final = struct.Struct(">4sBBBQ")  # magic, version, kind, scheme, length of the payload
_SCHEME_CRC: Final = 0
_SCHEME_MAC: Final = 1
_CHECK_SIZES: Final = {_SCHEME_CRC: 4, _SCHEME_MAC: 16}
_KEY_LENGTH: Final = struct.Struct(">I")
_PERSON: Final = b"live_cache.frame"  # keeps these MACs apart from others made with the same secret
_LONGEST_MAC_KEY: Final = blake2b.MAX_KEY_SIZE


def seal(payload: bytes, *, kind: int, key: str, mac_keys: Sequence[bytes] = ()) -> bytes:
    """
    Return *payload* in a frame.

    Without MAC keys the checksum is a CRC-32: it finds accidents, not forgeries.

    Args:
        kind: KIND_ROWS, KIND_CBOR or KIND_PICKLE.
        key: What the frame will be stored under. unseal() refuses it under any other.
        mac_keys: Secrets of any length but zero. The first one signs; none means a checksum only.

    Raises:
        ValueError: A MAC key is empty.
    """
    scheme = _SCHEME_MAC if mac_keys else _SCHEME_CRC
    head = _HEAD.pack(_MAGIC, VERSION, kind, scheme, len(payload))
    bound = _bind(head, key)
    check = _mac(bound, payload, mac_keys[0]) if mac_keys else _crc(bound, payload)
    return b"".join((head, check, payload))


def unseal(
    data: bytes, *, kinds: Container[int], key: str, mac_keys: Sequence[bytes] = ()
) -> tuple[int, memoryview | bytes]:
    """
    Return the kind and the payload of a frame that seal() made for *key*.

    Args:
        kinds: The kinds that the caller can read.
        mac_keys: Secrets whose frames are accepted, so that a new one can be put first while old frames live. With
            any, a frame without a MAC is refused; with none, a frame with one is.

    Raises:
        FrameError: The bytes are foreign, damaged, cut short, forged, of another version or kind, or of another key.
        ValueError: A MAC key is empty.
    """
    try:
        magic, version, kind, scheme, size_bytes = _HEAD.unpack_from(data)
    except struct.error:
        raise FrameError(f"{len(data)} bytes are too few for a frame.") from None
    if magic != _MAGIC:
        raise FrameError("The bytes are not a frame of django-live-cache.")
    if version != VERSION:
        raise FrameError(f"The frame has version {version}; this release reads version {VERSION}.")
    expected_scheme = _SCHEME_MAC if mac_keys else _SCHEME_CRC
    if scheme != expected_scheme:
        raise FrameError("The frame has no MAC." if mac_keys else "The frame has a MAC, or an unknown checksum.")
    if kind not in kinds:
        raise FrameError(f"The frame has kind {kind}, which does not belong here.")
    start = _HEAD.size + _CHECK_SIZES[scheme]
    if len(data) != start + size_bytes:
        raise FrameError(f"The frame has {len(data)} bytes instead of {start + size_bytes}.")
    check, payload = bytes(data[_HEAD.size : start]), data[start:]
    bound = _bind(bytes(data[: _HEAD.size]), key)
    if mac_keys:
        # No early exit, and compare_digest: the time must not tell which key, nor how much of the MAC, was right.
        matches = [hmac.compare_digest(check, _mac(bound, payload, mac_key)) for mac_key in mac_keys]
        if not any(matches):
            raise FrameError("The MAC of the frame does not match any key, or the frame belongs to another key.")
    elif check != _crc(bound, payload):
        raise FrameError("The checksum of the frame does not match, or the frame belongs to another key.")
    return kind, payload


def _bind(head: bytes, key: str) -> bytes:
    """Return what is checked in front of the payload. The length makes where the key ends unambiguous."""
    key_bytes = key.encode("utf-8", "surrogatepass")
    return b"".join((head, _KEY_LENGTH.pack(len(key_bytes)), key_bytes))


def _crc(bound: bytes, payload: bytes) -> bytes:
    return crc32(payload, crc32(bound)).to_bytes(4, "big")


def _mac(bound: bytes, payload: bytes, mac_key: bytes) -> bytes:
    if not mac_key:
        raise ValueError("A MAC key is empty. Give at least 16 random bytes.")
    if len(mac_key) > _LONGEST_MAC_KEY:
        mac_key = blake2b(mac_key).digest()
    mac = blake2b(bound, digest_size=16, key=mac_key, person=_PERSON)
    mac.update(payload)
    return mac.digest()
