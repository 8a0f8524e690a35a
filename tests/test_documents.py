"""What the documents tell users to type: commands and Python that fit what there is, configs that are valid."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path

import ase
import pytest
import typer.main
import yaml

from documented_code import Reader
from equipes import AtomGraph, Calculator
from equipes.cli import app
from equipes.models import Potential
from equipes.training.config import NequIPConfig
from equipes.training.loading import validated

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "demo.sh"]


GIVEN = {
    **dict.fromkeys(("atoms", "crystal", "copper", "more_copper"), ase.Atoms),
    "calculator": Calculator,
    "potential": Potential,
    "graph": AtomGraph,
}
"""What the text around examples speaks of."""
FENCE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
COMMAND = r"((?:[A-Z_]+=\S+ )*equipes(?: .*)?)"
ROOT_COMMAND = typer.main.get_command(app)
# Typer carries its own click; the base class of its public BadParameter is what any wrong usage raises.
UsageError = typer.BadParameter.__bases__[0]


def commands(text: str) -> list[str]:
    """Lines such as `$ equipes md … --steps 10  # comment`, whole, with continued lines joined."""
    blocks = [block for language, block in FENCE.findall(text) if language != "python"] or [text]
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = (re.search(rf"(?:^\$ |^run |^|&& ){COMMAND}", line) for line in lines)
    return [match.group(1).split(" #")[0] for match in found if match]


def mentions(text: str) -> list[str]:
    """Commands within sentences, of which arguments may be left out."""
    return [found.replace("\n", " ") for found in re.findall(r"`(equipes [^`\\]+)`", FENCE.sub("", text))]


def mistakes(command: str, *, whole: bool = True) -> list[str]:
    """What the command line would say of it; without `whole` a part that is missing is no mistake."""
    words = shlex.split(command)
    words = words[words.index("equipes") + 1 :]
    words = words[: next((index for index, word in enumerate(words) if word in ("|", ">", "&&")), None)]
    node = ROOT_COMMAND
    while words and words[0] in getattr(node, "commands", {}):
        node = node.commands[words.pop(0)]
    if hasattr(node, "commands") and words[:1] not in ([], ["--version"], ["--help"], ["-h"]):
        return [f"{command}: no such command"]
    if not words and (not whole or hasattr(node, "commands")):
        return []
    try:
        with contextlib.redirect_stdout(None):
            node.make_context("equipes", words)
    except typer.Exit:  # of --help
        return []
    except UsageError as error:
        if whole or type(error).__name__ != "MissingParameter":
            return [f"{command}: {error.format_message()}"]
    return []


def test_mistakes_are_found() -> None:
    assert mistakes("equipes md model structure --ensemble nve --steps 5 --out md") == []
    assert mistakes("OMP_NUM_THREADS=1 equipes info model --json - | head") == []
    assert mistakes("equipes md --temperature 300", whole=False) == []
    for command, mistake in {
        "equipes md model structure --ensemble nve --out md --stepz 5": "No such option: --stepz",
        "equipes md model structure --ensemble nve --out md --steps many": "Invalid value for '--steps'",
        "equipes md model structure extra --ensemble nve --out md": "extra",
        "equipes md model --ensemble nve --out md": "Missing argument 'STRUCTURE'",
        "equipes md model structure --ensemble nve --out md --steps": "requires an argument",
        "equipes data chek frames.xyz": "no such command",
        "equipes mdd model": "no such command",
    }.items():
        (found,) = mistakes(command)
        assert mistake in found
    assert mistakes("equipes md --stepz", whole=False)


@pytest.mark.parametrize("document", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_documented_commands_exist(document: Path) -> None:
    text = document.read_text()
    assert [mistake for command in commands(text) for mistake in mistakes(command)] == []
    assert [mistake for command in mentions(text) for mistake in mistakes(command, whole=False)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_documented_python_fits_the_package(document: Path) -> None:
    reader = Reader(GIVEN)
    for language, block in FENCE.findall(document.read_text()):
        if language == "python":
            reader.read(block)
    assert reader.mistakes == []


@pytest.mark.parametrize(
    ("block", "mistake"),
    [
        ("import equipes.nothing", "No module named"),
        ("from equipes.data import GraphDatasets", "no GraphDatasets"),
        ("import equipes\nequipes.Calculater('x')", "no Calculater"),
        ("import equipes\nequipes.Calculator('x', skim=1)", "unexpected keyword argument 'skim'"),
        ("import equipes\nequipes.load()", "missing a required argument"),
        ("import equipes\nequipes.load('x').freez(['Si'])", "Potential has no freez"),
        ("import equipes\nequipes.load('x').freeze(spezies=['Si'])", "'spezies'"),
        ("from equipes.data import read_frames\nread_frames('x')[0].force", "Frame has no force"),
        (
            "from equipes.data import read_frames\nfor f in read_frames('x'):\n    f.force",
            "Frame has no force",
        ),
        ("from equipes.simulate import relax\nrelax(atoms, calculator).convergd", "has no convergd"),
        ("potential(graph).engery", "Prediction has no engery"),
        ("potential(graph, graph, graph, graph, graph)", "too many positional"),
        ("print(nobody)", "nobody: no such name"),
        ("x = (", "never closed"),
        ("def f(): pass", "nobody can read"),
    ],
)
def test_mistakes_in_python_are_found(block: str, mistake: str) -> None:
    reader = Reader(GIVEN)
    reader.read(block)
    assert len(reader.mistakes) == 1
    assert mistake in reader.mistakes[0]


def test_the_documents_show_commands() -> None:
    texts = [path.read_text() for path in DOCUMENTS]
    assert sum(len(commands(text)) for text in texts) > 80
    assert sum(len(mentions(text)) for text in texts) > 60
    assert sum(language == "python" for text in texts for language, _ in FENCE.findall(text)) > 20


def test_documented_configs_are_valid() -> None:
    count = 0
    for document in DOCUMENTS:
        for block in re.findall(r"```yaml\n(.*?)```", document.read_text(), re.DOTALL):
            tree = yaml.safe_load(block)
            if isinstance(tree, dict) and "data" in tree:
                # as nequip-train accepts them
                top = {key: tree.pop(key) for key in list(tree) if key in NequIPConfig.model_fields}
                validated({**tree, "model": {**tree.get("model", {}), **top}}, str(document))
                count += 1
    assert count >= 2


def test_the_configs_in_the_repository_are_valid() -> None:
    paths = [*(ROOT / "configs").glob("*.yaml"), *(ROOT / "examples").rglob("*.yaml")]
    assert len(paths) >= 3
    for path in paths:
        validated(yaml.safe_load(path.read_text()), str(path))


def test_the_citations_are_whole() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    for reference in citation["references"]:
        assert reference["title"]
        assert reference["year"]
        assert reference["notes"]
        for author in reference["authors"]:
            assert "family-names" in author or "name" in author
