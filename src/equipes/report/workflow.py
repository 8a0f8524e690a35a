"""One page about the result of a workflow: numbers, figures, the structure, convergence, method, what to cite."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import ase
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from equipes import __version__
from equipes.files import atomic_write
from equipes.report.figures import inline_svg
from equipes.report.page import asset_text, inline_asset, inline_json

if TYPE_CHECKING:
    from equipes.simulate.results import Provenance


def write_workflow_page(
    path: str | os.PathLike[str],
    *,
    title: str,
    subtitle: str,
    rows: Iterable[tuple[str, object]],
    figures: Mapping[str, Figure],
    structures: Sequence[ase.Atoms],
    provenance: Provenance,
    overwrite: bool = False,
) -> None:
    """Write one self-contained HTML file.

    Args:
        path: the file.
        title, subtitle: plain text.
        rows: names and values, as on the terminal.
        figures: by what each of them shows.
        structures: at least one to look at; several get a slider. `info["label"]`, if there, stands under each.
        provenance: method, citations, convergence and warnings.
        overwrite: replace a file that exists.

    Raises:
        InputError: a place that cannot be written.
    """
    context: dict[str, Any] = {
        "title": title,
        "subtitle": subtitle,
        "version": __version__,
        "created": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "css": inline_asset("report.css"),
        "js": inline_asset("workflow.js"),
        "viewer_js": inline_asset("3Dmol-min.js"),
        "notice": asset_text("3Dmol-LICENSE.txt"),
        "rows": [(name, str(value)) for name, value in rows],
        "figures": [
            Markup(inline_svg(figure, description=description)) for description, figure in figures.items()
        ],
        "structures": structures,
        "structures_json": inline_json([_structure(atoms) for atoms in structures]),
        "checks": [check.sentence() for check in provenance.checks],
        "warnings": provenance.warnings,
        "method": provenance.method.rstrip("."),
        "citations": provenance.citations,
    }
    environment = Environment(loader=FunctionLoader(asset_text), autoescape=True, undefined=StrictUndefined)
    text = environment.get_template("workflow.html").render(context)
    with atomic_write(path, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _structure(atoms: ase.Atoms) -> dict[str, Any]:
    label = f"{atoms.get_chemical_formula()}, {len(atoms)} atoms"
    return {
        "label": f"{atoms.info['label']}: {label}" if "label" in atoms.info else label,
        "symbols": atoms.get_chemical_symbols(),
        "positions": [[round(float(x), 4) for x in row] for row in atoms.positions],
        "cell": [[round(float(x), 4) for x in row] for row in atoms.cell.array]
        if atoms.cell.rank == 3 and atoms.pbc.any()
        else None,
    }
