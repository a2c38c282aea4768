"""Signatures of releases, in the format of minisign (https://jedisct1.github.io/minisign/): its own tool reads them.

Ed25519 over the BLAKE2b-512 of the content, and once more over that signature and the trusted comment. A public key
is one line that may stand anywhere; a secret key lies in a file that only its owner reads, without a password.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from runner.settings import RefusedError, UsageError

_KEY, _PREHASHED = b"Ed", b"ED"
_NO_PASSWORD = b"\0\0"
_UNTRUSTED, _TRUSTED = "untrusted comment: ", "trusted comment: "


class UnverifiedError(RefusedError):
    """This is not what somebody whom we trust has signed."""


@dataclass(frozen=True)
class PublicKey:
    """Who is trusted. `id` is 8 bytes that a signature names; `raw` 32 bytes."""

    id: bytes
    raw: bytes

    @property
    def name(self) -> str:
        """The id as minisign prints it."""
        return self.id[::-1].hex().upper()

    def __str__(self) -> str:
        return base64.b64encode(_KEY + self.id + self.raw).decode()

    def to_text(self) -> str:
        """The content of a `.pub` file."""
        return f"{_UNTRUSTED}minisign public key {self.name}\n{self}\n"

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """From its line, or a `.pub` file's content. Raises UsageError."""
        data = _decoded(text.strip().splitlines()[-1] if text.strip() else "")
        if len(data) != 42 or data[:2] != _KEY:
            raise UsageError(
                f"{text.strip()[:60]!r} is not a public key of minisign", "`deployctl release keygen` makes one"
            )
        return cls(data[2:10], data[10:])


@dataclass(frozen=True)
class SecretKey:
    """Who signs. `seed` is 32 bytes, and the secret."""

    id: bytes
    seed: bytes

    @classmethod
    def generate(cls) -> SecretKey:
        """A new key."""
        return cls(os.urandom(8), os.urandom(32))

    def __repr__(self) -> str:
        return f"SecretKey({self.public.name})"

    @property
    def public(self) -> PublicKey:
        """The other half."""
        return PublicKey(self.id, Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw())

    def to_text(self) -> str:
        """The content of its file, as `minisign -G -W` writes it."""
        secret = self.id + self.seed + self.public.raw
        check = hashlib.blake2b(_KEY + secret, digest_size=32).digest()
        data = _KEY + _NO_PASSWORD + b"B2" + bytes(48) + secret + check
        return f"{_UNTRUSTED}minisign secret key {self.public.name}\n{base64.b64encode(data).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> SecretKey:
        """From its file's content. Raises UsageError; the message never holds any of it."""
        data = _decoded(text.strip().splitlines()[-1] if text.strip() else "")
        if len(data) != 158 or data[:2] != _KEY:
            raise UsageError("this is not a secret key of minisign", "`deployctl release keygen` makes one")
        if data[2:4] != _NO_PASSWORD:
            raise UsageError(
                "this secret key needs a password", "take one without: `deployctl release keygen`, `minisign -G -W`"
            )
        key = cls(data[54:62], data[62:94])
        if key.public.raw != data[94:126]:  # the checksum behind it minisign writes only with a password
            raise UsageError("this secret key is damaged", "`deployctl release keygen` makes a new one")
        return key

    @classmethod
    def read(cls, path: Path) -> SecretKey:
        """From a file. Raises UsageError if it is none."""
        try:
            return cls.parse(path.read_text())
        except (OSError, UnicodeDecodeError) as e:
            raise UsageError(f"the key {path} cannot be read: {getattr(e, 'strerror', e)}") from None
        except UsageError as e:
            raise UsageError(f"{path}: {e.message}", e.hint) from None


def sign(content: bytes, key: SecretKey, comment: str) -> str:
    """A signature file. `comment` is one line, and signed too. The same content, key and comment give the same."""
    private = Ed25519PrivateKey.from_private_bytes(key.seed)
    made = private.sign(hashlib.blake2b(content).digest())
    both = private.sign(made + comment.encode())
    first = base64.b64encode(_PREHASHED + key.id + made).decode()
    return (
        f"{_UNTRUSTED}signature from key {key.public.name}\n{first}\n"
        f"{_TRUSTED}{comment}\n{base64.b64encode(both).decode()}\n"
    )


def verify(content: bytes, signature: str, keys: Sequence[PublicKey]) -> str:
    """The trusted comment of a signature that one of these keys made. Raises UnverifiedError saying what is wrong."""
    lines = signature.splitlines()
    made = _decoded(lines[1]) if len(lines) >= 4 else b""
    if len(made) != 74 or made[:2] != _PREHASHED or not lines[2].startswith(_TRUSTED):
        raise UnverifiedError("its signature is not one of minisign")
    key = next((k for k in keys if k.id == made[2:10]), None)
    if key is None:
        known = ", ".join(k.name for k in keys)
        raise UnverifiedError(f"it is signed with key {made[2:10][::-1].hex().upper()}, trusted is {known}")
    comment = lines[2].removeprefix(_TRUSTED)
    public = Ed25519PublicKey.from_public_bytes(key.raw)
    try:
        public.verify(made[10:], hashlib.blake2b(content).digest())
        public.verify(_decoded(lines[3]), made[10:] + comment.encode())
    except InvalidSignature:
        raise UnverifiedError("its signature is not good: it was changed after it was signed") from None
    return comment


def trusted(setting: str) -> list[PublicKey]:
    """The keys of SLUICE_RELEASE_KEY: none, one, or several with commas between. Raises UsageError."""
    try:
        return [PublicKey.parse(line) for line in re.split(r"[,\s]+", setting) if line]
    except UsageError as e:
        raise UsageError(f"SLUICE_RELEASE_KEY: {e.message}", e.hint) from None


def _decoded(line: str) -> bytes:
    try:
        return base64.b64decode(line, validate=True)
    except binascii.Error:
        return b""
