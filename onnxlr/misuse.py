"""What a command line got wrong: cyclopts finds it, and here it is said as all other errors are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from cyclopts import (
    App,
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    UnknownOptionError,
    UnusedCliTokensError,
)
from cyclopts.exceptions import UnknownCommandError

from onnxlr.errors import UsageError, expected_one_of, nearest

if TYPE_CHECKING:
    from cyclopts.argument import Argument

__all__ = ["misused"]

_KINDS = {float: "a number", int: "a whole number"}
"""What a flag takes, in words, where not every text will do."""


def misused(error: CycloptsError, app: App) -> UsageError:
    """Return the error that says in a sentence what is wrong with a command line, and how it goes.

    Parameters
    ----------
    error
        What parsing it raised.
    app
        The application, of whose commands it is one.
    """
    name = app.name[0]
    command = " ".join(error.command_chain or ())
    if isinstance(error, UnknownCommandError):
        given = (error.unused_tokens or [""])[0]
        hint = expected_one_of(_commands(app), given)
        return UsageError(f"there is no command '{given}'; {hint} ({name} --help)")
    found, is_clear = _found(error)
    if not command:
        return UsageError(f"{found} ({name} --help)")
    whole = f"{name} {command}"
    if is_clear:
        return UsageError(f"{whole}: {found} ({whole} --help)")
    return UsageError(f"{whole}: {found}; usage: {_usage(whole, app[command])}")


def _commands(app: App) -> list[str]:
    return [name for name in app if not name.startswith("-")]


def _found(error: CycloptsError) -> tuple[str, bool]:
    """Return what is wrong, and whether that says by itself how it is right."""
    argument = error.argument
    if isinstance(error, MissingArgumentError) and argument is not None:
        return _missing(error, argument)
    if isinstance(error, UnknownOptionError):
        return _unknown(error), True
    if isinstance(error, CoercionError) and argument is not None and error.token is not None:
        what = error.token.keyword or _bare(argument)
        return f"{what} {_unlike(argument.hint, error.token.value)}", True
    if isinstance(error, UnusedCliTokensError):
        return f"'{(error.unused_tokens or [''])[0]}' is one argument too many", False
    if isinstance(error, RepeatArgumentError):
        return f"{error.token.keyword} is given more than once, expected it once", True
    return str(error).rstrip("."), False


def _missing(error: MissingArgumentError, argument: Argument) -> tuple[str, bool]:
    given = [word.partition("=")[0] for word in error.unused_tokens or ()]
    if argument.required and not set(given) & set(argument.names):
        return f"{_bare(argument)} is missing", False
    kinds = list(_words(argument.hint))
    return f"{argument.name} needs {kinds[0] if kinds else 'a value'}", True


def _unknown(error: UnknownOptionError) -> str:
    option = error.token.keyword or error.token.value
    near = nearest((name for each in error.argument_collection for name in each.names), option)
    found = f"there is no option {option}"
    return found if near is None else f"{found}; did you mean {near}?"


def _unlike(hint: Any, value: str) -> str:
    """Return the end of a sentence on a value that a flag cannot take."""
    if known := _choices(hint):
        return f"'{value}' is unknown; {expected_one_of(known, value)}"
    if hint is bool:
        return "takes no value"  # older cyclopts do not tell which
    return f"takes {' or '.join(_words(hint)) or 'another kind of value'}, found '{value}'"


def _choices(hint: Any) -> list[str]:
    """Return the values that a type allows one by one."""
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    return [value for inner in get_args(hint) for value in _choices(inner)]


def _words(hint: Any) -> Iterator[str]:
    """Yield what a type of values is called; nothing of one that takes any text."""
    if hint in _KINDS:
        yield _KINDS[hint]
    for inner in get_args(hint):
        yield from _words(inner)


def _bare(argument: Argument) -> str:
    """Return what an argument is called: an option as it is given, others as help shows them."""
    return argument.name if argument.index is None else argument.name.lstrip("-").upper()


def _usage(whole: str, command: App) -> str:
    """Return the shortest call of a command, and that there may be options."""
    words = [whole]
    for argument in command.assemble_argument_collection():
        if argument.index is not None:
            several = not argument.required
            words.append(f"[{_bare(argument)} ...]" if several else _bare(argument))
        elif argument.required:
            words.append(f"{argument.name} {argument.name.lstrip('-').upper()}")
    return " ".join([*words, "[OPTIONS]"])
