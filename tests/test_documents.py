"""What the documents tell users to type: commands and options that exist, configs that are valid."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main
import yaml

from equipes.cli import app
from equipes.training.config import NequIPConfig
from equipes.training.loading import validated

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "demo.sh"]


def commands(text: str) -> list[str]:
    """Lines such as `$ equipes md … --steps 10  # comment`, whole, with continued lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    found = (re.search(r"(?:^\$|^run) (equipes .*)", line.strip()) for line in lines)
    return [match.group(1).split(" #")[0] for match in found if match]


def mistakes(command: str) -> list[str]:
    words = shlex.split(command)[1:]
    node = typer.main.get_command(app)
    while words and words[0] in getattr(node, "commands", {}):
        node = node.commands[words.pop(0)]
    known = {option for parameter in node.params for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--help", "-h"}
    if not node.params or (hasattr(node, "commands") and words[:1] not in ([], ["--version"], ["--help"])):
        return [f"{command}: no such command"]
    return [
        f"{command}: {word}" for word in words if word.startswith("--") and word.split("=")[0] not in known
    ]


def test_mistakes_are_found() -> None:
    assert mistakes("equipes md model structure --steps 5 --out md") == []
    assert mistakes("equipes md model structure --stepz 5") == [
        "equipes md model structure --stepz 5: --stepz"
    ]
    assert mistakes("equipes data chek frames.xyz") == ["equipes data chek frames.xyz: no such command"]
    assert mistakes("equipes mdd model") == ["equipes mdd model: no such command"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=[path.name for path in DOCUMENTS])
def test_documented_commands_exist(document: Path) -> None:
    assert [mistake for command in commands(document.read_text()) for mistake in mistakes(command)] == []


def test_the_documents_show_commands() -> None:
    assert sum(len(commands(path.read_text())) for path in DOCUMENTS) > 20


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
