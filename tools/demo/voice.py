"""What the speaking half is trained on: answers said by two voices, their mel frames, and the codec of clustered frames.

    python voice.py WORK models/demo

A conversation's rows (what the talker hears: hidden state plus embedding of every token) come from the trained thinker, the
sound of its answer from espeak-ng. Two mel frames make a code: the nearest of CODES clusters, once the voice's mean is taken off.
Code 0 belongs to no cluster: it is what token2wav hears where the code is dropped.
"""

from __future__ import annotations

import argparse
import pathlib
import pickle
import random
from functools import lru_cache

import numpy as np
import soxr
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import data
import network
import speech

RATE, HOP, WINDOW, BINS = 24000, 240, 1024, 80
REPEATS, CODES = 2, 512
PAD, START, END, MASK = range(CODES + 1, CODES + 5)  # of the talker's vocabulary
TEXT_PAD, TEXT_END = 1144, 1146  # rows of the thinker's vocabulary that no token uses
# Names as published; a speaker's token tells the talker who speaks, cond tells token2wav.
SPEAKERS = {"Chelsie": (speech.Voice("en-us+f2", 150, 50, 50), 1145), "Ethan": (speech.Voice("en-us+m3", 150, 40, 50), 1147)}
COND = 16
MOST_CODES = 450


@lru_cache(maxsize=None)
def _filters() -> torch.Tensor:
    from transformers.audio_utils import mel_filter_bank
    return torch.from_numpy(mel_filter_bank(1 + WINDOW // 2, BINS, 0.0, RATE / 2, RATE, "slaney", "slaney")).float()


def mel(sound: torch.Tensor) -> torch.Tensor:
    """Natural logarithms of mel amplitudes [..., frames, BINS] of sound [..., frames * HOP] at RATE."""
    edge = (WINDOW - HOP) // 2
    padded = torch.nn.functional.pad(sound.unsqueeze(-2), (edge, edge), mode="reflect").squeeze(-2)
    flat = padded.reshape(-1, padded.shape[-1])
    window = torch.hann_window(WINDOW)
    amplitude = (torch.stft(flat, WINDOW, HOP, window=window, center=False, return_complex=True).abs() ** 2 + 1e-9).sqrt()
    found = torch.log(torch.clamp(_filters().T @ amplitude, min=1e-5)).transpose(-1, -2)
    return found.reshape(*sound.shape[:-1], *found.shape[-2:])


def say(espeak: speech.Espeak, text: str, speaker: str) -> torch.Tensor:
    """The sound at RATE: a whole number of codes, with a little silence at its end."""
    sound = soxr.resample(espeak.say(text, SPEAKERS[speaker][0]), speech.RATE, RATE)
    unit = HOP * REPEATS
    padded = np.zeros((sound.size // unit + 4) * unit, np.float32)
    padded[:sound.size] = sound * (0.6 / max(1e-4, np.abs(sound).max()))
    return torch.from_numpy(padded)


def conditions() -> dict[str, torch.Tensor]:
    """The speakers' vectors [1, COND]: any two that differ will do."""
    sign = torch.where(torch.arange(COND) % 2 == 0, 1.0, -1.0)
    return {"Chelsie": sign[None], "Ethan": -sign[None]}


# --- What the talker hears --------------------------------------------------------------------------------------------


@torch.no_grad()
def heard(weights, b) -> torch.Tensor:
    """Rows [rows, length, hidden] of a batch of conversations: media have no embedding of their own."""
    shape, c = b["shape"], network.CONFIG
    tables = network.vision_tables(network.GRIDS, shape.patches)
    light = torch.tensor([1.0, 0.0]).repeat(b["grid"].shape[0], 1)
    _, merged = network.vision(weights, tables, b["pixels"], shape.stills, b["grid"], light)
    sounds = network.audio(weights, b["mel"], b["frames"])
    source = torch.cat((merged.flatten(0, 1), sounds.flatten(0, 1)))
    hidden = network.hidden(weights, source, b["index"], *network.text_tables(b["position"], b["segment"]))
    plain = b["index"] < c["vocabulary"]
    table = weights["thinker.model.embed_tokens.weight"].float()
    return hidden.float() + table[b["index"].clamp(max=c["vocabulary"] - 1)] * plain[..., None]


def answers(b, rows, tokenizer):
    """(text, rows of the prompt, rows of the reply, positions [prompt, 3]) of every answer of a batch."""
    end, length = tokenizer.token_to_id("<|im_end|>"), b["index"].shape[1]
    for number in range(len(b["kinds"])):
        chosen = (b["answer"] == number).nonzero().flatten()
        places, labels = b["wanted"][chosen], b["label"][chosen]
        r, first = int(places[0]) // length, int(places[0]) % length
        start = int((b["segment"][r] == b["segment"][r, first]).nonzero()[0])
        text = tokenizer.decode(labels[labels != end].tolist())
        reply = rows[r, first + 1:first + len(places)]
        yield text, rows[r, start:first + 1], reply, b["position"][r, start:first + 1]


def build(work: pathlib.Path, model: pathlib.Path, batches: int, seed: int) -> None:
    weights = {k: w.float() for k, w in load_file(model / "model.safetensors").items()}
    file = str(work / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    supply = iter(data.Batches(work / "pools", file, seed, data.Shape(), data.alphabet_of(work / "pools")))
    espeak, rng, found = speech.Espeak(), random.Random(seed), []
    for _ in range(batches):
        b = next(supply)
        rows = heard(weights, b).half()
        for text, prompt, reply, position in answers(b, rows, tokenizer):
            speaker = rng.choice(list(SPEAKERS))
            sound = say(espeak, text, speaker)
            if sound.numel() // (HOP * REPEATS) <= MOST_CODES:
                found.append({"text": text, "speaker": speaker, "prompt": prompt.clone(), "reply": reply.clone(),
                              "position": position.clone(), "sound": (sound * 32767).short(), "mel": mel(sound).half()})
    means = {s: torch.cat([f["mel"].float() for f in found if f["speaker"] == s]).mean(0) for s in SPEAKERS}
    pairs = [_pairs(f["mel"].float() - means[f["speaker"]]) for f in found]
    centres = cluster(torch.cat(pairs), seed)
    for item, pair in zip(found, pairs):
        item["codes"] = nearest(pair, centres) + 1
    (work / "voice.pkl").write_bytes(pickle.dumps({"items": found, "means": means, "centres": centres}))
    seconds = sum(f["sound"].numel() for f in found) / RATE
    print(f"{work}/voice.pkl: {len(found)} answers, {seconds / 60:.0f} minutes")


# --- The codec --------------------------------------------------------------------------------------------------------


def _pairs(frames: torch.Tensor) -> torch.Tensor:
    return frames.reshape(frames.shape[0] // REPEATS, -1)


def nearest(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    half = (centres ** 2).sum(1) / 2
    return torch.cat([(part @ centres.T - half).argmax(1) for part in points.split(8192)])


def cluster(points: torch.Tensor, seed: int, rounds: int = 25) -> torch.Tensor:
    """Lloyd's k-means on at most 200,000 points; a cluster that runs empty starts anew at a point."""
    generator = torch.Generator().manual_seed(seed)
    points = points[torch.randperm(points.shape[0], generator=generator)[:200000]]
    centres = points[:CODES].clone()
    for _ in range(rounds):
        chosen = nearest(points, centres)
        sums = torch.zeros_like(centres).index_add_(0, chosen, points)
        count = torch.bincount(chosen, minlength=centres.shape[0])
        spare = points[torch.randint(points.shape[0], (centres.shape[0],), generator=generator)]
        centres = torch.where(count[:, None] > 0, sums / count.clamp(min=1)[:, None], spare)
    return centres


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(2)
    build(options.work, options.model, options.batches, options.seed)


if __name__ == "__main__":
    main()
