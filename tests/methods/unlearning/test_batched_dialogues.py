"""Batched dialogues against the usual loop: the same greedy transcripts for whatever dialogues, batches, templates and
model classes; samples that do not depend on the batch; work that is done once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from transfuse.errors import UserError
from transfuse.methods.unlearning.batched_dialogues import (
    BatchedDialogues,
    Speech,
    _State,
    generating,
    has_plain_cache,
    render_messages,
)
from transfuse.methods.unlearning.respondents import OneByOne
from transfuse.nets.tiny_llama import tiny_llama, word_tokenizer

WORDS = [f"w{i}" for i in range(40)]
PLAIN_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %} .{% endif %} {% endfor %}"


def tokenizer(template: str | None = PLAIN_TEMPLATE) -> Any:
    made = word_tokenizer([" ".join(WORDS), "Question: Answer:"])
    made.chat_template = template
    return made


def model(seed: int = 0, layers: int = 2, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Random weights large enough that replies are many and the argmax is clear."""
    torch.manual_seed(seed)
    made = tiny_llama(tokenizer(), 16, layers)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4)
    return made.to(dtype).eval()


def naive(a_model: Any, a_tokenizer: Any, dialogues: list[list[str]], **more: Any) -> list[list[str]]:
    """Every dialogue by itself, every turn from its first token on."""
    ask = generating(a_model, a_tokenizer, **more)
    found = []
    for turns in dialogues:
        messages: list[dict[str, str]] = []
        for turn in turns:
            messages.append({"role": "user", "content": turn})
            messages.append({"role": "assistant", "content": ask(messages)})
        found.append([m["content"] for m in messages if m["role"] == "assistant"])
    return found


TURN = st.lists(st.sampled_from(WORDS[:12]), min_size=1, max_size=12).map(" ".join)
DIALOGUES = st.lists(st.lists(TURN, max_size=4), max_size=9)


@settings(max_examples=40)
@given(DIALOGUES, st.integers(1, 10), st.integers(1, 6), st.integers(0, 5))
def test_greedy_transcripts_are_those_of_the_usual_loop(
    dialogues: list[list[str]], batch: int, limit: int, seed: int
) -> None:
    dialogues = dialogues + [[*turns[:2], "w1 w2"] for turns in dialogues]  # some begin alike
    net, words = model(seed), tokenizer()
    ours = BatchedDialogues(net, words, max_new_tokens=limit, batch=batch).converse(dialogues)
    assert ours == naive(net, words, dialogues, max_new_tokens=limit)


@pytest.mark.parametrize("template", [None, PLAIN_TEMPLATE, "w9 w8 w7 w6 w5 w4 w3 w2 w1 w0 " + PLAIN_TEMPLATE])
def test_templates_and_shared_beginnings(template: str | None) -> None:
    net, words = model(3), tokenizer(template)
    dialogues = [[f"w{i}", f"w{i + 1} w3", "w5"] for i in range(7)] + [["w1"], ["w1", "w9"]]
    ours = BatchedDialogues(net, words, max_new_tokens=5)
    assert ours.converse(dialogues) == naive(net, words, dialogues, max_new_tokens=5)


def _other(kind: str) -> nn.Module:
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        MistralConfig,
        MistralForCausalLM,
    )

    torch.manual_seed(1)
    size = {"vocab_size": len(tokenizer()), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if kind == "gpt2":  # learnt positions
        net: Any = GPT2LMHeadModel(
            GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=256, initializer_range=0.3, **size)
        )
    elif kind == "neox":
        net = GPTNeoXForCausalLM(GPTNeoXConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, initializer_range=0.3,
            max_position_embeddings=256, **size,
        ))  # fmt: skip
    else:
        net = MistralForCausalLM(MistralConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=32,
            initializer_range=0.3, sliding_window=12 if kind == "sliding" else None, max_position_embeddings=256,
            **size,
        ))  # fmt: skip
    return net.double().eval()


@pytest.mark.parametrize(("kind", "plain"), [("gpt2", True), ("neox", True), ("mistral", True), ("sliding", False)])
def test_other_model_classes(kind: str, plain: bool) -> None:
    net, words = _other(kind), tokenizer()
    assert has_plain_cache(net) is plain
    dialogues = [[f"w{i} " * (i + 1), "w3 w4", "w5 w6 w7"][: 1 + i % 3] for i in range(8)]
    assert BatchedDialogues(net, words, max_new_tokens=6).converse(dialogues) == naive(
        net, words, dialogues, max_new_tokens=6
    )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementations_see_no_holes(attention: str) -> None:
    net, words = model(2, dtype=torch.float32), tokenizer()  # eager attention takes its softmax in float32
    net.set_attn_implementation(attention)
    dialogues = [["w1", "w2 w3 w4 w5 w6 w7 w8", "w1"], ["w9 w8 w7 w6 w5 w4", "w3", "w2 w2"]]
    assert BatchedDialogues(net, words).converse(dialogues) == naive(net, words, dialogues)


def test_packing_changes_nothing_but_the_slots() -> None:
    net = model()
    state = _State(net)
    with torch.inference_mode():
        state.feed([[5, 6, 7], [8]])
        for _ in range(12):
            state.feed([[5], []])
        state.forget([2, 1])
        slots = state.mask.shape[1]
        before = state.mask.sum(1).tolist()
        cache = [(layer.keys.clone(), layer.values.clone()) for layer in state.cache.layers]
        mask = state.mask.clone()
        state.pack()
        assert state.mask.shape[1] < slots
        assert state.mask.sum(1).tolist() == before == [2, 1]
        assert state.cache.get_seq_length() == state.mask.shape[1]
        for layer, (keys, values) in zip(state.cache.layers, cache, strict=True):
            for row in range(2):
                assert torch.equal(layer.keys[row][:, state.mask[row]], keys[row][:, mask[row]])
                assert torch.equal(layer.values[row][:, state.mask[row]], values[row][:, mask[row]])


def test_work_is_done_once() -> None:
    """Dialogues that begin alike cost their beginning once: tokens fed, counted at the embedding."""
    net, words = model(), tokenizer()
    fed = []
    net.get_input_embeddings().register_forward_hook(lambda _, inputs, __: fed.append(inputs[0].numel()))
    opening = ["w1 w2 w3 w4 w5 w6 w7 w8 w9", "w2 w3 w4 w5 w6"]
    BatchedDialogues(net, words, max_new_tokens=1).converse([opening])
    alone = sum(fed)
    fed.clear()
    BatchedDialogues(net, words, max_new_tokens=1).converse([[*opening, f"w{i}"] for i in range(10)])
    assert sum(fed) <= alone + 10 * 3  # the goal, and the reply before it


def test_replies_stop_and_finished_rows_leave() -> None:
    net, words = model(1), tokenizer()
    rows = []
    net.get_input_embeddings().register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    dialogues = [[f"w{i}"] for i in range(30)]
    replies = BatchedDialogues(net, words, max_new_tokens=30).converse(dialogues)
    lengths = sorted(len(reply[0].split()) for reply in replies)
    assert lengths[0] < 30
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < 30 or lengths[15] == 30


def test_stop_texts() -> None:
    net, words = model(5), tokenizer()
    free = BatchedDialogues(net, words, max_new_tokens=8).converse([["w1"], ["w2"]])
    long = max((reply[0] for reply in free), key=len).split()
    assert len(long) > 2, "this seed talks too little for the test"
    ours = BatchedDialogues(net, words, max_new_tokens=8, stop=[long[1]])
    replies = ours.converse([["w1"], ["w2"]])
    assert all(long[1] not in reply[0] for reply in replies)
    assert replies == naive(net, words, [["w1"], ["w2"]], max_new_tokens=8, stop=[long[1]])
    assert Speech.of(net, tokenizer(None), render_messages, None).stop == ("\n",)
    assert Speech.of(net, words, render_messages, None).stop == ()


@pytest.mark.parametrize("kind", ["llama", "sliding"])
def test_samples_depend_on_their_number_and_not_on_the_batch(kind: str) -> None:
    net: Any = model() if kind == "llama" else _other("sliding")
    words = tokenizer()
    dialogues = [[f"w{i}", "w3"] for i in range(6)]
    made = {batch: BatchedDialogues(net, words, batch=batch, temperature=5.0) for batch in (2, 6)}
    assert made[2].converse(dialogues, 1) == made[6].converse(dialogues, 1)
    assert made[6].converse(dialogues, 1) == made[6].converse(dialogues, 1)
    assert made[6].converse(dialogues, 1) != made[6].converse(dialogues, 2)
    assert made[6].converse(dialogues, 1) != made[6].converse(dialogues)


def test_draws_follow_the_probabilities() -> None:
    net, words = model(layers=1), tokenizer()
    respondent = BatchedDialogues(net, words, max_new_tokens=1, temperature=8.0)
    ids = torch.tensor([words("w1")["input_ids"]])
    expected = torch.softmax(net(ids).logits[0, -1].detach() / 8.0, -1)
    drawn = [respondent.converse([["w1"]], draw)[0][0] for draw in range(1, 601)]
    top = words.convert_ids_to_tokens(int(expected.argmax()))
    share = sum(reply == top for reply in drawn) / len(drawn)
    assert share == pytest.approx(float(expected.max()), abs=0.06)


def test_global_generators_and_mode_are_left_alone() -> None:
    net, words = model(), tokenizer()
    net.train()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    BatchedDialogues(net, words).converse([["w1"]], 1)
    assert torch.equal(before, torch.get_rng_state())
    assert net.training


def test_no_dialogues_and_wrong_numbers() -> None:
    net, words = model(), tokenizer()
    assert BatchedDialogues(net, words).converse([]) == []
    assert BatchedDialogues(net, words).converse([[], ["w1"]])[0] == []
    for wrong in ({"max_new_tokens": 0}, {"batch": 0}, {"temperature": 0.0}):
        with pytest.raises(UserError, match="numbers above 0"):
            BatchedDialogues(net, words, **wrong)


def test_a_callable_is_asked_the_same_opening_once() -> None:
    asked: list[list[dict[str, str]]] = []

    def ask(messages: list[dict[str, str]]) -> str:
        asked.append(messages)
        return str(len(asked))

    assert OneByOne(ask).converse([["a", "b"], ["a", "c"]]) == [["1", "2"], ["1", "3"]]
    assert [m["role"] for m in asked[2]] == ["user", "assistant", "user"]
    asked.clear()
    assert OneByOne(ask).converse([["a"], ["a"]], draw=1) == [["1"], ["2"]]  # samples are asked each
    with pytest.raises(UserError, match="ask returned NoneType"):
        OneByOne(lambda _: None).converse([["a"]])  # type: ignore[arg-type, return-value]
