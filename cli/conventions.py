"""Option names of other programs, and the likely option after a typo.

People come from open_clip and CLIP_benchmark: their names of our options work too. They are in no help text, and
messages use our names.
"""

from typing import Any

from typer.core import TyperCommand

from taskres_cache.errors import near_matches

ALIASES = {"--model": "--backbone", "--output": "--out", "--num-workers": "--workers", "--seed": "--seeds"}
END_OF_OPTIONS = "--"


class Command(TyperCommand):
    """A command whose options can be given under the names in `ALIASES`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments, after replacing the names of other programs by ours."""
        return super().parse_args(ctx, with_own_names(args, option_names(self)))


def with_own_names(arguments: list[str], known: set[str]) -> list[str]:
    """Return arguments with our names of options: a name that is an option itself, or whose option is not, stays."""
    end = arguments.index(END_OF_OPTIONS) if END_OF_OPTIONS in arguments else len(arguments)
    return [*(_own_name(argument, known) for argument in arguments[:end]), *arguments[end:]]


def _own_name(argument: str, known: set[str]) -> str:
    name, sign, value = argument.partition("=")
    own = ALIASES.get(name, name)
    return f"{own}{sign}{value}" if own in known and name not in known else argument


def option_names(command: Any) -> set[str]:
    """Return the long options of a command."""
    return {name for parameter in command.params for name in parameter.opts if name.startswith("--")}


def usage_message(error: Any) -> str:
    """Return the message of a usage error; after an unknown option it names the likely one."""
    context = getattr(error, "ctx", None)
    if not hasattr(error, "possibilities") or context is None:
        return str(error.format_message()).rstrip(".")
    known = option_names(context.command)
    aliases = [alias for alias, own in ALIASES.items() if own in known]
    alike = near_matches(error.option_name, known) or near_matches(error.option_name, aliases)
    meant = f"; did you mean {alike[0]}?" if alike else ""
    return f"no such option: {error.option_name}{meant}"
