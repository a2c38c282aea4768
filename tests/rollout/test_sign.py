"""Signatures in minisign's format, against signatures that minisign itself made."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from runner.rollout.sign import PublicKey, SecretKey, UnverifiedError, sign, trusted, verify
from runner.settings import UsageError

# The key of minisign's author, and his signature of the word "test", as his verifier's documentation has them.
AUTHOR = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"
SIGNATURE = """untrusted comment: signature from minisign secret key
RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo=
trusted comment: timestamp:1556193335\tfile:test
y/rUw2y8/hOUYjZU71eHp/Wo1KZ40fGy2VJEDl34XMJM+TX48Ss/17u3IvIfbVR1FkZZSNCisQbuQY+bHwhEBg==
"""
KEY = SecretKey(bytes(range(8)), bytes(range(32)))


def test_a_signature_of_minisign_is_good() -> None:
    key = PublicKey.parse(AUTHOR)
    assert key.name == "E7620F1842B4E81F" and str(key) == AUTHOR
    assert PublicKey.parse(key.to_text()) == key
    assert verify(b"test", SIGNATURE, [KEY.public, key]) == "timestamp:1556193335\tfile:test"


@pytest.mark.parametrize(
    ("content", "old", "new", "reason"),
    [
        (b"Test", "", "", "its signature is not good: it was changed"),
        (b"test", "file:test", "file:other", "its signature is not good"),
        (b"test", "RUQf6LRCGA9i559r", "RUQf6LRCGA9i559s", "its signature is not good"),
        (b"test", "RUQf6LRC", "RUQf6LRD", "it is signed with key .*, trusted is E7620F1842B4E81F"),
        (b"test", "RUQ", "RWQ", "its signature is not one of minisign"),
        (b"test", "RUQf", "?", "its signature is not one of minisign"),
        (b"test", "trusted comment: timestamp", "comment: timestamp", "its signature is not one of minisign"),
        (b"test", SIGNATURE, "", "its signature is not one of minisign"),
    ],
)
def test_whatever_was_changed_is_refused(content: bytes, old: str, new: str, reason: str) -> None:
    with pytest.raises(UnverifiedError, match=reason):
        verify(content, SIGNATURE.replace(old, new), [PublicKey.parse(AUTHOR)])


def test_ours_is_good_and_the_same_each_time() -> None:
    made = sign(b"content", KEY, "sluice release abc")
    assert verify(b"content", made, [KEY.public]) == "sluice release abc"
    assert sign(b"content", KEY, "sluice release abc") == made


def test_a_key_survives_its_file_and_is_never_shown() -> None:
    assert SecretKey.parse(KEY.to_text()) == KEY
    assert KEY.seed.hex() not in repr(KEY) and repr(KEY) == f"SecretKey({KEY.public.name})"
    assert SecretKey.generate() != SecretKey.generate()


@pytest.mark.skipif(not shutil.which("minisign"), reason="minisign is not installed")
def test_minisign_reads_what_we_write_and_we_what_it_writes(tmp_path: Path) -> None:
    def minisign(*words: str) -> None:
        subprocess.run(["minisign", *words], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "k.key").write_text(KEY.to_text())
    (tmp_path / "k.pub").write_text(KEY.public.to_text())
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "a.minisig").write_text(sign(b"a", KEY, "c"))
    minisign("-V", "-m", "a", "-p", "k.pub")
    minisign("-S", "-m", "a", "-s", "k.key")
    verify(b"a", (tmp_path / "a.minisig").read_text(), [KEY.public])
    minisign("-G", "-W", "-p", "m.pub", "-s", "m.key")
    assert SecretKey.read(tmp_path / "m.key").public == PublicKey.parse((tmp_path / "m.pub").read_text())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "this is not a secret key of minisign"),
        (AUTHOR, "this is not a secret key of minisign"),
        (KEY.to_text().replace("RWQAAEIy", "RWRTY0Iy"), "this secret key needs a password"),
        (KEY.to_text().replace("HB0eHw", "HB1eHw"), "this secret key is damaged"),
    ],
)
def test_a_secret_key_that_is_none_is_refused_without_telling_it(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    with pytest.raises(UsageError, match=reason) as e:
        SecretKey.read(file)
    assert str(file) in e.value.message and (not text or text.split()[-1][20:] not in e.value.message)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        SecretKey.read(tmp_path / "absent")


def test_several_keys_may_be_trusted() -> None:
    assert trusted("") == []
    assert trusted(f"{AUTHOR}, {KEY.public}") == [PublicKey.parse(AUTHOR), KEY.public]
    with pytest.raises(UsageError, match="SLUICE_RELEASE_KEY: 'RWQnonsense' is not a public key"):
        trusted("RWQnonsense")
