"""Splits: never one frame for two purposes, the same for the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipes.data import read_indices, split_indices
from equipes.errors import InputError


@settings(max_examples=50)
@given(
    n=st.integers(3, 300),
    shares=st.tuples(*[st.floats(0.05, 0.3)] * 3),
    seed=st.integers(0, 2**32),
    whole=st.booleans(),
)
def test_parts_never_overlap(n: int, shares: tuple[float, float, float], seed: int, whole: bool) -> None:
    counts = [max(1, int(share * n)) for share in shares]
    sizes = counts if whole else [count / n for count in counts]
    parts = split_indices(n, *sizes, seed=seed)
    assert list(parts) == ["train", "val", "test"]
    assert [len(part) for part in parts.values()] == counts
    everything = np.concatenate(list(parts.values()))
    assert len(set(everything.tolist())) == sum(counts)
    assert everything.min() >= 0 and everything.max() < n
    again = split_indices(n, *sizes, seed=seed)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)


def test_the_seed_decides_and_frames_are_shuffled() -> None:
    first, second = (split_indices(1000, 100, 50, seed=seed)["train"] for seed in (1, 2))
    assert not np.array_equal(first, second)
    assert first.max() > 500 and not np.array_equal(first, np.arange(100))


def test_no_size_means_the_rest() -> None:
    parts = split_indices(10, None, 2, 0.3, seed=0)
    assert [len(parts[name]) for name in ("train", "val", "test")] == [5, 2, 3]
    assert list(split_indices(10, None, None, seed=0)) == ["train"]


def test_learning_curves_share_validation_and_grow() -> None:
    small, large = (split_indices(100, n, 20, 10, seed=3) for n in (10, 70))
    assert np.array_equal(small["val"], large["val"]) and np.array_equal(small["test"], large["test"])
    assert set(small["train"]) < set(large["train"])


def test_lists_of_frames_and_files(tmp_path: Path) -> None:
    listed = [7, 3, 5]
    (tmp_path / "val.txt").write_text("7\n3, 5\n")
    np.save(tmp_path / "val.npy", np.array(listed))
    np.savez(tmp_path / "two.npz", val=listed, train=[0])
    np.savez(tmp_path / "one.npz", old_indices=listed)
    (tmp_path / "two.json").write_text(json.dumps({"val": listed, "test": [1]}))
    (tmp_path / "one.json").write_text(json.dumps(listed))
    for val in (listed, np.array(listed), *sorted(tmp_path.iterdir())):
        parts = split_indices(10, None, val, 2, seed=0)
        assert parts["val"].tolist() == listed
        assert len(parts["test"]) == 2 and len(parts["train"]) == 5
        assert len(set(np.concatenate(list(parts.values())).tolist())) == 10


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((8, 3, None), "n_train 8, n_val 3: 11 frames asked for, but there are 10"),
        ((None, 10, None), "no frames are left for training"),
        ((None, 4, 0.7), "n_val 4, n_test 7: 11 frames"),
        ((0, 2, None), "n_train: 0 frames make an empty split"),
        ((5, -1, None), "n_val: -1 frames"),
        ((5, 0.01, None), "n_val: the fraction 0.01 of 10 frames is an empty split"),
        ((1.0, 2, None), r"n_train: 1.0 is not a fraction"),
        ((5, 1.5, None), "n_val: 1.5 is not a fraction"),
        ((5, float("nan"), None), "n_val: nan is not a fraction"),
        ((True, 2, None), "n_train: True is neither"),
        (([0, 1], [1, 2], None), "frame 1 is in both train and val"),
        (([0, 1], [2], [0, 2]), "in both train and test"),
        (([0, 10], None, None), "n_train: there is no frame 10; the data has 10, numbered from 0 to 9"),
        (([-1], None, None), "there is no frame -1"),
        (([1, 2, 1], None, None), "frame 1 is listed twice"),
        (([], None, None), "the list of frames is empty"),
        (([0.5], None, None), "not a list of whole frame numbers"),
        (([0, 1, 2], 8, None), "n_val 8: 8 frames asked for, but there are 7"),
    ],
)
def test_impossible_splits(sizes: tuple[object, object, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_indices(10, *sizes, seed=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"1\ntwo\n", "not a list of frame numbers .*two"),
        ("a.txt", b"1.5\n", "not a list of frame numbers"),
        ("a.json", b'{"train": [1], "test": [2]}', "no list 'val' .*'train', 'test'"),
        ("a.json", b'{"val": [1', "not a list of frame numbers"),
        ("a.json", b"[[1, 2]]", "not a list of whole frame numbers"),
        ("a.npy", b"nothing", "not a list of frame numbers"),
        ("a.npz", b"PK", "not a list of frame numbers"),
    ],
)
def test_files_that_list_no_frames(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_indices(tmp_path / name, "val")


def test_a_missing_file_of_frames(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file; data\.n_val is"):
        split_indices(10, None, tmp_path / "none.txt", seed=0)


def test_kept_frames_are_always_for_training() -> None:
    for n_train in (None, 5, 0.5):
        parts = split_indices(20, n_train, 5, 4, seed=3, keep=[2, 7])
        assert {2, 7} <= set(parts["train"]) and len(parts["val"]) == 5 and len(parts["test"]) == 4
        assert len(parts["train"]) == {None: 11, 5: 5, 0.5: 10}[n_train]
        assert len(np.unique(np.concatenate(list(parts.values())))) == sum(map(len, parts.values()))
    # What was asked for by number stays where it was asked to be.
    parts = split_indices(20, None, [2, 3], seed=3, keep=[2, 7])
    assert list(parts["val"]) == [2, 3] and 7 in parts["train"]
    assert list(split_indices(20, [0, 1], 5, seed=3, keep=[2, 7])["train"]) == [0, 1]
