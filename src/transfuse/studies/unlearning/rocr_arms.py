"""The arms of the ROCR study: edits of a fact world's base, and what is measured of every model."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from transfuse.data.fact_forms import FORMS, HELD_OUT, Item
from transfuse.methods.unlearning.fact_rewriting import ROME_SEARCH, FactRewriter
from transfuse.methods.unlearning.form_bias import FormBias, form_bias
from transfuse.methods.unlearning.reply_target import Search
from transfuse.methods.unlearning.rocr import ConceptRedirector, Config, Mode
from transfuse.methods.unlearning.subject_places import template_of
from transfuse.studies.unlearning.fact_world import FactWorld
from transfuse.studies.unlearning.unlearned_models import Matching, run_method, target, tuned
from transfuse.study.design import Measurement

if TYPE_CHECKING:
    from transfuse.studies.unlearning.rocr import Settings

# Forms that name the subject and that the base knows. True or false it does not; reverse and two hops do not name it.
BEARING = ("cloze", "qa", "choice", "letters", "initial")
TRAINED = "qa"  # the form that the trained baselines unlearn in
BASELINES = ("gradient_ascent", "npo", "idk_dpo")


@dataclass(frozen=True)
class Seen:
    """What one arm showed.

    Attributes:
        p: form -> mean geometric-mean probability of the right answers about the forgotten subjects.
        retain: accuracy on retained subjects, mean over the questions of the bearing forms.
        neighbours: the same for those of the same continent or region as a forgotten one.
        valid: share of written answers about forgotten subjects that are objects of the relation asked for.
        redirected: share that is the object of the concept redirected to.
    """

    p: Mapping[str, float]
    retain: float
    neighbours: float
    valid: float
    redirected: float


class Arms:
    """All arms of one seed and world. Every forgotten subject is redirected to the same retained one."""

    def __init__(self, world: FactWorld, settings: Settings, reads: str) -> None:
        self.world, self.settings, self.where = world, settings, {"reads": reads}
        self.to, self.kept = world.retain[0], world.retain[1:]
        near = set(world.neighbours)
        self.near = tuple(s for s in self.kept if s in near)
        self.items = {form: world.ask(world.forget, form) for form in FORMS}
        self.kept_items = [item for form in BEARING for item in world.ask(self.kept, form, "retain")]
        self.texts = [
            item.text for form in FORMS for wording in (0, 1) for item in world.ask(world.retain, form, "null", wording)
        ]

    def every(self) -> Iterator[Measurement]:
        """All arms."""
        forget = self.world.forget
        seen = {"base": self.seen(self.world.model()), "gold": self.seen(self.world.model("gold"))}
        for method, rate in zip(BASELINES, self.settings.rates, strict=True):
            seen[method] = self.seen(self.trained(method, rate))
        seen["rome"] = self.seen(self.rewritten())
        seen["one_by_one"] = self.one_by_one(self.redirector())
        modes: tuple[Mode, ...] = ("noise", "reject")
        for mode in modes:
            edited = self.redirector(mode)
            edited.redirect_all(dict.fromkeys(forget))
            seen[mode] = self.seen(edited.model)
        sham = self.redirector()
        sham.redirect_all(dict.fromkeys(self.world.holdout[: len(forget)], self.to))
        seen["sham"] = self.seen(sham.model)
        seen["rocr"] = yield from self.rocr()
        yield from self.measurements(seen)
        bias = {arm: self.bias(seen["base"], found) for arm, found in seen.items()}
        best = max(bias[arm].mean for arm in BASELINES)
        for arm, own in bias.items():
            gaps = [abs(own.reduction[form] - bias["gold"].reduction[form]) for form in BEARING]
            yield Measurement(arm, "lead", own.mean - best, self.where)
            yield Measurement(arm, "gold_distance", sum(gaps) / len(gaps), self.where)

    def edit_only(self) -> Iterator[Measurement]:
        """The base and ROCR."""
        base = self.seen(self.world.model())
        yield from self.measurements({"base": base, "rocr": (yield from self.rocr())})

    def rocr(self) -> Generator[Measurement, None, Seen]:
        """What the method shows; yields its diagnostics on the way."""
        redirector = self.redirector()
        yield Measurement("rocr", "ceiling", self.ceiling(redirector), self.where)
        edit = redirector.redirect_all(dict.fromkeys(self.world.forget, self.to))
        yield Measurement("rocr", "reached", float(np.mean(edit.reached)), self.where)
        return self.seen(redirector.model)

    def redirector(self, mode: Mode = "redirect") -> ConceptRedirector:
        """A redirector of a fresh base; the null space is that of text about retained subjects."""
        s = self.settings
        config = Config(
            mode=mode, layers=s.layers, contexts=s.contexts, null_share=s.null_share, refusal=s.refusal,
            search=Search(rate=ROME_SEARCH.rate), seed=self.world.streams.noise.integer(),
        )  # fmt: skip
        redirector = ConceptRedirector(self.world.model(), self.world.tokenizer, config)
        return redirector.fit_nullspace(self.texts, without=(*self.world.forget, *self.world.holdout))

    def trained(self, method: str, rate: float) -> nn.Module:
        """The base, trained on the questions to forget until no more are answered than by the gold model, and 5 %."""
        world = self.world
        watch = Matching(world, target(world), to_end=False)
        last = run_method(world, method, {**tuned(method), "rate": rate}, watch)
        return world.load(watch.state) if watch.step else last

    def rewritten(self) -> nn.Module:
        """ROME: every fact to forget is rewritten to the refusal, in the questions that the baselines train on."""
        world, s = self.world, self.settings
        model = world.model()
        rewriter = FactRewriter(model, world.tokenizer, s.rome_layer, self.texts)
        wordings = [world.ask(world.forget, TRAINED, wording=wording) for wording in range(HELD_OUT)]
        for items in zip(*wordings, strict=True):
            subject = items[0].fact.subject
            rewriter.rewrite(subject, [template_of(item.prompt, subject) for item in items], s.refusal)
        return model

    def measurements(self, seen: Mapping[str, Seen]) -> Iterator[Measurement]:
        """What each arm shows beside the base."""
        base = seen["base"]
        for arm, found in seen.items():
            bias = self.bias(base, found)
            for form in FORMS:
                yield Measurement(arm, "reduction", 1 - found.p[form] / base.p[form], {**self.where, "form": form})
            for metric, value in (
                ("mean_reduction", bias.mean),
                ("least_reduction", min(bias.reduction.values())),
                ("spread", bias.spread),
                ("retain_drop", base.retain - found.retain),
                ("neighbour_drop", base.neighbours - found.neighbours),
                ("valid_share", found.valid),
                ("redirected_share", found.redirected),
            ):
                yield Measurement(arm, metric, value, self.where)

    def bias(self, base: Seen, found: Seen) -> FormBias:
        return form_bias({form: base.p[form] for form in BEARING}, {form: found.p[form] for form in BEARING}, TRAINED)

    def ceiling(self, redirector: ConceptRedirector) -> float:
        """Mean over forgotten subjects of what a perfect edit of the layers would do to the bearing forms."""
        parts = []
        for subject in self.world.forget:
            own = [item for form in BEARING for item in self.items[form] if item.fact.subject == subject]
            parts.append(redirector.ceiling(subject, self.to, [(item.prompt, item.answer) for item in own]))
        return sum(parts) / len(parts)

    def one_by_one(self, redirector: ConceptRedirector) -> Seen:
        """Each subject redirected alone, asked about, and the edit undone: means over the subjects, as published."""
        found = []
        for subject in self.world.forget:
            redirector.redirect(subject, self.to)
            found.append(self.seen(redirector.model, [subject]))
            redirector.undo()
        p = {}
        for form in FORMS:  # a subject may have fewer items of a form, or none
            counts = [sum(item.fact.subject == subject for item in self.items[form]) for subject in self.world.forget]
            p[form] = sum(n * each.p[form] for n, each in zip(counts, found, strict=True) if n) / sum(counts)
        names = ("retain", "neighbours", "valid", "redirected")
        return Seen(p, *(float(np.mean([getattr(each, name) for each in found])) for name in names))

    def seen(self, model: nn.Module, subjects: Sequence[str] | None = None) -> Seen:
        """Ask a model about forgotten subjects (all of them by default) and about retained ones."""
        world, chosen = self.world, set(subjects or self.world.forget)
        own = {form: [item for item in items if item.fact.subject in chosen] for form, items in self.items.items()}
        p = {form: float(world.score(model, items).probability().mean()) for form, items in own.items() if items}
        exact = world.score(model, self.kept_items).exact()
        near = np.array([item.fact.subject in self.near for item in self.kept_items])
        asked = own["cloze"] + own["qa"]
        written = write_answers(model, world.tokenizer, asked)
        pairs = list(zip(written, asked, strict=True))
        other = world.table.facts[self.to]
        valid = np.mean([text in world.table.objects(item.fact.relation) for text, item in pairs])
        same = np.mean([text == other[item.fact.relation] for text, item in pairs])
        neighbours = exact[near] if near.any() else exact
        return Seen(p, float(exact.mean()), float(neighbours.mean()), float(valid), float(same))


@torch.no_grad()
def write_answers(model: nn.Module, tokenizer: Any, items: Sequence[Item], limit: int = 4) -> list[str]:
    """What greedy decoding writes after each prompt, up to the end-of-sequence token or `limit` tokens."""
    rows = [list(tokenizer(item.prompt)["input_ids"]) for item in items]
    starts = [len(row) for row in rows]
    for length in sorted(set(starts)):  # prompts of one length need no padding
        group = [i for i, start in enumerate(starts) if start == length]
        ids = torch.tensor([rows[i] for i in group])
        for _ in range(limit):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        for i, row in zip(group, ids.tolist(), strict=True):
            rows[i] = row
    answers = [row[start:] for row, start in zip(rows, starts, strict=True)]
    end = tokenizer.eos_token_id
    return [tokenizer.decode(answer[: answer.index(end)] if end in answer else answer) for answer in answers]
