"""The federation of the Fed-MNMT study: parallel text dealt to clients of one direction each, a base, and one run."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context
from torch import nn

from transfuse.data.parallel import Parallel, cldr_terms, emoji_names, multi30k
from transfuse.hosts.flower.local_grid import LocalGrid, quiet_flower
from transfuse.methods.federated.adapter_client import (
    LocalTraining,
    Pair,
    adapter_client,
    collate,
    encode_pairs,
    exchanged_arrays,
)
from transfuse.methods.federated.bottleneck_adapters import (
    Keep,
    adapter_sites,
    attach_adapters,
    load_arrays,
)
from transfuse.methods.federated.fed_mnmt import ClusteredFedAvg
from transfuse.nets.tiny_translator import subword_tokenizer, tiny_mbart
from transfuse.study.stage import Stages
from transfuse.study.streams import Stream, Streams

# Each language once or twice as source and as target, each pair of families once, three of them twice.
CLDR_DIRECTIONS = (
    "es-pt", "it-de", "pt-pl", "de-it", "nl-sv", "sv-cs", "cs-es", "pl-nl", "sk-pl", "es-nl", "de-sk", "sk-pt",
)  # fmt: skip
CAPTION_DIRECTIONS = tuple(f"{a}-{b}" for a in ("en", "de", "fr", "cs") for b in ("en", "de", "fr", "cs") if a != b)
_BASE = Streams(0)  # the base is one model for all seeds; what it was trained on is held out from all of them
_EMOJI = ("es", "pt", "it", "de")  # those of the languages above in which emoji have names


@dataclass(frozen=True)
class Text:
    """Parallel text in four parts that share no line: for the base, and for the clients' three sets."""

    base: tuple[Parallel, ...]
    train: Parallel
    dev: Parallel
    test: Parallel


@dataclass(frozen=True)
class Client:
    """One institution: its direction and its pairs."""

    direction: str
    train: tuple[Pair, ...]
    dev: tuple[Pair, ...]
    test: tuple[Pair, ...]
    test_bytes: tuple[int, ...]  # of each target text in UTF-8

    @property
    def facts(self) -> dict[str, str]:
        """What the node tells of itself."""
        source, target = self.direction.split("-")
        return {"source": source, "target": target}


@dataclass(frozen=True)
class World:
    """What all arms of a seed share."""

    clients: tuple[Client, ...]
    tokenizer: Any
    base: Mapping[str, torch.Tensor]
    settings: Any
    streams: Streams

    def model(self, keep: Keep | None = "all") -> nn.Module:
        """The base with fresh adapters, the same in every arm; None for all parameters trainable and no adapter."""
        s = self.settings
        with self.streams.init.child("adapters").seeded():
            model = tiny_mbart(self.tokenizer, s.width, s.layers)
            model.load_state_dict(dict(self.base))
            if keep is not None:
                attach_adapters(model, adapter_sites(model, keep), reduction=s.reduction, init=s.init)
        return model


@dataclass(frozen=True)
class Outcome:
    """One arm after training, at its best round by the clients' development sets together."""

    strategy: ClusteredFedAvg
    bits: tuple[np.ndarray, ...]  # a client: bits of each test sentence
    hits: tuple[np.ndarray, ...]  # a client: whether each target token was ranked first
    share: float  # bytes a client sends, over those of the whole base

    def bits_per_byte(self, clients: Sequence[Client]) -> np.ndarray:
        """Of each client, (clients,)."""
        return np.array([b.sum() / sum(c.test_bytes) for b, c in zip(self.bits, clients, strict=True)])


def make_world(settings: Any, streams: Streams, stage: Stages) -> World:
    """Text and clients of one seed, and the base, which all seeds share as the paper's share mBART-50."""
    s = settings
    directions = CLDR_DIRECTIONS if s.source == "terms" else CAPTION_DIRECTIONS
    languages = list(dict.fromkeys(part for direction in directions for part in direction.split("-")))
    text = (_terms if s.source == "terms" else _captions)(languages, s, streams)
    lines = [line for parallel in text.base for texts in parallel.values() for line in texts]
    tokenizer = subword_tokenizer(lines, languages, s.vocabulary)
    sizes = client_sizes(len(directions), s.smallest, s.largest, streams.split.child("sizes"))
    clients = []
    for index, (direction, size) in enumerate(zip(directions, sizes, strict=True)):
        rng = streams.split.child("client", index).numpy()
        clients.append(_client(direction, text, rng.permutation(len(text.train[languages[0]]))[:size], tokenizer))
    make = functools.partial(pretrain, text.base, tokenizer, s.width, s.layers, s.base_steps, s.base_batch)
    inputs = {
        "source": s.source, "vocabulary": s.vocabulary, "width": s.width, "layers": s.layers,
        "steps": s.base_steps, "batch": s.base_batch, "lines": len(lines),
    }  # fmt: skip
    base = stage("fed_mnmt_base", make, inputs=inputs)
    return World(tuple(clients), tokenizer, {k: torch.as_tensor(v) for k, v in base.items()}, s, streams)


def client_sizes(clients: int, smallest: int, largest: int, stream: Stream) -> list[int]:
    """Geometric sizes, dealt to the clients at random: few clients hold most of the text."""
    steps = np.linspace(math.log(smallest), math.log(largest), clients)
    return [int(size) for size in stream.numpy().permutation(np.rint(np.exp(steps)))]


def _terms(languages: Sequence[str], s: Any, streams: Streams) -> Text:
    terms = cldr_terms(languages)
    order = _BASE.split.numpy().permutation(len(terms[languages[0]]))
    base, rest = np.split(order, [round(s.base_share * len(order))])
    rest = streams.split.child("lines").numpy().permutation(rest)
    dev, test, train = np.split(rest, [s.dev_size, s.dev_size + s.test_size])
    emoji = emoji_names([language for language in languages if language in _EMOJI])
    return Text((_take(terms, base), emoji), _take(terms, train), _take(terms, dev), _take(terms, test))


def _captions(languages: Sequence[str], s: Any, streams: Streams) -> Text:
    lines = multi30k("train", languages)
    middle = len(lines[languages[0]]) // 2
    dev, test = multi30k("val", languages), multi30k("test_2016_flickr", languages)
    rng = streams.split.child("lines").numpy()
    some = [rng.permutation(len(part[languages[0]])) for part in (dev, test)]
    return Text(
        (_take(lines, np.arange(middle)),),
        _take(lines, np.arange(middle, 2 * middle)),
        _take(dev, some[0][: s.dev_size]),
        _take(test, some[1][: s.test_size]),
    )


def _take(parallel: Parallel, rows: np.ndarray) -> Parallel:
    return {language: [texts[i] for i in rows] for language, texts in parallel.items()}


def _client(direction: str, text: Text, rows: np.ndarray, tokenizer: Any) -> Client:
    source, target = direction.split("-")
    train = encode_pairs(tokenizer, _take(text.train, rows), source, target)
    dev, test = (encode_pairs(tokenizer, part, source, target) for part in (text.dev, text.test))
    return Client(direction, train, dev, test, tuple(len(line.encode()) for line in text.test[target]))


def pretrain(
    base: Sequence[Parallel], tokenizer: Any, width: int, layers: int, steps: int, batch: int
) -> dict[str, torch.Tensor]:
    """The stand-in for mBART-50: half denoising, half translation between any two languages; all its parameters."""
    with _BASE.init.seeded():
        model = tiny_mbart(tokenizer, width, layers)
    rng = _BASE.order.numpy()
    encoded = [
        {language: encode_pairs(tokenizer, parallel, language, language) for language in parallel} for parallel in base
    ]
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for step in range(steps):
        for group in optimiser.param_groups:  # up over a tenth of the steps, then down to nothing
            group["lr"] = 3e-3 * min(1.0, 10 * (step + 1) / steps) * (1 - step / steps)
        part = encoded[-1] if rng.random() < 0.25 else encoded[0]  # a quarter of the batches are names of emoji
        pairs = [_base_pair(part, rng, tokenizer.mask_token_id) for _ in range(batch)]
        optimiser.zero_grad(set_to_none=True)
        model(**collate(pairs, tokenizer.pad_token_id)).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return {key: value.clone() for key, value in model.state_dict().items()}


def _base_pair(part: Mapping[str, Sequence[Pair]], rng: np.random.Generator, mask: int) -> Pair:
    """A line to restore from 30 % masked subwords, or a line and its translation."""
    source, target = rng.choice(list(part), 2, replace=False)
    row = int(rng.integers(len(part[source])))
    if rng.random() < 0.5:
        return Pair(part[source][row].source, part[target][row].target)
    ids = part[target][row].source
    noisy = [mask if 0 < place < len(ids) - 1 and rng.random() < 0.3 else token for place, token in enumerate(ids)]
    return Pair(tuple(noisy), ids)


def federate(
    world: World,
    clusters: Any,
    *,
    rate: float,
    keep: Keep | None = "all",
    weighted: bool = False,
    pooled: bool = False,
) -> Outcome:
    """One arm, through Flower's own loop: `pooled` puts all text into one client."""
    s = world.settings
    model = world.model(keep)
    pad = world.tokenizer.pad_token_id
    everything = tuple(pair for client in world.clients for pair in client.train)
    developments = tuple(pair for client in world.clients for pair in client.dev)

    def data(context: Context, split: str) -> Sequence[Pair]:
        if pooled:
            return everything if split == "train" else developments
        client = world.clients[int(context.node_config["partition-id"])]
        return client.train if split == "train" else client.dev

    def facts(context: Context) -> dict[str, str]:
        return world.clients[int(context.node_config["partition-id"])].facts

    how = LocalTraining(rate, s.batch, s.epochs)
    app = adapter_client(model, data, how, facts=facts, pad=pad, seed=world.streams.order.integer())
    strategy = ClusteredFedAvg(
        clusters=clusters, weighted=weighted, seed=world.streams.noise.integer(),
        min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1,
    )  # fmt: skip
    initial = exchanged_arrays(model)
    with quiet_flower():
        strategy.start(LocalGrid(app, 1 if pooled else len(world.clients), on_error="raise"), initial, s.rounds)
    scores = []
    for index, client in enumerate(world.clients):
        load(model, strategy.node_arrays(1 if pooled else index + 1, best=True))
        scores.append(sentence_bits(model, client.test, pad))
    bits, hits = zip(*scores, strict=True)
    whole = exchanged_arrays(world.model(None)).count_bytes()
    return Outcome(strategy, bits, hits, initial.count_bytes() / whole)


def load(model: nn.Module, arrays: ArrayRecord) -> None:
    """Put a node's arrays into the model."""
    load_arrays(model, ((key, array.numpy()) for key, array in arrays.items()))


@torch.no_grad()
def sentence_bits(model: nn.Module, pairs: Sequence[Pair], pad: int, batch: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Bits of each target sentence without its language tag, (pairs,), and whether each of its tokens ranked first."""
    model.eval()
    order = np.argsort([len(p.target) for p in pairs], kind="stable")
    bits, hits = np.empty(len(pairs)), []
    for start in range(0, len(pairs), batch):
        rows = order[start : start + batch]
        inputs = collate([pairs[i] for i in rows], pad)
        labels = inputs["labels"][:, 1:]
        logits = model(**inputs).logits[:, 1:]
        known = labels >= 0
        loss = nn.functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
        bits[rows] = (loss.double().sum(dim=1) / math.log(2)).numpy()
        hits.append((logits.argmax(dim=-1) == labels)[known].numpy())
    return bits, np.concatenate(hits)
