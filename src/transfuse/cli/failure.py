"""Every failure as one line: what was given, what was expected, what to type."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import click

from transfuse.disk import OUT_OF_SPACE, final_name, out_of_space
from transfuse.errors import UserError, did_you_mean

_NO_COMMAND = re.compile(r"No such command '([^']*)'")
_PACKAGE = Path(__file__).resolve().parent.parent


class InterruptError(Exception):
    """Ctrl-C during a command; the text says what is kept."""


def describe(error: Exception) -> tuple[str, int]:
    """The line to print and the exit status."""
    if isinstance(error, InterruptError):
        return _one_line(str(error)), 130
    if isinstance(error, click.Abort):
        return "aborted", 130
    if isinstance(error, click.UsageError):
        error = from_usage(error)
    elif isinstance(error, click.ClickException):
        error = UserError(_lower(error.format_message()))
    elif isinstance(error, OSError) and _is_users(error):
        error = _from_os(error)
    elif isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # the second is torch's
        error = UserError("not enough memory", fix="give it less at once, or a machine with more")
    if isinstance(error, UserError):
        return _one_line(f"error: {error}"), 2
    kind = type(error).__name__
    return _one_line(f"internal error: {kind}: {error} (run again with --debug for the traceback)"), 1


def from_usage(error: click.UsageError) -> UserError:
    """What click found wrong with the words of a command."""
    command = error.ctx.command_path if error.ctx else "transfuse"
    where = f"{command} --help shows all"
    if isinstance(error, click.NoSuchOption):
        close = getattr(error, "possibilities", None) or []
        hint = f"did you mean {close[0]!r}?" if close else ""
        return UserError(f"unknown option {error.option_name!r} of {command!r}", fix=f"{hint} ({where})".strip())
    unknown = _NO_COMMAND.match(error.message)
    if unknown and error.ctx and isinstance(group := error.ctx.command, click.Group):
        known = group.list_commands(error.ctx)
        hint = did_you_mean(unknown[1], known)
        return UserError(f"unknown command {unknown[1]!r} of {command!r}", f"one of {', '.join(known)}", hint)
    if isinstance(error, click.MissingParameter) and error.param is not None:
        usage = " ".join(error.ctx.command.collect_usage_pieces(error.ctx)) if error.ctx else ""
        name = error.param.opts[0] if isinstance(error.param, click.Option) else error.param.human_readable_name
        return UserError(f"{command!r} lacks {name}", f"{command} {usage}", f"see {command} --help")
    return UserError(_lower(error.format_message()), fix=f"see {command} --help")


def _is_users(error: OSError) -> bool:
    """Whether it is about a path of the user's, or the machine's space, rather than a file of this package."""
    if error.errno in OUT_OF_SPACE:
        return True
    return error.filename is not None and not str(error.filename).startswith(str(_PACKAGE))


def _from_os(error: OSError) -> UserError:
    if error.errno in OUT_OF_SPACE:
        return UserError(out_of_space(error))
    reason = (error.strerror or type(error).__name__).lower()
    place = f"{final_name(str(error.filename))!r}: " if error.filename is not None else ""
    expected = {
        errno.ENOENT: "a path that exists",
        errno.EACCES: "a path that you may read, or write where something is to be written",
        errno.EISDIR: "a file",
        errno.ENOTDIR: "a folder",
        errno.EEXIST: "no file where a folder must be",
    }.get(error.errno or 0, "")
    return UserError(f"{place}{reason}", expected)


def _lower(message: str) -> str:
    message = message.strip().rstrip(".")
    return message[:1].lower() + message[1:]


def _one_line(text: str) -> str:
    return " ".join(text.split())
