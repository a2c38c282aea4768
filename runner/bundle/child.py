"""The child process of `validate`: import a bundle, write what was found as JSON to a file."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import sys
from pathlib import Path
from typing import NoReturn

from runner.bundle.load import Known, inspect

_exit_now = os._exit


def main(order: str, answer: str) -> None:
    """`answer` gets {"problems": […], "specs": […]}; of its twins `.at` names the file of which code is run, and
    `.trace` says where the process was when it was stopped or crashed."""
    wanted = json.loads(order)
    memory = wanted["memory"]
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    os._exit = _exit
    progress = Path(answer).with_suffix(".at")
    with Path(answer).with_suffix(".trace").open("w") as trace:
        faulthandler.enable(trace)

        def at(file: str) -> None:
            progress.write_text(file)
            # By a thread in C: it also ends a file that never gives the interpreter back.
            faulthandler.dump_traceback_later(wanted["seconds"], file=trace, exit=True)

        dags, problems = inspect(
            Path(wanted["directory"]), at, wanted["skip"], Known(*wanted["known"]) if wanted["known"] else None
        )
        faulthandler.cancel_dump_traceback_later()
    specs = [] if problems else [dags[name].spec().to_json() for name in sorted(dags)]
    part = Path(answer).with_suffix(".part")
    part.write_text(json.dumps({"problems": problems, "specs": specs}))
    part.rename(answer)
    _exit_now(0)  # not what the files have registered for the end


def _exit(status: int, pid: int = os.getpid()) -> NoReturn:
    """os._exit() of a pipeline's file: an error at its line. A process that it forked may end as it likes."""
    if os.getpid() != pid:
        _exit_now(status)
    raise SystemExit(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
