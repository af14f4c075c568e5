"""Word problems and competition mathematics, answered in writing: the LoRA-XS paper's setting (arXiv 2405.17604)."""

from __future__ import annotations

from typing import Any

from loraxs_search.records import DataSource, SplitSource
from loraxs_search.tasks.catalogue._entry import CatalogueEntry

# The prompt that the paper's reference implementation trains with. It asks with one sentence more ("Let's think step by
# step."); here a prompt is the same in training and later.
INSTRUCTION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{%s}\n\n### Response:"
)
_STOP = ["### Instruction", "### Response"]
_GSM8K, _MATH, _METAMATH = "openai/gsm8k", "DigitalLearningGmbH/MATH-lighteval", "meta-math/MetaMathQA"
_GSM8K_COLUMNS = {"question": "query", "answer": "response"}
_MATH_COLUMNS = {"problem": "query", "solution": "response"}
# Rows of MetaMathQA that are longer leave no place for the prompt in 768 tokens. PEFT's suite leaves out the same ones.
_CHARACTERS, _LENGTH = 1_300, 768
_LEAKS = "MetaMathQA rewrites the questions that validation rows are taken from: validation scores are too high"
_LEFT_OUT = "training rows of more than 1,300 characters (6 %) are left out; the paper cuts rows at 512 tokens"
_PROMPT = "the paper asks with one sentence more than it trains with; here both have the prompt of its training"


def _written(question: str, answer: str, extract: dict[str, Any], max_new_tokens: int) -> dict[str, Any]:
    return {
        "prompt": INSTRUCTION % question,
        "answer": f"{{{answer}}}",
        "extract": extract,
        "generation": {"max_new_tokens": max_new_tokens, "stop": _STOP},
    }


# The answer to a problem of GSM8K stands behind ####, that to one of MATH in \\boxed{}, and that to one of MetaMathQA
# behind "The answer is:" as well. Some of MetaMathQA's answers are formulas, no numbers.
_NUMBER = {"after": "####", "as": "number"}
_RESULT = {"regex": r"(?:####|The answer is:)\s*(.+)", "as": "math"}
_FORMULA = {"regex": r"(?:\\boxed\{|The answer is:\s*)((?:[^{}\n]|\{(?:[^{}]|\{[^{}]*\})*\})+)", "as": "math"}

MATHS = (
    CatalogueEntry(
        name="gsm8k",
        about="Grade-school word problems with worked answers; scored by the number",
        kind="text-generation",
        source=DataSource(hub=_GSM8K, config="main", splits={"train": "train", "test": "test"}),
        keys=_written("question", "answer", _NUMBER, 1_024),
        metrics=("exact_match",),
        rows={"train": 7_473, "test": 1_319},
        max_length=512,
        notes=("validation rows are a tenth of the training rows",),
    ),
    CatalogueEntry(
        name="math",
        about="Competition mathematics with worked solutions; scored by mathematical equality",
        kind="text-generation",
        source=DataSource(hub=_MATH, config="default", splits={"train": "train", "test": "test"}),
        keys=_written("problem", "solution", _FORMULA, 2_048),
        metrics=("exact_match",),
        rows={"train": 7_500, "test": 5_000},
        max_length=4_096,
        notes=("validation rows are a tenth of the training rows",),
    ),
    CatalogueEntry(
        name="metamath_gsm8k",
        about="MetaMathQA as training data, GSM8K as test: the paper's first setting, and that of PEFT's suite",
        kind="text-generation",
        source=DataSource(
            hub=_METAMATH,
            splits={"train": "train[:100000]"},
            elsewhere={
                "validation": SplitSource(_GSM8K, "train[:500]", "main", rename=_GSM8K_COLUMNS),
                "test": SplitSource(_GSM8K, "test", "main", rename=_GSM8K_COLUMNS),
            },
            max_characters=_CHARACTERS,
        ),
        keys=_written("query", "response", _RESULT, 1_024),
        metrics=("exact_match",),
        rows={"train": 395_000, "validation": 500, "test": 1_319},
        max_length=_LENGTH,
        notes=("the first 100,000 training rows, as in the paper", _LEFT_OUT, _PROMPT, _LEAKS),
    ),
    CatalogueEntry(
        name="metamath_math",
        about="MetaMathQA as training data, MATH as test: the paper's second setting",
        kind="text-generation",
        source=DataSource(
            hub=_METAMATH,
            splits={"train": "train[:100000]"},
            elsewhere={
                "validation": SplitSource(_MATH, "train[:500]", "default", rename=_MATH_COLUMNS),
                "test": SplitSource(_MATH, "test", "default", rename=_MATH_COLUMNS),
            },
            max_characters=_CHARACTERS,
        ),
        keys=_written("query", "response", _FORMULA, 2_048),
        metrics=("exact_match",),
        rows={"train": 395_000, "validation": 500, "test": 5_000},
        max_length=4_096,
        notes=("the first 100,000 training rows, as in the paper", _LEFT_OUT, _PROMPT, _LEAKS),
    ),
)
