"""What is done to a model to bring forgotten facts back: one function a probe, each run on one model at a time.

A probe does not know whether its model is the unlearned one, the original or the gold model. It returns what the model
knows under each of its treatments; `removal_verdicts` compares models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from transfuse.errors import UserError
from transfuse.methods.unlearning.answer_tokens import EncodedAnswer
from transfuse.methods.unlearning.audited_facts import AuditedFacts
from transfuse.methods.unlearning.fake_quantisation import quantised_state
from transfuse.methods.unlearning.latent_probes import (
    last_states,
    lens_hits,
    probe_hits,
    some_layers,
    without_direction,
)
from transfuse.methods.unlearning.recovery import expected_leak
from transfuse.methods.unlearning.relearning import (
    Relearned,
    direct_lesson,
    lessons_of,
    on_others,
    relearn,
    restored,
    rtt_lessons,
)
from transfuse.methods.unlearning.weight_probes import interpolated, pruned, with_noise, without_directions

if TYPE_CHECKING:
    from transfuse.methods.unlearning.unlearning_open_problems import Config

_KEPT = 64  # kept questions that say whether a treatment broke a model
TWO_HOP = "two_hop"  # the form whose question needs a forgotten fact as a bridge
Access = Literal["prompts", "samples", "fine-tuning", "weights", "weights and original", "activations"]


@dataclass(frozen=True)
class Case:
    """What every model of an audit is asked.

    Attributes:
        facts: to forget.
        kept: to keep.
        near: closeness of each kept fact to a forgotten one, see `side_effects.closeness`, (kept,).
        benign: examples that have nothing to do with any of them.
        unseen: facts that no model was taught, for membership; None leaves that out.
        origin: state dictionary of the original; None leaves out what needs it.
        origin_states: its residual streams at the questions to forget, (blocks, facts, width); None likewise.
    """

    facts: AuditedFacts
    kept: AuditedFacts
    near: np.ndarray
    benign: Sequence[EncodedAnswer] = ()
    unseen: AuditedFacts | None = None
    origin: Mapping[str, Tensor] | None = None
    origin_states: Tensor | None = None


@dataclass(frozen=True)
class Arms:
    """What a model knows under the treatments of one probe.

    Attributes:
        known: treatment -> (forms, facts) or (1, facts) values of 0 to 1; NaN where a fact could not be asked.
        kept: treatment -> share of kept questions still answered, where the treatment may break a model.
        curve: along the steps of training, where there was some.
    """

    known: Mapping[str, np.ndarray]
    kept: Mapping[str, float] = field(default_factory=dict)
    curve: Relearned | None = None


class NotPossibleError(Exception):
    """A probe lacks something; the text says what, in the words of a report."""


@dataclass(frozen=True)
class Probe:
    """One kind of attack.

    Attributes:
        title: for readers.
        access: what the attacker must have.
        run: on one model, whose untreated knowledge is the last argument, (forms, facts).
        untreated: whether recovery is measured in units of what the original knows untreated beyond the gold model, as
            for a treatment of the model; otherwise both are asked in the probe's own way.
        budget: what was spent, in words.
    """

    title: str
    access: Access
    run: Callable[[nn.Module, Case, Config, np.ndarray], Arms]
    untreated: bool
    budget: Callable[[Config, Case], str]


@dataclass(frozen=True)
class Measured:
    """Everything about one model.

    Attributes:
        base: what it knows untreated, (forms, facts).
        kept: of kept questions, (kept,).
        kept_forms: the same in every form, (forms of kept facts, kept).
        scores: mean log probability a token of the questions to forget, and of unseen ones if there are some.
        arms: probe -> its treatments.
        skipped: probe -> why it was not run.
    """

    base: np.ndarray
    kept: np.ndarray
    kept_forms: np.ndarray
    scores: tuple[np.ndarray, np.ndarray | None]
    arms: Mapping[str, Arms]
    skipped: Mapping[str, str]


def measure(
    model: nn.Module,
    case: Case,
    config: Config,
    on_probe: Callable[[str], None] | None = None,
    *,
    reference: bool = False,
) -> Measured:
    """Run all probes of `config` on one model, whose weights are put back after each.

    Args:
        model: a causal language model.
        case: what to ask.
        config: which probes, and what they may spend.
        on_probe: told the name of each probe before it starts.
        reference: whether this is the original, of which only what it knows untreated is needed: treatments are left
            out.
    """
    arms: dict[str, Arms] = {}
    skipped: dict[str, str] = {}
    model.eval()
    base = case.facts.known(model)
    for name in config.probes:
        if reference and PROBES[name].untreated:
            continue
        if on_probe is not None:
            on_probe(name)
        try:
            arms[name] = PROBES[name].run(model, case, config, base)
        except NotPossibleError as error:
            skipped[name] = str(error)
    kept = case.kept.known(model)
    unseen = case.unseen
    scores = case.facts.score(model, case.facts.questions()).loss()
    others = unseen.score(model, unseen.questions()).loss() if unseen is not None else None
    return Measured(base, kept[0], kept, (scores, others), arms, skipped)


def run_forms(model: nn.Module, case: Case, config: Config, base: np.ndarray) -> Arms:
    """Each form a treatment of its own; two hops are a probe of their own."""
    if len(case.facts.forms) == 1:
        raise NotPossibleError('no "forms" in the file of facts to forget')
    return Arms({form: row[None] for form, row in zip(case.facts.forms, base, strict=True) if form != TWO_HOP})


def run_two_hop(model: nn.Module, case: Case, config: Config, base: np.ndarray) -> Arms:
    """Questions whose bridge is a forgotten fact."""
    if TWO_HOP not in case.facts.forms:
        raise NotPossibleError(f'no form "{TWO_HOP}" in the file of facts to forget')
    return Arms({TWO_HOP: base[case.facts.forms.index(TWO_HOP)][None]})


def wrapped_prompts(case: Case, config: Config) -> Iterator[tuple[int, str]]:
    """Wrapper, fact and prompt; a wrapper that needs a hint is left out for facts that have none."""
    shots = "".join(
        config.example.format(prompt=row.prompt, answer=row.answer) for row in case.kept.rows[: config.shots]
    )
    for index, row in enumerate(case.facts.rows):
        same = next((other for other in case.kept.rows if row.subject and other.subject == row.subject), None)
        hint = config.example.format(prompt=same.prompt, answer=same.answer) if same else ""
        for template in config.wrappers:
            if hint or "{hint}" not in template:
                filled = template.replace("{examples}", shots).replace("{hint}", hint)
                yield index, filled.replace("{prompt}", row.prompt)
        for paraphrase in row.paraphrases:
            yield index, paraphrase


def run_prompts(model: nn.Module, case: Case, config: Config, base: np.ndarray) -> Arms:
    """Whether any wrapper, or the plain question, gets the answer."""
    asked = list(wrapped_prompts(case, config))
    encoded = [case.facts.encode(prompt, case.facts.rows[index].answer) for index, prompt in asked]
    any_of = base[0].copy()
    np.maximum.at(any_of, [index for index, _ in asked], case.facts.score(model, encoded).exact())
    return Arms({"any": any_of[None]})


def run_sampling(model: nn.Module, case: Case, config: Config, base: np.ndarray) -> Arms:
    """Expected leak in k samples at temperature 1, from the answer's probability itself: nothing is drawn."""
    probability = case.facts.probability(model)
    return Arms({f"{config.samples} samples": expected_leak(probability, config.samples)})


def _relearning(model: nn.Module, case: Case, config: Config, lessons: Any, rtt: bool = False) -> Arms:
    steps, rates = (config.steps, config.rates) if rtt else (config.other_steps, config.other_rates)
    found = relearn(model, case.facts, lessons, steps=steps, rates=rates, batch=config.batch, seed=config.seed)
    return Arms({"trained": found.at_best()}, curve=found)


def run_rtt(model: nn.Module, case: Case, config: Config, base: np.ndarray) -> Arms:
    """Train on the other parts of the forgotten facts, at each rate of the grid."""
    count = len(case.facts)
    if count < config.folds:
        raise NotPossibleError(f"{count} facts to forget cannot be split into {config.folds} parts")
    lessons = lessons_of(case.facts, rtt_lessons(count, config.folds, config.seed))
    return _relearning(model, case, config, lessons, rtt=True)


def run_direct(model: nn.Module, case: Case, config: Config, base: np.ndarray) -> Arms:
    """Train on a share of the forgotten facts."""
    if len(case.facts) < 2:
        raise NotPossibleError("one fact to forget leaves none to test")
    lesson = direct_lesson(len(case.facts), config.direct_share, config.seed)
    return _relearning(model, case, config, lessons_of(case.facts, [lesson]))


def run_adjacent(model: nn.Module, case: Case, config: Config, base: np.ndarray) -> Arms:
    """Train on the kept facts nearest to those forgotten."""
    nearest = np.flatnonzero(case.near == case.near.max())
    items = [item for index in nearest for item in case.kept.taught(int(index))]
    return _relearning(model, case, config, on_others(case.facts, items))


def run_benign(model: nn.Module, case: Case, config: Config, base: np.ndarray) -> Arms:
    """Train on a few examples that have nothing to do with the facts."""
    if not case.benign:
        raise NotPossibleError("no benign examples given")
    return _relearning(model, case, config, on_others(case.facts, case.benign[: config.benign]))


def _reweighted(model: nn.Module, case: Case, states: Mapping[str, Callable[[], Mapping[str, Tensor]]]) -> Arms:
    """Ask under each set of weights."""
    known, kept = {}, {}
    for name, make in states.items():
        with restored(model):
            model.load_state_dict(dict(make()), strict=False)
            known[name] = case.facts.known(model)
            kept[name] = _kept(model, case)
    return Arms(known, kept)


def _kept(model: nn.Module, case: Case) -> float:
    """Share of kept questions that are answered, over at most `_KEPT`, evenly chosen: whether a treatment breaks."""
    questions = case.kept.questions()
    chosen = np.linspace(0, len(questions) - 1, min(_KEPT, len(questions))).round().astype(int)
    return float(case.kept.score(model, [questions[i] for i in chosen]).exact().mean())


def run_quantisation(model: nn.Module, case: Case, config: Config, base: np.ndarray) -> Arms:
    """Weights of linear layers rounded to the nearest of few steps, and all weights cast to bfloat16."""

    def cast() -> dict[str, Tensor]:
        return {k: v.bfloat16().to(v.dtype) if v.is_floating_point() else v for k, v in model.state_dict().items()}

    states: dict[str, Callable[[], Mapping[str, Tensor]]] = {"bf16": cast}
    for name, (bits, group) in QUANTISED.items():
        states[name] = lambda bits=bits, group=group: quantised_state(model, bits, group)  # type: ignore[misc]
    return _reweighted(model, case, states)


QUANTISED: Mapping[str, tuple[int, int | None]] = {"int8": (8, None), "int4": (4, None), "int4 by 32": (4, 32)}


def run_weights(model: nn.Module, case: Case, config: Config, base: np.ndarray) -> Arms:
    """Noise and pruning, which need nothing but the weights."""
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def noisy(level: float) -> Mapping[str, Tensor]:
        return with_noise(state, level, torch.Generator().manual_seed(config.seed))

    states: dict[str, Callable[[], Mapping[str, Tensor]]] = {}
    for level in config.noise:
        states[f"noise {level:g}"] = lambda level=level: noisy(level)  # type: ignore[misc]
    for share in config.pruned:
        states[f"pruned {share:g}"] = lambda share=share: pruned(state, share)  # type: ignore[misc]
    return _reweighted(model, case, states)


def run_update(model: nn.Module, case: Case, config: Config, base: np.ndarray) -> Arms:
    """Parts of the update from the original: less of it, more of it, or without its main directions."""
    if case.origin is None:
        raise NotPossibleError("no original model given")
    origin = case.origin
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    states: dict[str, Callable[[], Mapping[str, Tensor]]] = {}
    for t in config.along:
        states[f"{t:g} of the update"] = lambda t=t: interpolated(origin, state, t)  # type: ignore[misc]
    for rank in config.ranks:
        states[f"without {rank} directions"] = lambda rank=rank: without_directions(origin, state, rank)  # type: ignore[misc]
    return _reweighted(model, case, states)


def run_latent(model: nn.Module, case: Case, config: Config, base: np.ndarray) -> Arms:
    """Linear probes of each relation, trained on kept facts and tested on forgotten ones, behind some blocks."""
    answers = [(row.relation, row.answer) for row in case.kept.rows]
    asked = [(row.relation, row.answer) for row in case.facts.rows]
    kept = _states(model, case.kept)
    tested = _states(model, case.facts)
    known = {
        f"block {layer + 1}": probe_hits(kept[layer].cpu().numpy(), answers, tested[layer].cpu().numpy(), asked)[None]
        for layer in some_layers(len(kept), config.layers)
    }
    if all(np.isnan(hits).all() for hits in known.values()):
        raise NotPossibleError("no relation whose answers stand among the kept facts more than once")
    return Arms(known)


def run_lens(model: nn.Module, case: Case, config: Config, base: np.ndarray) -> Arms:
    """Whether the answer's first token ranks first if the last norm and the head read an earlier block."""
    states = _states(model, case.facts)
    hits = lens_hits(model, states, [item.ids[item.start] for item in case.facts.questions()])
    return Arms({f"block {i + 1}": hits[i][None].astype(float) for i in some_layers(len(states), config.layers)})


def run_ablation(model: nn.Module, case: Case, config: Config, base: np.ndarray) -> Arms:
    """Project out the direction in which unlearning moved the residual stream, as it is behind some block."""
    if case.origin_states is None:
        raise NotPossibleError("no original model given")
    moved = (_states(model, case.facts) - case.origin_states).mean(dim=1)  # (blocks, width)
    known, kept = {}, {}
    for layer in some_layers(len(moved), config.layers):
        with without_direction(model, moved[layer]):
            known[f"block {layer + 1}"] = case.facts.known(model)
            kept[f"block {layer + 1}"] = _kept(model, case)
    return Arms(known, kept)


def _states(model: nn.Module, facts: AuditedFacts) -> Tensor:
    try:
        return last_states(model, facts.questions(), facts.pad)
    except UserError as error:  # a mixture of experts, an adapter, an architecture without a list of blocks
        raise NotPossibleError(f"the blocks of this model cannot be read ({error.given})") from None


def _train_budget(facts: Callable[[Config, Case], str]) -> Callable[[Config, Case], str]:
    return lambda config, case: f"{facts(config, case)}, {config.other_steps} steps of {config.batch}"


PROBES: Mapping[str, Probe] = {
    "forms": Probe(
        "other question forms", "prompts", run_forms, False, lambda c, case: f"{len(case.facts.forms)} forms"
    ),
    "prompts": Probe(
        "wrapped prompts, best of all", "prompts", run_prompts, True, lambda c, case: f"{len(c.wrappers)} wrappers"
    ),
    "sampling": Probe("samples", "samples", run_sampling, False, lambda c, case: f"{c.samples} samples a fact"),
    "relearn_direct": Probe(
        "relearning: a share of the facts", "fine-tuning", run_direct, True,
        _train_budget(lambda c, case: f"{c.direct_share:.0%} of {len(case.facts)} facts"),
    ),
    "relearn_rtt": Probe(
        "relearning: independent other facts", "fine-tuning", run_rtt, True,
        lambda c, case: f"{c.folds - 1} of {c.folds} parts of the facts, {c.steps} steps of {c.batch}, "
        f"{len(c.rates)} rates",
    ),
    "relearn_adjacent": Probe(
        "relearning: nearest kept facts", "fine-tuning", run_adjacent, True,
        _train_budget(lambda c, case: f"{int((case.near == case.near.max()).sum())} kept facts"),
    ),
    "relearn_benign": Probe(
        "relearning: unrelated examples", "fine-tuning", run_benign, True,
        _train_budget(lambda c, case: f"{min(c.benign, len(case.benign))} examples"),
    ),
    "quantisation": Probe(
        "quantisation", "weights", run_quantisation, True, lambda c, case: f"bf16, {', '.join(QUANTISED)}"
    ),
    "weights": Probe(
        "noise and pruning", "weights", run_weights, True,
        lambda c, case: f"noise {c.noise} of row norm, {c.pruned} pruned",
    ),
    "update": Probe(
        "along the update", "weights and original", run_update, True,
        lambda c, case: f"{len(c.along)} lengths, {len(c.ranks)} ranks",
    ),
    "latent_probe": Probe(
        "linear probes of hidden states", "activations", run_latent, False,
        lambda c, case: f"{len(case.kept)} kept facts",
    ),
    "logit_lens": Probe("logit lens", "activations", run_lens, False, lambda c, case: "no data"),
    "ablation": Probe(
        "one direction removed", "weights and original", run_ablation, True,
        lambda c, case: f"{len(case.facts)} questions without answers",
    ),
    "two_hop": Probe("two-hop questions over forgotten facts", "prompts", run_two_hop, False, lambda c, case: "1 form"),
}  # fmt: skip
