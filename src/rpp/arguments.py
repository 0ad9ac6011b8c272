"""The constructor arguments of an object: the key of cached weights, and how to make it again."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pydoc import ErrorDuringImport, locate
from typing import Any, Self, TypeVar

from rpp.types import InputError


class RecordsArguments:
    """Remembers the arguments it was made with, its defaults and those of its bases included."""

    arguments: dict[str, Any]
    """By name; those that went through ``**kwargs`` under their own names."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Bind the arguments to the signature of the constructor."""
        made = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        # partial: a copy is made without arguments, and gets its state afterwards
        given = signature.bind_partial(made, *args, **kwargs).arguments
        given.pop(next(iter(signature.parameters)))  # self
        for name, parameter in signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                given |= given.pop(name, {})
        object.__setattr__(made, "arguments", _defaults(cls) | given)
        return made


def _defaults(kind: type) -> dict[str, Any]:
    """Default values of the constructors of a class and of its bases; the class's own last."""
    return {
        name: parameter.default
        for each in reversed(kind.__mro__)
        for name, parameter in inspect.signature(each.__init__).parameters.items()  # type: ignore[misc]
        if parameter.default is not inspect.Parameter.empty
    }


R = TypeVar("R", bound=RecordsArguments)


def described(made: RecordsArguments) -> dict[str, Any]:
    """Class and arguments of an object, in the form of a configuration file.

    Raises:
        InputError: If an argument is neither a plain value nor such an object.
    """
    kind = type(made)
    arguments = {name: _plain(value, kind, name) for name, value in made.arguments.items()}
    return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}


def remade(description: Mapping[str, Any], kind: type[R], **others: Any) -> R:
    """Make an object again.

    Args:
        description: What :func:`described` gave.
        kind: What it must be a subclass of; nothing else is called.
        others: Arguments in the place of those described.

    Raises:
        InputError: If there is no such class.
    """
    path = str(description["class_path"])
    try:
        found = locate(path)
    except ErrorDuringImport as error:
        raise InputError(f"{path} cannot be imported ({error}): mend its module") from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise InputError(
            f"there is no {kind.__name__} {path}: run from the folder of its module, or install it"
        )
    arguments = {name: _restored(each) for name, each in description["init_args"].items()} | others
    return found(**_accepted(found, arguments))


def _accepted(kind: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments a constructor takes: it may set some of its bases' itself."""
    parameters = inspect.signature(kind).parameters
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    return {name: each for name, each in arguments.items() if takes_all or name in parameters}


def _plain(value: Any, kind: type, name: str) -> Any:
    if isinstance(value, RecordsArguments):
        return described(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(each, kind, name) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, kind, name) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(
        f"the argument {name} of {kind.__qualname__} is {value!r}, which cannot be written down:"
        " give a number, a text, or a list or dictionary of them"
    )


def _restored(value: Any) -> Any:
    if isinstance(value, Mapping) and value.keys() == {"class_path", "init_args"}:
        return remade(value, RecordsArguments)
    return value
