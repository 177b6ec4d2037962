"""What the checkpoint says aloud under transformers, all greedy: the codes that tests/equivalence/speech.c expects of the server.

    python spoken.py models/demo tests/golden/demo_speech.json
"""

from __future__ import annotations

import argparse
import json
import pathlib

import torch
from transformers import Qwen2_5OmniForConditionalGeneration, Qwen2_5OmniProcessor

QUESTIONS = ("What can you do?", "Who are you?", "Hello.", "What is the capital of France?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = Qwen2_5OmniForConditionalGeneration.from_pretrained(options.model, dtype=torch.float32).eval()
    processor = Qwen2_5OmniProcessor.from_pretrained(options.model, use_fast=False)
    codes, wanted = model.config.talker_config, []
    heard = []
    model.token2wav.forward = lambda code, *_, **__: heard.append(code[0].tolist()) or torch.zeros(1)  # the sound is not needed
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        inputs = processor(text=text, return_tensors="pt")
        for voice in ("Chelsie", "Ethan"):
            with torch.no_grad():
                ids, _ = model.generate(**inputs, speaker=voice, thinker_max_new_tokens=96, thinker_do_sample=False,
                                        talker_do_sample=False, talker_max_new_tokens=1500,
                                        talker_eos_token_id=[codes.tts_codec_end_token_id, codes.tts_codec_pad_token_id])
            said = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
            wanted.append({"question": question, "voice": voice, "text": said, "codes": heard[-1]})
            print(f"{voice}, {len(heard[-1])} codes: {said}", flush=True)
    lines = ",\n".join(json.dumps(entry) for entry in wanted)
    options.out.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
