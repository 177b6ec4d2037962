"""Trains the demo model's understanding on two CPU cores: encoders with dense auxiliary losses first, then everything.

    python train.py WORK --steps 6000 --hard-steps 8000 --seed 7

WORK holds the pools (built when missing), checkpoint.pt and log.jsonl. In the first stage (--steps) the learning rate is
level and falls to zero over the last 30 %. The second (--hard-steps) asks what the first leaves unlearnt, and its rate
falls to zero from its first step on. Training goes in segments (--segment): each has its own order of data, drawn from
the seed and the segment's number, and ends with a checkpoint. A later run goes on from it and comes to the same weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import time

import torch
import torch.nn.functional as F

import data
import network
import tokenizer as tokens

AUXILIARY = 0.3  # weight of the auxiliary losses beside the answers' loss
ENCODERS = 0.08  # share of the steps that trains the encoders alone
CLIP_EVERY = 13  # steps
MIXED_EVERY = 3  # steps; the others are silent
FALL = 0.3  # share of the first stage's steps over which the learning rate falls
HARD_RATE = 0.6  # of the first stage's rate: where the second stage's begins
HARD_CLIP_EVERY, HARD_MIXED_EVERY = 7, 2
KEEP = 0.998  # of the running average, each step


class Muon:
    """Momentum with orthogonalised updates (Newton-Schulz) for matrices, AdamW for everything else.

    Matrices of one shape are orthogonalised together. Updates are scaled to AdamW's usual size, so that one learning
    rate serves both.
    """

    def __init__(self, weights: dict[str, torch.Tensor], decay: float = 0.02):
        flat = lambda n: n.endswith(("norm", "bias")) or any(s in n for s in ("embed_tokens", "lm_head", "aux.", "bos"))
        self._groups: dict[tuple, list] = {}
        rest = []
        for name, weight in weights.items():
            if weight.dim() < 2 or flat(name):
                rest.append(weight)
            else:
                self._groups.setdefault((weight.shape[0], weight[0].numel()), []).append(weight)
        self._momenta = {shape: torch.zeros(len(group), *shape) for shape, group in self._groups.items()}
        self._adam = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        self._decay = decay

    def step(self, rate: float) -> None:
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()
        with torch.no_grad():
            for shape, group in self._groups.items():
                seen = [w for w in group if w.grad is not None]
                if len(seen) < len(group):
                    continue
                grads = torch.stack([w.grad.reshape(shape) for w in group])
                momentum = self._momenta[shape].lerp_(grads, 0.05)
                update = _orthogonal(grads.lerp(momentum, 0.95)) * (0.2 * math.sqrt(max(shape)) * rate)
                for weight, change in zip(group, update):
                    weight.mul_(1 - self._decay * rate).sub_(change.view_as(weight))

    def state(self):
        return {"momenta": self._momenta, "adam": self._adam.state_dict()}

    def restore(self, state):
        self._momenta = state["momenta"]
        self._adam.load_state_dict(state["adam"])


def _orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest semi-orthogonal matrices, roughly: five steps of the quintic Newton-Schulz iteration."""
    x = matrices.to(torch.bfloat16)
    turned = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if turned else x
    x = x / (x.float().norm(dim=(1, 2), keepdim=True) + 1e-7).to(torch.bfloat16)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.transpose(1, 2) if turned else x).float()


class Trainer:
    def __init__(self, work: pathlib.Path, seed: int):
        self.tokenizer_file = str(work / "tokenizer.json")
        self.alphabet = data.alphabet_of(work / "pools")
        c = network.CONFIG
        self.weights = network.init(seed)
        generator = torch.Generator().manual_seed(seed + 1)
        for name, out, size in (("phoneme", len(self.alphabet) + 1, c["hidden"]), ("under", 9, c["v_hidden"]),
                                ("held", 7 + 8 + 2, c["hidden"]), ("cell", 9, c["hidden"]),
                                ("part", 6 + 8 + 2 + 9, c["hidden"])):
            self.weights[f"aux.{name}.weight"] = torch.randn(out, size, generator=generator) / math.sqrt(size)
        for weight in self.weights.values():
            weight.requires_grad_()
        self._networks: dict[data.Shape, tuple] = {}
        self._seed, self._generator = seed, torch.Generator()

    def segment(self, number: int) -> None:
        """Begin a segment: its random draws do not depend on those before."""
        self._generator.manual_seed(1000003 * self._seed + number)

    def _of(self, shape: data.Shape):
        """The three networks compiled for the shapes of one kind of batch."""
        shape = dataclasses.replace(shape, kind=None)  # silent batches have the shapes of mixed ones
        if shape not in self._networks:
            tables = network.vision_tables(_grids(shape), shape.patches)
            see = lambda w, p, g, l: network.vision(w, tables, p, shape.stills, g, l)
            hear = lambda w, m, f: network.audio(w, m, f)
            read = lambda *arguments: network.text(*arguments)
            self._networks[shape] = tuple(torch.compile(f, dynamic=False) for f in (see, hear, read))
        return self._networks[shape]

    def encode(self, b, vary: bool):
        count = b["grid"].shape[0]
        light = torch.tensor([1.0, 0.0]).repeat(count, 1)
        if vary:
            light += torch.rand(count, 2, generator=self._generator) * torch.tensor([0.16, 0.08]) - torch.tensor(
                [0.08, 0.04])
        w = self.weights
        see, hear, _ = self._of(b["shape"])
        seen, merged = see({k: v for k, v in w.items() if ".visual." in k}, b["pixels"], b["grid"], light)
        if (b["phoneme_count"] > 0).any():
            heard = hear({k: v for k, v in w.items() if ".audio_tower." in k}, b["mel"], b["frames"])
        else:
            heard = torch.zeros(b["mel"].shape[0], b["mel"].shape[1] // 4, merged.shape[-1], dtype=merged.dtype)
        return seen, merged, heard.reshape(-1, heard.shape[-1])

    def auxiliary(self, b, seen, merged, heard):
        """Losses that tell the encoders what is where in a picture and which phonemes are in a sound."""
        w, stills = self.weights, b["shape"].stills
        cells = network.cell_table(_grids(b["shape"]), b["shape"].patches)[b["grid"]]
        cells[(b["part"][..., 0] < 0).all(1)] = -100  # no picture
        found = {"cell": F.cross_entropy(F.linear(merged.float(), w["aux.cell.weight"]).flatten(0, 1),
                                         cells.flatten())}
        found["part"] = _sections(F.linear(merged.float(), w["aux.part.weight"]), b["part"], (6, 8, 2, 9))
        if stills:
            found |= self._seen(b, seen[:stills].float(), merged[:stills].float())
        sounds = b["phoneme_count"] > 0
        if sounds.any():
            spoken = F.linear(heard[b["sound_index"][sounds]].float(), w["aux.phoneme.weight"]).log_softmax(-1)
            found["phonemes"] = F.ctc_loss(spoken.transpose(0, 1), b["phonemes"][sounds], b["sound_length"][sounds],
                                           b["phoneme_count"][sounds], zero_infinity=True)
        return found

    def _seen(self, b, seen, merged):
        w = self.weights
        under = F.cross_entropy(F.linear(seen, w["aux.under.weight"]).flatten(0, 1), b["under"].flatten())
        return {"under": under, "held": _sections(F.linear(merged, w["aux.held.weight"]), b["held"], (7, 8, 2))}

    def logits(self, b, merged, heard):
        source = torch.cat((merged.reshape(-1, merged.shape[-1]), heard))
        tables = network.text_tables(b["position"], b["segment"])
        return self._of(b["shape"])[2]({k: v for k, v in self.weights.items() if ".model." in k or "lm_head" in k}, source,
                          b["index"], *tables, b["wanted"])

    def losses(self, b, with_text: bool, hard: bool):
        """hard: an answer counts by the root of its length, so that descriptions do not drown short answers."""
        seen, merged, heard = self.encode(b, True)
        found = self.auxiliary(b, seen, merged, heard)
        if with_text:
            name = "clip" if b["shape"].kind == "clip" else "answer"
            logits, looks = self.logits(b, merged, heard)
            if b["shape"].stills:
                shown = b["shown"].expand(looks.shape[0], -1)
                found["look"] = F.cross_entropy(looks.flatten(0, 1), shown.flatten())
            if hard:
                weight = b["weight"]
                found[name] = (F.cross_entropy(logits, b["label"], reduction="none") * weight).sum() / weight.sum()
            else:
                found[name] = F.cross_entropy(logits, b["label"])
        return found

    @torch.no_grad()
    def exact(self, batches) -> dict[str, tuple[int, int]]:
        """Right answers and answers by kind: all tokens are the likeliest ones, as in greedy decoding."""
        found: dict[str, list[int]] = {}
        for b in batches:
            _, merged, heard = self.encode(b, False)
            wrong = (self.logits(b, merged, heard)[0].argmax(-1) != b["label"]) & (b["label"] >= 0)
            bad = set(b["answer"][wrong].tolist())
            for number, kind in enumerate(b["kinds"]):
                right, total = found.setdefault(kind, [0, 0])
                found[kind] = [right + (number not in bad), total + 1]
        return {kind: tuple(pair) for kind, pair in sorted(found.items())}


def _sections(scores, labels, sizes):
    """Sum of the cross entropies of several labels, each with its section of the scores; a label may be missing all over."""
    losses = [F.cross_entropy(part.flatten(0, 1), labels[..., k].flatten(), reduction="sum") /
              (labels[..., k] >= 0).sum().clamp(min=1) for k, part in enumerate(scores.split(sizes, -1))]
    return sum(losses)


def _grids(shape: data.Shape):
    return network.GRIDS if shape.stills else network.CLIP_GRIDS


def summary(exact: dict[str, tuple[int, int]]) -> dict[str, float]:
    """Shares in percent, questions about pictures joined."""
    joined: dict[str, list[int]] = {}
    for kind, (right, total) in exact.items():
        question = kind.startswith(("typed ", "spoken ")) and not kind.endswith("describe")
        pair = joined.setdefault(kind.split(" ")[0] if question else kind, [0, 0])
        pair[:] = pair[0] + right, pair[1] + total
    return {name: round(100 * right / total, 1) for name, (right, total) in joined.items()}


def rate_at(step: int, first_stage: int, steps: int, top: float) -> float:
    """The learning rate: of the first stage, then of the second, which ends at steps."""
    if step < first_stage:
        warm = min(1.0, (step + 1) / 100)
        return top * warm * min(1.0, max(0.0, (first_stage - step) / (FALL * first_stage)))
    warm = min(1.0, (step - first_stage + 1) / 50)
    return HARD_RATE * top * warm * max(0.0, (steps - step) / (steps - first_stage))


def prepare(work: pathlib.Path, seed: int, scale: float) -> None:
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "tokenizer.json").exists():
        tokens.train(seed).save(str(work / "tokenizer.json"))
    for folder, shift, size in (("pools", 0, scale), ("held_out", 1000, 0.05)):
        if not (work / folder / "done").exists():
            data.build(work / folder, seed + shift, size, held_out=shift > 0)
            (work / folder / "done").touch()


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=6000, help="of the first stage")
    parser.add_argument("--hard-steps", type=int, default=8000, help="of the second stage")
    parser.add_argument("--until", type=int, help="stop after this step, to go on later")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the pools")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--segment", type=int, default=200, help="steps; both stages are whole numbers of them")
    parser.add_argument("--test-every", type=int, default=400)
    options = parser.parse_args()
    if options.steps % options.segment or options.hard_steps % options.segment:
        parser.error(f"--steps {options.steps} and --hard-steps {options.hard_steps} must be multiples of --segment "
                     f"{options.segment}")
    return options


def shape_at(options, step: int) -> data.Shape:
    """The kind of batch that a step trains on."""
    alone, hard = step < ENCODERS * options.steps, step >= options.steps
    clip_every, mixed_every = (HARD_CLIP_EVERY, HARD_MIXED_EVERY) if hard else (CLIP_EVERY, MIXED_EVERY)
    if not alone and step % clip_every == 0:
        return data.CLIPS
    return data.Shape() if alone or step % mixed_every == 0 else data.SILENT


def plan(options, shape: data.Shape):
    """How the batches of a shape follow one another: (segment, of the second stage?, batches) for every segment."""
    for start in range(0, options.steps + options.hard_steps, options.segment):
        count = sum(shape_at(options, step) == shape for step in range(start, start + options.segment))
        yield start // options.segment, start >= options.steps, count


def supply(options, alphabet, folder, seed, shape, parts):
    return data.Batches(options.work / folder, str(options.work / "tokenizer.json"), seed, shape, alphabet, parts)


def batches(options, alphabet, first):
    """The training batches of each shape from a step on, made by one process each."""
    return {shape: iter(torch.utils.data.DataLoader(
        supply(options, alphabet, "pools", options.seed, shape,
               [part for part in plan(options, shape) if part[0] * options.segment >= first]),
        batch_size=None, num_workers=1, prefetch_factor=4)) for shape in (data.Shape(), data.SILENT, data.CLIPS)}


class Progress:
    """Weights, their running average, the optimiser and the step: all that a later run goes on from."""

    def __init__(self, options, trainer):
        self.weights, self.optimizer, self.step = trainer.weights, Muon(trainer.weights), 0
        self.average = {name: weight.detach().clone() for name, weight in trainer.weights.items()}
        self._path = options.work / "checkpoint.pt"
        if self._path.exists():
            saved = torch.load(self._path)
            self.step, self.average = saved["step"], saved["average"]
            with torch.no_grad():
                for name, weight in self.weights.items():
                    weight.copy_(saved["weights"][name])
            self.optimizer.restore(saved["optimizer"])

    def save(self) -> None:
        spare = self._path.with_suffix(".new")
        torch.save({"step": self.step, "weights": {k: v.detach() for k, v in self.weights.items()},
                    "average": self.average, "optimizer": self.optimizer.state()}, spare)
        spare.rename(self._path)

    def advance(self, rate: float) -> None:
        """One step along the gradients."""
        torch.nn.utils.clip_grad_norm_(list(self.weights.values()), 5.0)
        self.optimizer.step(rate)
        with torch.no_grad():
            keep = min(KEEP, (self.step + 1) / (self.step + 20))
            torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), 1 - keep)
        for weight in self.weights.values():
            weight.grad = None
        self.step += 1


class Log:
    """Mean losses every 50 steps and whatever else is told, a line each."""

    def __init__(self, path: pathlib.Path):
        self._file, self._sums, self._since, self._count = path.open("a"), {}, time.time(), 0

    def add(self, step: int, found) -> None:
        for name, value in found.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + float(value.detach()), count + 1
        self._count += 1
        if step % 50 == 0:
            means = {name: round(total / count, 4) for name, (total, count) in self._sums.items()}
            self.line({"step": step, "seconds": round((time.time() - self._since) / self._count, 3)} | means)
            self._sums, self._count = {}, 0

    def line(self, line) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._since = time.time()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    prepare(options.work, options.seed, options.scale)
    trainer = Trainer(options.work, options.seed)
    progress, log = Progress(options, trainer), Log(options.work / "log.jsonl")
    tests = [b for shape, count in ((data.Shape(), 6), (data.CLIPS, 3))
             for b in supply(options, trainer.alphabet, "held_out", 1, shape, [(0, False, count)])]
    train_on = batches(options, trainer.alphabet, progress.step)
    last = options.steps + options.hard_steps
    while progress.step < min(last, options.until or last):
        if progress.step % options.segment == 0:
            trainer.segment(progress.step // options.segment)
        alone, hard = progress.step < ENCODERS * options.steps, progress.step >= options.steps
        found = trainer.losses(next(train_on[shape_at(options, progress.step)]), not alone, hard)
        weight = 1.0 if alone else AUXILIARY
        sum(value * (1.0 if name in ("answer", "clip") else weight) for name, value in found.items()).backward()
        progress.advance(rate_at(progress.step, options.steps, last, options.rate))
        log.add(progress.step, found)
        if progress.step % options.test_every == 0:
            test(trainer, progress, tests, log)
        if progress.step % options.segment == 0:
            progress.save()


def test(trainer, progress, tests, log) -> None:
    """Exact answers of the averaged weights, rounded to bfloat16 as they will be exported."""
    kept = {name: weight.detach().clone() for name, weight in trainer.weights.items()}
    with torch.no_grad():
        for name, weight in trainer.weights.items():
            weight.copy_(progress.average[name].bfloat16())
        exact = trainer.exact(tests)
        log.line({"step": progress.step, "exact": summary(exact), "of": exact})
        for name, weight in trainer.weights.items():
            weight.copy_(kept[name])


if __name__ == "__main__":
    main()
