"""The command line: one module per command, which parses options, calls the library and prints."""

import sys


def main() -> None:
    """Run `taskres`; an error that the user can fix becomes one clear line and an exit status.

    0 done, 1 the work failed, 2 wrong usage.
    """
    from taskres_cache.errors import OptionError, TaskresError

    from .app import app

    try:
        app()
    except TaskresError as error:
        print(f"taskres: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, OptionError) else 1)
    except ImportError as error:  # commands import what they need when they run
        print(f"taskres: {error}; run `taskres doctor` to see what is missing or broken", file=sys.stderr)
        sys.exit(1)
