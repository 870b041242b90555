"""Random negatives of a knowledge graph are mostly meaningless, and soon teach an embedding model nothing.

LEMON reads the entities' descriptions once with a sentence encoder, clusters them, and replaces head or tail by an
entity of the same cluster: (Paris, capital of, Belgium) instead of (Paris, capital of, banana). The loss and the
model stay as they are, and drawing stays a table look-up. It is not for graphs without entity text; on dense graphs
many text neighbours of a true tail are true tails themselves, so look at `transfuse audit lemon` first.

>>> from pykeen.datasets import Nations
>>> from pykeen.pipeline import pipeline
>>> from transfuse.methods.negatives.lemon import lemon_kwargs
>>> data = Nations()
>>> texts = {name: name for name in data.entity_to_id}  # of your own: a description for each entity
>>> options = lemon_kwargs(data.training, texts, num_negs_per_pos=8)
>>> result = pipeline(dataset=data, model="TransE", training_loop="sLCWA", negative_sampler="lemon",
...                   negative_sampler_kwargs=options, training_kwargs={"num_epochs": 2}, random_seed=0)
>>> 0 < result.get_metric("mrr") <= 1
True

M. R. A. H. Rony, M. M. Alam, S. Ali, J. Lehmann, S. Vahdati: LEMON, LanguagE ModeL for Negative Sampling of Knowledge
Graph Embeddings, arXiv 2203.04703, 2022.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from pykeen.sampling import negative_sampler_resolver
from pykeen.sampling.filtering import Filterer
from pykeen.triples import CoreTriplesFactory, TriplesFactory
from torch import Tensor

from transfuse.atomic import replacing
from transfuse.audit import AuditReport
from transfuse.card import Card
from transfuse.data.graphs import TextGraph, build_graph, read_texts, read_triples
from transfuse.errors import UserError
from transfuse.hosts.sentence_encoder import Encoder, encode_texts, load_encoder, packaged_encoder, tfidf_encoder
from transfuse.methods.negatives.control_samplers import spectral_embeddings
from transfuse.methods.negatives.false_negative_audit import TripleIndex
from transfuse.methods.negatives.pool_sampler import Corruption, PoolNegativeSampler, Schedule
from transfuse.methods.negatives.sampler_comparison import build_samplers, compare_samplers
from transfuse.methods.negatives.text_neighbourhoods import (
    Neighbourhoods,
    checked_embeddings,
    cluster_pools,
    cluster_texts,
    default_clusters,
    neighbour_pools,
    reduce_dimension,
)

Mode = Literal["cluster", "knn"]

CARD = Card(
    id="lemon",
    title="LEMON: LanguagE ModeL for Negative Sampling of Knowledge Graph Embeddings",
    summary="Draws the negatives of a knowledge-graph embedding from entities whose descriptions mean similar things.",
    authors="M. R. A. H. Rony, M. M. Alam, S. Ali, J. Lehmann, S. Vahdati",
    year=2022,
    venue="arXiv",
    url="https://arxiv.org/abs/2203.04703",
    family="negatives",
    host="PyKEEN, pykeen.sampling.NegativeSampler",
    entry="transfuse.methods.negatives.lemon.LemonNegativeSampler",
    needs=("triples of a knowledge graph", "a name or description for most entities"),
    data="knowledge graph with entity text",
    problems=(
        "my negative samples are too easy",
        "how many of my negatives are in truth positives?",
        "can entity descriptions help link prediction without changing the model?",
        "I want to give my own candidate negatives to PyKEEN",
    ),
    extra="kg",
    requires=("pykeen", "torch", "sentence_transformers"),
    differs=(
        "Only the abstract and introduction were at hand: number of clusters, mixing and top-up are our completion.",
        "Negatives from the cluster are mixed with uniform ones, half and half by default; mix=0 is the pure form.",
        "Known training triples are masked by default, because text neighbours of a true tail are often true tails.",
        "Nearest neighbours weighted by similarity are offered beside clusters.",
        "A description that several entities share counts once when neighbourhoods are made.",
        "Small clusters are topped up from the nearest cluster; entities without text get uniform negatives.",
        "Draws are with replacement, as in PyKEEN's own samplers.",
    ),
    showcase=True,
)


@dataclass(frozen=True)
class Config:
    """How neighbourhoods are made and used."""

    mode: Mode = "cluster"  # the paper forms neighbourhood clusters; "knn" follows its wording on distances
    num_clusters: int | None = None  # about 50 entities a cluster (inferred; 1 cluster is uniform sampling)
    neighbours: int = 64  # m of mode "knn": as many candidates as an average cluster holds (inferred)
    temperature: float | None = 0.1  # tau of mode "knn": MiniLM cosines differ by about 0.1; None for equal chances
    mix: float = 0.5  # rho, share of uniform negatives (inferred: pure cluster negatives hurt global separation)
    schedule: Schedule = "constant"  # "linear" starts uniform and hardens over ramp_epochs
    ramp_epochs: float = 10.0  # length of the linear ramp
    pca: int | None = None  # components before clustering; not needed at the 384 dimensions of MiniLM
    corruption: Corruption = "uniform"  # heads as often as tails; "bernoulli" weighs sides by relation
    min_cluster_size: int = 2  # the least that holds anything but the entity itself
    seed: int = 0  # of PCA and k-means

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise UserError(f"mode = {self.mode!r}", " or ".join(map(repr, get_args(Mode))))
        if self.neighbours < 1 or self.min_cluster_size < 2:
            raise UserError(
                f"neighbours = {self.neighbours}, min_cluster_size = {self.min_cluster_size}", "at least 1 and 2"
            )
        if self.temperature is not None and not self.temperature > 0:
            raise UserError(f"temperature = {self.temperature}", "a positive number, or none for equal chances")
        if self.num_clusters is not None and self.num_clusters < 1:
            raise UserError(f"num_clusters = {self.num_clusters}", "at least 1, or none for about one for 50 entities")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed = {self.seed}", f"a number from 0 to {2**32 - 1}")


def neighbourhoods(embeddings: np.ndarray, num_entities: int, config: Config) -> Neighbourhoods:
    """Text embeddings to pools of candidates: the whole of LEMON that happens before training.

    Args:
        embeddings: one row an entity, rows of NaN for entities without text. Shape (N, d).
        num_entities: N.
    """
    z, ids = checked_embeddings(embeddings, num_entities)  # (T, d), (T,)
    z = reduce_dimension(z, config.pca, config.seed)  # (T, p)
    if config.mode == "knn":
        z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
        return neighbour_pools(z, ids, num_entities, config.neighbours, config.temperature)
    labels, centres = cluster_texts(z, config.num_clusters or default_clusters(len(ids)), config.seed)
    return cluster_pools(labels, centres, ids, num_entities, config.min_cluster_size)


class LemonNegativeSampler(PoolNegativeSampler):
    """Negatives from the text neighbourhood of the entity that is replaced; `negative_sampler="lemon"` in PyKEEN.

    Hand it embeddings made before training (see `lemon_kwargs`): it keeps tables, never an encoder, so it can be
    pickled into data loader workers.

    Args:
        mapped_triples: the training triples. Shape (n, 3).
        embeddings: text embeddings, row i for entity i, NaN without text. Shape (num_entities, d).

    The others are those of `Config` and of `pykeen.sampling.NegativeSampler`; `filtered` is True by default.

    Raises:
        UserError: embeddings or options that do not fit.
    """

    hpo_default: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "num_negs_per_pos": {"type": int, "low": 1, "high": 100, "log": True},
        "mix": {"type": float, "low": 0.0, "high": 1.0},
        "mode": {"type": "categorical", "choices": ["cluster", "knn"]},
    }

    def __init__(
        self,
        *,
        mapped_triples: Tensor,
        embeddings: np.ndarray | Tensor,
        mode: Mode = Config.mode,
        num_clusters: int | None = Config.num_clusters,
        neighbours: int = Config.neighbours,
        temperature: float | None = Config.temperature,
        mix: float = Config.mix,
        schedule: Schedule = Config.schedule,
        ramp_epochs: float = Config.ramp_epochs,
        pca: int | None = Config.pca,
        corruption: Corruption = Config.corruption,
        min_cluster_size: int = Config.min_cluster_size,
        seed: int = Config.seed,
        num_entities: int | None = None,
        num_relations: int | None = None,
        num_negs_per_pos: int | None = None,
        filtered: bool = True,
        filterer: str | type[Filterer] | Filterer | None = None,
        filterer_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        config = Config(
            mode, num_clusters, neighbours, temperature, mix, schedule, ramp_epochs, pca, corruption,
            min_cluster_size, seed,
        )  # fmt: skip
        count = num_entities or int(mapped_triples[:, [0, 2]].max()) + 1
        made = neighbourhoods(np.asarray(embeddings), count, config)
        super().__init__(
            mapped_triples=mapped_triples,
            pools=made.pool,
            pool_of=made.pool_of,
            mix=mix,
            schedule=schedule,
            ramp_epochs=ramp_epochs,
            corruption=corruption,
            num_entities=count,
            num_relations=num_relations,
            num_negs_per_pos=num_negs_per_pos,
            filtered=filtered,
            filterer=filterer,
            filterer_kwargs=filterer_kwargs,
        )


negative_sampler_resolver.register(LemonNegativeSampler, raise_on_conflict=False)


def lemon_kwargs(
    factory: CoreTriplesFactory,
    texts: Mapping[str, str] | Sequence[str | None],
    encoder: Encoder | None = None,
    *,
    cache: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The `negative_sampler_kwargs` of `pykeen.pipeline.pipeline(negative_sampler="lemon", ...)`.

    Args:
        factory: the training triples.
        texts: text by entity label, or one text (or None) for each entity id.
        encoder: list of texts -> array (n, d); the packaged MiniLM by default. It runs here, once.
        cache: folder that keeps embeddings by content.
        **options: fields of `Config` and arguments of the sampler, such as `num_negs_per_pos` and `mix`.
    """
    if isinstance(texts, Mapping):
        if not isinstance(factory, TriplesFactory):
            raise UserError("texts by label for a factory without labels", "one text for each entity id")
        rows = [texts.get(factory.entity_id_to_label[index]) for index in range(factory.num_entities)]
        if not any(rows):
            some, other = next(iter(texts), ""), factory.entity_id_to_label[0]
            raise UserError(f"no entity has text (texts name {some!r}, ...)", f"names such as {other!r}")
    else:
        rows = list(texts)
        if len(rows) != factory.num_entities:
            raise UserError(f"{len(rows)} texts for {factory.num_entities} entities", "one (or None) an entity")
    return {"embeddings": encode_texts(rows, encoder or packaged_encoder(), cache), **options}


def audit(
    train: Annotated[Path, "training triples: TSV with head, relation, tail"],
    text: Annotated[Path, "entity text: TSV with entity and text"],
    valid: Annotated[Path | None, "validation triples, to count negatives that are true but unseen"] = None,
    test: Annotated[Path | None, "test triples, likewise"] = None,
    encoder: Annotated[str, "packaged, tfidf, or a sentence-transformers model by name or folder"] = "packaged",
    num_clusters: Annotated[int | None, "text clusters; about one for 50 entities by default"] = None,
    mix: Annotated[float, "share of uniform negatives"] = Config.mix,
    negatives: Annotated[int, "negatives per positive"] = 8,
    permutations: Annotated[int, "shuffled graphs of the null calibration"] = 19,
    seed: Annotated[int, "of clustering and draws"] = 0,
) -> AuditReport:
    """False negatives, plausibility and coverage of every sampler on a graph of one's own; nothing is trained."""
    graph = _read_graph(train, text, valid, test)
    if negatives < 1 or permutations < 1:
        raise UserError(f"negatives = {negatives}, permutations = {permutations}", "at least 1")
    config = Config(num_clusters=num_clusters, mix=mix, seed=seed)
    triples, sizes = torch.from_numpy(graph.train), (len(graph.entities), len(graph.relations))
    embeddings = encode_texts(graph.texts, make_encoder(encoder))
    clusters = neighbourhoods(embeddings, sizes[0], config)
    knn = replace(config, mode="knn", neighbours=min(config.neighbours, max(1, sizes[0] // 8)))
    structure = spectral_embeddings(triples, *sizes)
    samplers = build_samplers(
        triples,
        *sizes,
        text_clusters=clusters,
        text_knn=neighbourhoods(embeddings, sizes[0], knn),
        structure_knn=neighbourhoods(structure, sizes[0], knn),
        negatives=negatives,
        mix=mix,
        filtered=False,  # the audit counts what a filter would have to remove
        seed=seed,
    )
    environment = {"encoder": encoder, "seed": seed, "negatives": negatives, "clusters": clusters.pool.num_keys}
    return compare_samplers(
        graph, samplers, clusters, mix=mix, negatives=negatives, permutations=permutations, seed=seed,
        environment={**environment, "mix": mix, "torch": torch.__version__},
    )  # fmt: skip


def apply(
    train: Annotated[Path, "training triples: TSV with head, relation, tail"],
    text: Annotated[Path, "entity text: TSV with entity and text"],
    out: Annotated[Path, "file to write: TSV with the positive's line number, head, relation, tail"],
    negatives: Annotated[int, "negatives per positive, before known triples are removed"] = 8,
    encoder: Annotated[str, "packaged, tfidf, or a sentence-transformers model by name or folder"] = "packaged",
    mode: Annotated[Mode, "cluster or knn"] = Config.mode,
    num_clusters: Annotated[int | None, "text clusters; about one for 50 entities by default"] = None,
    mix: Annotated[float, "share of uniform negatives"] = Config.mix,
    corruption: Annotated[Corruption, "uniform or bernoulli"] = Config.corruption,
    seed: Annotated[int, "of clustering and draws"] = 0,
) -> Path:
    """Write hard negatives of a graph of one's own, for training elsewhere; known training triples are left out.

    Line numbers count the different training triples from 1, in the order of the file.
    """
    graph = _read_graph(train, text)
    if negatives < 1:
        raise UserError(f"negatives = {negatives}", "at least 1")
    triples = torch.from_numpy(graph.train)
    sampler = LemonNegativeSampler(
        mapped_triples=triples, embeddings=encode_texts(graph.texts, make_encoder(encoder)), mode=mode,
        num_clusters=num_clusters, mix=mix, corruption=corruption, seed=seed, num_entities=len(graph.entities),
        num_relations=len(graph.relations), num_negs_per_pos=negatives, filtered=False,
    )  # fmt: skip
    known = TripleIndex(triples, len(graph.entities), len(graph.relations))
    with torch.random.fork_rng(devices=[]), replacing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        torch.manual_seed(seed)
        for first in range(0, len(triples), 4096):
            drawn = sampler.corrupt_batch(triples[first : first + 4096])  # (b, k, 3)
            for (line, _), (h, r, t) in _rows(drawn, ~known.contains(drawn)):
                entities = graph.entities
                file.write(f"{first + line + 1}\t{entities[h]}\t{graph.relations[r]}\t{entities[t]}\n")
    return out


def make_encoder(name: str) -> Encoder:
    """An encoder by name: packaged (MiniLM), tfidf, or any sentence-transformers model."""
    if not name.strip():
        raise UserError(f"encoder {name!r}", "packaged, tfidf, or a sentence-transformers model by name or folder")
    if name == "packaged":
        return packaged_encoder()
    return tfidf_encoder() if name == "tfidf" else load_encoder(name)


def _rows(drawn: Tensor, keep: Tensor) -> Iterator[tuple[list[int], list[int]]]:
    yield from zip(keep.nonzero().tolist(), drawn[keep].tolist(), strict=True)


def _read_graph(train: Path, text: Path, valid: Path | None = None, test: Path | None = None) -> TextGraph:
    parts = [read_triples(path) if path is not None else [] for path in (train, valid, test)]
    graph = build_graph(train.name, parts[0], parts[1], parts[2], read_texts(text))
    known = sum(entry is not None for entry in graph.texts)
    if known < 2:
        raise UserError(
            f"{str(text)!r} has text for {known} of {len(graph.entities)} entities of {str(train)!r}",
            f"names such as {graph.entities[0]!r}",
        )
    return graph
