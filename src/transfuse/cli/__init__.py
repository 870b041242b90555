"""The command line: one file a command, each imported only when it is typed."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

USER_MISTAKE = 2
INTERRUPTED = 130
CLOSED_PIPE = 141  # what a shell reports for a tool whose reader has gone away


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; no error leaves as a traceback unless ``--debug`` is given.

    Returns:
        0, or 1 where the command found something (failed cells, audit findings), 2 for a mistake of the user,
        130 after Ctrl-C.
    """
    words, debug = _take_debug(list(sys.argv[1:] if arguments is None else arguments))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows "?" instead of failing
    try:
        return _run(words, debug)
    except BrokenPipeError:
        _close_stdout()
        return CLOSED_PIPE
    except Exception as error:
        from transfuse.cli.failure import describe

        if debug:
            import traceback

            traceback.print_exc()
        line, status = describe(error)
        sys.stderr.write(line + "\n")
        return status
    except KeyboardInterrupt:  # while a command was still being loaded
        sys.stderr.write("interrupted before anything was done\n")
        return INTERRUPTED


def _run(words: list[str], debug: bool) -> int:
    from transfuse.cli.app import application

    status = application().main(words, prog_name="transfuse", standalone_mode=False, obj=debug)
    sys.stdout.flush()
    return status if isinstance(status, int) else 0


def _take_debug(words: list[str]) -> tuple[list[str], bool]:
    """`--debug` may stand anywhere, so that it can be added at the end of the line that failed."""
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != "--debug"]
    return kept + words[end:], len(kept) < end


def _close_stdout() -> None:
    """Nobody reads any more: keep the interpreter from complaining when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
