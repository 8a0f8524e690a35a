"""The model section of a training's config: for each architecture its hyperparameters, under their own names.

Fields that are `None` are chosen from the data when training starts.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

PerSpecies = float | dict[str, float]
EnergyScales = Annotated[
    PerSpecies | None, Field(description="eV; null: rms of the training forces times 1 Å")
]
EnergyShifts = Annotated[PerSpecies | None, Field(description="eV; null: the reference energies")]
Interaction = Literal[
    "RealAgnosticInteractionBlock",
    "RealAgnosticResidualInteractionBlock",
    "RealAgnosticDensityInteractionBlock",
    "RealAgnosticDensityResidualInteractionBlock",
]


class Section(BaseModel):
    """Unknown keys are errors; numbers must be finite; a loaded config never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class ArchitectureConfig(Section):
    """What all architectures have."""

    architecture: str
    species: list[str] | None = Field(default=None, description="chemical symbols; null: those of the data")
    dtype: Literal["float32", "float64"] = "float32"
    r_max: PositiveFloat | None = Field(
        default=None, description="cutoff, Å; null: 5, or more where neighbours are few"
    )


class NequIPConfig(ArchitectureConfig):
    """NequIP and its hyperparameters."""

    architecture: Literal["nequip"] = "nequip"
    num_layers: PositiveInt = 4
    l_max: Annotated[int, Field(ge=0, le=6)] = 3
    num_features: PositiveInt | list[PositiveInt] = Field(
        default=32, description="channels of each l, one number or one per l"
    )
    parity: bool = False
    num_bessels: PositiveInt = 8
    bessel_trainable: bool = False
    polynomial_cutoff_p: Annotated[int, Field(ge=2)] = 6
    radial_mlp_depth: PositiveInt = 2
    radial_mlp_width: PositiveInt = 64
    readout_mlp_hidden_layers_depth: Annotated[int, Field(ge=0)] = 0
    readout_mlp_hidden_layers_width: PositiveInt | None = None
    type_embed_num_features: PositiveInt | None = None
    avg_num_neighbors: PerSpecies | None = Field(
        default=None, description="null: measured on the training frames"
    )
    per_type_energy_scales: EnergyScales = None
    per_type_energy_shifts: EnergyShifts = None
    per_type_energy_scales_trainable: bool = False
    per_type_energy_shifts_trainable: bool = False
    per_edge_type_cutoff: dict[str, float | dict[str, float]] | None = None
    zbl: bool = False


class MACEConfig(ArchitectureConfig):
    """MACE and its hyperparameters."""

    architecture: Literal["mace"]
    num_bessel: PositiveInt = 8
    num_polynomial_cutoff: Annotated[int, Field(ge=2)] = 5
    max_ell: Annotated[int, Field(ge=0, le=6)] = 3
    hidden_irreps: str = Field(default="64x0e + 64x1o", description="features, all with one multiplicity")
    correlation: PositiveInt | list[PositiveInt] = Field(
        default=3, description="powers of the neighbourhood; messages know one body more"
    )
    num_interactions: PositiveInt = 2
    interaction_cls_first: Interaction = "RealAgnosticInteractionBlock"
    interaction_cls: Interaction = "RealAgnosticResidualInteractionBlock"
    radial_MLP: list[PositiveInt] = [64, 64, 64]  # noqa: N815 - its name in mace-torch
    MLP_irreps: str = "16x0e"
    avg_num_neighbors: PositiveFloat | None = Field(
        default=None, description="null: measured on the training frames"
    )
    distance_transform: Literal["None", "Agnesi", "Soft"] = "None"
    pair_repulsion: bool = False
    pair_repulsion_cutoff: Annotated[int, Field(ge=2)] | None = None
    atomic_energies: PerSpecies | None = Field(default=None, description="eV; null: the reference energies")
    atomic_inter_scale: float | None = Field(
        default=None, description="eV; null: rms of the training forces times 1 Å"
    )
    atomic_inter_shift: float = 0.0


class SevenNetConfig(ArchitectureConfig):
    """SevenNet and its hyperparameters."""

    architecture: Literal["sevennet"]
    num_layers: PositiveInt = 5
    l_max: Annotated[int, Field(ge=0, le=6)] = 2
    num_features: PositiveInt | list[PositiveInt] = Field(
        default=32, description="channels of each l, one number or one per l"
    )
    num_bessels: PositiveInt = 8
    bessel_trainable: bool = True
    xplor_on: PositiveFloat | None = Field(
        default=None, description="Å where the XPLOR cutoff function begins; null: the polynomial one"
    )
    polynomial_cutoff_p: Annotated[int, Field(ge=2)] = 6
    normalize_harmonics: bool = True
    radial_mlp_depth: PositiveInt = 2
    radial_mlp_width: PositiveInt = 64
    readout_width: PositiveInt | None = None
    denominator: PositiveFloat | list[PositiveFloat] | None = Field(
        default=None, description="of sums over neighbours; null: their mean number in the training frames"
    )
    per_type_energy_scales: EnergyScales = None
    per_type_energy_shifts: EnergyShifts = None
    per_type_energy_scales_trainable: bool = False
    per_type_energy_shifts_trainable: bool = False


class SchNetConfig(ArchitectureConfig):
    """SchNet and its hyperparameters."""

    architecture: Literal["schnet"]
    num_features: PositiveInt = 64
    num_interactions: PositiveInt = 3
    gaussian_spacing: PositiveFloat = 0.1
    gaussian_gamma: PositiveFloat = 10.0
    per_type_energy_scales: EnergyScales = None
    per_type_energy_shifts: EnergyShifts = None


class PhysNetConfig(ArchitectureConfig):
    """PhysNet (short range) and its hyperparameters."""

    architecture: Literal["physnet"]
    num_features: PositiveInt = 128
    num_basis: PositiveInt = 64
    num_modules: PositiveInt = 5
    num_residual_interaction: Annotated[int, Field(ge=0)] = 3
    num_residual_atomic: Annotated[int, Field(ge=0)] = 2
    num_residual_output: Annotated[int, Field(ge=0)] = 1
    per_type_energy_scales: EnergyScales = None
    per_type_energy_shifts: EnergyShifts = None


class ANIConfig(ArchitectureConfig):
    """ANI and its hyperparameters."""

    architecture: Literal["ani"]
    angular_r_max: PositiveFloat = 3.5
    radial_eta: PositiveFloat = 16.0
    num_radial: PositiveInt = 16
    angular_eta: PositiveFloat = 8.0
    angular_zeta: PositiveFloat = 32.0
    num_angular_shells: PositiveInt = 4
    num_angles: PositiveInt = 8
    hidden: list[PositiveInt] = [128, 128, 64]
    per_type_energy_scales: EnergyScales = None
    per_type_energy_shifts: EnergyShifts = None


FINE_TUNED = "fine-tuned"


class FineTunedConfig(Section):
    """A model that `fine_tuning.base` describes: little is left to say of it."""

    architecture: Literal["fine-tuned"]
    species: list[str] | None = Field(default=None, description="chemical symbols; null: see keep_species")
    dtype: Literal["float32", "float64"] | None = Field(default=None, description="null: the base's")
    r_max: PositiveFloat | None = Field(default=None, description="cutoff, Å; null: the base's, and no other")

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, section: Any) -> Any:
        others = [key for key in section if key not in cls.model_fields] if isinstance(section, dict) else []
        if others:
            raise ValueError(
                f"{', '.join(others)} cannot be set, since fine_tuning.base has that already; leave it out"
            )
        return section


def _architecture(section: Any) -> Any:
    """Which of the sections is meant: NequIP's where none is named."""
    if isinstance(section, dict):
        return section.get("architecture", "nequip")
    return getattr(section, "architecture", None)


AnyModelConfig = Annotated[
    Annotated[NequIPConfig, Tag("nequip")]
    | Annotated[MACEConfig, Tag("mace")]
    | Annotated[SevenNetConfig, Tag("sevennet")]
    | Annotated[SchNetConfig, Tag("schnet")]
    | Annotated[PhysNetConfig, Tag("physnet")]
    | Annotated[ANIConfig, Tag("ani")]
    | Annotated[FineTunedConfig, Tag(FINE_TUNED)],
    Discriminator(_architecture),
]
MODEL_CONFIGS: dict[str, type[Section]] = {
    "nequip": NequIPConfig,
    "mace": MACEConfig,
    "sevennet": SevenNetConfig,
    "schnet": SchNetConfig,
    "physnet": PhysNetConfig,
    "ani": ANIConfig,
}
