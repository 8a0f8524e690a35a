"""Published potentials: what there is, under which licence, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass

from ase.data import chemical_symbols

# The 89 elements of the Materials Project's trajectories (MPtrj): up to plutonium, without polonium to radium.
_MPTRJ = tuple(chemical_symbols[z] for z in range(1, 95) if not 84 <= z <= 88)


@dataclass(frozen=True)
class InWheel:
    """A file inside the wheel of a package that Python's package index has.

    Attributes:
        package, version: of the wheel.
        wheel_sha256, wheel_size: of the wheel, bytes.
        member: the file in it, from its top.
    """

    package: str
    version: str
    wheel_sha256: str
    wheel_size: int
    member: str


@dataclass(frozen=True)
class Published:
    """One published potential.

    Attributes:
        name: what commands and `equipes.load` know it by.
        about: a sentence on what it is for.
        architecture: name in `equipes.models.ARCHITECTURES`.
        functional: of the reference calculations.
        data: what it was trained on.
        elements: chemical symbols that it knows.
        licence: of the weights.
        licence_address: where the licence stands.
        commercial: whether the licence allows commercial use.
        paper: to cite, as a DOI or arXiv number.
        home: address of the page of its publisher.
        source: address of the file, or the wheel that it is in.
        reader: module of this room that reads the file.
        sha256: of the file, where it is known.
        size: of the file in bytes, where it is known.
        modalities: kinds of reference calculation to choose from.
    """

    name: str
    about: str
    architecture: str
    functional: str
    data: str
    elements: tuple[str, ...]
    licence: str
    licence_address: str
    commercial: bool
    paper: str
    home: str
    source: str | InWheel
    reader: str
    sha256: str | None = None
    size: int | None = None
    modalities: tuple[str, ...] = ()


def _sevennet(
    name: str, about: str, member: str, sha256: str, size: int, *, modalities: tuple[str, ...] = ()
) -> Published:
    wheel = InWheel(
        "sevenn",
        "0.13.0",
        "9378f7df2b75fe83274483a5f804790ae1023dd22ddeb6a48c1a03de97e22620",
        43_193_213,
        f"sevenn/pretrained_potentials/{member}",
    )
    return Published(
        name=name,
        about=about,
        architecture="sevennet",
        functional="PBE(+U), r²SCAN" if modalities else "PBE(+U)",
        data="MPtrj, r²SCAN relaxations of the Materials Project" if modalities else "MPtrj",
        elements=_MPTRJ,
        licence="MIT",
        licence_address="https://github.com/MDIL-SNU/SevenNet/blob/main/LICENSE",
        commercial=True,
        paper="doi:10.1021/jacs.4c14455" if modalities else "doi:10.1021/acs.jctc.4c00190",
        home="https://github.com/MDIL-SNU/SevenNet",
        source=wheel,
        reader="sevennet",
        sha256=sha256,
        size=size,
        modalities=modalities,
    )


def _mace(
    name: str,
    about: str,
    address: str,
    *,
    data: str = "MPtrj",
    functional: str = "PBE(+U)",
    academic: bool = False,
    repository: str = "mace-mp",
) -> Published:
    home = "https://github.com/ACEsuit/mace-foundations"
    return Published(
        name=name,
        about=about,
        architecture="mace",
        functional=functional,
        data=data,
        elements=_MPTRJ,
        licence="ASL (academic, non-commercial)" if academic else "MIT",
        licence_address="https://github.com/gabor1/ASL" if academic else f"{home}/blob/main/LICENSE",
        commercial=not academic,
        paper="arXiv:2401.00096",
        home=home,
        source=f"https://github.com/ACEsuit/{repository}/releases/download/{address}",
        reader="mace",
    )


_REPULSION = "with a repulsion at short distances and better isolated atoms"
_PRESSURE = "more stable at high pressure"
_ALL = (
    _sevennet(
        "7net-0",
        "SevenNet-0 of 11 July 2024: crystals, surfaces, liquids of any elements",
        "SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth",
        "7052cb42b7b3be42b40b97fa0d21077a48c54b5548948fc4dcf346629f813c36",
        10_268_648,
    ),
    _sevennet(
        "7net-0-22may2024",
        "SevenNet-0 as first published, 22 May 2024",
        "SevenNet_0__22May2024/checkpoint_sevennet_0.pth",
        "5d389fafd512e6ae2830d74d0b66ffc49a55d3832653ff8e7bf7f1343013c1d1",
        10_268_712,
    ),
    _sevennet(
        "7net-l3i5",
        "SevenNet with harmonics up to l = 3: more accurate, slower",
        "SevenNet_l3i5/checkpoint_l3i5.pth",
        "a7ff190d41efe5b8317a03d20a468e4036a1a3e64e0b14fdbab64ac3f4bfc09d",
        14_345_754,
    ),
    _sevennet(
        "7net-mf-0",
        "SevenNet-0 for two kinds of reference calculation; choose one with --modal",
        "SevenNet_MF_0/checkpoint_sevennet_mf_0.pth",
        "81791329b37d445f46b531578c182c41792d98c7814222c9e5dde276402225fd",
        10_322_158,
        modalities=("R2SCAN", "PBE"),
    ),
    _mace("mace-mp-0a-small", "MACE-MP-0, small", "mace_mp_0/2023-12-10-mace-128-L0_energy_epoch-249.model"),
    _mace("mace-mp-0a-medium", "MACE-MP-0, medium", "mace_mp_0/2023-12-03-mace-128-L1_epoch-199.model"),
    _mace("mace-mp-0a-large", "MACE-MP-0, large", "mace_mp_0/2024-01-07-mace-128-L2_epoch-199.model"),
    _mace("mace-mp-0b-small", f"MACE-MP-0b, small: {_REPULSION}", "mace_mp_0b/mace_agnesi_small.model"),
    _mace("mace-mp-0b-medium", f"MACE-MP-0b, medium: {_REPULSION}", "mace_mp_0b/mace_agnesi_medium.model"),
    _mace(
        "mace-mp-0b2-small",
        f"MACE-MP-0b2, small: {_PRESSURE}",
        "mace_mp_0b2/mace-small-density-agnesi-stress.model",
    ),
    _mace(
        "mace-mp-0b2-medium",
        f"MACE-MP-0b2, medium: {_PRESSURE}",
        "mace_mp_0b2/mace-medium-density-agnesi-stress.model",
    ),
    _mace(
        "mace-mp-0b2-large",
        f"MACE-MP-0b2, large: {_PRESSURE}",
        "mace_mp_0b2/mace-large-density-agnesi-stress.model",
    ),
    _mace(
        "mace-mp-0b3-medium",
        "MACE-MP-0b3, medium: better phonons than 0b2",
        "mace_mp_0b3/mace-mp-0b3-medium.model",
    ),
    _mace(
        "mace-mpa-0-medium",
        "MACE-MPA-0, medium: more data, more accurate for materials",
        "mace_mpa_0/mace-mpa-0-medium.model",
        data="MPtrj, sAlex",
    ),
    _mace(
        "mace-omat-0-medium",
        "MACE-OMAT-0, medium: good phonons",
        "mace_omat_0/mace-omat-0-medium.model",
        data="OMat24",
        academic=True,
    ),
    _mace(
        "mace-matpes-pbe-0",
        "MACE-MATPES with PBE, without +U",
        "mace_matpes_0/MACE-matpes-pbe-omat-ft.model",
        data="OMat24, MatPES",
        functional="PBE",
        academic=True,
        repository="mace-foundations",
    ),
    _mace(
        "mace-matpes-r2scan-0",
        "MACE-MATPES with r²SCAN",
        "mace_matpes_0/MACE-matpes-r2scan-omat-ft.model",
        data="OMat24, MatPES",
        functional="r²SCAN",
        academic=True,
        repository="mace-foundations",
    ),
)
MODELS: dict[str, Published] = {model.name: model for model in _ALL}
# Other names that people know them by.
ALIASES = {
    "7net-0_11jul2024": "7net-0",
    "sevennet-0": "7net-0",
    "7net-0_22may2024": "7net-0-22may2024",
    "sevennet-l3i5": "7net-l3i5",
    "sevennet-mf-0": "7net-mf-0",
    "mace-mp-0-small": "mace-mp-0a-small",
    "mace-mp-0-medium": "mace-mp-0a-medium",
    "mace-mp-0-large": "mace-mp-0a-large",
    "mace-mpa-0": "mace-mpa-0-medium",
    "mace-mp-0b3": "mace-mp-0b3-medium",
}


def published(name: str) -> Published | None:
    """The potential of this name, whatever its case; None if there is none."""
    name = name.lower()
    return MODELS.get(ALIASES.get(name, name))
