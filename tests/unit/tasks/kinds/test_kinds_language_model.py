"""What kinds that read a language model share: templates, prompts, and losses of tokens, a chunk at a time."""

from __future__ import annotations

import datetime

import pytest
import torch
from support.characters import CHAT, characters
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from loraxs_search.records.task import Serving
from loraxs_search.tasks.asking import asking_code
from loraxs_search.tasks.encoded import Batch
from loraxs_search.tasks.kinds import PassOutputs, _token_loss
from loraxs_search.tasks.kinds._language_model import Prompt, Template, begin_ids, continued_ids, token_ids, written
from loraxs_search.tasks.kinds._token_loss import token_losses

CHAT_PROMPT = {"messages": [{"role": "system", "content": "be"}, {"role": "user", "content": "{q} {n}"}]}


def said(keys, row, tokenizer):
    prompt = Prompt.of(keys)
    return "".join(tokenizer.convert_ids_to_tokens(prompt.ids([prompt.fill(row)], tokenizer)[0]))


def test_columns_are_filled_in_and_double_braces_are_single_ones():
    template = Template.of("{{x}} {a b}: {c}, {a b}}}")
    assert template.columns == ("a b", "c")
    assert template.fill({"a b": "one {c}", "c": 2, "d": None}) == "{x} one {c}: 2, one {c}}"
    for text, law in [("a } b", "close"), ("{a{b}}", "close"), ("{a", "close"), ("{ }", "name a column")]:
        with pytest.raises(ValueError, match=law):
            Template.of(text)


def test_values_are_written_as_json_would_and_numbers_plainly():
    for value, text in [
        ("ä\n", "ä\n"),
        (-7.0, "-7"),
        (1e22, "1e+22"),
        (True, "true"),
        ({"é": [1.5, None]}, '{"é": [1.5, null]}'),
    ]:
        assert written(value) == text
    for value in [None, float("nan"), [float("inf")], datetime.date(2020, 1, 1), ["\ud800"]]:
        with pytest.raises(ValueError):  # the caller names the value
            written(value)


# ---- prompts ---------------------------------------------------------------------------------------------------------
def test_prompts_begin_with_the_begin_token_and_messages_go_through_the_chat_template():
    row = {"q": "ab", "n": 3}
    assert said({"prompt": "{q}?"}, row, characters(begins=True)) == "<s>ab?"
    assert said({"prompt": "{q}?"}, row, characters()) == "ab?"
    assert (begin_ids(characters(begins=True)), begin_ids(characters())) == ([2], [])
    assert Prompt.of(CHAT_PROMPT).columns == ("q", "n")
    whole = "<|system|>be<|end|><|user|>ab▁3<|end|><|assistant|>"
    assert said(CHAT_PROMPT, row, characters(begins=True, chat=CHAT)) == whole
    # A template with a date gives the same tokens every day.
    assert said(CHAT_PROMPT, row, characters(chat="{{ strftime_now('%d %b %Y') }}" + CHAT)) == f"26▁Jul▁2024{whole}"
    asked = "{% if strftime_now is defined %}{% set d = strftime_now('%Y-%m-%d') %}{{ d[:4] }}{% endif %}"
    assert said(CHAT_PROMPT, row, characters(chat=asked)) == "2024"


def test_the_code_of_an_export_writes_the_date_of_training():
    dated = "{{ strftime_now('%d %b %Y') }}{{ strftime_now(\"%-m\") }}" + CHAT
    tokenizer, messages = characters(chat=dated), [{"role": "user", "content": "a"}]
    code = asking_code(Serving(prompt=None, messages=(("user", "a"),), max_new_tokens=3))
    exec(code.partition("model.generation_config")[0], space := {"tokenizer": tokenizer})
    assert space["inputs"]["input_ids"][0].tolist() == Prompt.of({"messages": messages}).ids([["a"]], tokenizer)[0]


def test_an_answer_continues_its_prompt_without_a_space_of_its_own():
    """Some tokenizers put a space before each text: behind a prompt it would be one too many."""
    for prepend in ["never", "first", "always"]:
        tokenizer = characters(prepend=prepend)
        for text in (" a b", "ab", "\nab", "  ab"):
            whole, before = token_ids([f"x{text}", "x"], tokenizer)
            assert continued_ids([text], tokenizer) == [whole[len(before) :]]


# ---- losses ----------------------------------------------------------------------------------------------------------
COUNTS = torch.tensor([5, 1, 4, 7])
M, WIDTH, VOCABULARY = 17, 6, 11


@pytest.fixture(autouse=True)
def few_rows_a_chunk(monkeypatch):
    """Four chunks, the last one of two reads."""
    monkeypatch.setattr(_token_loss, "CHUNK_BYTES", 5 * 4 * VOCABULARY)


def _batch():
    targets = torch.randint(VOCABULARY, (M,), generator=torch.Generator().manual_seed(1))
    return Batch({}, COUNTS, torch.zeros(M, 2, dtype=torch.int64), targets, M)


def _states(dtype):
    states = torch.randn(M, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return states.to(dtype).requires_grad_()


class _Projection:
    """Logits as bases have them: in two steps, capped, and notes of how many rows there are at once."""

    def __init__(self, dtype, cap=None):
        weight = 3 * torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        self.weight, self.cap, self.sizes = weight.to(dtype), cap, list[int]()

    def __call__(self, states):
        return self.finish(self.embed(states))

    def embed(self, states):
        return states @ self.weight.T

    def finish(self, embedded):
        self.sizes.append(len(embedded))
        logits = embedded.to(torch.promote_types(embedded.dtype, torch.float32))
        return torch.tanh(logits / self.cap) * self.cap if self.cap else logits


def _losses_and_gradient(states, losses):
    """Return losses and the gradient of their sum, each with its own weight."""
    weights = torch.linspace(-1, 2, M, dtype=losses.dtype)
    (gradient,) = torch.autograd.grad((losses * weights).sum(), states)
    return losses.detach(), gradient


def test_losses_and_gradients_are_those_of_plain_cross_entropy():
    batch, states, project = _batch(), _states(torch.float64), _Projection(torch.float64, 2.0).__call__
    plain = cross_entropy(project(states), batch.targets, reduction="none")
    expected = _losses_and_gradient(states, plain)
    losses, is_likeliest = token_losses(PassOutputs(states, project), batch)
    for actual, wanted in zip(_losses_and_gradient(states, losses), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)
    assert is_likeliest.tolist() == (project(states).argmax(-1) == batch.targets).tolist()
    assert 0 < is_likeliest.sum() < M
    assert not is_likeliest.requires_grad
    assert batch.row_sums(is_likeliest).dtype is torch.int64
    with torch.inference_mode():
        unlearnt, _ = token_losses(PassOutputs(states, project), batch)
    assert not unlearnt.requires_grad
    torch.testing.assert_close(unlearnt.clone(), losses.detach())


@pytest.mark.parametrize(("dtype", "cap", "tolerance"), [(torch.float32, None, 1e-6), (torch.bfloat16, 2.0, 1e-2)])
def test_in_two_steps_float32_logits_exist_for_a_block_alone(dtype, cap, tolerance, monkeypatch):
    monkeypatch.setattr(_token_loss, "_CPU_BLOCK_BYTES", 2 * 4 * VOCABULARY)
    batch, states, project = _batch(), _states(dtype), _Projection(dtype, cap)
    expected = _losses_and_gradient(states, cross_entropy(project(states), batch.targets, reduction="none"))
    project.sizes.clear()
    losses, _ = token_losses(PassOutputs(states, project), batch)
    assert max(project.sizes) == 2
    for actual, wanted in zip(_losses_and_gradient(states, losses), expected, strict=True):
        assert (actual - wanted).norm() <= tolerance * wanted.norm()


class _LargestTensor(TorchDispatchMode):
    """Sees every tensor that an operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # torch's own form
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return out


def test_logits_are_never_whole_forward_and_backward():
    batch, states, project = _batch(), _states(torch.float32), _Projection(torch.float32).__call__
    with _LargestTensor() as chunked:
        token_losses(PassOutputs(states, project), batch)[0].sum().backward()
    assert chunked.numbers <= max(_token_loss.CHUNK_BYTES // 4, M * WIDTH)
