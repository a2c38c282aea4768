"""`python -m runner.localcloud.aws --port N`: serve until TERM."""

from __future__ import annotations

import argparse
from pathlib import Path

from runner.localcloud.aws import server


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m runner.localcloud.aws", description=server.__doc__)
    parser.add_argument("--port", type=int, required=True, help="port to serve on")
    parser.add_argument("--address", default="127.0.0.1", help="address to serve on")
    parser.add_argument("--log", type=Path, help="append one JSON line per request to this file")
    parser.add_argument("--clock-rate", type=float, default=1.0, help="lifecycle hooks time out this many times faster")
    args = parser.parse_args()
    server.serve(args.port, address=args.address, log=args.log, clock_rate=args.clock_rate)


if __name__ == "__main__":
    main()
