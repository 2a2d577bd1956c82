"""Base58, as Radicle writes ids: the 20 bytes of a repository's id, the key of a DID. Pure."""

from __future__ import annotations

ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
RID_BYTES = 20
_LONGEST_RID = 60


def encode(raw: bytes) -> str:
    """Bytes as base58; each leading zero byte is a 1."""
    number, text = int.from_bytes(raw, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = ALPHABET[digit] + text
    return "1" * (len(raw) - len(raw.lstrip(b"\0"))) + text


def decode(text: str) -> bytes:
    """The bytes that `encode` made into `text`. Raises `ValueError`."""
    number = 0
    for letter in text:
        number = number * 58 + ALPHABET.index(letter)
    return bytes(len(text) - len(text.lstrip("1"))) + number.to_bytes((number.bit_length() + 7) // 8, "big")


def is_rid(value: object) -> bool:
    """Whether it is a repository's Radicle id: rad:z and its 20 bytes."""
    if not isinstance(value, str) or not value.startswith("rad:z") or len(value) > _LONGEST_RID:
        return False
    try:
        return len(decode(value[5:])) == RID_BYTES
    except ValueError:
        return False
