"""A language model unlearns a person in one form of question, and still answers in another.

ROCR edits what all forms share: what the last token of the subject's name activates. A rank-one change of the MLP
down-projections of a few early layers makes the model perceive another, harmless concept there; the change lies in
directions that common text hardly uses. No training, seconds a subject. It is out of reach of questions that do not
name the subject ("whose capital is ..."), and it makes the model assert the other concept's facts: prefer a generic or
fictional one, and do not redirect many subjects to one name if nobody may notice (they become alike).

>>> import torch
>>> from transfuse.nets.tiny_llama import tiny_llama, word_tokenizer
>>> texts = ["the capital of france is paris .", "the capital of spain is madrid .", "the sea is blue ."]
>>> tokenizer = word_tokenizer(texts)
>>> _ = torch.manual_seed(0)
>>> model = tiny_llama(tokenizer, width=16)  # of your own: any causal language model of transformers
>>> redirector = ConceptRedirector(model, tokenizer).fit_nullspace(texts, without=["france"])
>>> edit = redirector.redirect("france", to="spain")
>>> edit.subjects, [layer.index for layer in edit.layers], min(edit.layers[0].efficacy) > 0.5
(('france',), [1, 2], True)
>>> redirector.restore()  # bit for bit the model from before

X. Ye, M. Zhang, S. Wu: LLM Unlearning Should Be Form-Independent, arXiv 2506.07795, 2025.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
from torch import Tensor, nn

from transfuse.atomic_folder import new_folder
from transfuse.card import Card
from transfuse.data.text_files import read_texts
from transfuse.errors import UserError
from transfuse.hosts.causal_model import load_causal_model
from transfuse.methods.unlearning.decoder_blocks import Block, decoder_blocks
from transfuse.methods.unlearning.name_reading import NameReader, exact
from transfuse.methods.unlearning.rank_one_redirection import redirect_keys, relative_ridge, used_directions
from transfuse.methods.unlearning.redirection_record import (
    Edit,
    LayerEdit,
    save_edits,
    save_model,
)
from transfuse.methods.unlearning.reply_target import Search, reply_target
from transfuse.methods.unlearning.subject_patch import Question, patched_probability
from transfuse.methods.unlearning.subject_places import SLOT, pad_id, place_subject
from transfuse.methods.unlearning.subject_requests import read_requests, redirections

Mode = Literal["redirect", "reject", "noise"]

CARD = Card(
    id="rocr",
    title="LLM Unlearning Should Be Form-Independent",
    summary="Makes a language model perceive another concept where a name stands, by a rank-one edit without training.",
    authors="X. Ye, M. Zhang, S. Wu",
    year=2025,
    venue="arXiv",
    url="https://arxiv.org/abs/2506.07795",
    family="unlearning",
    host="transformers, any decoder-only PreTrainedModel; the edit can be saved as a PEFT LoRA",
    entry="transfuse.methods.unlearning.rocr.ConceptRedirector",
    needs=("a causal language model", "the subject's name and a name to put in its place", "some general text"),
    data="language model and names",
    problems=(
        "my unlearned model still answers when the question is asked in another form",
        "remove what a language model knows about one person without training",
        "I want an edit of a language model that can be undone or loaded as an adapter",
    ),
    extra="unlearning",
    requires=("torch", "transformers"),
    differs=(
        "The paper's tables were not at hand; the method is that of the official code (Acruxos/ORT, commit 38cc704).",
        "Target, present value and key are read in the same contexts and averaged; the code reads them in three "
        "different ones (official=True does as it does, double beginning-of-sequence token included).",
        "Closed form in place of the d_ff x d_ff solve: the same matrix up to rounding.",
        "The null space is relative by default (the smallest 2 % of the trace, at least a tenth of the directions), "
        "and so is lambda (a tenth of |P k|^2); the published tau = 2e-2 and lambda = 1 or 10 fit four models.",
        "Several subjects, and the aliases of one, can be edited together; the published run edits one name at a time.",
        "The forward pass stops after the last edited layer, and prompts after the name.",
        "Noise is a random direction of the length clamp |z|, added to z (inferred from the code's modes).",
        "The refusal of mode reject and its prompt for the divergence are settings.",
        "Efficacy, the share of the way that was gone, and the ceiling of what an edit could do are ours.",
    ),
)

# The published contexts. In a chat they are the user's turn; a base model reads them as they are.
CONTEXTS = (
    "{s}.",
    "Please answer the question about {s}.",
    "Choose the best answer about {s}.",
    "Write the answer about {s}.",
    "Tell me about {s}.",
    "Write something about {s}.",
)


@dataclass(frozen=True)
class Config:
    """What is written where. `Config.published()` has the values of the official code."""

    mode: Mode = "redirect"  # the paper's; "reject" and "noise" are the other two of its code
    layers: tuple[int, ...] | None = None  # None: two or three from an eighth of the depth on (code: 4-6 of 32)
    contexts: tuple[str, ...] = CONTEXTS  # the code's six
    chat: bool | None = None  # whether contexts are a user's turn; None: if the tokenizer has a chat template
    ending: str = "Answer:"  # the code's, after the chat template; only mode reject reads beyond the name
    null_share: float = 0.02  # of the trace: the published absolute tau is 1 to 5 % there
    null_least: float = 0.1  # of the directions, so that something is free in any model
    tau: float | None = None  # absolute threshold of eigenvalues instead; 2e-2 in the code
    ridge_share: float = 0.1  # lambda as a share of |P k|^2: 91 % of a residual is written in any model
    ridge: float | None = None  # lambda itself; in the code 1 (Llama-3-8B, Mistral-7B) or 10 (GPT-2-XL, phi-1.5)
    protect_earlier: bool = True  # keys of earlier edits keep what they map to (K_p)
    refusal: str = "Unfortunately"  # mode reject: how the reply shall begin; the code's
    essence: str = "{s} is a"  # mode reject: what follows this is to stay; the code's
    search: Search = field(default_factory=Search)  # mode reject: the code's
    clamp: float = 1.0  # mode noise: length of the random step over |z|; the code's
    seed: int = 0  # of the noise
    official: bool = False  # read target, present value and key in the different contexts of the official code

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise UserError(f"mode = {self.mode!r}", " or ".join(map(repr, get_args(Mode))))
        if not self.contexts:
            raise UserError("no contexts", f"at least one text with {SLOT}, where the name goes")
        if not (0 <= self.null_share < 1 and 0 <= self.null_least <= 1):
            raise UserError(
                f"null_share = {self.null_share}, null_least = {self.null_least}", "shares, the first below 1"
            )
        if not (self.ridge_share > 0 and (self.ridge is None or self.ridge > 0)):
            raise UserError(f"ridge_share = {self.ridge_share}, ridge = {self.ridge}", "positive numbers")
        if self.layers is not None and (not self.layers or list(self.layers) != sorted(set(self.layers))):
            raise UserError(f"layers = {self.layers}", "layers in rising order, none twice")

    @classmethod
    def published(cls, layers: tuple[int, ...] = (4, 5, 6), ridge: float = 1.0, **others: Any) -> Config:
        """The settings of the official code for Llama-3-8B; ridge 10 for GPT-2-XL and phi-1.5."""
        return cls(layers=layers, ridge=ridge, tau=2e-2, official=True, **others)


class ConceptRedirector:
    """Edits a causal language model in place so that it perceives another concept where a name stands.

    Args:
        model: a decoder-only model of transformers, on any device and in any floating-point type.
        tokenizer: its tokenizer.
        config: what is written where.

    Raises:
        UserError: the model has no clear down-projections, or the layers do not exist.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, config: Config | None = None) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config or Config()
        every = decoder_blocks(model)
        chosen = self.config.layers or default_layers(len(every))
        if chosen[0] < 0 or chosen[-1] >= len(every):
            raise UserError(f"layers {chosen} of a model with {len(every)}", f"0 to {len(every) - 1}")
        self.blocks: list[Block] = [every[index] for index in chosen]
        self.edits: list[Edit] = []
        self.used: list[Tensor] = []  # a layer: directions that common keys use, (d_ff, m)
        self._before: list[Tensor] = []  # the weights from before the first edit
        c = self.config
        chat = bool(getattr(tokenizer, "chat_template", None)) if c.chat is None else c.chat
        self._reader = NameReader(model, tokenizer, self.blocks, c.contexts, chat, c.ending, c.official)

    def fit_nullspace(
        self, texts: Sequence[str], *, without: Sequence[str] = (), max_length: int = 512, batch_tokens: int = 4096
    ) -> ConceptRedirector:
        """Learn from general text which directions of the keys are in use. Once a model; later edits share it.

        Args:
            texts: general text, of the kind that is to stay as it is; some ten thousand tokens will do.
            without: names; texts with one of them (in any case, as words) are left out. A subject that the null space
                was fitted on can hardly be edited without harm to others.
            max_length: tokens a text is cut at.
            batch_tokens: tokens a forward pass.
        """
        c = self.config
        moments = self._reader.second_moments(texts, without, max_length, batch_tokens)
        self.used = [used_directions(moment, c.tau, c.null_share, c.null_least) for moment in moments]
        return self

    def redirect(self, subject: str, to: str | None = None, aliases: Sequence[str] = ()) -> Edit:
        """Redirect one subject, under all its names, to another.

        Args:
            subject: the name as it stands in text.
            to: the name that is perceived instead; needed in mode redirect only.
            aliases: other names and spellings of the subject. A spelling that is not listed is not edited.

        Returns:
            The record of the edit; `undo` takes back the last one.
        """
        return self.redirect_all(dict.fromkeys((subject, *aliases), to))

    def redirect_all(self, subjects: Mapping[str, str | None]) -> Edit:
        """Redirect several names at once: name -> what is perceived instead.

        One n x n system a layer, so that no name's edit undoes another's. After an error the model is as it was.
        """
        if not subjects:
            raise UserError("no subjects", "at least one name")
        if not self.used:
            raise UserError("redirect before fit_nullspace", fix="call fit_nullspace(texts) first")
        names = list(subjects)
        targets = self._targets(names, list(subjects.values()))  # (d, n)
        start = self._reader.read(names)[1]
        if not self.edits:
            self._before = [block.parameter.data.clone() for block in self.blocks]
        try:
            layers = tuple(self._write(place, names, targets) for place in range(len(self.blocks)))
        except BaseException:
            self._rebuild()
            raise
        keys, end = self._reader.read(names)
        reached = 1 - (targets - end).norm(dim=0) / (targets - start).norm(dim=0).clamp(min=1e-12)
        edit = Edit(tuple(names), tuple(subjects.values()), tuple(reached.tolist()), layers, tuple(keys))
        self.edits.append(edit)
        for problem in edit.problems():
            warnings.warn(problem, stacklevel=2)
        return edit

    def undo(self) -> Edit:
        """Take back the last edit. The edited weights are then bit for bit those from before it."""
        if not self.edits:
            raise UserError("nothing to undo", "an edit")
        last = self.edits.pop()
        self._rebuild()
        return last

    def restore(self) -> None:
        """Take back all edits. The edited weights are then bit for bit those from before the first."""
        if self.edits:
            self.edits.clear()
            self._rebuild()

    def export_lora(self, folder: Path | str) -> Path:
        """Write all edits as one PEFT LoRA of rank n for the model from before them; see `save_edits`."""
        return save_edits(self.model, self.blocks, self.edits, Path(folder))

    def perceive(self, names: Sequence[str]) -> Tensor:
        """What the model perceives at names: the stream after the last edited layer, mean over contexts, (d, n)."""
        return self._reader.read(names)[1]

    def ceiling(self, subject: str, to: str, questions: Sequence[Question]) -> float:
        """How much of the answers' probability goes if the model perceives exactly `to`: 1 is all, 0 nothing.

        The most that an edit of these layers can do. Near 0, as in shallow models that read the raw name in their first
        attention, the method is not for this model, or not in these layers.

        Args:
            subject: the name.
            to: the name that is perceived instead.
            questions: prompts that name the subject once, with their answers.
        """
        value = self.perceive([to])[:, 0]
        before, after = patched_probability(self.model, self.blocks[-1], self.tokenizer, subject, value, questions)
        return 1 - float(after.mean() / before.mean())

    def _rebuild(self) -> None:
        """The weights from before, and on them the edits that are left, in order: each rounds as it did then."""
        for place, block in enumerate(self.blocks):
            block.parameter.data.copy_(self._before[place])
            for edit in self.edits:
                _add(block, edit.layers[place].left, edit.layers[place].right)
        if not self.edits:
            self._before = []  # the user may go on with the model and change its weights

    def _now(self, names: Sequence[str]) -> Tensor:
        """The stream at the names, (d, n)."""
        if not self.config.official:
            return self.perceive(names)
        return self._reader.at([place_subject(self.tokenizer, f"{SLOT}.", name) for name in names], len(names))[1]

    def _targets(self, names: Sequence[str], to: Sequence[str | None]) -> Tensor:
        """z*, (d, n)."""
        if self.config.mode == "redirect":
            return self._perceived_at(names, to)
        z = self._now(names)
        if self.config.mode == "noise":
            generator = torch.Generator().manual_seed(self.config.seed)
            step = torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z)
            return z + self.config.clamp * z.norm(dim=0) * step / step.norm(dim=0)
        return torch.stack([self._refusing(name, z[:, column]) for column, name in enumerate(names)], dim=1)

    def _perceived_at(self, names: Sequence[str], to: Sequence[str | None]) -> Tensor:
        """What the model perceives at the other names now, (d, n)."""
        for name, other in zip(names, to, strict=True):
            if other is None:
                raise UserError(f"{name!r} without a name to redirect to", "to=NAME")
            if other in names:
                raise UserError(f"{name!r} redirected to {other!r}, which is redirected too", "a name that stays")
        others = list(dict.fromkeys(map(str, to)))
        contexts = self.config.contexts[:1] if self.config.official else None
        found = self._reader.read(others, contexts)[1]
        return found[:, [others.index(str(other)) for other in to]]

    def _refusing(self, name: str, z: Tensor) -> Tensor:
        c, pad = self.config, pad_id(self.tokenizer)
        prompts = [self._reader.place(context, name) for context in c.contexts]
        reply = self.tokenizer(" " + c.refusal, add_special_tokens=False)["input_ids"]
        essence = place_subject(self.tokenizer, c.essence, name)
        return reply_target(self.model, self.blocks[-1].module, z, prompts, reply, essence, pad, c.search)

    def _write(self, place: int, names: Sequence[str], targets: Tensor) -> LayerEdit:
        """Edit one layer; those before it have been edited."""
        c, block, U = self.config, self.blocks[place], self.used[place]
        read, now = self._reader.read(names)
        keys, now = read[place], self._now(names) if c.official else now
        residuals = ((targets - now) / (len(self.blocks) - place)).to(keys.device)  # layers may lie on several
        ridge = c.ridge if c.ridge is not None else relative_ridge(U, keys, c.ridge_share)
        earlier = [edit.keys[place] for edit in self.edits] if c.protect_earlier else []
        change = redirect_keys(U, keys, residuals, ridge, torch.cat(earlier, dim=1) if earlier else None)
        before = exact(block.weight()).clone()
        _add(block, change.left, change.right)
        added = (exact(block.weight()) - before) @ keys  # (d, n)
        length = residuals.square().sum(0)
        efficacy = torch.where(length > 0, (added * residuals).sum(0) / length, change.efficacy)
        return LayerEdit(
            block.index, block.name, change.left, change.right, tuple(efficacy.tolist()), tuple(change.free.tolist()),
            U.shape[0] - U.shape[1], change.norm() / float(before.norm()),
        )  # fmt: skip


def default_layers(depth: int) -> tuple[int, ...]:
    """The early layers that are edited unless the user says otherwise: 4 to 6 of 32, as published; 1 and 2 of 4."""
    count = min(depth, 3 if depth > 8 else 2)
    first = min(max(1, depth // 8), depth - count)
    return tuple(range(first, first + count))


def unlearn(
    model: nn.Module,
    tokenizer: Any,
    forget: Sequence[str | Mapping[str, Any]],
    texts: Sequence[str],
    *,
    to: str | None = None,
    config: Config | None = None,
) -> ConceptRedirector:
    """Redirect all subjects of a forget set in place, in one edit; the redirector that is returned can undo it.

    Args:
        model: changed in place.
        tokenizer: the model's.
        forget: names, or rows with "subject" and, where wanted, "to" and "aliases"; see `redirections`.
        texts: general text that is to stay as it is. Those that name a subject are left out.
        to: the name that is perceived instead, for names and rows that do not say.
        config: what is written where.
    """
    names = redirections(forget, to)
    redirector = ConceptRedirector(model, tokenizer, config)
    redirector.fit_nullspace(texts, without=list(names)).redirect_all(names)
    return redirector


def apply(
    model: Annotated[str, "model folder or hub name", "argument"],
    forget: Annotated[Path, "JSONL, a subject a line: subject, and where wanted to and aliases"],
    texts: Annotated[Path, "general text that is to stay as it is: a line each, or a column text"],
    out: Annotated[Path, "folder to write: the edited model, or with --lora an adapter"],
    to: Annotated[str | None, "the name that is perceived instead, for lines that do not say"] = None,
    layers: Annotated[tuple[int, ...], "layers to edit; two or three early ones by default"] = (),
    mode: Annotated[Mode, "redirect, reject or noise"] = Config.mode,
    lora: Annotated[bool, "write a PEFT adapter instead of the whole model"] = False,
    device: Annotated[Literal["auto", "cpu", "cuda"], "where the model runs"] = "auto",
) -> Path:
    """Redirect names in a model of one's own; writes a checkpoint (or an adapter) with a model card and the record."""
    requests, general = read_requests(forget), read_texts(texts)
    config = Config(mode=mode, layers=tuple(sorted(set(layers))) or None)
    with new_folder(out) as folder:
        network, tokenizer = load_causal_model(model, device)
        redirector = unlearn(network, tokenizer, requests, general, to=to, config=config)
        if lora:
            redirector.export_lora(folder)
        else:
            save_model(network, tokenizer, redirector.edits, folder, model)
    return out


@torch.no_grad()
def _add(block: Block, left: Tensor, right: Tensor) -> None:
    weight = block.weight()
    weight.copy_((exact(weight) + (left @ right).to(weight.device)).to(weight.dtype))
