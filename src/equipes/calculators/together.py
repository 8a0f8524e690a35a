"""Searches that each ask for one structure at a time, answered together.

An optimiser of ASE moves one structure and waits for its forces. Here many of them wait at once: every search has a
thread, and when all have asked, one evaluation of a batch answers them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from equipes.calculators.ase import Calculator
from equipes.calculators.batched import BatchedEvaluator, StructureError, Structures
from equipes.errors import InputError

Result = TypeVar("Result")


class Stopped(BaseException):
    """Ends the threads of searches that nobody will answer any more; not an error that a search may catch."""


class _Question:
    def __init__(self, atoms: ase.Atoms) -> None:
        self.atoms = atoms
        self.results: dict[str, Any] | None = None
        self.error: BaseException | None = None


class Asking(AseCalculator):
    """The calculator of one search: it waits until the others have asked too.

    Properties: `energy`, `free_energy`, `forces`, and `stress` where the cell has a volume, in ASE's units.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 - as in ASE

    def __init__(self, answer: Callable[[ase.Atoms], dict[str, Any]]) -> None:
        super().__init__()
        self._answer = answer

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results`."""
        super().calculate(atoms, list(properties), list(system_changes))
        assert self.atoms is not None
        if "stress" in properties and self.atoms.cell.rank < 3:
            raise PropertyNotImplementedError(
                "the structure has no stress, because its cell has no volume; set three lattice vectors"
            )
        self.results = self._answer(self.atoms)


class Together(Generic[Result]):
    """Runs searches side by side, with one evaluation for all that wait.

    Args:
        calculator: the potential.
        at_once: searches that go on at the same time, at most; the next begins when one has ended. Batches that do not
            fit into the memory of the device are halved.
    """

    def __init__(self, calculator: Calculator, at_once: int) -> None:
        self.calculator = calculator
        self.at_once = at_once
        self.evaluations: list[int] = []
        self._limit = at_once
        self._evaluators: dict[int, BatchedEvaluator] = {}
        self._changed = threading.Condition()
        self._questions: dict[int, _Question] = {}
        self._stopped = False

    def run(
        self,
        searches: Sequence[Callable[[AseCalculator], Result]],
        on_end: Callable[[int, Result | Exception], None] | None = None,
    ) -> list[Result | Exception]:
        """What the searches return, or the errors that ended them, in their order.

        Args:
            searches: functions of a calculator, which they give to their structure.
            on_end: called with the index of a search and its result as soon as there is one.
        """
        results: dict[int, Result | Exception] = {}
        threads: dict[int, threading.Thread] = {}
        following = iter(enumerate(searches))
        told: set[int] = set()

        def work(index: int, search: Callable[[AseCalculator], Result]) -> None:
            try:
                result: Result | Exception = search(Asking(lambda atoms: self._ask(index, atoms)))
            except Stopped:
                return
            except Exception as error:
                result = error
            with self._changed:
                results[index] = result
                self._changed.notify_all()

        try:
            while True:
                with self._changed:
                    for index in [index for index in threads if index in results]:
                        threads.pop(index).join()
                while len(threads) < self.at_once and (begun := next(following, None)) is not None:
                    index, search = begun
                    threads[index] = threading.Thread(target=work, args=(index, search), daemon=True)
                    threads[index].start()
                if not threads:
                    break
                with self._changed:
                    # With a limit of time, so that an interrupt is heard while nothing happens.
                    while not all(index in results or index in self._questions for index in threads):
                        self._changed.wait(timeout=1.0)
                    ended = sorted(set(results) - told)
                    ready = not any(index in results for index in threads)
                    asked = dict(sorted(self._questions.items())) if ready else {}
                    for index in asked:
                        del self._questions[index]
                for index in ended:
                    told.add(index)
                    if on_end is not None:
                        on_end(index, results[index])
                if asked:  # otherwise others begin first, so that batches stay full
                    self._answer(asked)
        finally:
            with self._changed:
                self._stopped = True
                self._changed.notify_all()
            for thread in threads.values():
                thread.join()
        return [results[index] for index in range(len(searches))]

    def _ask(self, index: int, atoms: ase.Atoms) -> dict[str, Any]:
        question = _Question(atoms)
        with self._changed:
            if self._stopped:
                raise Stopped
            self._questions[index] = question
            self._changed.notify_all()
            while question.results is None and question.error is None:
                if self._stopped:
                    raise Stopped
                self._changed.wait()
        if question.error is not None:
            raise question.error
        assert question.results is not None
        return question.results

    def _answer(self, asked: dict[int, _Question]) -> None:
        indices = list(asked)
        start = 0
        while start < len(indices):
            chosen = indices[start : start + self._limit]
            if self._evaluate([asked[index] for index in chosen], start):
                start += len(chosen)
        with self._changed:
            self._changed.notify_all()

    def _evaluate(self, questions: list[_Question], part: int) -> bool:
        """Answer the questions; False if they have to be divided."""
        # Each part of a batch has lists of neighbours of its own.
        evaluator = self._evaluators.setdefault(part, BatchedEvaluator(self.calculator))
        waiting = questions
        while waiting:
            now = Structures.from_atoms([question.atoms for question in waiting], self.calculator.device)
            try:
                found = evaluator(now)
            except StructureError as error:
                waiting[error.index].error = InputError(str(error))
                waiting = [question for question in waiting if question.error is None]
                continue
            except torch.OutOfMemoryError as error:
                if len(waiting) == 1:
                    waiting[0].error = InputError(
                        f"the structure does not fit into the memory of {self.calculator.device} ({error});"
                        " take a larger device or --device cpu"
                    )
                    return True
                self._limit = (len(waiting) + 1) // 2
                self._evaluators = {}
                return False
            self.evaluations.append(len(waiting))
            assert found.forces is not None and found.stress is not None
            energies, forces, stresses = (
                tensor.cpu().numpy() for tensor in (found.energy, found.forces, found.stress)
            )
            last = 0
            for index, question in enumerate(waiting):
                size = len(question.atoms)
                energy = float(energies[index])
                results = {
                    "energy": energy,
                    "free_energy": energy,
                    "forces": forces[last : last + size].copy(),
                }
                if np.isfinite(stresses[index]).all():
                    results["stress"] = full_3x3_to_voigt_6_stress(stresses[index])
                question.results = results
                last += size
            return True
        return True
