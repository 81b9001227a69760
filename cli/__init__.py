"""The command line: one module per command, which parses options, calls the library and prints."""

import errno
import os
import sys
from contextlib import suppress
from io import TextIOWrapper

from taskres_cache.system.threads import limit_spinning

FAILED, WRONG_USAGE = 1, 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
BROKEN_PIPE = 141  # 128 + SIGPIPE
STREAMS = (0, 1, 2)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def main() -> None:
    """Run `taskres`; an error that the user can fix becomes one clear line and an exit status.

    0 done, 1 the work failed, 2 wrong usage, 130 interrupted, 141 nobody reads the output any more.
    """
    try:
        limit_spinning()  # before anything imports torch
        closed = _open_closed_streams()
        status = _failed("standard output is closed; redirect it, for example to /dev/null") if closed else _status()
        status = _flushed(status)
    except KeyboardInterrupt:
        status = _interrupted()
    sys.exit(status)


def _status() -> int:
    """Run the command in `sys.argv` and return its exit status; errors are printed."""
    from taskres_cache.errors import OptionError, TaskresError

    try:
        return _run()
    except TaskresError as error:
        return _failed(*error.lines, status=WRONG_USAGE if isinstance(error, OptionError) else FAILED)
    except ImportError as error:  # commands import what they need when they run
        return _failed(f"{error}; run `taskres doctor` to see what is missing or broken")
    except BrokenPipeError:
        return BROKEN_PIPE
    except RuntimeError as error:
        return _out_of_memory(error)
    except OSError as error:
        if error.filename is None and error.errno in FULL:  # the library names the files that it writes
            return _unwritable(error)
        return _failed(f"{error.filename or 'system'}: {error.strerror or error}")
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as end:  # Typer and Rich turn a broken pipe into status 1
        if isinstance(end.__context__, BrokenPipeError):
            return BROKEN_PIPE
        return end.code if isinstance(end.code, int) else int(bool(end.code))


def _out_of_memory(error: RuntimeError) -> int:
    """Print one line if a device ran out of memory; raise other errors of this kind again, they are faults."""
    from taskres_cache.system.accelerator import is_out_of_memory

    if not is_out_of_memory(error):
        raise error
    reason = " ".join(str(error).split())[:200]
    return _failed(f"the device ran out of memory ({reason}); free some of its memory, or use --device cpu")


def _run() -> int:
    """Run the command in `sys.argv`; wrong usage is printed as one line, with the page that explains it."""
    import typer

    from .app import app
    from .console import StoppedEarly, refuse_undecodable
    from .conventions import usage_message

    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    if command != "predict":  # which reads files of any name
        refuse_undecodable(*sys.argv[1:])
    usage_error: type[BaseException] = typer.BadParameter.__mro__[1]  # Typer has no public name for it
    try:
        status = app(prog_name="taskres", standalone_mode=False) or 0
    except StoppedEarly as stop:
        return _interrupted(str(stop))
    except usage_error as error:
        message, context = usage_message(error), getattr(error, "ctx", None)
        if not message:  # `taskres` alone has printed its help
            return WRONG_USAGE
        page = context.command_path if context else "taskres"
        return _failed(f"{message} (see {page} --help)", status=WRONG_USAGE)
    return _interrupted() if status == INTERRUPTED else status  # Typer turns Ctrl-C into this status


def _failed(*lines: str, status: int = FAILED) -> int:
    """Print an error and return its exit status."""
    try:
        from .console import say
    except ImportError:  # of Rich, without which there is no console
        print(f"taskres: {' '.join(lines)}", file=sys.stderr)
        return status
    for number, line in enumerate(lines):
        say(line if number else f"taskres: {line}")
    return status


def _interrupted(message: str = "Interrupted.") -> int:
    from .console import say

    say(message)
    return INTERRUPTED


def _unwritable(error: OSError) -> int:
    return _failed(
        f"standard output cannot be written ({error.strerror or error}); free disk space, or send it elsewhere"
    )


def _flushed(status: int) -> int:
    """Write out what is buffered, and return the status: another one if that fails."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = BROKEN_PIPE
        _send_to_null(sys.stdout.fileno())
    except OSError as error:
        _send_to_null(sys.stdout.fileno())
        status = status or _unwritable(error)
    with suppress(OSError):
        sys.stderr.flush()
        return status
    _send_to_null(sys.stderr.fileno())
    return status


def _send_to_null(descriptor: int) -> None:
    """Make a stream that cannot be written discard what it holds, so that the interpreter ends quietly."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def _open_closed_streams() -> bool:
    """Open closed standard streams, lest a file gets their number; return True if standard output was closed."""
    closed = sys.stdout is None
    for descriptor in STREAMS:
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return closed
