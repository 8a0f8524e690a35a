"""One step of training, as a Lightning module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from equipes.data import LabelledGraph
from equipes.errors import InputError
from equipes.models import Potential
from equipes.training.config import TrainConfig
from equipes.training.ema import average_of, update_average
from equipes.training.losses import Loss, weighted_mean
from equipes.training.optimizers import Moves, build_optimizer, set_learning_rate
from equipes.training.recorded import Part, RecordedStep, can_record
from equipes.training.schedules import learning_rate_factor, stepwise
from equipes.training.state import TrainingState
from equipes.training.stream import Batch

STATE_KEY = "equipes"
# Replayed structures begin without any error. Absolute values would then pull with their full force in directions of
# chance; squares do not, up to this error (in units of the loss), beyond which it counts as much as in absolute values.
_REPLAY_DELTA = 0.05
_STEPS_BETWEEN_GPU_CHECKS = 20


class TrainingModule(pl.LightningModule):
    """The potential being trained, the average of its weights, and the state of the training.

    Optimisation is manual in Lightning's sense: its automatic loop costs half a millisecond a step, as much as a tenth
    of a native training step.
    """

    def __init__(
        self,
        potential: Potential,
        config: TrainConfig,
        loss: Loss,
        frame_labels: Sequence[str],
        fingerprints: Mapping[str, str] | None = None,
        *,
        moves: Moves | None = None,
        replay_weight: float = 1.0,
    ) -> None:
        """`moves` says what the optimiser moves, by default every trainable parameter."""
        super().__init__()
        self.automatic_optimization = False
        self.potential = potential
        self.average: Potential = average_of(potential)
        self.settings = config
        self.loss = loss
        self.frame_labels = frame_labels
        self.state = TrainingState()
        self.moves = moves or Moves()
        self.adapters = self.moves.adapters
        self.replay_weight = replay_weight / (2 * _REPLAY_DELTA)
        self.replay_loss = Loss("huber", loss.scale, _REPLAY_DELTA)
        self.optimizer: Optimizer | None = None
        self.fingerprints = dict(fingerprints or {})
        self.learning_rate = 0.0
        self.last_loss = torch.tensor(float("nan"))
        self._loss_sum: Tensor | None = None
        self._unchecked: list[tuple[Tensor, Tensor, LabelledGraph]] = []
        self._moved: list[Tensor] = []
        self._recorded: RecordedStep | None = None
        self._trainable = [parameter for parameter in potential.parameters() if parameter.requires_grad]
        self._averages = [
            average
            for average, parameter in zip(self.average.parameters(), potential.parameters(), strict=True)
            if parameter.requires_grad
        ]

    def configure_optimizers(self) -> Optimizer:
        self.optimizer = build_optimizer(self.potential.model, self.settings, self.moves)
        self._moved = [tensor for tensor, _ in self.moves.tensors(self.potential.model)]
        return self.optimizer

    def train(self, mode: bool = True) -> TrainingModule:
        super().train(mode)
        self.average.eval()
        return self

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        # What is recorded is copied where the recording reads it, later and without waiting.
        return batch if self._is_recorded(device) else self._there(batch, device)

    def _there(self, batch: Batch, device: torch.device) -> Batch:
        return batch if device.type == "cpu" else batch.to(device)

    def _is_recorded(self, device: torch.device) -> bool:
        """Whether steps are recorded; several processes average their gradients, which cannot be."""
        if self._recorded is not None and self._recorded.refused:
            return False
        alone = self.trainer.world_size == 1
        return self.settings.record_steps and alone and can_record(self.potential, device)

    def weights(self, progress: float) -> Tensor:
        """[3]: the weights of the energy, forces and stress terms."""
        schedules = (
            self.settings.energy_weight,
            self.settings.forces_weight,
            self.settings.stress_weight or 0.0,
        )
        return torch.tensor([stepwise(weight, progress) for weight in schedules], dtype=torch.float64)

    def training_step(self, batch: Batch, batch_index: int) -> None:
        optimizer, state = self.optimizer, self.state
        if optimizer is None:
            raise RuntimeError("Lightning has not configured the optimizer")
        factor = self._rate_factor(state.progress)
        self.learning_rate = set_learning_rate(optimizer, factor * state.plateau_factor)
        parts = self._parts(batch)
        recorded = self._recording(optimizer)
        loss = None if recorded is None else recorded.gradient(parts)
        norm = None
        if loss is None:
            loss = self._gradient(parts)
        elif recorded is not None:
            norm = recorded.update()
        if norm is not None:
            self._note(loss, norm, batch.labelled)
        else:
            if self.adapters is not None:
                self.adapters.pull_back()
            self._note(loss, self._clip(), batch.labelled)
            optimizer.step()
            if self.adapters is not None:
                self.adapters.merge()
        update_average(self._averages, self._trainable, state.step, self.settings.ema_decay)
        state.step += 1
        state.loss_steps += 1

    def _parts(self, batch: Batch) -> list[Part]:
        """What a step trains on: the frames, and those that are replayed."""
        weights = self.weights(self.state.progress)
        parts = [Part(batch, weights, self.loss)]
        if batch.replay is not None:
            parts.append(Part(batch.replay, torch.ones_like(weights), self.replay_loss, self.replay_weight))
        return parts

    def _gradient(self, parts: Sequence[Part]) -> Tensor:
        """Set the gradient of the loss, which is returned, in the parameters."""
        for parameter in self._trainable:
            parameter.grad = None
        loss = sum((part.factor * self._share(part) for part in parts[1:]), self._share(parts[0]))
        # DistributedDataParallel averages gradients over the processes; the loss is a sum over them.
        self.manual_backward(loss * self.trainer.world_size)
        return loss.detach()

    def _recording(self, optimizer: Optimizer) -> RecordedStep | None:
        """What records steps, where they are recorded."""
        if not self._is_recorded(self.potential.device):
            return None
        if self._recorded is None:
            self._recorded = RecordedStep(
                self.potential, self._trainable, self._moved, optimizer, self._clip, self.adapters
            )
        return self._recorded

    def _clip(self) -> Tensor:
        """The norm of the gradient, which is cut where the settings want it."""
        if self.settings.gradient_clip:
            return torch.nn.utils.clip_grad_norm_(self._moved, self.settings.gradient_clip, foreach=True)
        return torch.nn.utils.get_total_norm(
            [tensor.grad for tensor in self._moved if tensor.grad is not None], foreach=True
        )

    def _share(self, part: Part) -> Tensor:
        """What this process's frames of a joint batch add to its loss."""
        batch = self._there(part.batch, self.potential.device)
        forces, stress = part.terms()
        prediction = self.potential(batch.labelled.graph, forces=forces, stress=stress)
        sums = part.loss.sums(prediction, batch.labelled)
        counts, weights = (
            tensor.to(sums.device, non_blocking=True) for tensor in (batch.joint_counts, part.weights)
        )
        return weighted_mean(sums, counts, weights)

    def _rate_factor(self, progress: float) -> float:
        settings = self.settings
        if settings.warmup and self.state.step == 0 and progress == 0:
            progress = 1e-3 * settings.warmup  # a first step of nothing would be a step lost
        return learning_rate_factor(
            settings.schedule, progress, warmup=settings.warmup, cooldown=settings.cooldown
        )

    def _note(self, loss: Tensor, norm: Tensor, labelled: LabelledGraph) -> None:
        """Add up the loss without waiting for a GPU, and see that it is finite."""
        self.last_loss = loss
        if self._loss_sum is None:
            self._loss_sum = torch.tensor(self.state.loss_sum, dtype=torch.float64, device=loss.device)
        self._loss_sum += loss
        self._unchecked.append((loss, norm, labelled))
        # The first step is checked at once: an optimizer begins with its gradient.
        now = loss.device.type == "cpu" or self.state.step == 0
        if now or len(self._unchecked) >= _STEPS_BETWEEN_GPU_CHECKS:
            self.check_finite()

    def check_finite(self) -> None:
        """Raises `InputError` naming the frames of the first step whose loss or gradient was not finite."""
        unchecked, self._unchecked = self._unchecked, []
        if not unchecked:
            return
        finite = torch.stack(
            [torch.isfinite(loss) & torch.isfinite(norm) for loss, norm, _ in unchecked]
        ).tolist()
        if all(finite):
            return
        position = finite.index(False)
        step = self.state.step - len(unchecked) + position + 1
        raise InputError(
            f"the loss is not finite at step {step}, with {self._culprits(unchecked[position][2])} in the batch; "
            "look at these frames (`equipes data check`), or train with a lower train.learning_rate, "
            "train.gradient_clip=1 or model.dtype=float64"
        )

    def _culprits(self, labelled: LabelledGraph) -> str:
        """The frames of a batch whose own residuals are not finite with the averaged weights; else the whole batch."""
        labelled = labelled.to(self.potential.device)
        frames = [self.frame_labels[index] for index in labelled.frame.tolist()]
        with torch.enable_grad():
            prediction = self.average(labelled.graph)
        wrong = ~torch.isfinite(prediction.energy) | torch.isinf(labelled.energy)
        for value, label in ((prediction.forces, labelled.forces),):
            if value is not None:
                rows = (~torch.isfinite(value) | torch.isinf(label)).any(1)
                wrong = wrong.index_put(
                    (labelled.graph.structure[rows],), torch.tensor(True, device=wrong.device)
                )
        wrong = wrong | torch.isinf(labelled.stress).flatten(1).any(1)
        named = [frame for frame, is_wrong in zip(frames, wrong.tolist(), strict=True) if is_wrong]
        return ", ".join(named or frames)

    def collect_loss(self) -> float:
        """The sum of the losses since `restart_loss` (waits for a GPU); zero on all processes but the first."""
        if self._loss_sum is not None:
            if self.trainer.world_size > 1:
                torch.distributed.all_reduce(self._loss_sum)
                if not self.trainer.is_global_zero:
                    self._loss_sum.zero_()
            self.state.loss_sum = float(self._loss_sum)
        return self.state.loss_sum

    def restart_loss(self) -> None:
        """Begin a new sum of losses."""
        self._loss_sum, self.state.loss_sum, self.state.loss_steps = None, 0.0, 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_finite()
        self.collect_loss()
        checkpoint[STATE_KEY] = {"state": self.state.to_dict(), "fingerprints": self.fingerprints}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.state = TrainingState.from_dict(checkpoint[STATE_KEY]["state"])
        if not self.trainer.is_global_zero:
            self.state.loss_sum = 0.0
