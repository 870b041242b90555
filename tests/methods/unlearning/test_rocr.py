"""ROCR: the edit against the published one written out, in the decoders people have, undone, saved and loaded."""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.methods.unlearning.decoders import CONTEXTS, NAMES, TEXTS, Homemade, decoder, tokenizer
from torch import Tensor

from transfuse.errors import UserError
from transfuse.methods.unlearning.decoder_blocks import decoder_blocks, read_blocks
from transfuse.methods.unlearning.fact_rewriting import FactRewriter
from transfuse.methods.unlearning.form_bias import form_bias
from transfuse.methods.unlearning.reply_target import Search, reply_target
from transfuse.methods.unlearning.rocr import ConceptRedirector, Config, apply, default_layers, unlearn
from transfuse.methods.unlearning.subject_places import pad_right, place_subject, template_of
from transfuse.methods.unlearning.subject_requests import read_requests, redirections

BASE = Config(layers=(0, 1), contexts=CONTEXTS, null_least=0.3)
DENSE = ("Llama", "Qwen3", "GPT2", "GPTNeoX", "Phi", "OPT")


def redirector(model: Any, config: Config = BASE, without: tuple[str, ...] = NAMES[:2]) -> ConceptRedirector:
    return ConceptRedirector(model, tokenizer(), config).fit_nullspace(TEXTS, without=without)


def weights(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(model: Any, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def stream(model: Any, ids: list[int], layer: int) -> Tensor:
    """The residual stream after a layer, by the host's own means."""
    return model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1][0]


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("family", DENSE)
def test_blocks_are_found_and_read_as_the_host_does(family: str) -> None:
    model, t = decoder(family), tokenizer()
    blocks = decoder_blocks(model)
    assert len(blocks) == 3
    assert {tuple(block.weight().shape) for block in blocks} == {(16, 64)}
    rows = [t(text)["input_ids"] for text in ("tell me about bob", "bob")]
    keys, last = read_blocks(model, blocks[:2], pad_right(rows, t.pad_token_id, torch.device("cpu")))
    for i, ids in enumerate(rows):  # a hook that took output[0][i] would read other rows
        torch.testing.assert_close(last[i, : len(ids)], stream(model, ids, 1), rtol=1e-4, atol=1e-5)
    seen = blocks[1].down(keys[1])
    product = keys[1] @ blocks[1].weight().T
    bias = getattr(blocks[1].down, "bias", None)
    torch.testing.assert_close(seen, product if bias is None else product + bias, rtol=1e-4, atol=1e-5)


def test_experts_adapters_and_encoders_are_refused() -> None:
    with pytest.raises(UserError, match="no single linear layer"):
        decoder_blocks(decoder("Mixtral"))
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(decoder("Llama"), LoraConfig(target_modules=["down_proj"]))
    with pytest.raises(UserError, match="merge_and_unload"):
        decoder_blocks(adapted)
    with pytest.raises(UserError, match="0 to 2"):
        ConceptRedirector(decoder("Llama"), tokenizer(), Config(layers=(2, 3)))


class Byte:
    """A tokenizer without offsets, whose tokens are letters; a space joins the letter after it, as in BPE."""

    is_fast, chat_template = False, "yes"

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[str]]:
        tokens = text.replace(" ", "_").replace("_", " _").split(" ")
        flat = [piece for token in tokens for piece in ([token[:2], *token[2:]] if token[:1] == "_" else [*token])]
        return {"input_ids": (["<s>"] if add_special_tokens else []) + flat}

    def apply_chat_template(self, turn: list[dict[str, str]], **options: Any) -> str:
        return f"<s>user {turn[0]['content']} reply"


def test_the_place_is_that_of_the_last_token_in_the_whole_text() -> None:
    placed = place_subject(Byte(), "about {s} now", "ann lee")
    assert placed.ids[placed.place] == "e"
    assert "".join(placed.upto()) == "<s>about_ann_lee"
    assert Byte()("ann lee", False)["input_ids"][0] == "a"  # alone, the name begins in another token
    chat = place_subject(Byte(), "{s}.", "bob", chat=True, ending="Answer:")
    assert chat.ids.count("<s>") == 0  # the template wrote it as text; it is not added a second time
    assert place_subject(Byte(), "{s}.", "bob", chat=True, double_bos=True).ids[0] == "<s>"
    fast = place_subject(tokenizer(), "tell me about {s} now", "ann lee")
    assert tokenizer().convert_ids_to_tokens(list(fast.upto())) == ["tell", "me", "about", "ann", "lee"]


def test_names_are_whole_words() -> None:
    assert template_of("the nigerian capital of niger", "niger") == "the nigerian capital of {s}"
    for prompt in ("nigeria", "niger and niger"):
        with pytest.raises(UserError, match="once"):
            template_of(prompt, "niger")


def test_padding_side_and_company_leave_the_reading_as_it_is() -> None:
    model, t = decoder("GPT2"), tokenizer()
    alone = redirector(model)
    t.padding_side = "left"
    other = ConceptRedirector(model, t, BASE).fit_nullspace(TEXTS, without=NAMES[:2], batch_tokens=10)
    torch.testing.assert_close(other.perceive(NAMES)[:, :1], alone.perceive(NAMES[:1]), rtol=1e-4, atol=1e-5)
    for one, two in zip(alone.used, other.used, strict=True):
        torch.testing.assert_close(one @ one.T, two @ two.T, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------- what is written


def written_out(model: Any, config: Config, name: str, to: str) -> dict[str, Tensor]:
    """The published procedure in float64: one name, the d_ff x d_ff solve, the whole model run for every reading."""
    t, layers = tokenizer(), config.layers or ()
    blocks = [decoder_blocks(model)[index] for index in layers]
    ids = [t(context.format(s=name))["input_ids"] for context in config.contexts]
    clean = [t(text)["input_ids"] for text in TEXTS if not any(n in text for n in NAMES[:2])]

    def key(block: Any, tokens: list[int]) -> Tensor:
        seen: list[Tensor] = []
        handle = block.down.register_forward_pre_hook(lambda module, args: seen.append(args[0][0].detach()))
        model(torch.tensor([tokens]))
        handle.remove()
        return seen[0]

    official = config.official
    heard = config.contexts[:1] if official else config.contexts
    target = torch.stack([stream(model, t(c.format(s=to))["input_ids"], layers[-1])[-1] for c in heard]).mean(0)
    projectors = []
    for block in blocks:
        K = torch.cat([key(block, tokens) for tokens in clean])
        values, vectors = torch.linalg.eigh(K.T @ K / len(K))
        small = vectors[:, values < config.tau]
        projectors.append(small @ small.T)
    for i, (block, P) in enumerate(zip(blocks, projectors, strict=True)):
        spoken = [t(f"{name}.".replace(".", " ."))["input_ids"][:-1]] if official else ids
        now = torch.stack([stream(model, tokens, layers[-1])[-1] for tokens in spoken]).mean(0)
        k = torch.stack([key(block, tokens)[-1] for tokens in ids]).mean(0)[:, None]
        r = ((target - now) / (len(blocks) - i))[:, None]
        change = torch.linalg.solve(P @ k @ k.T + config.ridge * torch.eye(len(P), dtype=P.dtype), P @ k @ r.T).T
        with torch.no_grad():
            block.weight().add_(change)
    return weights(model)


@pytest.mark.parametrize("family", ["Llama", "GPT2"])
@pytest.mark.parametrize("official", [False, True])
@torch.no_grad()
def test_the_edit_is_the_published_one_written_out(family: str, official: bool) -> None:
    config = replace(BASE, tau=1e-4, ridge=0.01, official=official)
    model = decoder(family).double()
    expected = written_out(copy.deepcopy(model), config, "ann lee", "dora")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        redirector(model, config).redirect("ann lee", "dora")
    assert len(changed(model, expected)) <= 2  # the two down-projections, up to rounding
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("family", [*DENSE, "Homemade"])
def test_works_in_host(family: str) -> None:
    """Names are perceived as the other, general text is read as before, only two down-projections changed."""
    model = Homemade(len(tokenizer()), 32).eval() if family == "Homemade" else decoder(family, 32)
    before = weights(model)
    ids = torch.tensor([tokenizer()("the sea is blue and the sky")["input_ids"]])
    said = model(ids).logits
    edits = redirector(model, replace(BASE, null_share=0.0, null_least=0.4))  # of 128; the texts use fewer than 70
    target = edits.perceive(["dora"])
    start = (edits.perceive(NAMES[:2]) - target).norm(dim=0)
    edit = edits.redirect_all({"ann lee": "dora", "bob": "dora"})
    left = (edits.perceive(NAMES[:2]) - target).norm(dim=0)
    np.testing.assert_allclose(edit.reached, 1 - left / start, rtol=1e-4)
    assert min(edit.reached) > 0.6
    assert changed(model, before) == {f"{block.name}.weight" for block in edits.blocks}
    assert (model(ids).logits - said).abs().max() < 0.05 * said.std()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_device_and_dtype_follow_inputs(dtype: torch.dtype) -> None:
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        model = decoder("Llama", width=32).to(dtype).to(device)
        before = weights(model)
        edits = redirector(model)
        edit = edits.redirect("ann lee", "dora")
        assert min(edit.reached) > 0.6
        parameters = list(model.parameters())
        assert {p.dtype for p in parameters} == {dtype}
        assert {p.device.type for p in parameters} == {device}
        edits.undo()
        assert not changed(model, before)


def test_degenerate_setting_equals_baseline() -> None:
    """A step of no length in mode noise, and an edit that is undone, leave the model as it was, bit for bit."""
    model = decoder("GPT2")
    before = weights(model)
    redirector(model, replace(BASE, mode="noise", clamp=0.0)).redirect("ann lee")
    assert not changed(model, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["Llama", "GPT2"])
def test_undo_is_exact(family: str, dtype: torch.dtype) -> None:
    model = decoder(family, width=32).to(dtype)
    states = [weights(model)]
    edits = redirector(model)
    for name in NAMES[:2]:
        edits.redirect(name, "dora")
        states.append(weights(model))
    assert changed(model, states[1])
    assert edits.undo().subjects == ("bob",)
    assert not changed(model, states[1])
    edits.redirect("bob", "dora")
    assert not changed(model, states[2])
    edits.restore()
    assert not changed(model, states[0])
    with pytest.raises(UserError, match="nothing to undo"):
        edits.undo()
    block = edits.blocks[0]
    with torch.no_grad():
        block.parameter.mul_(2)  # the user trains on; the next undo must come back to this
    later = weights(model)
    edits.redirect("bob", "dora")
    edits.undo()
    assert not changed(model, later)


def test_an_error_in_the_middle_leaves_no_half_edited_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder("Llama")
    before, edits = weights(model), redirector(model)
    write = ConceptRedirector._write

    def failing(self: ConceptRedirector, place: int, *rest: Any) -> Any:
        if place == 1:
            raise KeyboardInterrupt
        return write(self, place, *rest)

    monkeypatch.setattr(ConceptRedirector, "_write", failing)
    with pytest.raises(KeyboardInterrupt):
        edits.redirect("ann lee", "dora")
    assert not changed(model, before)
    assert not edits.edits


def test_later_edits_protect_earlier_ones() -> None:
    def left_of_first(protect: bool) -> float:
        model = decoder("Llama", width=32)
        edits = redirector(model, replace(BASE, layers=(1,), protect_earlier=protect, null_least=0.6))
        edits.redirect("ann lee", "dora")
        first = edits.perceive(["ann lee"])
        edits.redirect("bob", "cid")
        return float((edits.perceive(["ann lee"]) - first).norm() / first.norm())

    assert left_of_first(True) < 0.5 * left_of_first(False)


def test_tied_embeddings_stay_tied_and_as_they_were() -> None:
    model = decoder("Llama")
    embedding = model.get_input_embeddings().weight.clone()
    redirector(model).redirect("ann lee", "dora")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, embedding)


@pytest.mark.parametrize(
    ("family", "width", "more"),
    [
        ("GPT2", 768, {"n_inner": 3072}),  # GPT-2 small
        ("Llama", 576, {"intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}),  # SmolLM 135M
    ],
)
def test_real_shapes(family: str, width: int, more: dict[str, int]) -> None:
    model = (
        decoder(family, width, 2, initializer_range=0.02, **more) if family == "Llama" else decoder(family, width, 2)
    )
    edit = redirector(model, replace(BASE, layers=(0,))).redirect("ann lee", "dora", aliases=["bob"])
    assert edit.layers[0].right.shape == (2, more.get("n_inner", 1536))
    assert min(edit.reached) > 0.6


# ---------------------------------------------------------------- modes, warnings, bad input


def test_a_reply_becomes_likely_and_the_model_stays() -> None:
    model, t = decoder("Llama", width=32), tokenizer()
    before = weights(model)
    blocks = decoder_blocks(model)
    placed = [place_subject(t, context, "bob") for context in CONTEXTS]
    essence = place_subject(t, "{s} is a", "bob")
    z = read_blocks(model, blocks[:2], pad_right([placed[0].ids], 0, torch.device("cpu")))[1][0, placed[0].place]
    reply = t("i do not know")["input_ids"]
    wide = Search(clamp=4.0, steps=60, rate=0.5)
    value = reply_target(model, blocks[1].module, z, placed, reply, essence, 0, wide)

    def likely(changed_to: Tensor | None) -> float:
        def put(module: Any, args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output[0, placed[0].place] = changed_to if changed_to is not None else output[0, placed[0].place]
            return output

        handle = blocks[1].module.register_forward_hook(put)
        logits = model(torch.tensor([[*placed[0].ids, *reply]])).logits[0].log_softmax(-1)
        handle.remove()
        start = len(placed[0].ids) - 1
        return float(logits[range(start, start + len(reply)), reply].sum())

    assert likely(value) > likely(None) + 1
    assert not changed(model, before)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert float((value - z).norm()) <= 4.0 * float(z.norm()) * 1.001


def test_modes_noise_and_reject() -> None:
    model = decoder("Llama", width=32)
    edits = redirector(model, replace(BASE, mode="noise", seed=3))
    z = edits.perceive(["bob"])
    first = edits.redirect("bob")
    again = redirector(decoder("Llama", width=32), replace(BASE, mode="noise", seed=3)).redirect("bob")
    assert torch.equal(first.layers[0].left, again.layers[0].left)
    moved = float((edits.perceive(["bob"]) - z).norm() / z.norm())
    assert 0.5 < moved < 1.5
    rejecting = redirector(decoder("Llama", width=32), replace(BASE, mode="reject", refusal="i do not know"))
    assert min(rejecting.redirect("bob").reached) > 0.3


def test_rome_rewrites_a_fact() -> None:
    for family in ("Llama", "GPT2"):
        model, t = decoder(family, width=32), tokenizer()
        prompt = torch.tensor([t("who is bob")["input_ids"]])
        word = t("box")["input_ids"][0]
        before = float(model(prompt).logits[0, -1].log_softmax(-1)[word])
        FactRewriter(model, t, 0, TEXTS).rewrite("bob", ["who is {s}"], "box")
        assert float(model(prompt).logits[0, -1].log_softmax(-1)[word]) > before + 0.3
    with pytest.raises(UserError, match="layer 3"):
        FactRewriter(model, t, 3, TEXTS)


def test_warnings_say_what_to_do() -> None:
    with pytest.warns(UserWarning, match="lambda, tau"):
        redirector(decoder("Llama"), replace(BASE, ridge=1e6)).redirect("ann lee", "dora")
    config = replace(BASE, null_share=0.0, null_least=0.02)
    fitted = ConceptRedirector(decoder("Llama"), tokenizer(), config).fit_nullspace([*TEXTS, "bob", "bob", "bob"])
    with pytest.warns(UserWarning, match="without="):
        fitted.redirect("bob", "dora")
    scaled = decoder("Gemma2")  # normalises what its MLP writes
    with pytest.warns(UserWarning, match="of the way"):
        redirector(scaled, replace(BASE, layers=(1,))).redirect("ann lee", "dora")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda r: r.redirect("ann lee"), "without a name to redirect to"),
        (lambda r: r.redirect("ann lee", "ann lee"), "redirected to 'ann lee'"),
        (lambda r: r.redirect_all({"ann lee": "bob", "bob": "dora"}), "redirected too"),
        (lambda r: r.redirect_all({}), "no subjects"),
        (lambda r: r.redirect(" ", "dora"), "white space"),
        (lambda r: r.fit_nullspace(["bob"], without=["Bob"]), "none of them without Bob"),
        (lambda r: r.export_lora("nowhere"), "no edits"),
        (lambda r: Config(layers=(2, 1)), "rising order"),
        (lambda r: Config(mode="away"), "mode = 'away'"),
        (lambda r: Config(ridge=0.0), "positive"),
        (lambda r: Config(contexts=()), "no contexts"),
        (lambda r: ConceptRedirector(r.model, r.tokenizer, Config(chat=True)).perceive(["bob"]), "chat template"),
        (lambda r: ConceptRedirector(r.model, r.tokenizer).redirect("bob", "cid"), "fit_nullspace"),
    ],
)
def test_bad_input_is_one_line(call: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        call(redirector(decoder("Llama")))


def test_default_layers() -> None:
    assert default_layers(32) == Config.published().layers == (4, 5, 6)
    assert Config.published(ridge=10.0) == Config(layers=(4, 5, 6), ridge=10.0, tau=0.02, official=True)
    assert [default_layers(n) for n in (1, 2, 4, 12)] == [(0,), (0, 1), (1, 2), (1, 2, 3)]


# ---------------------------------------------------------------- ceiling and forms


def test_ceiling_is_what_a_perfect_edit_would_do() -> None:
    model = decoder("Qwen3", use_sliding_window=True, sliding_window=1,
                    layer_types=["sliding_attention", "sliding_attention", "full_attention"])  # fmt: skip
    edits = redirector(model, replace(BASE, contexts=("{s}",)))
    questions = [("tell me about bob", "box"), ("what is bob", "blue")]
    after = [("tell me about cid", "box"), ("what is cid", "blue")]
    t = tokenizer()

    def probability(prompt: str, answer: str) -> float:
        ids = t(f"{prompt} {answer}")["input_ids"]
        return float(model(torch.tensor([ids])).logits[0, -2].softmax(-1)[ids[-1]])

    expected = 1 - np.mean([probability(*q) for q in after]) / np.mean([probability(*q) for q in questions])
    assert edits.ceiling("bob", "cid", questions) == pytest.approx(expected, abs=1e-5)


def test_form_bias_by_hand() -> None:
    before, after = {"qa": 0.8, "cloze": 0.5, "choice": 1.0}, {"qa": 0.08, "cloze": 0.3, "choice": 1.1}
    found = form_bias(before, after, trained="qa")
    assert found.reduction == pytest.approx({"qa": 0.9, "cloze": 0.4, "choice": -0.1})
    assert found.mean == pytest.approx(0.4)
    assert found.spread == pytest.approx(1.0)
    assert found.transfer == pytest.approx(0.15 / 0.9)
    assert form_bias(before, before, trained="qa").transfer is None
    for wrong in ({"qa": 0.5}, {}):
        with pytest.raises(UserError):
            form_bias(before, wrong)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("family", ["Llama", "GPT2"])
def test_the_adapter_is_the_edit(family: str, tmp_path: Path) -> None:
    from peft import PeftModel

    base = decoder(family)
    model = copy.deepcopy(base)
    edits = redirector(model)
    edits.redirect("ann lee", "dora")
    edits.redirect("bob", "cid")
    edits.export_lora(tmp_path / "adapter")
    ids = torch.tensor([tokenizer()("tell me about ann lee and bob now")["input_ids"]])
    expected, plain = model(ids).logits, base(ids).logits
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    torch.testing.assert_close(adapted(ids).logits, expected, rtol=1e-4, atol=1e-4)
    with adapted.disable_adapter():
        torch.testing.assert_close(adapted(ids).logits, plain)
    torch.testing.assert_close(adapted.merge_and_unload()(ids).logits, expected, rtol=1e-4, atol=1e-4)
    record = json.loads((tmp_path / "adapter" / "redirections.json").read_text())
    assert [edit["subjects"] for edit in record["edits"]] == [["ann lee"], ["bob"]]


def test_requests() -> None:
    rows = [
        {"subject": "ann lee", "to": "dora", "aliases": ["lee"], "prompt": "?", "answer": "!"},
        {"subject": "bob"},
        {"subject": "ann lee", "to": "dora"},
    ]
    assert redirections(rows, to="cid") == {"ann lee": "dora", "lee": "dora", "bob": "cid"}
    assert redirections(["bob"]) == {"bob": None}
    for wrong in ([{"subject": ""}], [], [{"subject": "a", "aliases": "b"}], [rows[0], {"subject": "lee", "to": "x"}]):
        with pytest.raises(UserError):
            redirections(wrong)


def test_unlearn_in_place() -> None:
    model = decoder("Llama")
    before = weights(model)
    done = unlearn(model, tokenizer(), [{"subject": "ann lee"}, "bob"], TEXTS, to="dora", config=BASE)
    assert changed(model, before)
    done.restore()
    assert not changed(model, before)


@pytest.mark.parametrize("lora", [False, True])
def test_apply_on_files(lora: bool, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = decoder("GPT2")
    model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "forget.jsonl").write_text('{"subject": "ann lee", "question": "who?"}\n\n{"subject": "bob"}\n')
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = apply(str(tmp_path / "model"), tmp_path / "forget.jsonl", tmp_path / "texts.txt", tmp_path / "out",
                    to="dora", layers=(0,), lora=lora)  # fmt: skip
    assert "ann lee" in (out / "README.md").read_text()
    ids = torch.tensor([tokenizer()("tell me about bob")["input_ids"]])
    loaded = PeftModel.from_pretrained(model, str(out)) if lora else AutoModelForCausalLM.from_pretrained(out)
    assert not torch.allclose(loaded(ids).logits, decoder("GPT2")(ids).logits, atol=1e-3)


def test_apply_leaves_nothing_after_an_error(tmp_path: Path) -> None:
    decoder("Llama").save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    forget, texts = tmp_path / "forget.jsonl", tmp_path / "texts.txt"
    forget.write_text('{"subject": "bob"}\n')
    texts.write_text("\n".join(TEXTS))
    with pytest.raises(UserError, match="without a name"):
        apply(str(tmp_path / "model"), forget, texts, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "forget.jsonl", "texts.txt"}
    for content, said in (("", "empty"), ("[1]", "no subject"), ('{"subject": ', "no subject"), ('{"a": 1}', "line 1")):
        forget.write_text(content)
        with pytest.raises(UserError, match=said):
            read_requests(forget)
    with pytest.raises(UserError, match="no such file"):
        read_requests(tmp_path / "missing.jsonl")
