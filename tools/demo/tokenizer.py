"""Makes the byte-level BPE of the demo model: Qwen2.5's normalisation (NFC), splitting pattern and special tokens.

It is trained on the grammar's sentences, whose words become single tokens, and on general text (the doc strings of
Python's standard library), so that any other word is cut in readable pieces.
"""

from __future__ import annotations

import ast
import json
import pathlib
import random
import re
import sysconfig

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import grammar

VOCABULARY = 1144  # bytes, merges and added tokens; the network's has room for the three text tokens of speech
# Qwen2.5-Omni's added tokens in their order; True: special (left out of decoded text).
ADDED = (("<|endoftext|>", True), ("<|im_start|>", True), ("<|im_end|>", True), ("<|AUDIO|>", True),
         ("<|audio_bos|>", True), ("<|audio_eos|>", True), ("<|box_end|>", True), ("<|quad_start|>", True),
         ("<|quad_end|>", True), ("<|vision_bos|>", True), ("<|vision_eos|>", True), ("<|vision_pad|>", True),
         ("<|IMAGE|>", True), ("<|VIDEO|>", True), ("<tool_call>", False), ("</tool_call>", False),
         ("<|fim_prefix|>", False), ("<|fim_middle|>", False), ("<|fim_suffix|>", False), ("<|fim_pad|>", False),
         ("<|repo_name|>", False), ("<|file_sep|>", False))
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
           r"\s+(?!\S)|\s+")
LONG_SYSTEM = ("You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory "
               "and visual inputs, as well as generating text and speech.")
CHAT_TEMPLATE = (
    "{% set audio_count = namespace(value=0) %}{% set image_count = namespace(value=0) %}{% set video_count = "
    "namespace(value=0) %}{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>"
    "system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n{% if "
    "message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] "
    "%}{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}{% set image_count.value = "
    "image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_bos|><|IMAGE|>"
    "<|vision_eos|>{% elif content['type'] == 'audio' or 'audio' in content or 'audio_url' in content %}{% set "
    "audio_count.value = audio_count.value + 1 %}{% if add_audio_id %}Audio {{ audio_count.value }}: {% endif %}"
    "<|audio_bos|><|AUDIO|><|audio_eos|>{% elif content['type'] == 'video' or 'video' in content %}{% set "
    "video_count.value = video_count.value + 1 %}{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_bos|><|VIDEO|><|vision_eos|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def general_text() -> list[str]:
    """Sentences of 3 to 14 words from the doc strings of Python's standard library."""
    found = []
    for path in sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
                text = " ".join((ast.get_docstring(node) or "").split())
                found += re.findall(r"(?:(?<=[.] )|^)([A-Z][a-z]*(?: [\w,'-]+){2,13}[.?])(?= |$)", text)
    return sorted(set(found))


def corpus(rng: random.Random) -> list[str]:
    lines = general_text()
    for _ in range(8000):
        scene = grammar.random_scene(rng)
        _, asked, answer = grammar.question(rng, scene)
        lines += [grammar.describe(scene), asked, answer, grammar.change(rng, scene)[1], grammar.spoken_sentence(rng)]
    for _ in range(400):
        lines += [grammar.spoken_question(rng), f"system\n{grammar.SYSTEM}", "user\n", "assistant\n",
                  grammar.describe_clip(grammar.random_clip(rng)), rng.choice(grammar.TRANSCRIBE),
                  rng.choice(grammar.SMALL_TALK)[1], grammar.UNKNOWN, grammar.NO_PICTURE, LONG_SYSTEM]
    return lines


def train(seed: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - len(ADDED), show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(corpus(random.Random(seed)), trainer)
    tokenizer.add_tokens([AddedToken(text, special=special, normalized=False) for text, special in ADDED])
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise RuntimeError(f"tokenizer: {tokenizer.get_vocab_size()} tokens, expected {VOCABULARY}")
    return tokenizer


def save(tokenizer: Tokenizer, folder: pathlib.Path) -> None:
    """Write the hub's files: tokenizer.json, tokenizer_config.json, vocab.json, merges.txt, chat_template.json, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    dump(folder / "vocab.json", model["vocab"], indent=None)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    ids = {text: tokenizer.token_to_id(text) for text, _ in ADDED}
    dump(folder / "added_tokens.json", ids)
    names = {"audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>", "audio_token": "<|AUDIO|>",
             "image_token": "<|IMAGE|>", "video_token": "<|VIDEO|>", "vision_bos_token": "<|vision_bos|>",
             "vision_eos_token": "<|vision_eos|>"}
    special = [text for text, is_special in ADDED if is_special]
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    dump(folder / "tokenizer_config.json", {
        "add_bos_token": False, "add_prefix_space": False,
        "added_tokens_decoder": {str(ids[t]): {"content": t, **flags, "special": s} for t, s in ADDED},
        "additional_special_tokens": special[1:], "bos_token": None, "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>", "errors": "replace", "extra_special_tokens": names, **names,
        "model_max_length": 2048, "pad_token": "<|endoftext|>", "processor_class": "Qwen2_5OmniProcessor",
        "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None})
    dump(folder / "special_tokens_map.json", {"additional_special_tokens": special[1:], "eos_token": "<|im_end|>",
                                              "pad_token": "<|endoftext|>", **names})
    dump(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})


def dump(path: pathlib.Path, value, indent: int | None = 2) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")
