"""Frames: only the bytes that seal() made, for this key and this version, ever come back as a payload."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from live_cache.exceptions import FrameError
from live_cache.frame import KIND_CBOR, KIND_PICKLE, KIND_ROWS, VERSION, seal, unseal
from tests.deep import deep

KEY = "shop.product/5f3a/page_1x50"
OLD, NEW, FOREIGN = b"old secret, 16 b", b"new secret, 16 b", b"foreign secret.."
KEY_SETS = [pytest.param((), id="crc"), pytest.param((NEW, OLD), id="mac")]
KINDS = frozenset({KIND_ROWS, KIND_CBOR, KIND_PICKLE})


def refused(data: bytes, *, key: str = KEY, mac_keys: Sequence[bytes] = ()) -> bool:
    """Return whether the bytes are a FrameError. Any other exception is a failure of the test."""
    try:
        unseal(data, kinds=KINDS, key=key, mac_keys=mac_keys)
    except FrameError:
        return True
    return False


@given(payload=st.binary(max_size=200), key=st.text(st.characters(exclude_categories=()), max_size=30))
@settings(max_examples=50, deadline=None)
@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("mac_keys", KEY_SETS)
def test_round_trip(mac_keys: Sequence[bytes], kind: int, payload: bytes, key: str) -> None:
    """The payload and its kind come back, for any key, also one with lone surrogates."""
    frame = seal(payload, kind=kind, key=key, mac_keys=mac_keys)
    assert unseal(frame, kinds={kind}, key=key, mac_keys=mac_keys) == (kind, payload)


@pytest.mark.parametrize("view", [bytearray, memoryview])
@pytest.mark.parametrize("mac_keys", KEY_SETS)
def test_any_buffer_is_read(mac_keys: Sequence[bytes], view: type) -> None:
    """A store may hand out a buffer that is not bytes."""
    frame = seal(b"payload", kind=KIND_ROWS, key=KEY, mac_keys=mac_keys)
    kind, payload = unseal(view(frame), kinds=KINDS, key=KEY, mac_keys=mac_keys)
    assert (kind, bytes(payload)) == (KIND_ROWS, b"payload")


def test_no_frame_looks_like_an_integer() -> None:
    """Integers of the cache API stand unframed as ASCII decimals."""
    first = seal(b"", kind=KIND_CBOR, key=KEY)[:1]
    assert first not in [character.encode() for character in string.digits + "+- "]


@pytest.mark.parametrize("mac_keys", KEY_SETS)
def test_every_flipped_bit_is_found(mac_keys: Sequence[bytes]) -> None:
    """Each single bit of a frame of 2 kB."""
    frame = seal(random.Random(1).randbytes(2048), kind=KIND_ROWS, key=KEY, mac_keys=mac_keys)
    for bit in range(len(frame) * 8):
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 1 << bit % 8
        assert refused(bytes(damaged), mac_keys=mac_keys), bit


@pytest.mark.parametrize("mac_keys", KEY_SETS)
def test_every_other_length_is_refused(mac_keys: Sequence[bytes]) -> None:
    """A frame cut anywhere, or with bytes behind it."""
    frame = seal(random.Random(2).randbytes(2048), kind=KIND_ROWS, key=KEY, mac_keys=mac_keys)
    assert all(refused(frame[:length], mac_keys=mac_keys) for length in range(len(frame)))
    assert all(refused(frame + b"\0" * more, mac_keys=mac_keys) for more in (1, 2, 4096))


def test_a_quarter_million_damaged_frames_are_refused() -> None:
    """Several flipped bits, overwritten runs, and swapped pieces, all beside an intact head."""
    chance = random.Random(3)
    frame = seal(chance.randbytes(300), kind=KIND_ROWS, key=KEY)
    for _ in range(deep(250_000, 1_000_000)):
        damaged = bytearray(frame)
        start = chance.randrange(len(frame))
        if chance.random() < 0.5:
            for _ in range(chance.randrange(2, 6)):
                damaged[chance.randrange(len(frame))] ^= 1 << chance.randrange(8)
        else:
            run = chance.randbytes(chance.randrange(1, 64))
            damaged[start : start + len(run)] = run[: len(frame) - start]
        assert bytes(damaged) == frame or refused(bytes(damaged))


@given(data=st.binary(max_size=100))
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_refused(data: bytes) -> None:
    """With and without the right beginning."""
    intact = seal(b"payload", kind=KIND_ROWS, key=KEY)
    for mac_keys in ((), (NEW,)):
        assert refused(data, mac_keys=mac_keys)
        assert intact[:15] + data == intact or refused(intact[:15] + data, mac_keys=mac_keys)


@pytest.mark.parametrize("mac_keys", KEY_SETS)
def test_another_key_is_refused(mac_keys: Sequence[bytes]) -> None:
    """Also where the end of one key and the beginning of the payload could be taken for one another."""
    frame = seal(b"cd", kind=KIND_ROWS, key="ab", mac_keys=mac_keys)
    for other in ("", "a", "abc", "abcd", "AB", "ab ", "ba"):
        assert refused(frame, key=other, mac_keys=mac_keys)
    assert not refused(frame, key="ab", mac_keys=mac_keys)


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1, 255])
def test_another_version_is_refused(version: int) -> None:
    """The message names both versions."""
    frame = bytearray(seal(b"payload", kind=KIND_ROWS, key=KEY))
    frame[4] = version
    with pytest.raises(FrameError, match=f"version {version}; this release reads version {VERSION}"):
        unseal(bytes(frame), kinds=KINDS, key=KEY)


def test_a_kind_that_the_caller_does_not_read_is_refused() -> None:
    """A pickle is never handed to a reader of rows."""
    frame = seal(b"payload", kind=KIND_PICKLE, key=KEY)
    with pytest.raises(FrameError, match="kind 3"):
        unseal(frame, kinds=(KIND_ROWS, KIND_CBOR), key=KEY)


def test_keys_rotate() -> None:
    """A frame made with an older key is read as long as that key is listed, and not afterwards."""
    old_frame = seal(b"payload", kind=KIND_ROWS, key=KEY, mac_keys=(OLD,))
    assert not refused(old_frame, mac_keys=(NEW, OLD))
    assert refused(old_frame, mac_keys=(NEW,))
    assert seal(b"payload", kind=KIND_ROWS, key=KEY, mac_keys=(OLD, NEW)) == old_frame


def test_forgeries_are_refused() -> None:
    """A frame of a foreign key, one without a MAC, one whose scheme was changed; and a MAC where none is expected."""
    signed = seal(b"payload", kind=KIND_ROWS, key=KEY, mac_keys=(NEW,))
    unsigned = seal(b"payload", kind=KIND_ROWS, key=KEY)
    assert refused(seal(b"payload", kind=KIND_ROWS, key=KEY, mac_keys=(FOREIGN,)), mac_keys=(NEW, OLD))
    assert refused(unsigned, mac_keys=(NEW,))
    assert refused(signed)
    for frame, mac_keys in ((unsigned, (NEW,)), (signed, ())):
        relabelled = bytearray(frame)
        relabelled[6] ^= 1
        assert refused(bytes(relabelled), mac_keys=mac_keys)


@pytest.mark.parametrize("size_bytes", [1, 64, 65, 1000])
def test_mac_keys_of_any_length(size_bytes: int) -> None:
    """Every byte of a long key counts."""
    mac_key = b"k" * size_bytes
    frame = seal(b"payload", kind=KIND_ROWS, key=KEY, mac_keys=(mac_key,))
    assert not refused(frame, mac_keys=(mac_key,))
    assert refused(frame, mac_keys=(mac_key[:-1] + b"j",))


def test_an_empty_mac_key_is_an_error_and_no_miss() -> None:
    """A missing secret must not look like a cold cache."""
    with pytest.raises(ValueError, match="empty"):
        seal(b"payload", kind=KIND_ROWS, key=KEY, mac_keys=(b"",))
    frame = seal(b"payload", kind=KIND_ROWS, key=KEY, mac_keys=(NEW,))
    with pytest.raises(ValueError, match="empty"):
        unseal(frame, kinds=KINDS, key=KEY, mac_keys=(NEW, b""))
