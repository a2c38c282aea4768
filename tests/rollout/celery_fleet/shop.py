"""A plain Celery application with nothing of ours: each task writes its beginning and its end into a ledger."""

import os
import time
from pathlib import Path

from celery import Celery

app = Celery("shop", broker=os.environ["SHOP_BROKER"])
app.conf.update(broker_connection_retry_on_startup=True)
VERSION = Path(os.environ["SHOP_VERSION"]).read_text().strip() if "SHOP_VERSION" in os.environ else ""


def write(*words: object) -> None:
    with Path(os.environ["SHOP_LEDGER"]).open("a") as ledger:
        ledger.write(" ".join(map(str, words)) + "\n")


@app.task(name="shop.work")
def work(number: int, seconds: float) -> None:
    write("start", number, VERSION)
    time.sleep(seconds)
    write("end", number, VERSION)


@app.task(name="shop.hold")
def hold(number: int) -> None:
    """Lasts until the file `go` is there."""
    write("start", number, VERSION)
    while not Path(os.environ["SHOP_LEDGER"]).with_name("go").exists():
        time.sleep(0.1)
    write("end", number, VERSION)
