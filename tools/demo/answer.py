"""Asks the checkpoint a held-out set through transformers, greedily, and writes what it says.

    python answer.py models/demo SET answers.jsonl

The file has the lines of bench/demo_accuracy.py --json, so that both can be compared.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess

import numpy as np
import soundfile
import torch
from PIL import Image
from transformers import Qwen2_5OmniProcessor, Qwen2_5OmniThinkerForConditionalGeneration

import data
import pictures


def frames_of(path: pathlib.Path) -> np.ndarray:
    """As the family's helper package samples: two a second, evenly spaced; resized as pictures are."""
    probe = ["ffprobe", "-v", "error", "-select_streams", "v", "-show_entries", "stream=width,height", "-of", "csv=p=0"]
    width, height = map(int, subprocess.run([*probe, str(path)], capture_output=True, check=True).stdout.split(b","))
    raw = subprocess.run(["ffmpeg", "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
                         capture_output=True, check=True).stdout
    frames = [Image.fromarray(f) for f in np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)]
    chosen = np.linspace(0, len(frames) - 1, data.CLIP_FRAMES).round().astype(int)
    height, width = pictures.clip_size(height, width)
    return np.stack([np.asarray(frames[k].resize((width, height), Image.BICUBIC)) for k in chosen])


def load_part(folder, part, media):
    kind = part["type"]
    if kind == "text":
        return part
    path = folder / part[kind]["file"]
    if kind == "image_url":
        media["images"].append(Image.open(path).convert("RGB"))
        return {"type": "image"}
    if kind == "input_audio":
        media["audio"].append(soundfile.read(path, dtype="float32")[0])
        return {"type": "audio"}
    media["videos"].append(torch.from_numpy(frames_of(path)).permute(0, 3, 1, 2))
    return {"type": "video"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("set", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--limit", type=int, default=10 ** 9)
    options = parser.parse_args()
    torch.set_num_threads(2)
    model = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(options.model, dtype=torch.float32).eval()
    processor = Qwen2_5OmniProcessor.from_pretrained(options.model, use_fast=False)
    with options.out.open("w") as out:
        seen: dict[str, int] = {}
        for line in map(json.loads, (options.set / "requests.jsonl").read_text().splitlines()):
            seen[line["skill"]] = seen.get(line["skill"], 0) + 1
            if seen[line["skill"]] > options.limit:
                continue
            media = {"images": [], "audio": [], "videos": []}
            messages = [{"role": m["role"], "content": [load_part(options.set, p, media) for p in m["content"]]}
                        for m in line["messages"]]
            text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            inputs = processor(text=text, return_tensors="pt", **{k: v for k, v in media.items() if v})
            with torch.no_grad():
                ids = model.generate(**inputs, max_new_tokens=96, do_sample=False)[0, inputs["input_ids"].shape[1]:]
            said = processor.tokenizer.decode(ids, skip_special_tokens=True)
            out.write(json.dumps({"skill": line["skill"], "expected": line["answer"], "said": said}) + "\n")


if __name__ == "__main__":
    main()
