"""What commands share: the argument MODEL, and the options `--modal`, `--d3`, `--units` and `--keys`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from equipes.errors import InputError

if TYPE_CHECKING:
    from equipes.data import LabelKeys, Units

ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="A model: *.safetensors, or the name of a published one (equipes models list); "
        "A,B,C is a committee, where energies and forces are wanted.",
    ),
]
ModalOption = Annotated[
    str | None,
    typer.Option(
        "--modal",
        metavar="NAME",
        help="Of a model for several kinds of reference calculation, the one wanted.",
    ),
]
Dispersion = Annotated[
    str | None,
    typer.Option(
        "--d3",
        metavar="FUNCTIONAL",
        help="Add D3(BJ) dispersion with the parameters of a functional, such as PBE (extra dispersion).",
    ),
]
UnitsOption = Annotated[
    str | None,
    typer.Option(
        "--units",
        metavar="ENERGY,LENGTH",
        help="Units of the data, such as kcal/mol,Ang; npz files need them. "
        "By name: energy=…,length=…,forces=…,stress=…",
    ),
]
KeysOption = Annotated[
    list[str] | None,
    typer.Option(
        "--keys",
        metavar="LABEL=KEY",
        help="Names of labels in the data, such as energy=REF_energy,forces=REF_forces "
        "(labels: energy, forces, stress, config_type).",
    ),
]


def members(model: Path) -> list[Path]:
    """The models of an argument MODEL[,MODEL…]; one, if there is a file of the whole name."""
    if model.exists():
        return [model]
    names = [Path(name) for name in str(model).split(",") if name]
    if len(set(names)) < len(names):
        raise InputError(f"{model}: a model stands twice in the committee; name each once")
    return names


def parse_units(text: str | None) -> Units | None:
    """`kcal/mol,Ang` or `energy=kcal/mol,length=Ang,stress=-kbar` as `Units`; None stays None."""
    if text is None:
        return None
    from equipes.data import Units

    names = ("energy", "length", "forces", "stress")
    given: dict[str, str] = {}
    for position, part in enumerate(text.split(",")):
        name, equals, unit = part.partition("=")
        name, unit = (name.strip(), unit.strip()) if equals else (names[min(position, 3)], part.strip())
        if name not in names or name in given or not unit or (not equals and position > 1):
            raise InputError(
                f"--units {text}: cannot read '{part}'; write ENERGY,LENGTH such as kcal/mol,Ang, or "
                "energy=…,length=…,forces=…,stress=…"
            )
        given[name] = unit
    with naming_options():
        return Units(**given)


def parse_keys(texts: Sequence[str] | None) -> LabelKeys:
    """`energy=REF_energy,forces=REF_forces`, in one or several texts, as `LabelKeys`."""
    from equipes.data import LabelKeys

    given: dict[str, str] = {}
    for text in texts or ():
        for part in text.split(","):
            label, equals, key = (piece.strip() for piece in part.partition("="))
            if (
                not equals
                or not key
                or label not in ("energy", "forces", "stress", "config_type")
                or label in given
            ):
                raise InputError(
                    f"--keys {text}: cannot read '{part}'; write energy=KEY, forces=KEY, stress=KEY or "
                    "config_type=KEY, each once"
                )
            given[label] = key
    return LabelKeys(**given)


@contextmanager
def naming_options() -> Iterator[None]:
    """Sentences about the config's fields, told in the words of this command's options."""
    try:
        yield
    except InputError as error:
        text = re.sub(r"data\.keys\.(\w+)", r"--keys \1=…", str(error))
        text = re.sub(r"\{energy: (\S+), length: (\S+)\}", r"\1,\2", text)
        raise InputError(re.sub(r"data\.units(\.\w+)?", "--units", text)) from error
