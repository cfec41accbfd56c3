"""`python -m ckptsync.server`: the server as a process of its own."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from ckptsync.errors import CkptsyncError
from ckptsync.server.app import CRASH_SECONDS, DEFAULT_PORT, LINK_SECONDS, serve
from ckptsync.server.local import default_data_dir


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ckptsync.server", description=__doc__)
    parser.add_argument("--data-dir", type=Path, default=default_data_dir(), help="folder for all data (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 picks a free port (%(default)s)")
    parser.add_argument("--crash-after", type=float, default=CRASH_SECONDS, metavar="SECONDS",
                        help="a run without a heartbeat for this long has crashed (%(default)s)")  # fmt: skip
    parser.add_argument("--link-lifetime", type=float, default=LINK_SECONDS, metavar="SECONDS",
                        help="how long upload and download links are valid (%(default)s)")  # fmt: skip
    parser.add_argument("--log-requests", type=Path, metavar="FILE", help="append one JSON line per request")
    parser.add_argument("--faults", action="store_true", help="enable fault injection at /_faults, for tests")
    parser.add_argument("--until-unused", action="store_true", help="exit once standard input is closed and no client is left")
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        serve(
            arguments.data_dir,
            host=arguments.host,
            port=arguments.port,
            faults=arguments.faults,
            crash_after=arguments.crash_after,
            link_lifetime=arguments.link_lifetime,
            log_requests=arguments.log_requests,
            until_unused=arguments.until_unused,
        )
    except CkptsyncError as error:
        sys.stderr.write(f"{error}. {error.hint}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
