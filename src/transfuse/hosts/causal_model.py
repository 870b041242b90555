"""Causal language models of transformers, by folder or hub name, with their tokenizers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from transfuse.errors import UserError
from transfuse.hosts.model_folder import SAFELY, loading


def load_causal_model(name: str | Path, device: str = "cpu", dtype: str = "auto") -> tuple[Any, Any]:
    """A model in evaluation mode and its tokenizer, which has something to pad with afterwards.

    Args:
        name: a folder that `save_pretrained` wrote, or a hub name.
        device: torch's name of it.
        dtype: "auto" for the checkpoint's own, or "float32", "bfloat16", "float16".

    Raises:
        UserError: there is no such model or tokenizer, they do not belong together, or there is no such device.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not str(name).strip():
        raise UserError("an empty name of a model", "a model folder or a hub name")
    if os.sep in str(name) and str(name).count("/") != 1 and not Path(name).exists():
        raise UserError(f"no folder {str(name)!r}", "a model folder or a hub name")
    place = checked_device(device)
    with loading(name):
        model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **SAFELY)
    return model.to(place).eval(), load_tokenizer(name, model, AutoTokenizer)


def load_tokenizer(name: str | Path, model: Any, kind: Any) -> Any:
    """The tokenizer that lies with a model.

    Raises:
        UserError: there is none, or it has ids that the model has no row for.
    """
    try:
        tokenizer = kind.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
        raise UserError(
            f"no tokenizer could be loaded from {str(name)!r} ({reason})", "one beside the model",
            "tokenizer.save_pretrained into the same folder",
        ) from None  # fmt: skip
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(
            f"a tokenizer of {len(tokenizer)} tokens and a model of {rows} in {str(name)!r}",
            "a tokenizer that belongs to the model",
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"the tokenizer of {str(name)!r} has neither padding nor end-of-sequence token",
                fix="set tokenizer.pad_token and save it again",
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def checked_device(name: str) -> torch.device:
    """A device that is there.

    Raises:
        UserError: it is not.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"device {name!r}, which is not here", "cpu, or cuda where there is a GPU") from None
    return device
