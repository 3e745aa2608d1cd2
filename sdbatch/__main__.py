"""`python -m sdbatch` is the `sdbatch` command."""

import sys


def main() -> None:
    """The command; a Ctrl-C while its parts are still being imported is an end like any other."""
    try:
        from sdbatch.cli import main as run  # noqa: PLC0415 - what takes the time

        run()
    except KeyboardInterrupt:
        sys.exit(130)  # as shells say it


if __name__ == "__main__":
    main()
