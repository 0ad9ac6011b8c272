"""The constructor arguments of an object, all of them: what cached weights are keyed by."""

from __future__ import annotations

import inspect
from typing import Any, Self


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
