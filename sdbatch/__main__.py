"""`python -m sdbatch` is the `sdbatch` command."""

import gettext
import io
import locale
import os
import sys

from sdbatch import messages


def _speak_utf8() -> None:
    """Start again with UTF-8 if Python took another encoding from the locale: file names in a root are UTF-8."""
    if sys.getfilesystemencoding() != "utf-8":
        output = locale.getpreferredencoding(do_setlocale=False)
        os.environ |= {"PYTHONUTF8": "1", "PYTHONIOENCODING": os.environ.get("PYTHONIOENCODING") or output}
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - ourselves
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """Run the command; a Ctrl-C during the imports ends it without a traceback."""
    _speak_utf8()
    if messages.readers_language() != "en":  # typer, which is imported next, asks gettext
        gettext.gettext = messages.here  # type: ignore[assignment]
    try:
        from sdbatch.cli import main  # noqa: PLC0415 - what takes the time

        main.main()
    except KeyboardInterrupt:
        sys.exit(130)  # as shells do


if __name__ == "__main__":
    main()
