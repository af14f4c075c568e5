"""What kinds that read a language model share: templates, prompts, losses of tokens; and multiple choice."""

from __future__ import annotations

import datetime
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from support.bases import CHAT, characters
from support.text_tasks import broken_laws, choosing_task, labelled, refused
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from loraxs_search.errors import TaskDataError
from loraxs_search.records.task import Serving
from loraxs_search.tasks.asking import asking_code
from loraxs_search.tasks.encoded import Batch, Ragged, RowSource
from loraxs_search.tasks.kinds import PassOutputs, _token_loss, kind_of
from loraxs_search.tasks.kinds._language_model import Prompt, Template, begin_ids, continued_ids, token_ids, written
from loraxs_search.tasks.kinds._token_loss import token_losses
from loraxs_search.tasks.kinds.multiple_choice import Choices
from loraxs_search.tasks.prepared import load_data, prepare

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


# ---- multiple choice -------------------------------------------------------------------------------------------------
@pytest.fixture
def make(write):
    """A task on a few rows, in all three splits."""
    return partial(choosing_task, write)


def test_a_question_gives_the_prompts_columns_and_then_the_options(make):
    kind = kind_of(make(prompt="{q} {extra}?"))
    assert kind.question_texts == ("q", "extra", "choices, separated by |")
    rows = kind.questions([("one", "two", "a |b| c"), ("three", "four", ["x | y", "z"])])
    assert rows.texts == ["one two?", "three four?"]
    assert rows.extras["options"] == [[" a", " b", " c"], [" x | y", " z"]]
    assert kind.shown(("Which?", "x", ["a", 2])) == "Which? | x | a | 2"
    assert kind_of(make(options=[" {a}", " {b}"])).question_texts == ("q", "a", "b")
    once = kind_of(make(prompt="{q} {choices}?"))  # options that the prompt shows are asked for once
    assert once.questions([("one", "a|b")]).texts == ['one ["a", "b"]?']
    with pytest.raises(TaskDataError, match=r"two or more, .*row 2"):
        once.questions([("one", "a|b"), ("two", "a")])


def shown(tokenizer, ids):
    return "".join(tokenizer.convert_ids_to_tokens(np.asarray(ids).tolist()))


def test_the_right_options_tokens_are_learnt_and_every_option_fits(make):
    tokenizer = characters(begins=True)
    data = prepare(make(normalize="bytes"), tokenizer)
    rows = data.encoded("train")
    assert [shown(tokenizer, rows.ids.row(i)) for i in (0, 1)] == ["<s>Sky?▁blu", "<s>Sum?▁3"]
    assert [shown(tokenizer, rows.targets.row(i)) for i in (0, 1)] == ["▁blue", "▁33"]
    assert rows.positions.row(0).tolist() == [4, 5, 6, 7, 8]
    assert data.report.cut == {"train": 0, "validation": 0, "test": 0}
    long = [{"q": "abcdefgh", "choices": ["a", "bbbb"], "answer": 0}, {"q": "xy", "choices": ["a", "b"], "answer": 1}]
    task = replace(make(long), max_length=9)
    for _ in ("computed", "from the cache"):
        data = prepare(task, tokenizer)
        rows = data.encoded("train")
        assert [shown(tokenizer, rows.ids.row(i)) for i in (0, 1)] == ["<s>gh?▁", "<s>xy?▁"]
        assert data.report.cut["train"] == 1
    task = replace(make([*labelled([0] * 1500), {"q": "long", "choices": ["a", "b" * 30], "answer": 0}]), max_length=20)
    with pytest.raises(TaskDataError, match=r"'long\?' \(line 1501\) do not: the longest has 31 tokens") as error:
        prepare(task, tokenizer)
    assert "raise `max_length` above 31" in error.value.hint
    with pytest.raises(TaskDataError, match="each option must have a token"):
        prepare(make(labelled([0, 1, 0]), options=["x", "\N{SNOWMAN}"]), characters(drops=True))


def answered(asking, tokenizer, **losses):
    """Answer a request for options with the losses of these tokens, 0 of all others, each of which is the likeliest."""
    request = next(asking)
    targets = request.source.targets
    values = torch.zeros(len(request.rows), int(targets.lengths.max()))
    for row in range(len(request.rows)):
        for column, token in enumerate(tokenizer.convert_ids_to_tokens(targets.row(row).tolist())):
            values[row, column] = losses.get(token, 0.0)
    with pytest.raises(StopIteration) as stop:
        asking.send((values, (values == 0).long()))
    return request.source, stop.value.value


def test_the_likeliest_option_wins_after_normalising(make):
    for normalize, second in [("none", 0), ("tokens", 2), ("bytes", 2)]:
        data = prepare(make(normalize=normalize), characters())
        asking = data.kind.score(data, "test", np.array([1, 0]))
        _, scores = answered(asking, data.tokenizer, **{"1": 1.0, "2": 1.5, "3": 0.625, "b": 3.0, "r": 2.0})
        assert scores.predictions.tolist() == [second, 1]
        assert scores.losses.tolist() == [1.25, 3.0], "those of the right options"
        assert (scores.counts.tolist(), scores.correct.tolist()) == ([3, 5], [1, 4])
    (of_bytes,) = Choices([[[1], [2, 3]]], [["é", "b"]], [0]).scores(np.array([2.0, 1.0], np.float32), "bytes")
    assert of_bytes.tolist() == [-1.0, -1.0]


def test_options_that_begin_alike_are_one_row_and_all_share_the_prompt(make):
    data = prepare(make(), characters())
    asked, _ = answered(data.kind.score(data, "test", np.array([1, 0])), data.tokenizer)
    rows = asked.with_prompts()
    assert [shown(data.tokenizer, rows.ids.row(i)) for i in range(len(rows))] == ["Sum?▁3", "Sky?▁blu", "Sky?▁re"]
    assert [shown(data.tokenizer, rows.targets.row(i)) for i in range(len(rows))] == ["▁1233", "▁blue", "▁red"]
    assert rows.positions.row(0).tolist() == [3, 4, 4, 4, 5]
    parts, _ = Choices.of_rows(data.encoded("test")).behind(Ragged.of([[7, 8, 9]] * 2, np.int32))
    assert (parts.prompt_of.tolist(), parts.prompts.row(1).tolist(), parts.ids.row(2)[0]) == ([0, 0, 1], [7, 8], 9)


@pytest.mark.parametrize("shots", [0, 4])
def test_the_base_alone_is_asked_with_worked_examples(make, shots):
    rows = [{"q": f"q{i}", "choices": ["yes", "no"], "answer": i % 2} for i in range(6)]
    data = prepare(make(rows), characters(begins=True))
    asked, scores = answered(data.kind.base_alone(data, "test", np.array([4]), shots), data.tokenizer, n=1.0)
    text = shown(data.tokenizer, asked.with_prompts().ids.row(0))
    *before, last = text.removeprefix("<s>").split("\n\n")
    assert last == "q4?▁ye"
    assert sorted(example.partition("?▁")[2] for example in before) == ["no", "no", "yes", "yes"][:shots]
    assert scores.predictions.tolist() == [0] == data.labels("test")[[4]].tolist()


def test_an_answer_is_the_options_text_and_its_share_among_them(make):
    kind, tokenizer = kind_of(make()), characters()
    questions = kind.encode_questions([("Sky", "red|blue"), ("x", "a|d|c"), ("z", "Z\u00fcich  2|b")], tokenizer)
    asking = kind.predict(RowSource(tokenizer), questions, ["Sky", "x", "z"])
    _, (first, second, third) = answered(asking, tokenizer, r=np.log(4), b=np.log(4 / 3))
    assert (first.text, first.label, second.score) == ("Sky", "blue", pytest.approx(1 / 3))
    assert first.score == pytest.approx(0.75)
    assert third.label == "Z\u00fcich  2", "whatever the tokenizer makes of it"
    assert (kind.show(1), kind_of(make(labelled([0]), options=[" no", " yes"])).show(1)) == ("B", "yes")


# ---- rows ------------------------------------------------------------------------------------------------------------
def test_options_of_a_column_are_part_of_what_a_row_is(make):
    rows = load_data(make())["train"]
    assert (rows.texts, rows.pairs) == (["Sky?", "Sum?"], ["blue | red", "1 | 2 | 33"])
    assert rows.extras == {"options": [[" blue", " red"], [" 1", " 2", " 33"]]}
    for prompt, options, first in [  # a column gets a space where the prompt has none; a template is as written
        ("{q}? ", "choices", "blue"),
        ("{q}", "choices", " blue"),
        ("{q}?", "->{choices}.", "->blue."),
    ]:
        assert load_data(make(prompt=prompt, options=options))["train"].extras["options"][0][0] == first
    fixed = load_data(make(labelled(["no", "yes"]), options=[" no", " yes"]))["train"]
    assert (fixed.pairs, fixed.extras, fixed.labels.tolist()) == (None, {}, [0, 1])
    filled = load_data(make([{"q": "q", "x": 1, "y": 2.5, "answer": "B"}] * 2, options=[" {x}", " {y} {x}"]))["train"]
    assert (filled.extras["options"][0], filled.labels.tolist()) == ([" 1", " 2.5 1"], [1, 1])


ARC = [  # most rows have letters and some numbers
    {"q": "q0", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answer": "B"},
    {"q": "q1", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answer": "3"},
]


def test_labels_are_indices_letters_texts_or_names(make):
    names = [{"q": "q", "choices": ["x", "x", "y"], "answer": "2", "names": ["1", "2", "3"]}]
    for rows, keys, labels in [
        (labelled([0, "2", 1.0]), {}, [0, 2, 1]),
        (labelled(["A", "C"]), {}, [0, 2]),
        (labelled([True, False], ["false", "true"]), {}, [1, 0]),
        (labelled(["A", "B"], ["A", "B"]), {}, [0, 1]),  # letters and texts say the same
        (labelled(["cafe\u0301", "tea"], ["tea", "caf\u00e9"]), {}, [1, 0]),
        (labelled([True, 3.0]), {"option_names": ["true", "2", "3"]}, [0, 2]),
        (ARC, {"options": "choices.text", "option_names": "choices.label"}, [1, 2]),
        ([{"q": "q", "choices": '["x | y", "z"]', "answer": "z"}], {}, [1]),
        (names, {"option_names": "names"}, [0]),  # of options that are equal, the first one
    ]:
        assert load_data(make(rows, **keys))["train"].labels.tolist() == labels


def test_rows_that_do_not_fit_are_refused(make):
    fine, names = {"q": "q", "choices": ["x", "y"], "answer": "A"}, {"option_names": "names"}
    for rows, keys, said in [
        (labelled([1, 2], ["1", "2", "3"]), {}, "as index and as text, and 1 (line 1), 2 (line 2) would mean ' 2' or"),
        (labelled(["B", "A"], ["B", "A"]), {}, "as letter and as text, and 'B' (line 1), 'A' (line 2) would mean"),
        (labelled(["A", "D", "B"]), {}, "letter, from A, of one of its row's options, as it is in 2 other row"),
        (labelled([None, "z"]), {}, "must be the index, letter or text of an option, but"),
        (labelled(["1", "0"]), {"option_names": ["1", "2", "3"]}, "must be one of the names of its row's options"),
        ([row | {"names": None} for row in labelled(["a"])], names, "`option_names` must hold a name for each option"),
        ([{"names": ["A", "A"], **fine}], names, "`option_names` must hold names that differ from each other, but"),
        ([{**fine, "choices": "[" * 100_000}], {}, "be a list of texts or numbers"),
        ([fine, {**fine, "choices": ["x", None]}], {}, "['x', None] (line 2)"),
        ([fine, {**fine, "choices": ["x"]}], {}, "be two or more, but"),
        ([fine, {**fine, "choices": ["x", " "]}], {}, "each have text, but"),
        ([fine, {**fine, "q": None}], {}, "`q` must have a value in each row, but"),
        (labelled([0]), {"prompt": "{qq}?"}, "`prompt.{qq}` must be one of: q, answer, choices, but got 'qq'."),
    ]:
        assert said in refused(make(rows, **keys))


def test_keys_that_contradict_each_other_are_refused(make):
    turns = [{"role": "user", "content": "{q}"}, {"role": "assistant", "content": "x"}]
    for keys, message in [
        ({"prompt": None}, "`prompt` must be given, or else `messages`, but got neither."),
        ({"prompt": None, "messages": turns}, "`messages` must end with a message of the user, but the last one is of"),
        ({"options": [" yes"]}, '`options` must be two or more, but got [" yes"].'),
        ({"options": "{a} {b}"}, "`options` must name the one column that holds lists, but got '{a} {b}'."),
        ({"options": [" yes", " no"], "option_names": ["1"]}, "`option_names` must name each of the 2 options, but"),
        ({"options": [" x", " y"], "option_names": ["A", "A"]}, "`option_names` must differ from each other, but got"),
        ({"prompt": "{q} {answer}"}, "`label` must be no column of the prompt"),
    ]:
        assert message in broken_laws(make(**keys))
