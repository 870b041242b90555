"""Model folders of strangers: damaged ones are one line, pickles are not read, and their code is not run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from transfuse.errors import UserError
from transfuse.hosts import sentence_encoder
from transfuse.hosts.text_classifier import load_classifier, load_encoder
from transfuse.nets.encoder import tiny_encoder

CODE = "from pathlib import Path\nPath({mark!r}).touch()\nfrom transformers import BertConfig as C, BertModel as M\n"


def load_sentences(folder: Path) -> Any:
    return sentence_encoder.load_encoder(str(folder))(["a b"])


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "good"
    encoder, tokenizer = tiny_encoder(["a b c d"])
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A sound model that a test may spoil."""
    return shutil.copytree(good, tmp_path / "model")


class Touch:
    """A pickle that leaves a mark when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def configured(folder: Path, name: str = "config.json", **changes: object) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pickled(folder: Path, save: Callable[[Path], None]) -> None:
    (folder / "model.safetensors").unlink()
    save(folder / "pytorch_model.bin")


def with_part(folder: Path) -> None:
    """A sentence-transformers model whose second module holds a pickle."""
    kinds = ("Transformer", "Dense")
    parts = [{"idx": i, "name": str(i), "path": kind * i, "type": f"sentence_transformers.models.{kind}"}
             for i, kind in enumerate(kinds)]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(parts))
    (folder / "Dense").mkdir()
    settings = {"in_features": 32, "out_features": 8, "bias": True, "activation_function": "os.system"}
    (folder / "Dense" / "config.json").write_text(json.dumps(settings))
    (folder / "Dense" / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(folder / "mark")))


SPOILT: dict[str, Callable[[Path], object]] = {
    "a plain pickle": lambda f: pickled(f, lambda p: p.write_bytes(pickle.dumps(Touch(f / "mark")))),
    "a torch pickle": lambda f: pickled(f, lambda p: torch.save({"x": Touch(f / "mark")}, p)),
    "a harmless pickle": lambda f: pickled(f, lambda p: torch.save({"x": torch.ones(2)}, p)),
    "code of its own": lambda f: configured(
        f, model_type="stranger", auto_map={"AutoConfig": "code.C", "AutoModel": "code.M"}
    ),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "cut weights": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
    "empty weights": lambda f: (f / "model.safetensors").write_bytes(b""),
    "other sizes": lambda f: configured(f, hidden_size=64),
    "a word for a size": lambda f: configured(f, hidden_size="many"),
    "a negative size": lambda f: configured(f, hidden_size=-4),
    "an unknown type": lambda f: configured(f, model_type="nosuch"),
    "a cut config": lambda f: (f / "config.json").write_text("{"),
    "a list as config": lambda f: (f / "config.json").write_text("[]"),
    "a nested config": lambda f: (f / "config.json").write_text("[" * 100_000),
    "a binary config": lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"),
    "a cut tokenizer": lambda f: (f / "tokenizer.json").write_text("{"),
    "nothing": lambda f: [path.unlink() for path in f.iterdir()],
    "a file": lambda f: (shutil.rmtree(f), f.write_text("x")),
    "missing": shutil.rmtree,
}


@pytest.mark.parametrize("load", [load_encoder, load_classifier, load_sentences])
@pytest.mark.parametrize("fault", SPOILT)
def test_one_line_and_nothing_is_run(
    fault: str, load: Callable[[Path], Any], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "code.py").write_text(CODE.format(mark=str(folder / "mark")))
    SPOILT[fault](folder)
    capfd.readouterr()
    with pytest.raises(UserError) as caught:
        load(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert not (folder / "mark").exists()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["code.M", "os.system"])
def test_modules_of_a_strangers_own_are_refused(kind: str, folder: Path) -> None:
    (folder / "code.py").write_text(CODE.format(mark=str(folder / "mark")))
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": kind}]))
    with pytest.raises(UserError, match="references the module class"):
        load_sentences(folder)
    assert not (folder / "mark").exists()


def test_a_pickle_in_a_part_is_refused(folder: Path) -> None:
    with_part(folder)
    with pytest.raises(UserError, match=r"Dense/pytorch_model\.bin.*pickle"):
        load_sentences(folder)
    assert not (folder / "mark").exists()


def test_an_encoder_is_no_classifier(folder: Path) -> None:
    with pytest.raises(UserError, match="no weights for classifier"):
        load_classifier(folder)


@pytest.mark.parametrize("content", ["{", "{}"])
def test_a_damaged_adapter_is_one_line(content: str, folder: Path) -> None:
    (folder / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match="no model could be loaded"):
        load_classifier(folder)


def test_a_sound_folder_is_loaded(folder: Path) -> None:
    configured(folder, auto_map={"AutoModel": "code.M"})  # of a known type: the code is not needed, and not run
    encoder, tokenizer = load_encoder(folder)
    assert encoder.config.hidden_size == 32 and tokenizer("a b")["input_ids"]
    assert load_sentences(folder).shape == (1, 32)
