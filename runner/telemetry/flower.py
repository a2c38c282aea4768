"""Flower on this environment's broker: what Celery itself says of its workers. Nothing depends on it.

Its own options come as FLOWER_* (flower.readthedocs.io). The broker's URL is never on a command line.
"""

from __future__ import annotations

import signal
from types import FrameType

from runner.settings import Settings
from runner.state.doorbell import celery_app
from runner.telemetry import systemd

WATCHDOG_SECONDS = 10.0


def run(settings: Settings) -> int:
    """Entry point of `runner flower`: serve until TERM or INT; returns the exit status."""
    from flower import command  # an extra package, and a slow import
    from flower.app import Flower
    from flower.urls import settings as pages
    from tornado.ioloop import PeriodicCallback
    from tornado.options import options

    command.apply_env_options()
    options.address = options.address or settings.web_host  # by itself it would listen on all
    command.extract_settings()
    command.setup_logging()
    flower = Flower(capp=celery_app(settings.broker()), options=options, **pages)
    flower.start_http_server()

    def stop(_number: int, _frame: FrameType | None) -> None:
        flower.io_loop.add_callback_from_signal(flower.io_loop.stop)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    systemd.notify("READY=1")
    PeriodicCallback(lambda: systemd.notify("WATCHDOG=1"), WATCHDOG_SECONDS * 1000).start()
    try:
        flower.start()  # until the loop is stopped
    finally:
        flower.stop()
    return 0
