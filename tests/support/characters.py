"""A tokenizer of single characters, for prompts and chats."""

from __future__ import annotations

from string import ascii_letters, digits

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPACED = (  # a space before each answer, as Mistral's
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}<|assistant|>"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
THINKING = (  # thoughts in the last turn alone, as Qwen3's
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and loop.last %}::{% endif %}"
    "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>::{% endif %}"
)
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def characters(
    *, prepend: str = "never", begins: bool = False, chat: str | None = None, drops: bool = False
) -> PreTrainedTokenizerFast:
    """A tokenizer of single characters; a space is written as the mark that SentencePiece has for it.

    Args:
        drops: Leave out characters that it does not know, instead of writing `<unk>`.
    """
    special = ["<pad>", "<unk>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    ids = {token: i for i, token in enumerate([*special, *"▁\n:?", *ascii_letters, *digits])}
    raw = Tokenizer(models.BPE(ids, [], unk_token=None if drops else "<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    raw.decoder = decoders.Metaspace(prepend_scheme=prepend)
    if begins:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
        )
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    extra = {"extra_special_tokens": special[4:], "chat_template": chat}
    return PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=512, **names, **extra)
