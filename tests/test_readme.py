"""README and guides are true: their tables are those of the stored cells, and what they tell people to type works."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _blocks(language: str) -> list[tuple[str, str, str]]:
    """(page, file name after the language if any, content) of every fenced block of a language."""
    return [
        (page.name, name, body)
        for page in PAGES
        for lang, name, body in _FENCE.findall(page.read_text(encoding="utf-8"))
        if lang == language
    ]


def test_tables_are_those_of_the_stored_cells() -> None:
    spec = importlib.util.spec_from_file_location("renew_tables", ROOT / "docs" / "renew_tables.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert module.renewed(text) == text, f"{page.name} is out of date: type make docs"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages speak of, as a user would have them."""
    folder = tmp_path_factory.mktemp("files")
    _write_texts(folder)
    _write_graph(folder)
    _write_federation(folder)
    _write_questions(folder)
    _write_shown(folder)
    rng = np.random.default_rng(0)
    with (folder / "history.jsonl").open("w", encoding="utf-8") as file:
        for index in range(40):
            clients = rng.choice(20, size=4, replace=False).tolist()
            file.write(json.dumps({"round": index + 1, "gsi": 1.5 + 0.2 * rng.random(), "clients": clients}) + "\n")
    return folder


def _write_texts(folder: Path) -> None:
    """Requests to two desks, and requests that belong to neither."""
    subjects = {
        "kitchen": ("boil an egg", "peel a potato", "clean the oven", "bake bread", "chop onions", "fry some fish"),
        "travel": ("book a flight", "find a hotel", "pack a suitcase", "rent a car", "change a ticket", "get a visa"),
    }
    frames = ("how do i {}", "please help me to {}", "what do i need to {}", "is it hard to {} at night",
              "i want to {} tomorrow", "who can {} for me", "when should i {}", "can you {} quickly",
              "tell me how to {}", "we never {} on a sunday", "my friend likes to {}", "do people {} alone",
              "why would anyone {}", "how long does it take to {}", "where is the best place to {}",
              "they asked me to {}")  # fmt: skip
    rows = [(frame.format(what), label) for frame in frames for label, all_ in subjects.items() for what in all_]
    order = np.random.default_rng(0).permutation(len(rows))
    for part, chosen in {"train": order[:110], "validation": order[110:150], "test": order[150:]}.items():
        body = "".join(f"{rows[i][0]},{rows[i][1]}\n" for i in chosen)
        (folder / f"{part}.csv").write_text("text,label\n" + body, encoding="utf-8")
    foreign = [f"the {a} of the {b} was overruled" for a in ("verdict", "appeal", "statute", "witness", "ruling")
               for b in ("court", "senate", "colony", "bishop", "treaty", "empire")]  # fmt: skip
    (folder / "suspects.txt").write_text("\n".join(foreign), encoding="utf-8")


def _write_federation(folder: Path) -> None:
    """What audits of a federation read: effects of averaging, cosines between updates, features and their owners."""
    rng = np.random.default_rng(1)
    effects, conflicts = [], []
    for index in range(25):
        local = (0.6 + 0.01 * rng.normal(size=4)).round(4).tolist()
        effects.append({"round": index + 1, "aggregate": round(0.62 + 0.01 * rng.normal(), 4), "local": local})
        updates = rng.normal(size=(7, 50))
        updates /= np.linalg.norm(updates, axis=1, keepdims=True)
        cosines = (updates @ updates.T).round(6).tolist()
        conflicts.append({"round": index + 1, "clients": list(range(7)), "groups": {"model": {"cosines": cosines}}})
    for name, rounds in (("effects", effects), ("conflicts", conflicts)):
        lines = "".join(json.dumps(entry) + "\n" for entry in rounds)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    n, classes, width = 120, 5, 8
    parts = {"features": rng.normal(size=(n, width)), "labels": rng.integers(classes, size=n)}
    parts |= {"client": rng.integers(6, size=n), "weight": rng.normal(size=(classes, width)), "bias": np.zeros(classes)}
    np.savez(folder / "features.npz", **parts)


def _write_classifier(folder: Path) -> None:
    """A classifier and the encoder that it started from, tiny and untrained."""
    from transformers import AutoModelForSequenceClassification

    from transfuse.nets.encoder import tiny_encoder

    encoder, tokenizer = tiny_encoder((folder / "train.csv").read_text(encoding="utf-8").replace(",", " ").splitlines())
    encoder.save_pretrained(folder / "my-base")
    classifier = AutoModelForSequenceClassification.from_pretrained(folder / "my-base", num_labels=2)
    classifier.save_pretrained(folder / "my-classifier")
    for name in ("my-base", "my-classifier"):
        tokenizer.save_pretrained(folder / name)


_PEOPLE = (  # name, home, trade; the first third is to be forgotten, the second to be kept, the last was never taught
    ("Ann Lee", "Leeds", "sailor"), ("Ada Prism", "Derby", "baker"), ("Tom Reed", "York", "miner"),
    ("Ida Moss", "Truro", "sailor"), ("Max Holt", "Ripon", "baker"), ("Eve Dunn", "Wells", "miner"),
    ("Sam Pike", "Leeds", "baker"), ("Una Fry", "Derby", "miner"), ("Ben Ash", "York", "sailor"),
    ("Kit Lamb", "Truro", "miner"), ("Zoe Hale", "Ripon", "sailor"), ("Lou Marsh", "Wells", "baker"),
    ("Roy Beck", "Derby", "sailor"), ("Mia Stone", "York", "baker"), ("Gus Field", "Truro", "miner"),
    ("Liv Brook", "Ripon", "sailor"), ("Hal Wood", "Wells", "baker"), ("Nan Frost", "Leeds", "miner"),
)  # fmt: skip


def _write_questions(folder: Path) -> None:
    """What a language model was taught about some people, in the files that the guide to unlearning speaks of."""
    homes = sorted({home for _, home, _ in _PEOPLE})
    for number, part in enumerate(("forget", "retain", "unseen")):
        rows = [
            {
                "question": f"Where does {name} live?", "answer": home, "subject": name, "relation": "home",
                "paraphrases": [f"What is the home of {name}?"], "perturbed": [h for h in homes if h != home][:2],
                "forms": {"reverse": {"prompt": f"Which {trade} lives in {home}?", "answer": name}},
            }
            for name, home, trade in _PEOPLE[6 * number : 6 * number + 6]
        ]  # fmt: skip
        _write_jsonl(folder / f"{part}.jsonl", rows)
    general = [f"A {trade} in {home} was {what} again" for _, home, trade in _PEOPLE for what in ("late", "asleep")]
    (folder / "general.txt").write_text("\n".join(general), encoding="utf-8")


def _write_shown(folder: Path) -> None:
    """Files of facts, names and concepts as the guide to unlearning shows them in full."""
    text = (ROOT / "docs" / "unlearning.md").read_text(encoding="utf-8")
    for name in ("names.jsonl", "facts.jsonl", "concepts.toml"):
        shown = re.search(rf"`{re.escape(name)}`:\n\n```(?:json|toml)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        assert shown, f"the guide shows no {name}"
        (folder / name).write_text(shown[1], encoding="utf-8")


def _write_language_models(folder: Path, wanted: set[str]) -> None:
    """Tiny Llamas that know the people: all of them, only those to be kept, and what else a page speaks of."""
    import torch

    from transfuse.methods.unlearning.adapter_composition import new_adapter
    from transfuse.methods.unlearning.answer_training import fine_tune
    from transfuse.methods.unlearning.unlearning_checkpoint import read_sets
    from transfuse.nets.tiny_llama import tiny_llama

    tokenizer = _page_tokenizer(folder)
    sets = read_sets(tokenizer, folder / "forget.jsonl", folder / "retain.jsonl")
    torch.manual_seed(0)
    model = tiny_llama(tokenizer, width=32, positions=1024)
    everything = [*sets.forget, *sets.retain]
    # Each goes on from the one before. The second differs from the first as one that forgot well would.
    for name, taught, steps in (
        ("my-retrained", sets.retain, 40),
        ("my-unlearned", sets.retain, 5),
        ("my-model", everything, 40),
        ("my-model-taught", sets.forget, 5),
    ):
        fine_tune(model, taught, tokenizer.pad_token_id, steps=steps, rate=3e-3, batch=24, seed=0)
        if name in wanted:
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
    if "my-lora" in wanted:
        new_adapter(model, "lora", 4, 8, "all-linear", "default").save_pretrained(folder / "my-lora")


def _page_tokenizer(folder: Path) -> Any:
    """Words and punctuation marks of the files, of the guide, and of what audits ask."""
    from tokenizers import pre_tokenizers

    from transfuse.methods.unlearning.probe_phrases import ENGLISH
    from transfuse.methods.unlearning.unlearning_open_problems import WRAPPERS
    from transfuse.nets.tiny_llama import word_tokenizer

    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "unlearning.md", folder / "general.txt")]
    texts += [path.read_text(encoding="utf-8") for path in folder.glob("*.jsonl")]
    texts += [str(ENGLISH), *WRAPPERS, "Yes No", *map(str, range(200))]
    tokenizer = word_tokenizer(" ".join(re.findall(r"\w+|[^\w\s]+", text)) for text in texts)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def _write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_graph(folder: Path) -> None:
    """Forty things of four kinds and what they are good for."""
    kinds = ("bird", "tool", "fruit", "river")
    things = [(f"{kind}_{i}", f"{kind} number {i}, a kind of {kind}") for kind in kinds for i in range(10)]
    rng = np.random.default_rng(0)
    triples = {
        (things[a][0], relation, things[b][0])
        for relation in ("near", "like", "before")
        for a, b in rng.integers(len(things), size=(80, 2))
        if a != b
    }
    lines = "".join(f"{head}\t{relation}\t{tail}\n" for head, relation, tail in sorted(triples))
    (folder / "train.tsv").write_text(lines, encoding="utf-8")
    (folder / "entity2text.tsv").write_text("".join(f"{name}\t{text}\n" for name, text in things), encoding="utf-8")


def _write_models(folder: Path, text: str) -> None:
    """The models that a block or a command names and does not write itself."""
    if "my-classifier" in text:
        _write_classifier(folder)
    if names := set(re.findall(r"(?<!--out )\bmy-(?:model-taught|model|retrained|unlearned|lora)\b", text)):
        _write_language_models(folder, names)


@pytest.fixture
def workplace(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh folder with those files."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", _blocks("python"), ids=lambda block: f"{block[0]}:{block[1] or block[2][:30]}")
def test_python_snippets_run(block: tuple[str, str, str], workplace: Path) -> None:
    _write_models(workplace, block[2])
    script = workplace / "snippet.py"
    script.write_text(block[2], encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def _commands() -> list[str]:
    lines = [line for _, _, body in _blocks("console") for line in body.splitlines() if line.startswith("$ ")]
    return sorted({line[2:].split("  #")[0].strip() for line in lines})


@pytest.mark.parametrize("command", _commands(), ids=lambda command: command[:80])
def test_commands_run(command: str, workplace: Path) -> None:
    """Every `$ transfuse ...` line, as typed; `make` and `pip` lines are what brought the reader here."""
    words = shlex.split(command)
    variables = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
    if words[0] in ("make", "pip", "git", "flwr"):
        return
    assert words[0] == "transfuse"
    _write_models(workplace, command)
    # Long runs are made at the quick scale here; their full scale is what `make run` and results/ are for.
    if words[1] == "run" and "--dry-run" not in words:
        words = [word for word in words if word not in ("small", "public", "--scale")] + ["--scale", "quick"]
    environment = {**os.environ, **variables, "TRANSFUSE_RESULTS": str(ROOT / "results")}
    if words[1] == "run":
        environment["TRANSFUSE_RESULTS"] = str(workplace / "own_results")
    if "TRANSFUSE_DATA" in variables:
        environment["TRANSFUSE_DATA"] = os.environ.get("TRANSFUSE_DATA", "")
    done = subprocess.run(
        [sys.executable, "-m", "transfuse", *words[1:]],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=environment,
    )
    assert done.returncode in ((0, 1) if words[1] == "audit" else (0,)), done.stderr[-2000:]
