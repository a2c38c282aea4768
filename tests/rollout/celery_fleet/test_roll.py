"""`deployctl roll --fleet` on a plain Celery application: real workers, a real broker, real SSH, and a ledger."""

from __future__ import annotations

from collections.abc import Callable

from .machines import Shop, until

Run = Callable[..., tuple[int, str, str]]


def test_a_roll_under_load_loses_nothing_and_does_nothing_twice(shop: Shop, deployctl: Run) -> None:
    # Given tasks that keep coming, some of them with a countdown
    with shop.load():
        until(lambda: shop.lines("end"))
        # When the fleet is rolled, one host at a time
        code, out, err = deployctl("roll", "--fleet", shop.file, "--release", "2", "--yes")
    # Then both hosts run the new version, each drained before it was stopped
    assert code == 0, err
    assert [m.version.read_text().strip() for m in shop.machines] == ["2", "2"]
    assert out.count("rolled in") == 2
    # And every task ran once, on the old version or on the new one
    assert shop.check() == {"1", "2"}
    assert len(shop.consuming()) == 4 and not shop.state.exists()
