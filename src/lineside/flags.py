"""Command-line flags written from settings: one flag for each, with its name, help and default."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BeforeValidator

from lineside.settings import Settings
from lineside.strict import build

F = TypeVar("F", bound=Callable[..., Any])


def with_flags(kind: type[Settings]) -> Callable[[F], F]:
    """Give a verb one flag for each setting of `kind`. The verb gets the settings as its argument `settings`.

    Name, help and default of a flag are those of the setting. Nested settings are joined by a dash: `flaws.missing`
    is --flaws-missing. `--help` groups flags by the `panel` of the class that defines the setting.
    """

    def decorate(function: F) -> F:
        """The verb with the flags in place of `settings`."""
        flags = dict(_flags(kind))

        @functools.wraps(function)
        def collected(*args: Any, **options: Any) -> None:
            data: dict[str, Any] = {}
            for name, (place, _) in flags.items():
                here = data
                for part in place[:-1]:
                    here = here.setdefault(part, {})
                here[place[-1]] = options.pop(name)
            function(*args, settings=build(kind, data, f"lineside {function.__name__}"), **options)

        signature = inspect.signature(function, eval_str=True)
        own = [p for p in signature.parameters.values() if p.name != "settings"]
        at = next(i for i, name in enumerate(signature.parameters) if name == "settings")
        parameters = own[:at] + [parameter for _, parameter in flags.values()] + own[at:]
        collected.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore[reportAttributeAccessIssue]
        collected.__annotations__ = {p.name: p.annotation for p in parameters}
        return collected  # pyright: ignore[reportReturnType]

    return decorate


def _flags(kind: type[Settings], above: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[tuple[str, ...], Any]]]:
    """(parameter name, (keys that lead to the setting, parameter)) of each setting, nested ones included."""
    for name, field in kind.model_fields.items():
        place = (*above, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield from _flags(field.annotation, place)
            continue
        told = " ".join((field.description or "").split())
        home = next(base for base in kind.__mro__ if name in vars(base).get("__annotations__", {}))
        flag = "--" + "-".join(place).replace("_", "-")
        option = typer.Option(flag, help=told, rich_help_panel=vars(home).get("panel"))
        option.show_default = field.default is not None
        worded = any(isinstance(how, BeforeValidator) for how in field.metadata)  # takes words: "typical" for 0.7
        annotation = Annotated[str if worded else _plain(field.annotation), option]
        parameter = inspect.Parameter(
            "_".join(place), inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation
        )
        yield parameter.name, (place, parameter)


def _plain(annotation: Any) -> Any:
    """A type without pydantic's bounds. The bounds are checked when the settings are built."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return Union[tuple(_plain(part) for part in get_args(annotation))]  # noqa: UP007
    return annotation
