"""Trains the speaking half on voice.pkl (voice.py): the published networks, small, each for itself.

    python speak.py WORK models/demo talker|dit|vocoder --steps 8000

- talker: codes of an answer from the rows of its conversation, teacher-forced, as transformers generates them.
- dit: mel frames from codes and speaker by flow matching; a fifth of the answers without conditions, for the guidance.
- vocoder: sound from mel frames, by the distance of spectrograms at three resolutions.

WORK/talker.pt, dit.pt and vocoder.pt are written every few minutes; a later run goes on from there. `say` writes sounds of
held-out answers from codes of the training's own codec, to hear token2wav without the talker.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import pickle
import random
import time
import wave

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers.models.qwen2_5_omni import configuration_qwen2_5_omni as configs
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as models

import network
import voice

TALKER = {"embedding_size": network.CONFIG["hidden"], "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
          "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 192, "vocab_size": 520, "rope_theta": 1000.0,
          "rope_scaling": {"mrope_section": [4, 6, 6], "rope_type": "default", "type": "default"},
          "max_position_embeddings": 2048, "sliding_window": 2048, "max_window_layers": 3,
          "tts_codec_pad_token_id": voice.PAD, "tts_codec_start_token_id": voice.START,
          "tts_codec_end_token_id": voice.END, "tts_codec_mask_token_id": voice.MASK,
          "tts_text_pad_token_id": voice.TEXT_PAD, "tts_text_end_token_id": voice.TEXT_END,
          "tts_text_start_token_id": voice.SPEAKERS["Chelsie"][1],
          "position_id_per_seconds": network.TOKENS_PER_SECOND, "seconds_per_chunk": 2, "spatial_merge_size": 2}
DIT = {"hidden_size": 88, "num_hidden_layers": 4, "num_attention_heads": 3, "head_dim": 32, "ff_mult": 2, "emb_dim": 64,
       "block_size": 24, "look_ahead_layers": [2], "look_backward_layers": [0, 3], "repeats": voice.REPEATS,
       "num_embeds": voice.CODES, "mel_dim": voice.BINS, "dropout": 0.0, "enc_emb_dim": voice.COND, "enc_dim": 32,
       "enc_channels": [32, 32, 32, 32, 96], "enc_kernel_sizes": [5, 3, 3, 3, 1], "enc_dilations": [1, 2, 3, 4, 1],
       "enc_attention_channels": 16, "enc_res2net_scale": 2, "enc_se_channels": 16}
VOCODER = {"mel_dim": voice.BINS, "upsample_initial_channel": 80, "upsample_rates": [5, 4, 4, 3],
           "upsample_kernel_sizes": [11, 8, 8, 7], "resblock_kernel_sizes": [3, 7],
           "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]]}
PIECE = 40  # frames of sound that the vocoder is trained on at a time
REFERENCE = 60  # frames of a speaker's reference


class Talker:
    rate = 2e-3

    def __init__(self, items, seed, thinker):
        self.items = items
        config = configs.Qwen2_5OmniTalkerConfig(**TALKER)
        config._attn_implementation = "sdpa"
        self.net = models.Qwen2_5OmniTalkerForConditionalGeneration(config)
        self._texts = thinker["thinker.model.embed_tokens.weight"].float()

    def one(self, item):
        """What the talker is given for an answer but its own codes, its ids, positions and the codes to be said."""
        reply = torch.cat((item["reply"].float(), self._texts[[voice.TEXT_END, voice.TEXT_PAD]]))
        codes = torch.cat((item["codes"], torch.tensor([voice.END])))
        given = torch.cat((item["prompt"].float(), self._texts[[voice.SPEAKERS[item["speaker"]][1]]],
                           reply[torch.arange(len(codes)).clamp(max=len(reply) - 1)]))
        prompt = len(item["prompt"])
        ids = torch.cat((torch.full((prompt,), -1), torch.tensor([voice.PAD, voice.START]), codes[:-1]))
        position = item["position"].T
        later = position.max() + 1 + torch.arange(len(ids) - prompt)
        wanted = torch.cat((torch.full((prompt + 1,), -100), codes))
        return given, ids, torch.cat((position, later.expand(3, -1)), 1), wanted

    def loss(self, rng):
        parts = [self.one(item) for item in rng.sample(self.items, 12)]
        pad = lambda k, value: torch.nn.utils.rnn.pad_sequence([p[k] for p in parts], True, value)
        given, ids, wanted = pad(0, 0.0), pad(1, -1), pad(3, -100)
        place = torch.nn.utils.rnn.pad_sequence([p[2].T for p in parts], True).permute(2, 0, 1)
        table = self.net.model.embed_tokens
        x = given + torch.where((ids >= 0)[..., None], table(ids.clamp(min=0)), 0.0)
        x = self.net.model(inputs_embeds=self.net.thinker_to_talker_proj(x), position_ids=place,
                           attention_mask=torch.ones(ids.shape), use_cache=False)[0]
        chosen = wanted >= 0
        return F.cross_entropy(self.net.codec_head(x[chosen]).float(), wanted[chosen])


class Dit:
    rate = 2e-3

    def __init__(self, items, seed, means):
        self.items = items
        config = configs.Qwen2_5OmniDiTConfig(**DIT)
        config._attn_implementation = "sdpa"
        self.net = models.Qwen2_5OmniToken2WavDiTModel(config)
        self._conditions = voice.conditions()
        self._references = references(items)
        with torch.no_grad():
            self.net.proj_out.bias.copy_(sum(means.values()) / len(means))
            self.net.proj_out.weight.zero_()

    def loss(self, rng):
        length, batch = 4 * DIT["block_size"], 16
        mels, codes, speakers = [], [], []
        for item in rng.sample(self.items, batch):
            most = max(0, len(item["codes"]) - length // voice.REPEATS)
            start = rng.randint(0, most // 12) * 12  # whole blocks
            code = item["codes"][start:start + length // voice.REPEATS]
            lacking = length // voice.REPEATS - len(code)
            codes.append(F.pad(code, (0, lacking), value=int(code[-1])))
            frames = item["mel"].float()[2 * start:2 * start + length]
            mels.append(torch.cat((frames, frames[-1:].expand(length - len(frames), -1))))
            speakers.append(item["speaker"])
        mel, code = torch.stack(mels), torch.stack(codes)
        dropped = torch.rand(batch, 1, 1) < 0.2
        speaker = torch.stack([self._conditions[s] for s in speakers]).expand(-1, length, -1) * ~dropped
        reference = torch.stack([self._references[s] for s in speakers]) * ~dropped
        noise, t = torch.randn_like(mel), torch.rand(batch)
        state = noise + t[:, None, None] * (mel - noise)
        found = self.net(state, reference, speaker, code * ~dropped[..., 0], t, apply_cfg=False)
        return F.mse_loss(found, mel - noise)


class Vocoder:
    rate = 1.5e-3
    _SIZES = (256, 512, 1024)

    def __init__(self, items, seed, means):
        self.items = [item for item in items if len(item["mel"]) > PIECE + 4]
        self.net = models.Qwen2_5OmniToken2WavBigVGANModel(configs.Qwen2_5OmniBigVGANConfig(**VOCODER))
        with torch.no_grad():  # of the size of samples from the start
            self.net.conv_post.weight.mul_(0.3)

    def loss(self, rng):
        mels, sounds = [], []
        for item in rng.sample(self.items, 8):
            start = rng.randrange(len(item["mel"]) - PIECE)
            mels.append(item["mel"].float()[start:start + PIECE].T)
            sounds.append(item["sound"].float()[start * voice.HOP:(start + PIECE) * voice.HOP] / 32767)
        found, sound = self.net(torch.stack(mels)), torch.stack(sounds)
        total = F.l1_loss(voice.mel(found), voice.mel(sound))
        for size in self._SIZES:
            a, b = (self._spectrum(s, size) for s in (found, sound))
            total = total + (a - b).norm() / b.norm().clamp(min=1e-3) + 0.5 * F.l1_loss(a.log(), b.log())
        return total

    @staticmethod
    def _spectrum(sound, size):
        found = torch.stft(sound, size, size // 4, window=torch.hann_window(size), return_complex=True)
        return (found.real ** 2 + found.imag ** 2 + 1e-7).sqrt()


def references(items) -> dict[str, torch.Tensor]:
    """A stretch of each speaker's mel frames [REFERENCE, BINS]: the first answer that is long enough."""
    return {speaker: next(item["mel"].float()[:REFERENCE] for item in items
                          if item["speaker"] == speaker and len(item["mel"]) >= REFERENCE)
            for speaker in voice.SPEAKERS}


def load(work: pathlib.Path):
    pool = pickle.loads((work / "voice.pkl").read_bytes())
    held_out = len(pool["items"]) // 50
    return pool["items"][held_out:], pool["items"][:held_out], pool["means"]


def make(name: str, items, seed: int, model: pathlib.Path, means):
    torch.manual_seed(seed)
    if name == "talker":
        return Talker(items, seed, load_file(model / "model.safetensors"))
    return (Dit if name == "dit" else Vocoder)(items, seed, means)


def train(options, part) -> None:
    path, rng = options.work / f"{options.part}.pt", random.Random(options.seed)
    optimizer = torch.optim.AdamW(part.net.parameters(), lr=part.rate, betas=(0.9, 0.98), weight_decay=0.01)
    first = 0
    if path.exists():
        saved = torch.load(path)
        first = saved["step"]
        part.net.load_state_dict(saved["weights"])
        optimizer.load_state_dict(saved["optimizer"])
        rng.seed(options.seed + first)
    part.net.train()
    total, since, saved_at = 0.0, time.time(), time.time()
    for step in range(first, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = part.rate * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        loss = part.loss(rng)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(part.net.parameters(), 1.0)
        optimizer.step()
        total += float(loss.detach())
        if (step + 1) % 50 == 0:
            line = {"part": options.part, "step": step + 1, "seconds": round((time.time() - since) / 50, 3),
                    "loss": round(total / 50, 4)}
            with (options.work / "voice.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            total, since = 0.0, time.time()
        if time.time() - saved_at > 120 or step + 1 == options.steps:
            torch.save({"step": step + 1, "weights": part.net.state_dict(), "optimizer": optimizer.state_dict()}, path)
            saved_at = time.time()


@torch.no_grad()
def say(options, items, held_out, means) -> None:
    dit, vocoder = (make(name, items, options.seed, options.model, means) for name in ("dit", "vocoder"))
    for name, part in (("dit", dit), ("vocoder", vocoder)):
        part.net.load_state_dict(torch.load(options.work / f"{name}.pt")["weights"])
        part.net.eval()
    for k, item in enumerate(held_out[:options.count]):
        frames = dit.net.sample(dit._conditions[item["speaker"]], dit._references[item["speaker"]][None],
                                item["codes"][None])
        for name, mel in (("copy", item["mel"].float().T[None]), ("codes", frames)):
            sound = (vocoder.net(mel) * 32767).short().numpy()
            with wave.open(str(options.work / f"say-{k}-{name}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(voice.RATE)
                file.writeframes(sound.tobytes())
        print(k, item["speaker"], item["text"], "mel error", round(float((frames[0].T - item["mel"].float()).abs().mean()), 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("part", choices=("talker", "dit", "vocoder", "say"))
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--count", type=int, default=4, help="answers to say")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    items, held_out, means = load(options.work)
    if options.part == "say":
        say(options, items, held_out, means)
    else:
        train(options, make(options.part, items, options.seed, options.model, means))


if __name__ == "__main__":
    main()
