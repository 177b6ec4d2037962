"""Trains the speaking half: the published networks, small, each for itself, on what voice.py wrote.

    python speak.py WORK models/demo vocoder|dit|talker [--steps N]

- vocoder: sound from mel frames, by the distance of samples and of spectrograms at three resolutions.
- dit: mel frames from codes and speaker by flow matching; some without conditions, for the guidance.
- talker: codes of an answer from the rows of its conversation, teacher-forced, as transformers generates them.

WORK/vocoder.pt, dit.pt and talker.pt are written every few minutes; a later run goes on from there and draws the same batches as
a run that was not interrupted.
"""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import random
import time
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers.models.qwen2_5_omni import configuration_qwen2_5_omni as configs
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as models

import network
import voice

TALKER = {"embedding_size": network.CONFIG["hidden"], "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
          "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 192, "vocab_size": voice.CODES + 8,
          "rope_theta": 1000.0, "rope_scaling": {"mrope_section": [4, 6, 6], "rope_type": "default", "type": "default"},
          "max_position_embeddings": 2048, "sliding_window": 2048, "max_window_layers": 3,
          "tts_codec_pad_token_id": voice.PAD, "tts_codec_start_token_id": voice.START,
          "tts_codec_end_token_id": voice.END, "tts_codec_mask_token_id": voice.MASK,
          "tts_text_pad_token_id": voice.TEXT_PAD, "tts_text_end_token_id": voice.TEXT_END,
          "tts_text_start_token_id": voice.SPEAKERS["Chelsie"],
          "position_id_per_seconds": network.TOKENS_PER_SECOND, "seconds_per_chunk": 2, "spatial_merge_size": 2}
DIT = {"hidden_size": 104, "num_hidden_layers": 4, "num_attention_heads": 3, "head_dim": 32, "ff_mult": 2, "emb_dim": 64,
       "block_size": 24, "look_ahead_layers": [2], "look_backward_layers": [0, 3], "repeats": voice.REPEATS,
       "num_embeds": voice.CODES, "mel_dim": voice.BINS, "dropout": 0.0, "enc_emb_dim": voice.COND, "enc_dim": 32,
       "enc_channels": [32, 32, 32, 32, 96], "enc_kernel_sizes": [5, 3, 3, 3, 1], "enc_dilations": [1, 2, 3, 4, 1],
       "enc_attention_channels": 16, "enc_res2net_scale": 2, "enc_se_channels": 16}
VOCODER = {"mel_dim": voice.BINS, "upsample_initial_channel": 80, "upsample_rates": [5, 4, 4, 3],
           "upsample_kernel_sizes": [11, 8, 8, 7], "resblock_kernel_sizes": [7], "resblock_dilation_sizes": [[1, 3, 5]]}


# --- Vocoder ----------------------------------------------------------------------------------------------------------


@contextmanager
def unfiltered():
    """Activations without the filters before and behind them: four times as fast, and nearly the same sound."""
    kept = models.TorchActivation1d.forward
    models.TorchActivation1d.forward = lambda self, x: self.act(x)
    try:
        yield
    finally:
        models.TorchActivation1d.forward = kept


class Vocoder:
    steps, rate, betas = 1800, 3e-3, (0.8, 0.98)
    _SIZES = (256, 512, 1024)
    _FRAMES, _BATCH, _POOL = 40, 8, 240
    _FILTERED = 0.2  # the share of the steps that train the network as it is, the last ones

    def __init__(self, studio, options):
        rng, words = random.Random(options.seed), voice.vocabulary(options.seed)
        self.net = models.Qwen2_5OmniToken2WavBigVGANModel(configs.Qwen2_5OmniBigVGANConfig(**VOCODER))
        self._pairs, self._all = [], options.steps
        while len(self._pairs) < self._POOL:
            sound = studio.sound(voice.babble(rng, words), rng.choice(list(voice.SPEAKERS)))
            silent = max(0, int(sound.abs().argmax() > 0) and int(sound.nonzero()[0]) // voice.UNIT - 2)
            frames = voice.mel(sound)[voice.REPEATS * silent:]
            if len(frames) > self._FRAMES:
                self._pairs.append((sound[voice.UNIT * silent:], frames))

    def loss(self, rng, step):
        if step < (1 - self._FILTERED) * self._all:
            with unfiltered():
                return self._distance(*self._batch(rng))
        return self._distance(*self._batch(rng))

    def _batch(self, rng):
        mels, sounds = [], []
        for sound, frames in rng.choices(self._pairs, k=self._BATCH):
            start = rng.randrange(len(frames) - self._FRAMES)
            mels.append(frames[start:start + self._FRAMES].T)
            sounds.append(sound[start * voice.HOP:(start + self._FRAMES) * voice.HOP])
        return torch.stack(mels), torch.stack(sounds)

    def _distance(self, mels, sounds):
        found = self.net(mels)
        total = F.l1_loss(voice.mel(found), voice.mel(sounds)) + 10 * F.l1_loss(found, sounds)
        for size in self._SIZES:
            a, b = (self._spectrum(s, size) for s in (found, sounds))
            total = total + (a - b).norm() / b.norm() + 0.5 * F.l1_loss(a.log(), b.log())
        return total

    @staticmethod
    def _spectrum(sound, size):
        found = torch.stft(sound, size, size // 4, window=torch.hann_window(size), return_complex=True)
        return (found.real ** 2 + found.imag ** 2 + 1e-7).sqrt()


# --- DiT --------------------------------------------------------------------------------------------------------------


def references(studio, seed) -> dict[str, torch.Tensor]:
    """60 mel frames of each speaker."""
    rng, words, found = random.Random(seed), voice.vocabulary(seed), {}
    for speaker in voice.SPEAKERS:
        frames = torch.zeros(0, voice.BINS)
        while len(frames) < 300:
            frames = voice.mel(studio.sound(voice.babble(rng, words), speaker))
        found[speaker] = frames[100:160].clone()
    return found


class Dit:
    steps, rate, betas = 4000, 2e-3, (0.9, 0.98)
    _FRAMES, _BATCH, _POOL = 4 * DIT["block_size"], 16, 700

    def __init__(self, studio, options):
        rng, words = random.Random(options.seed), voice.vocabulary(options.seed)
        config = configs.Qwen2_5OmniDiTConfig(**DIT)
        config._attn_implementation = "sdpa"
        self.net = models.Qwen2_5OmniToken2WavDiTModel(config)
        self._conditions = voice.conditions()
        self.extra = {"references": references(studio, options.seed)}
        self._start(studio)
        self._said = []
        for _ in range(self._POOL):
            tokens, speaker = voice.babble(rng, words), rng.choice(list(voice.SPEAKERS))
            self._said.append((speaker, studio.codes(tokens, speaker), voice.mel(studio.sound(tokens, speaker))))

    @torch.no_grad()
    def _start(self, studio):
        """A code's row begins as the principal components of its cluster; frames come and go about their mean."""
        width, mean = DIT["emb_dim"], sum(studio.means.values()) / len(studio.means)
        u, s, _ = torch.linalg.svd(studio.centres - studio.centres.mean(0), full_matrices=False)
        parts, table = u[:, :width] * s[:width], self.net.text_embed.codec_embed.weight
        table[0] = 0
        table[1:1 + voice.CLUSTERS] = parts / parts.std()
        table[1 + voice.CLUSTERS:] *= 0.3
        enter, leave = self.net.input_embed.proj, self.net.proj_out
        enter.weight[:, :voice.BINS] *= 0.5
        enter.bias -= enter.weight[:, :voice.BINS] @ (0.5 * mean)
        leave.weight *= 0.3
        leave.bias.copy_(mean)

    def _batch(self, rng):
        mels, codes, speakers, units = [], [], [], self._FRAMES // voice.REPEATS
        for speaker, code, frames in rng.choices(self._said, k=self._BATCH):
            start = rng.randint(0, max(0, len(code) - units) // 12) * 12  # whole blocks
            code = code[start:start + units]
            frames = frames[voice.REPEATS * start:voice.REPEATS * start + self._FRAMES]
            codes.append(F.pad(code, (0, units - len(code)), value=int(code[-1])))
            mels.append(torch.cat((frames, frames[-1:].expand(self._FRAMES - len(frames), -1))))
            speakers.append(speaker)
        return torch.stack(mels), torch.stack(codes), speakers

    def loss(self, rng, step):
        mel, code, speakers = self._batch(rng)
        dropped = torch.rand(self._BATCH, 1, 1) < 0.15
        speaker = torch.stack([self._conditions[s] for s in speakers]).expand(-1, self._FRAMES, -1) * ~dropped
        reference = torch.stack([self.extra["references"][s] for s in speakers]) * ~dropped
        noise, t = torch.randn_like(mel), torch.rand(self._BATCH)
        # Half of the times as the sampler steps: most of them early.
        t = torch.where(torch.rand(self._BATCH) < 0.5, 1 - torch.cos(torch.pi / 2 * t), t)
        state = noise + t[:, None, None] * (mel - noise)
        found = self.net(state, reference, speaker, code * ~dropped[..., 0], t, apply_cfg=False)
        return F.mse_loss(found, mel - noise)


# --- Talker -----------------------------------------------------------------------------------------------------------


class Talker:
    """Trained on made-up answers in true conversations: a row of a reply is the embedding of its token plus a hidden state that
    the thinker once had before the same next token. Hidden states are disturbed, so that it is the token that is heard."""

    steps, rate, betas = 7500, 2.5e-3, (0.9, 0.98)
    _ROWS = 3600  # of a batch, padded
    _DRAWN = 40

    def __init__(self, studio, options):
        self._studio, self._words = studio, voice.vocabulary(options.seed)
        self._tokenizer = Tokenizer.from_file(str(options.work / "tokenizer.json"))
        self._texts = load_file(options.model / "model.safetensors")["thinker.model.embed_tokens.weight"].float()
        config = configs.Qwen2_5OmniTalkerConfig(**TALKER)
        config._attn_implementation = "sdpa"
        self.net = models.Qwen2_5OmniTalkerForConditionalGeneration(config)
        self._talks, self._before = [], collections.defaultdict(list)
        for item in torch.load(options.work / "rows.pt"):
            ids = self._tokenizer.encode(item["text"]).ids
            hidden = item["reply"].float() - self._texts[ids]
            for state, following in zip(hidden, ids[1:] + [-1]):
                self._before[following].append(state)
            self._talks.append((item, ids, hidden))
        self._any = [state for states in self._before.values() for state in states]

    def _reply(self, rng, talk):
        """The text and the rows of an answer: the conversation's own, or another."""
        item, ids, hidden = talk
        text = item["text"]
        if rng.random() > 0.3 or not self._studio.knows(text):
            text = voice.text_to_say(rng, self._words)
            ids = self._tokenizer.encode(text).ids
            hidden = torch.stack([rng.choice(self._before.get(following) or self._any) for following in ids[1:] + [-1]])
        if rng.random() < 0.1:
            hidden = hidden[torch.randperm(len(hidden))]
        hidden = hidden * rng.uniform(0.8, 1.1) + torch.randn_like(hidden) * rng.choice((0.0, 0.0, 0.1))
        return text, self._texts[ids] + hidden

    def example(self, rng):
        """What the talker is given for an answer but its own codes, its ids, positions and the codes to be said. Most
        conversations are cut to their last rows: what is said does not depend on them."""
        talk = rng.choice(self._talks)
        text, reply = self._reply(rng, talk)
        keep = len(talk[0]["prompt"]) if rng.random() < 0.3 else rng.randint(1, 10)
        prompt, position = talk[0]["prompt"].float()[-keep:], talk[0]["position"][-keep:].T
        speaker = rng.choice(list(voice.SPEAKERS))
        codes = torch.cat((self._studio.codes(voice.spelled(self._tokenizer, text), speaker), torch.tensor([voice.END])))
        reply = torch.cat((reply, self._texts[[voice.TEXT_END, voice.TEXT_PAD]]))
        given = torch.cat((prompt, self._texts[[voice.SPEAKERS[speaker]]], reply[torch.arange(len(codes)).clamp(max=len(reply) - 1)]))
        ids = torch.cat((torch.full((len(prompt),), -1), torch.tensor([voice.PAD, voice.START]), codes[:-1]))
        later = position.max() + 1 + torch.arange(len(ids) - len(prompt))
        wanted = torch.cat((torch.full((len(prompt) + 1,), -100), codes))
        return given, ids, torch.cat((position, later.expand(3, -1)), 1), wanted

    def loss(self, rng, step):
        drawn = sorted((self.example(rng) for _ in range(self._DRAWN)), key=lambda e: len(e[1]))
        first = last = rng.randrange(len(drawn))
        while last + 1 < len(drawn) and len(drawn[last + 1][1]) * (last + 2 - first) <= self._ROWS:
            last += 1
        while first > 0 and len(drawn[last][1]) * (last + 2 - first) <= self._ROWS:
            first -= 1
        parts = drawn[first:last + 1]
        pad = lambda k, value: torch.nn.utils.rnn.pad_sequence([p[k] for p in parts], True, value)
        given, ids, wanted = pad(0, 0.0), pad(1, -1), pad(3, -100)
        place = torch.nn.utils.rnn.pad_sequence([p[2].T for p in parts], True).permute(2, 0, 1)
        x = given + torch.where((ids >= 0)[..., None], self.net.model.embed_tokens(ids.clamp(min=0)), 0.0)
        x = self.net.model(inputs_embeds=self.net.thinker_to_talker_proj(x), position_ids=place, use_cache=False)[0]
        chosen = wanted >= 0
        losses = F.cross_entropy(self.net.codec_head(x[chosen]).float(), wanted[chosen], reduction="none")
        weight = 1 + 2.0 * (ids[chosen] > voice.CLUSTERS)  # behind a mark: there it must be known which word comes
        return (losses * weight).sum() / weight.sum()


# --- Training ---------------------------------------------------------------------------------------------------------

PARTS = {"vocoder": Vocoder, "dit": Dit, "talker": Talker}


def train(options, part) -> None:
    path = options.work / f"{options.part}.pt"
    optimizer = torch.optim.AdamW(part.net.parameters(), lr=part.rate, betas=part.betas, weight_decay=0.01)
    first = 0
    if path.exists():
        saved = torch.load(path)
        first = saved["step"]
        part.net.load_state_dict(saved["weights"])
        optimizer.load_state_dict(saved["optimizer"])
    part.net.train()
    total, since, saved_at = 0.0, time.time(), time.time()
    for step in range(first, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = part.rate * min(1.0, (step + 1) / 150) * max(0.01, min(1.0, 1.5 * (1 - step / options.steps)))
        torch.manual_seed(options.seed + step)
        loss = part.loss(random.Random(f"{options.seed} {step}"), step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(part.net.parameters(), 1.0)
        optimizer.step()
        total += float(loss.detach())
        if (step + 1) % 100 == 0:
            line = {"part": options.part, "step": step + 1, "seconds": round((time.time() - since) / 100, 3),
                    "loss": round(total / 100, 4)}
            with (options.work / "voice.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            total, since = 0.0, time.time()
        if time.time() - saved_at > 120 or step + 1 == options.steps:
            whole = path.with_suffix(".new")
            torch.save({"step": step + 1, "weights": part.net.state_dict(), "optimizer": optimizer.state_dict(),
                        **getattr(part, "extra", {})}, whole)
            whole.replace(path)  # a kill while writing leaves the state before
            saved_at = time.time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--steps", type=int, help="of the whole training")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.steps = options.steps or PARTS[options.part].steps
    train(options, PARTS[options.part](voice.Studio.load(options.work / "studio.pkl"), options))


if __name__ == "__main__":
    main()
