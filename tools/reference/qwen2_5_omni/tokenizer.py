"""A small byte-level BPE with the structure of the published tokenizer.json, and golden ids for it."""

import json
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from . import config

PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
HERE = Path(__file__).parent


def train():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(
        add_prefix_space=False, trim_offsets=False, use_regex=False
    )
    tokenizer.decoder = decoders.ByteLevel(
        add_prefix_space=False, trim_offsets=False, use_regex=False
    )
    trainer = trainers.BpeTrainer(
        vocab_size=config.BASE_VOCAB,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = (HERE / "train.txt").read_text(encoding="utf-8").split("\n")
    tokenizer.train_from_iterator((line + "\n" for line in lines), trainer)
    assert tokenizer.get_vocab_size() == config.BASE_VOCAB, tokenizer.get_vocab_size()
    tokenizer.add_tokens(
        [
            AddedToken(content, special=special, normalized=False)
            for content, special in config.ADDED_TOKENS
        ]
    )
    tokenizer.add_special_tokens(
        [
            AddedToken(content, special=True, normalized=False)
            for content, special in config.ADDED_TOKENS
            if special
        ]
    )
    for content, token_id in config.TOKEN_ID.items():
        assert tokenizer.token_to_id(content) == token_id, content
    return tokenizer


def write_json(path, value, indent=2):
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def save(directory):
    """tokenizer.json and the six files around it, in the hub's layout. Returns the id of "user"."""
    tokenizer = train()
    tokenizer.save(str(directory / "tokenizer.json"))
    saved = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    model = saved["model"]
    write_json(directory / "vocab.json", model["vocab"], indent=None)
    merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
    (directory / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    write_json(directory / "added_tokens.json", dict(sorted(config.TOKEN_ID.items())))

    def special(content):
        return {
            "content": content,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
        }

    extra = [
        content
        for content, is_special in config.ADDED_TOKENS
        if is_special and content != "<|endoftext|>"
    ]
    write_json(
        directory / "special_tokens_map.json",
        {
            "additional_special_tokens": extra,
            **config.SPECIAL_NAMES,
            "eos_token": special("<|im_end|>"),
            "pad_token": special("<|endoftext|>"),
        },
    )
    write_json(
        directory / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(config.TOKEN_ID[content]): {**special(content), "special": is_special}
                for content, is_special in config.ADDED_TOKENS
            },
            "additional_special_tokens": extra,
            **config.SPECIAL_NAMES,
            "bos_token": None,
            "chat_template": config.CHAT_TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "extra_special_tokens": config.SPECIAL_NAMES,
            "model_max_length": 32768,
            "pad_token": "<|endoftext|>",
            "processor_class": "Qwen2_5OmniProcessor",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    write_json(directory / "chat_template.json", {"chat_template": config.CHAT_TEMPLATE})
    user = tokenizer.encode("user").ids
    assert len(user) == 1, "the corpus must make 'user' one token"
    return user[0]
