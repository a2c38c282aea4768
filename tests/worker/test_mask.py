from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runner.worker.mask import Mask


def masking(*secrets: str) -> Mask:
    mask = Mask()
    mask.add(secrets)
    return mask


def test_a_secret_is_masked_in_all_its_forms() -> None:
    mask = masking('p@ss "word"/1')
    for form in ('p@ss "word"/1', "p%40ss%20%22word%22%2F1", 'p@ss \\"word\\"/1'):
        assert mask.text(f"before {form} after") == "before *** after"


def test_short_texts_are_left_alone_and_nothing_costs_nothing() -> None:
    assert not masking("", "a", "abc")
    assert Mask().part(b"anything") == (b"anything", b"")


def test_lines_of_a_key_are_masked_one_by_one() -> None:
    key = "-----BEGIN KEY-----\nMIIEpAIBAAKCAQEAxyz0123\nABC\n-----END KEY-----\n"
    assert "MIIEpA" not in masking(key).text("INFO MIIEpAIBAAKCAQEAxyz0123\n")


def test_the_longer_of_two_goes_first() -> None:
    assert masking("hunter", "hunter22").text("hunter22 hunter") == "*** ***"


@given(
    st.lists(st.text("abA", min_size=4, max_size=8), min_size=1, max_size=4),
    st.lists(st.text("abA", max_size=12), max_size=12),
)
def test_cut_anywhere_no_secret_comes_through(secrets: list[str], pieces: list[str]) -> None:
    # Given output that arrives in pieces, and is cut at any place
    mask = masking(*secrets)
    shown, held = b"", b""
    for piece in pieces:
        ready, held = mask.part(held + piece.encode())
        shown += ready
    shown += mask.whole(held)
    # Then what is shown is what would have been shown at once
    assert shown == mask.whole("".join(pieces).encode())
    assert not any(s.encode() in part for s in secrets for part in shown.split(b"***"))
