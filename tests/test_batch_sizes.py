"""Batches as large as the memory allows: how sizes are learned, how frames are divided, and equal results."""

from __future__ import annotations

import math
from pathlib import Path

import ase.build
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import equipes
from equipes import AtomGraph, InputError
from equipes.cli import app, run
from equipes.data import Frame, read_frames
from equipes.training import batch_sizes
from equipes.training.batch_sizes import BatchSize, CUDAMemory, HostMemory, halved, packed, weight
from equipes.training.metrics import predict_frames

DATA = Path(__file__).parent / "data"
SMALL = {"r_max": 4.0, "num_layers": 1, "l_max": 1, "num_features": 4, "avg_num_neighbors": 20.0}


class Pretended:
    """A device of so many bytes, of which each calculation takes a base and so much by atom and edge."""

    def __init__(self, total: float, each: float = 1000.0, base: float = 0.0) -> None:
        self.total, self.each, self.base = total, each, base
        self.size = 0.0
        self.sizes: list[float] = []

    def free(self) -> int:
        return int(self.total)

    def peak(self, calculate):
        result = calculate()
        self.sizes.append(self.size)
        return result, int(self.base + self.each * self.size)

    def of(self, size: BatchSize, heavy: float) -> None:
        """A batch of that size, refused where it does not fit."""
        self.size = heavy

        def calculate() -> None:
            if self.base + self.each * heavy > self.total:
                raise torch.OutOfMemoryError("no memory left")

        size.measured(heavy, calculate)


def grown(memory: Pretended, steps: int = 12, **options: float) -> BatchSize:
    size = BatchSize(memory, share=0.8, first=100.0, **options)
    for _ in range(steps):
        memory.of(size, size.limit)
    return size


@given(st.floats(1e6, 1e12), st.floats(10.0, 1e4), st.floats(0.0, 1e5))
def test_batches_grow_to_the_share_of_the_memory(total: float, each: float, base: float) -> None:
    memory = Pretended(total, each, base)
    size = grown(memory, 20)
    used = base + each * size.limit
    # Sizes are rounded down by up to a quarter of an octave.
    assert used <= 0.8 * total * 1.001 + base
    assert used >= 0.8 * total * 2**-0.25 * 0.999 - base or size.limit <= 100
    ratios = np.divide(memory.sizes[1:], memory.sizes[:-1])
    assert ratios.max() <= 4.0


def test_a_few_bytes_more_or_less_make_no_other_batches() -> None:
    limits = {grown(Pretended(1e9 * factor)).limit for factor in (1.0, 1.01, 1.02, 1.03)}
    assert len(limits) == 1
    assert grown(Pretended(2e9)).limit > 1.5 * max(limits)


def test_growth_ends_at_the_ceiling_and_where_memory_ran_out() -> None:
    assert grown(Pretended(1e12), ceiling=5000.0).limit == pytest.approx(5000.0, rel=0.16)
    memory = Pretended(1e12)
    size = grown(memory, 2)
    size.too_large(1000)
    assert size.limit == 500
    memory.of(size, 500)
    assert size.limit <= 500


def test_what_nobody_measures_keeps_to_the_ceiling(tmp_path: Path) -> None:
    memory = HostMemory(process=tmp_path / "none")
    size = BatchSize(memory, share=0.5, ceiling=20_000)
    assert size.measured(5000, lambda: 7) == 7
    assert size.limit == pytest.approx(20_000, rel=0.16)
    size = BatchSize(memory, share=0.5)
    size.measured(5000, lambda: 7)
    assert size.limit == pytest.approx(batch_sizes.FIRST, rel=0.16)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells it")
def test_the_memory_of_this_process_is_measured() -> None:
    memory = HostMemory()
    assert memory.free() > 2**20

    def take(megabytes: int) -> int:
        return int(np.ones(megabytes * 2**20, dtype=np.uint8)[-1])

    _, warm = memory.peak(lambda: take(1))
    if warm is None:
        pytest.skip("this process may not ask for its peak")
    for megabytes in (40, 120, 60):  # less after more, too
        result, taken = memory.peak(lambda megabytes=megabytes: take(megabytes))
        assert result == 1
        assert 0.8 * megabytes < taken / 2**20 < 1.5 * megabytes + 20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_memory_of_a_gpu_is_measured() -> None:
    memory = CUDAMemory(torch.device("cuda"))
    free = memory.free()
    _, taken = memory.peak(lambda: torch.ones(2**24, device="cuda").sum().item())
    assert 2**26 <= taken < 2**26 + 2**22
    assert abs(memory.free() - free) < 2**28


# -- dividing frames -------------------------------------------------------------------------------------------------


def frame(atoms, index: int) -> Frame:
    return Frame(
        atoms=atoms, energy=None, forces=None, stress=None, config_type=None, source="set.xyz", index=index
    )


@pytest.fixture(scope="module")
def mixed() -> list[Frame]:
    """Forty structures from one to sixteen atoms, with from no to hundreds of edges."""
    rng = np.random.default_rng(0)
    structures = []
    for _ in range(40):
        kind = rng.integers(4)
        atoms = [
            ase.build.bulk("Si", a=5.4 + rng.random()),
            ase.build.bulk("Si", a=5.43, cubic=True) * (1, 1, 1 + int(rng.integers(2))),
            ase.build.molecule("H2O"),
            ase.Atoms("O"),
        ][kind]
        atoms.rattle(0.05, rng=rng)
        structures.append(atoms)
    return [frame(atoms, index) for index, atoms in enumerate(structures)]


def graph_of(item: Frame) -> AtomGraph:
    return AtomGraph.from_atoms(item.atoms, 4.0)


@pytest.mark.parametrize("limit", [1.0, 50.0, 400.0, 1500.0, math.inf])
def test_every_frame_is_in_one_batch_and_batches_are_full(mixed: list[Frame], limit: float) -> None:
    size = BatchSize(Pretended(1e12), share=0.8, first=limit)
    batches = list(packed(mixed, graph_of, size))
    indices = [index for batch in batches for index, _ in batch]
    assert sorted(indices) == list(range(len(mixed)))
    weights = [sum(weight(graph) for _, graph in batch) for batch in batches]
    for batch, heavy in zip(batches, weights, strict=True):
        assert heavy <= limit or len(batch) == 1
        assert [weight(graph) for _, graph in batch] == sorted(
            (weight(graph) for _, graph in batch), reverse=True
        )
    if limit == 1500.0:  # several times the largest frame
        assert np.mean(weights[:-1]) > 0.85 * limit
    if limit == math.inf:
        assert len(batches) == 1
    again = [index for batch in packed(mixed, graph_of, size) for index, _ in batch]
    assert again == indices


def test_graphs_are_made_as_they_are_needed(mixed: list[Frame]) -> None:
    made = []

    def noted(item: Frame) -> AtomGraph:
        made.append(item.index)
        return graph_of(item)

    batches = packed(mixed, noted, BatchSize(Pretended(1e12), share=0.8, first=100.0))
    next(batches)
    assert len(made) < len(mixed) / 2


@given(st.lists(st.integers(1, 6), min_size=2, max_size=9))
def test_halves(counts: list[int]) -> None:
    chains = [ase.Atoms(f"H{n}", positions=[[0.0, 0.0, 9.0 * k] for k in range(n)]) for n in counts]
    batch = [(i, AtomGraph.from_atoms(atoms, 1.0)) for i, atoms in enumerate(chains)]
    one, other = halved(batch)
    assert one and other and [*one, *other] == batch
    largest = max(weight(graph) for _, graph in batch)
    difference = sum(weight(g) for _, g in one) - sum(weight(g) for _, g in other)
    assert abs(difference) <= 2 * largest


# -- predictions -----------------------------------------------------------------------------------------------------


def close(found: list, expected: list) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.energy == pytest.approx(b.energy, rel=1e-12)
        np.testing.assert_allclose(a.forces, b.forces, rtol=0, atol=1e-12 * (1 + np.abs(b.forces).max()))
        assert (a.stress is None) == (b.stress is None)


@pytest.fixture(scope="module")
def potential() -> equipes.Potential:
    return equipes.build("nequip", ["Si", "H", "O", "Hf"], SMALL, dtype="float64", seed=1)


def test_automatic_batches_give_the_numbers_of_single_frames_in_order(
    potential: equipes.Potential, mixed: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_sizes, "FIRST", 60)
    seen = []
    monkeypatch.setattr(
        BatchSize, "on", classmethod(lambda cls, _: cls(Pretended(5e5), share=0.8, first=60.0))
    )
    expected = predict_frames(potential, mixed, batch_size=1)
    found = predict_frames(
        potential, mixed, batch_size="auto", progress=lambda done, total: seen.append((done, total))
    )
    close(found, expected)
    assert seen[-1] == (40, 40) and 2 < len(seen) < 30


@pytest.mark.parametrize("batch_size", ["auto", None])
def test_what_does_not_fit_is_halved(
    potential: equipes.Potential, mixed: list[Frame], monkeypatch: pytest.MonkeyPatch, batch_size
) -> None:
    expected = predict_frames(potential, mixed, batch_size=1)
    tried = []

    def limited(graph, **options):
        tried.append(graph.n_atoms + graph.n_edges)
        if tried[-1] > 700:
            raise torch.OutOfMemoryError("no memory left")
        return equipes.Potential.forward(potential, graph, **options)

    monkeypatch.setattr(potential, "forward", limited)
    close(predict_frames(potential, mixed, batch_size=batch_size), expected)
    assert max(tried) > 700
    if batch_size == "auto":
        # It is learned: once refused, no batch is as large again.
        first = next(i for i, heavy in enumerate(tried) if heavy <= 700)
        assert sum(heavy > 700 for heavy in tried[first:]) <= 2
    with pytest.raises(
        InputError, match=r"set.xyz frame 0 to set.xyz frame 39 do not fit .* smaller --batch-size"
    ):
        predict_frames(potential, mixed, batch_size=40)


def test_a_frame_that_alone_does_not_fit_is_named(
    potential: equipes.Potential, mixed: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = max(mixed, key=lambda item: weight(graph_of(item)))

    def limited(graph, **options):
        if graph.n_edges >= graph_of(largest).n_edges:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes")
        return equipes.Potential.forward(potential, graph, **options)

    monkeypatch.setattr(potential, "forward", limited)
    with pytest.raises(InputError, match="take a larger device"):
        predict_frames(potential, mixed, batch_size="auto")

    def broken(graph, **options):
        raise RuntimeError("something else")

    monkeypatch.setattr(potential, "forward", broken)
    with pytest.raises(RuntimeError, match="something else"):
        predict_frames(potential, mixed, batch_size="auto")


def test_the_command_takes_a_number_or_auto(
    potential: equipes.Potential, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = tmp_path / "model.safetensors"
    potential.save(model)
    results = {}
    for size in ("auto", "1"):
        out = tmp_path / f"{size}.extxyz"
        words = ["predict", str(model), str(DATA / "silicon.xyz"), str(out), "--batch-size", size]
        assert run(app, words, "equipes") == 0
        results[size] = read_frames([str(out)])
    for a, b in zip(results["auto"], results["1"], strict=True):
        assert a.energy == pytest.approx(b.energy, abs=1e-6)
    for wrong in ("0", "many", "-3", "1.5"):
        words = ["evaluate", str(model), str(DATA / "silicon.xyz"), "--batch-size", wrong]
        assert run(app, words, "equipes") == 2
        assert f"--batch-size {wrong}: give a number of frames" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_automatic_batches_on_a_gpu(potential: equipes.Potential, mixed: list[Frame]) -> None:
    expected = predict_frames(potential, mixed, batch_size=1, device="cpu")
    try:
        close(predict_frames(potential, mixed, batch_size="auto", device="cuda"), expected)
    finally:
        potential.to("cpu")
