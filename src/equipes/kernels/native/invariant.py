"""What the native code of frozen SchNet, PhysNet and ANI models reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

# In the order of the native code.
ACTIVATIONS = ("none", "softplus", "silu")


def specification(structure: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The nested description that the native side reads; see `equipes.models.invariant_blueprint`.

    Raises:
        KeyError, ValueError: arrays that the structure names are not there, or it makes no sense.
    """
    tables = {name: np.ascontiguousarray(array, np.float64) for name, array in arrays.items()}
    empty = np.zeros(0)
    stages = []
    for k, stage in enumerate(structure["stages"]):
        links = []
        for index, link in enumerate(stage["links"]):
            named = {what: tables[f"stages.{k}.links.{index}.{what}"] for what in link["arrays"]}
            links.append(
                (
                    link["from"],
                    link["to"],
                    ACTIVATIONS.index(link["activation"]),
                    [(0, 0, named["matrix"])] if "matrix" in named else [],
                    named.get("factors", empty),
                    named.get("constants", empty),
                )
            )
        splines = tables[f"stages.{k}.splines"] if stage["splines"] else empty
        stages.append(
            {"sent": stage["sent"], "received": stage["received"], "splines": splines, "links": links}
        )
    described = {
        "n_species": len(tables["scales"]),
        "r_max": structure["r_max"],
        "widths": structure["widths"],
        "stages": stages,
        "knots": tables["knots"],
        **{name: tables[name] for name in ("scales", "shifts")},
    }
    if "symmetry_functions" in structure:
        described["symmetry_functions"] = structure["symmetry_functions"]
        described |= {name: tables[name] for name in ("radial_centres", "shells", "angles")}
    return described
