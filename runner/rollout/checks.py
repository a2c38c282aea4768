"""What an operator adds to the gate: commands and Prometheus queries. Thin; the answer is what does not hold."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence

# Less than the silence after which another driver takes over.
COMMAND_SECONDS = 10.0
QUERY_SECONDS = 5.0


def failing(commands: Sequence[str], promql: Sequence[Sequence[str]], env: Mapping[str, str]) -> list[str]:
    """What does not hold now, one line each. A command runs where the driver runs, without a shell, with `env` added.

    A command holds if it exits with 0 within 10 s; a query if it returns something and no zero
    (`sum(rate(errors_total[5m])) < bool 1`, or `up == 1`).
    """
    said = [error for command in commands if (error := _command(command, env))]
    return said + [error for url, query in promql if (error := _query(url, query))]


def _command(command: str, env: Mapping[str, str]) -> str | None:
    try:
        done = subprocess.run(
            shlex.split(command),
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"`{command}` did not end within {COMMAND_SECONDS:g} s"
    except (OSError, ValueError) as e:
        return f"`{command}` cannot be run: {e}"
    if done.returncode == 0:
        return None
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return f"`{command}` exited with {done.returncode}" + (f": {lines[-1][:200]}" if lines else "")


def _query(url: str, query: str) -> str | None:
    address = f"{url.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    try:
        with urllib.request.urlopen(address, timeout=QUERY_SECONDS) as answer:
            found = json.load(answer)["data"]
        samples = [found["result"]] if found["resultType"] in ("scalar", "string") else None
        values = [float(s[1]) for s in samples] if samples else [float(r["value"][1]) for r in found["result"]]
    except urllib.error.HTTPError as e:
        return f"`{query}`: {url} answers {e.code}: {e.read(200).decode(errors='replace')}"
    except (OSError, ValueError, KeyError, TypeError, IndexError) as e:
        return f"`{query}`: {url} does not answer: {e}"
    if not values:
        return f"`{query}` returns nothing"
    bad = [v for v in values if not v]  # NaN counts as something: it is not zero, and rates of nothing are NaN
    return f"`{query}` is 0 for {len(bad)} of {len(values)} series" if bad else None
