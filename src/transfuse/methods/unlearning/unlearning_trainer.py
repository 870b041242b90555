"""The gradient methods of unlearning as a `Trainer` of transformers.

>>> from transformers import TrainingArguments
>>> from transfuse.methods.unlearning.npo import NPO, Config
>>> from transfuse.methods.unlearning.answer_tokens import encode_answer
>>> from transfuse.nets.tiny_llama import tiny_llama, word_tokenizer
>>> tokenizer = word_tokenizer(["question : a ? answer : b . question : c ? answer : d ."])
>>> forget = [encode_answer(tokenizer, "question : a ? answer :", "b")]
>>> retain = [encode_answer(tokenizer, "question : c ? answer :", "d")]
>>> trainer = UnlearningTrainer(
...     tiny_llama(tokenizer, 16, 1),
...     TrainingArguments("build/npo", max_steps=2, use_cpu=True, report_to="none", disable_tqdm=True),
...     objective=NPO(Config(beta=0.1), tokenizer, forget, retain),
...     processing_class=tokenizer,
... )
>>> trainer.train().global_step                                # doctest: +ELLIPSIS
{...}
2

All that a Trainer has works as usual: adapters of PEFT, several devices, accumulation, schedules, callbacks, resume.
Retained items are drawn by seed and step, not by device: a resumed run, or one on more devices with the same effective
batch, sees the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from transfuse.errors import UserError
from transfuse.methods.unlearning.answer_training import RETAIN, batch_at
from transfuse.methods.unlearning.gradient_objective import Objective


class _Positions(Dataset[int]):
    """The forget set as positions; texts stay with the objective, tokenised once."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


def _collate(positions: list[int]) -> dict[str, Tensor]:
    return {"forget": torch.tensor(positions)}


class UnlearningTrainer(Trainer):
    """A `Trainer` that minimises an objective of this family.

    Args:
        model: a causal language model of transformers, or a `PeftModel`.
        args: the Trainer's arguments; the seed also draws the retained items.
        objective: the method with its forget and retain set, for example `NPO(Config(), tokenizer, forget, retain)`.
        **kwargs: as of `Trainer`; pass `processing_class` for the tokenizer to be saved with checkpoints.

    Raises:
        UserError: a data set or collator of one's own.
    """

    loss_is_scaled_for_ga = True  # terms are means over the whole accumulated batch; see get_batch_samples

    def __init__(self, model: nn.Module, args: TrainingArguments, *, objective: Objective, **kwargs: Any) -> None:
        if given := [name for name in ("train_dataset", "data_collator") if kwargs.get(name) is not None]:
            raise UserError(f"{given[0]} given to UnlearningTrainer", "the sets that its objective was made with")
        args.remove_unused_columns = False
        super().__init__(
            model, args, train_dataset=_Positions(len(objective.forget)), data_collator=_collate, **kwargs
        )  # fmt: skip
        self.objective: Objective = objective

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; the reference is taken from the model as it was given, before any checkpoint is loaded into it."""
        model: Any = self.model
        self._move_model_to_device(model, self.args.device)
        self.objective.keep_reference(model)
        return super().train(*args, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """Adds retained items to each part of a step's batch, and counts the values of both terms over all parts.

        Returns:
            the parts, and (2,) numbers of values over all parts and processes, in place of the number of labels.
        """
        parts, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        sizes = torch.zeros(2, dtype=torch.long, device=device)
        process, processes = self.args.process_index, self.args.world_size
        for index, part in enumerate(parts):
            forget = part["forget"].tolist()
            retain = self._retained(len(forget), (self.state.global_step * num_batches + index) * processes + process)
            part["retain"] = torch.tensor(retain, dtype=torch.long, device=part["forget"].device)
            sizes += torch.tensor(self.objective.sizes(forget, retain), device=device)
        if processes > 1:
            sizes = self.accelerator.gather(sizes[None]).sum(0)
        return parts, sizes

    def _retained(self, count: int, batch: int) -> list[int]:
        total = len(self.objective.retain)
        return batch_at(batch, total, count, self.args.seed, RETAIN) if total else []

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:  # fmt: skip
        """The objective of one part, over the values of the whole batch, so that parts add up to it."""
        sizes: tuple[int, int] | None = None
        if isinstance(num_items_in_batch, Tensor) and num_items_in_batch.numel() == 2:
            sizes = (int(num_items_in_batch[0]), int(num_items_in_batch[1]))
        loss = self.objective.loss(model, inputs["forget"].tolist(), inputs["retain"].tolist(), sizes)
        loss = loss * (self.args.world_size if sizes is not None else 1)  # gradients are averaged over processes
        return (loss, {}) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: inputs are positions."""
        return 0
