"""Causal language models of transformers, by folder or hub name, with their tokenizers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import torch

from transfuse.errors import UserError
from transfuse.hosts.model_folder import SAFELY, loading

Device = Literal["auto", "cpu", "cuda"]


def load_causal_model(name: str | Path, device: Device = "auto", dtype: str = "auto") -> tuple[Any, Any]:
    """A model in evaluation mode and its tokenizer, which has something to pad with afterwards.

    Args:
        name: a folder that `save_pretrained` wrote, or a hub name.
        device: where the model runs; "auto" takes a GPU where there is one.
        dtype: "auto" for the checkpoint's own, or "float32", "bfloat16", "float16".

    Raises:
        UserError: there is no such model or tokenizer, they do not belong together, weights are missing, are a pickle
            or need code of their own, or there is no such device.
    """
    from transformers import AutoModelForCausalLM

    place = checked_device(device)
    _check_folder(str(name))
    with loading(name):
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, output_loading_info=True, **SAFELY)
    model, report = loaded
    if missing := sorted(report["missing_keys"]):  # the host would go on with random weights
        raise UserError(f"{str(name)!r} has no weights for {missing[0]}", "a causal language model")
    return model.to(place).eval(), _load_tokenizer(name, model)


def _check_folder(name: str) -> None:
    """What is wrong with a folder in plain words, before a host says it in its own."""
    folder = Path(name)
    if not name.strip():
        raise UserError("an empty name of a model", "a model folder or a hub name")
    if os.sep in name and name.count("/") != 1 and not folder.exists():
        raise UserError(f"no folder {name!r}", "a model folder or a hub name")
    if folder.exists() and not (folder / "config.json").is_file():
        raise UserError(f"{name!r} is no model folder: it has no config.json", "a folder that save_pretrained wrote")
    if folder.is_dir() and not any(folder.glob("tokenizer*")) and not any(folder.glob("vocab*")):
        fix = "tokenizer.save_pretrained into that folder"
        raise UserError(f"{name!r} has no tokenizer", "one beside the weights", fix)


def _load_tokenizer(name: str | Path, model: Any) -> Any:
    from transformers import AutoTokenizer

    with loading(name):
        tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
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


def checked_device(device: str) -> torch.device:
    """A device that is there; "auto" is a GPU where there is one.

    Raises:
        UserError: it is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(f"device {device!r}, which is not here", "auto, cpu, or cuda where there is a GPU") from None
    return found
