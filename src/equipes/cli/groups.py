"""Options that go together: a function of the command line takes them as one argument, the user gives them one by one.

    @dataclass(frozen=True)
    class ModelOptions(Group):
        model: ModelPath
        device: Device = "cpu"

    @spread
    def relax(model: ModelOptions, fmax: Annotated[float, typer.Option()] = 0.01) -> None: ...

is for Typer a command with MODEL, `--fmax` and `--device`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from typing import Any, get_type_hints


@dataclass(frozen=True)
class Group:
    """Parameters that commands share; each field is annotated as a parameter of a command is."""


def spread(command: Callable[..., None], *, without: Iterable[str] = ()) -> Callable[..., None]:
    """The command as Typer shall read it: with the fields of its groups in place of the groups.

    Arguments come first, in the order in which they stand, then the options of the command itself, and those of groups.

    Args:
        command: some of whose parameters are a `Group`.
        without: fields that this command does not offer; they keep their defaults.
    """
    first: list[inspect.Parameter] = []
    own: list[inspect.Parameter] = []
    shared: list[inspect.Parameter] = []
    groups: dict[str, tuple[type[Group], list[str]]] = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        kind = parameter.annotation
        if not (isinstance(kind, type) and issubclass(kind, Group)):
            parameter = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            (first if parameter.default is inspect.Parameter.empty else own).append(parameter)
            continue
        hints = get_type_hints(kind, include_extras=True)
        offered = [field for field in fields(kind) if field.name not in without]
        groups[parameter.name] = kind, [field.name for field in offered]
        for field in offered:
            needed = field.default is MISSING
            (first if needed else shared).append(
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=inspect.Parameter.empty if needed else field.default,
                    annotation=hints[field.name],
                )
            )

    @wraps(command)
    def spread_out(**given: Any) -> None:
        together = {
            name: kind(**{field: given.pop(field) for field in names})
            for name, (kind, names) in groups.items()
        }
        command(**together, **given)

    parameters = [*first, *own, *shared]
    spread_out.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread_out.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spread_out
