"""Pools of drawn pictures and spoken sentences on disk, and the conversations made from them.

Drawing and speaking cost more than training on them, so both are done once (build) and every conversation draws from
the pools: a picture is asked many different questions over a training.
"""

from __future__ import annotations

import functools
import multiprocessing
import pathlib
import pickle
import random
import sys
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from PIL import Image

import grammar
import network
import pictures
import speech
import tokenizer as tokens

GRID_INDEX = {grid: k for k, grid in enumerate(network.GRIDS)}
CLIP_GRID_INDEX = {grid: k for k, grid in enumerate(network.CLIP_GRIDS)}
CLIP_FRAMES = 4  # two seconds, sampled twice a second
CHUNK = 2 * network.CONFIG["a_window"]
# What the second stage asks more often: what must be found by its shape, and compared.
HARD_QUESTIONS = {"color": 8, "shape": 3, "size": 5, "place": 8, "at": 4, "count": 4, "exists": 5, "relation": 8,
                  "absent": 3}
# Labels of the vision encoder's auxiliary loss.
NO_COLOR, NO_SHAPE = len(grammar.COLORS), len(grammar.SHAPES)


# --- Building the pools -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labels:
    """What the encoder's auxiliary losses ask about one picture; -100 where they ask nothing."""

    under: np.ndarray  # a patch: the colour under its centre
    held: np.ndarray  # a merged token: shape, colour and size of the thing whose centre it holds
    part: np.ndarray  # a merged token: shape, colour, size and place of the thing it shows the most of


def labels(shown, grid, most: int = pictures.MAX_PATCHES) -> Labels:
    """shown: (thing, (x, y, radius)) as pictures.py gives them; a clip shows its thing once a frame."""
    rows, columns = grid
    y, x = (side + 0.5 for side in np.divmod(_patch_order(grid), columns))
    under = np.full(most, -100, np.int64)
    under[:rows * columns] = NO_COLOR
    held, part = np.full((most // 4, 3), -100, np.int64), np.full((most // 4, 4), -100, np.int64)
    held[:rows * columns // 4, 0] = NO_SHAPE
    seen = np.zeros(rows * columns // 4)
    for thing, (across, down, radius) in shown:
        facts = (grammar.SHAPES.index(thing.shape), grammar.COLORS.index(thing.color), grammar.SIZES.index(thing.size),
                 thing.cell)
        away = np.hypot(x - across * columns, y - down * rows) / min(rows, columns)
        under[:rows * columns][(away < radius * 0.8) & ((away >= radius * 0.6) | (thing.shape != "ring"))] = facts[1]
        holds = _holds((across, down), grid)
        shows = (away < radius).reshape(-1, 4).sum(1) + 4.5 * (np.arange(seen.size) == holds)
        part[:seen.size][shows > seen] = facts
        seen = np.maximum(seen, shows)
        held[holds] = facts[:3]
    return Labels(under, held, part)


def _holds(spot, grid) -> int:
    """The merged token that holds a thing's centre."""
    rows, columns = grid
    return int(spot[1] * rows / 2) * (columns // 2) + int(spot[0] * columns / 2)


@functools.lru_cache
def _patch_order(grid) -> np.ndarray:
    """Row * columns + column of every patch, in the encoder's order."""
    rows, columns = grid
    return np.arange(rows * columns).reshape(rows // 2, 2, columns // 2, 2).transpose(0, 2, 1, 3).reshape(-1)


def _pad(cut, most=pictures.MAX_PATCHES):
    out = np.zeros((most, pictures.PATCH_VALUES), np.uint8)
    out[:cut.shape[0]] = cut
    return out


def _drawn(rng, scene):
    picture, spots = pictures.draw_scene(rng, scene)
    cut, rows, columns = pictures.patches(picture)
    return _pad(cut), (GRID_INDEX[rows, columns], scene, spots)


def _scene_item(rng, held_out):
    cut, facts = _drawn(rng, grammar.random_scene(rng, (1, 1, 1, 1.3)))
    return [cut], facts


def _pair_item(rng, held_out):
    first = grammar.random_scene(rng, (1, 1, 1, 0.5))
    items = [_drawn(rng, scene) for scene in (first, grammar.change(rng, first)[0])]
    return [cut for cut, _ in items], [facts for _, facts in items]


def _clip_item(rng, held_out):
    """Frames as drawn: resized, a clip would be twenty times as large."""
    clip = grammar.random_clip(rng)
    drawn, spots = pictures.draw_clip(rng, clip, CLIP_FRAMES)
    frames = [np.asarray(p) for p in drawn]
    return [frame.reshape(-1) for frame in frames], (frames[0].shape, clip, spots)


_espeak = None


def _said_item(rng, draw, held_out):
    global _espeak
    _espeak = _espeak or speech.Espeak()
    text = draw(rng)
    voice = speech.held_out_voice(rng, rng.random() < 0.25) if held_out else speech.random_voice(rng)
    sound = speech.room(rng, _espeak.say(text, voice))
    return [speech.mel(sound)], (text, _espeak.phonemes(text))


def _question_item(rng, held_out):
    return _said_item(rng, grammar.spoken_question, held_out)


def _sentence_item(rng, held_out):
    return _said_item(rng, grammar.spoken_sentence, held_out)


# Name -> (how to draw one, how many at scale 1).
POOLS = {"scenes": (_scene_item, 32000), "pairs": (_pair_item, 12000), "clips": (_clip_item, 6000),
         "questions": (_question_item, 20000), "sentences": (_sentence_item, 20000)}
STACKED = ("scenes", "pairs")  # parts of one size; those of the others follow one another
SHARD = 400


def _shard(job):
    name, seed, index, count, folder, held_out = job
    torch.set_num_threads(1)
    rng = random.Random(f"{name} {seed} {index}")
    path = pathlib.Path(folder) / f"{name}-{index:04d}"
    if not path.with_suffix(".pkl").exists():
        arrays, facts, sizes = [], [], []
        for _ in range(count):
            parts, fact = POOLS[name][0](rng, held_out)
            arrays += parts
            facts.append(fact)
            sizes.append(len(parts) if name in STACKED else sum(len(part) for part in parts))
        joined = (np.stack if name in STACKED else np.concatenate)(arrays)
        np.save(path.with_suffix(".npy"), joined)
        path.with_suffix(".pkl").write_bytes(pickle.dumps((facts, sizes)))


def build(folder: pathlib.Path, seed: int, scale: float, held_out: bool = False, workers: int = 2) -> None:
    """Draw the pools; held_out: with voices' settings that are never used otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    for name, (_, count) in POOLS.items():
        shards = max(1, round(count * scale / SHARD))
        jobs += [(name, seed, index, SHARD, str(folder), held_out) for index in range(shards)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for done, _ in enumerate(pool.imap_unordered(_shard, jobs), 1):
            if done % 20 == 0:
                print(f"pools: {done} of {len(jobs)} shards", flush=True)


class Pool:
    """A built pool: item(k) is (parts, facts).

    Parts are patches [pictures, 64, 588], mel frames [frames, 128] or a clip's pixels [bytes].
    """

    def __init__(self, folder: pathlib.Path, name: str):
        self._arrays, self.facts, self._where = [], [], []
        for path in sorted(folder.glob(f"{name}-*.pkl")):
            facts, sizes = pickle.loads(path.read_bytes())
            starts = np.concatenate(([0], np.cumsum(sizes)))
            self._where += [(len(self._arrays), int(a), int(b)) for a, b in zip(starts[:-1], starts[1:])]
            self._arrays.append(np.load(path.with_suffix(".npy"), mmap_mode="r"))
            self.facts += facts

    def __len__(self):
        return len(self.facts)

    def item(self, index: int):
        array, start, end = self._where[index]
        return self._arrays[array][start:end], self.facts[index]


# --- Conversations ----------------------------------------------------------------------------------------------------


@dataclass
class Talk:
    """A conversation in tokens. Media tokens hold -1 - k in ids, k counting the talk's media tokens."""

    ids: list[int] = field(default_factory=list)
    position: list[tuple[int, int, int]] = field(default_factory=list)
    wanted: list[tuple[int, int, int, int]] = field(default_factory=list)  # place, next token, answer number, shown
    answers: list[str] = field(default_factory=list)  # kind of each answer
    stills: list = field(default_factory=list)  # (patches, grid, Labels)
    shown: dict[int, int] = field(default_factory=dict)  # 9 * picture + cell -> where in ids a thing's centre is
    moving: list = field(default_factory=list)  # (first patches, second patches, grid, Labels.part)
    sounds: list = field(default_factory=list)  # (mel, phonemes)
    media: list[tuple[str, int, int]] = field(default_factory=list)  # kind, index in that list, token in it
    next: int = 0  # next position

    def plain(self, ids):
        self.ids += ids
        self.position += [(p, p, p) for p in range(self.next, self.next + len(ids))]
        self.next += len(ids)


class Writer:
    """Turns turns into tokens as the chat template does."""

    def __init__(self, tokenizer):
        self._tokenizer, self._cache = tokenizer, {}
        self.special = {text: tokenizer.token_to_id(text) for text, _ in tokens.ADDED}

    def ids(self, text: str) -> list[int]:
        found = self._cache.get(text)
        if found is None:
            found = self._tokenizer.encode(text).ids
            if len(self._cache) < 200000:
                self._cache[text] = found
        return found

    def start(self, system: str) -> Talk:
        talk = Talk()
        talk.plain(self.ids(f"<|im_start|>system\n{system}<|im_end|>\n"))
        return talk

    def user(self, talk: Talk, parts) -> None:
        talk.plain(self.ids("<|im_start|>user\n"))
        for kind, value in parts:
            getattr(self, "_" + kind)(talk, value)
        talk.plain(self.ids("<|im_end|>\n<|im_start|>assistant\n"))

    def assistant(self, talk: Talk, kind: str, text: str) -> None:
        """An answer, perhaps with marks: its tokens know where the thing is shown that they speak about (-1: nowhere)."""
        encoded = self._tokenizer.encode(grammar.plain(text))
        ids, about = encoded.ids + [self.special["<|im_end|>"]], grammar.spans(text)
        shown = [next((talk.shown[number] for start, end, number in about if start < stop <= end), -1)
                 for _, stop in encoded.offsets]
        place = len(talk.ids) - 1
        talk.wanted += [(place + k, token, len(talk.answers), at) for k, (token, at) in enumerate(zip(ids, shown + [-1]))]
        talk.answers.append(kind)
        talk.plain(ids + self.ids("\n"))

    def _text(self, talk, text):
        talk.plain(self.ids(text))

    def _picture(self, talk, value):
        patches, grid, asked, holds = value
        first = len(talk.ids) + 1
        talk.shown |= {9 * len(talk.stills) + cell: first + token for cell, token in holds.items()}
        talk.stills.append((patches, grid, asked))
        self._vision(talk, "still", [len(talk.stills) - 1], network.GRIDS[grid])

    def _clip(self, talk, value):
        frames, grid, parts = value
        talk.moving += [(*frames[2 * k:2 * k + 2], grid, part) for k, part in enumerate(parts)]
        self._vision(talk, "moving", range(len(talk.moving) - len(frames) // 2, len(talk.moving)),
                     network.CLIP_GRIDS[grid])

    def _vision(self, talk, kind, slots, grid):
        rows, columns = (side // 2 for side in grid)
        talk.plain([self.special["<|vision_bos|>"]])
        start, seconds_a_grid = talk.next, 1  # frames are sampled twice a second, two make a grid
        for t, slot in enumerate(slots):
            for k in range(rows * columns):
                talk.ids.append(-1 - len(talk.media))
                talk.media.append((kind, slot, k))
                talk.position.append((start + t * seconds_a_grid * network.TOKENS_PER_SECOND, start + k // columns,
                                      start + k % columns))
        talk.next = max(max(p) for p in talk.position[-len(slots) * rows * columns:]) + 1
        talk.plain([self.special["<|vision_eos|>"]])

    def _sound(self, talk, value):
        mel, phonemes = value
        talk.plain([self.special["<|audio_bos|>"]])
        count = network.audio_tokens(mel.shape[0])
        for k in range(count):
            talk.ids.append(-1 - len(talk.media))
            talk.media.append(("sound", len(talk.sounds), k))
            talk.position.append((talk.next + k,) * 3)
        talk.next += count
        talk.sounds.append((mel, phonemes))
        talk.plain([self.special["<|audio_eos|>"]])


def _mirrored(patches: np.ndarray, grid) -> np.ndarray:
    """A picture's patches with left and right exchanged; padding stays at the end."""
    rows, columns = grid
    turned, used = patches.copy(), rows * columns
    shape = (rows // 2, columns // 2, 2, 2, 3, pictures.PATCH, pictures.PATCH)
    turned[:used] = np.flip(patches[:used].reshape(shape), (1, 3, 6)).reshape(used, -1)
    return turned


def _look(patches, facts, turned: bool):
    """A pooled picture as a conversation shows it, mirrored or not: (part, scene)."""
    number, scene, spots = facts
    grid, shown = network.GRIDS[number], list(zip(scene.things, spots))
    if turned:
        patches, scene = _mirrored(patches, grid), grammar.mirrored(scene)
        shown = [(grammar.mirrored_thing(t), (1 - x, y, radius)) for t, (x, y, radius) in shown]
    holds = {thing.cell: _holds(spot, grid) for thing, spot in shown}
    return ("picture", (patches, number, labels(shown, grid), holds)), scene


class Talks:
    """An endless supply of conversations."""

    SYSTEMS = (grammar.SYSTEM,) * 18 + (tokens.LONG_SYSTEM, "You are a helpful assistant. Answer briefly.")
    SILENT = {"typed": 70, "pair": 18, "small": 9, "blind": 3}
    SHARES = {"typed": 30, "spoken": 26, "heard": 24, "pair": 9, "small": 6, "blind": 2}
    HARD_SHARES = {"typed": 16, "spoken": 44, "heard": 22, "pair": 8, "small": 5, "blind": 3}

    def __init__(self, folder, tokenizer, most: int):
        self.writer, self._most = Writer(tokenizer), most
        self.scenes, self.pairs, self.clips, self.questions, self.sentences = (Pool(folder, n) for n in POOLS)
        self._by_text: dict[str, list[int]] = {}
        for k, (text, _) in enumerate(self.questions.facts):
            self._by_text.setdefault(text, []).append(k)
        self._prose = tokens.general_text()

    def begin(self, seed: str, hard: bool) -> None:
        """Draw from a seed; hard: as in the second stage, with more hard questions and with mirrored pictures."""
        self.rng, self._hard = random.Random(seed), hard
        self._weights = HARD_QUESTIONS if hard else grammar.QUESTION_WEIGHTS

    def draw(self, kind: str | None = None) -> Talk:
        """A conversation of a kind, of any kind (None), or of any kind without sounds ("silent")."""
        self._silent = kind == "silent"
        if kind is None or self._silent:
            shares = self.SILENT if self._silent else self.HARD_SHARES if self._hard else self.SHARES
            kind = self.rng.choices(list(shares), list(shares.values()))[0]
        talk = self.writer.start(self.rng.choice(self.SYSTEMS))
        return getattr(self, "_" + kind)(talk)

    def _spoken_of(self, text: str):
        """The sound of a question, or None when no voice has said it."""
        found = None if self._silent else self._by_text.get(text)
        if not found:
            return None
        mel, (_, phonemes) = self.questions.item(self.rng.choice(found))
        return ("sound", (mel, phonemes))

    def _scene(self):
        (patches,), facts = self.scenes.item(self.rng.randrange(len(self.scenes)))
        return _look(patches, facts, self._turned())

    def _turned(self):
        return self._hard and self.rng.random() < 0.5

    def _shuffled(self, *parts):
        """Media mostly before the text, as clients send them."""
        return list(parts) if self.rng.random() < 0.8 else list(reversed(parts))

    def _room(self):
        """How long a conversation may grow before it gets no further question: some stay short, and rows fill up."""
        long = self.rng.random() < (0.85 if self._silent else 0.5)
        return self._most - 15 if long else self.rng.randrange(30, self._most)

    def _turns(self, talk, scene, room, spoken_share):
        """Further questions about the same picture while they fit."""
        while len(talk.ids) < room:
            kind, asked, answer = grammar.marked_question(self.rng, scene, self._weights)
            sound = self._spoken_of(asked) if self.rng.random() < spoken_share else None
            size = 16 + (network.audio_tokens(sound[1][0].shape[0]) if sound else len(self.writer.ids(asked)))
            if len(talk.ids) + size > self._most:
                return talk
            self.writer.user(talk, [sound or ("text", asked)])
            self.writer.assistant(talk, ("spoken " if sound else "typed ") + kind, answer)
        return talk

    def _typed(self, talk):
        picture, scene = self._scene()
        if self.rng.random() < 0.5:
            kind, asked, answer = "describe", self.rng.choice(grammar.DESCRIBE), grammar.described(scene)
        else:
            kind, asked, answer = grammar.marked_question(self.rng, scene, self._weights)
        self.writer.user(talk, self._shuffled(picture, ("text", asked)))
        self.writer.assistant(talk, "typed " + kind, answer)
        return self._turns(talk, scene, self._room(), 0.0)

    def _spoken(self, talk):
        picture, scene = self._scene()
        while True:
            if self.rng.random() < 0.12:
                kind, asked, answer = "describe", self.rng.choice(grammar.DESCRIBE), grammar.described(scene)
            else:
                kind, asked, answer = grammar.marked_question(self.rng, scene, self._weights)
            sound = self._spoken_of(asked)
            if sound:
                break
        self.writer.user(talk, self._shuffled(picture, sound))
        self.writer.assistant(talk, "spoken " + kind, answer)
        return self._turns(talk, scene, self._room(), 0.7)

    def _heard(self, talk):
        pool = self.sentences if self.rng.random() < 0.75 else self.questions
        mel, (text, phonemes) = pool.item(self.rng.randrange(len(pool)))
        order = self._shuffled(("sound", (mel, phonemes)), ("text", self.rng.choice(grammar.TRANSCRIBE)))
        self.writer.user(talk, order)
        self.writer.assistant(talk, "transcribe", text)
        return talk

    def _pair(self, talk):
        parts, facts = self.pairs.item(self.rng.randrange(len(self.pairs)))
        asked = self.rng.choice(grammar.DIFFER)
        sound = self._spoken_of(asked) if self.rng.random() < 0.3 else None
        turned = self._turned()
        (one, first), (other, second) = (_look(*item, turned) for item in zip(parts, facts))
        looks = [one, other]
        if self._turned():
            looks, first, second = [other, one], second, first
        says = grammar.compare(first, second)
        self.writer.user(talk, looks + [sound or ("text", asked)])
        self.writer.assistant(talk, "pair", says)
        return talk

    def _clip(self, talk):
        cuts = []
        while not cuts or cuts[0][1:] not in CLIP_GRID_INDEX:  # a rounded side may lead to a neighbouring grid
            pixels, (size, clip, spots) = self.clips.item(self.rng.randrange(len(self.clips)))
            frames, clip, spots = self._varied(pixels.reshape(-1, *size), clip, spots)
            cuts = [pictures.patches(Image.fromarray(frame), clip=True) for frame in frames]
        grid = cuts[0][1:]
        parts = [labels([(clip.thing, spot) for spot in spots[k:k + 2]], grid, pictures.MAX_CLIP_PATCHES).part
                 for k in range(0, len(spots), 2)]
        for part in parts:
            part[:, 3] = -100  # a thing that moves has no place
        frames = [_pad(cut, pictures.MAX_CLIP_PATCHES) for cut, _, _ in cuts]
        _, asked, answer = grammar.clip_question(self.rng, clip)
        sound = self._spoken_of(asked) if self.rng.random() < 0.3 else None
        shown = ("clip", (frames, CLIP_GRID_INDEX[grid], parts))
        self.writer.user(talk, self._shuffled(shown, sound or ("text", asked)))
        self.writer.assistant(talk, "clip", answer)
        while len(talk.ids) < self._most - 25:
            _, asked, answer = grammar.clip_question(self.rng, clip)
            self.writer.user(talk, [("text", asked)])
            self.writer.assistant(talk, "clip", answer)
        return talk

    def _varied(self, frames, clip, spots):
        """A clip as it is, mirrored, or backwards."""
        way = clip.direction
        if self._turned():
            frames, spots = np.ascontiguousarray(frames[:, :, ::-1]), [(1 - x, y, radius) for x, y, radius in spots]
            way = 1 - way if way in (0, 1) else way
        if self._turned():
            frames, spots, way = frames[::-1], spots[::-1], way ^ 1 if way >= 0 else way
        return frames, replace(clip, direction=way), spots

    def _small(self, talk):
        while True:
            if self.rng.random() < 0.5:
                asked, answer = self.rng.choice(grammar.SMALL_TALK)
                asked = self.rng.choice(asked)
                sound = self._spoken_of(asked) if self.rng.random() < 0.4 else None
                self.writer.user(talk, [sound or ("text", asked)])
                self.writer.assistant(talk, "small talk", answer)
            else:
                self.writer.user(talk, [("text", grammar.unknown_question(self.rng, self._prose))])
                self.writer.assistant(talk, "unknown", grammar.UNKNOWN)
            if self.rng.random() < 0.4 or len(talk.ids) > self._most - 45:
                return talk

    def _blind(self, talk):
        while True:
            _, asked, _ = grammar.question(self.rng, grammar.random_scene(self.rng))
            sound = self._spoken_of(asked) if self.rng.random() < 0.4 else None
            self.writer.user(talk, [sound or ("text", asked)])
            self.writer.assistant(talk, "no picture", grammar.NO_PICTURE)
            if self.rng.random() < 0.5 or len(talk.ids) > self._most - 70:
                return talk


# --- Batches of fixed shape -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    rows: int = 48
    length: int = 160
    stills: int = 60
    moving: int = 0
    patches: int = pictures.MAX_PATCHES
    chunks: int = 60
    sounds: int = 42
    wanted: int = 2048
    phonemes: int = 96
    kind: str | None = None  # of all conversations (Talks.draw)


# Most batches: typed questions, for which the audio encoder need not run.
SILENT = Shape(kind="silent")
# Clips are long: 144 tokens a frame pair.
CLIPS = Shape(rows=6, length=384, stills=0, moving=12, patches=pictures.MAX_CLIP_PATCHES, chunks=6, sounds=6,
              wanted=256, kind="clip")


class Packer:
    """Packs conversations into batches; what does not fit waits for the next batch."""

    def __init__(self, talks: Talks, shape: Shape, alphabet: str):
        self._talks, self._shape, self._waiting = talks, shape, []
        self._letters = {letter: k + 1 for k, letter in enumerate(alphabet)}

    def _room(self, used, talk):
        s = self._shape
        chunks = sum(-(-mel.shape[0] // CHUNK) for mel, _ in talk.sounds)
        new = [u + n for u, n in zip(used, (len(talk.stills), len(talk.moving), chunks, len(talk.sounds),
                                            len(talk.wanted)))]
        fits = all(n <= most for n, most in zip(new, (s.stills, s.moving, s.chunks, s.sounds, s.wanted)))
        return new if fits else None

    def _choose(self):
        """Conversations of every row: the oldest that waits, then the longest that still fits, and so on."""
        s, used, rows = self._shape, [0] * 5, []
        for _ in range(s.rows):
            row, left = [], s.length
            while True:
                while len(self._waiting) < 2 * s.rows:
                    self._waiting.append(self._draw(self._shape.kind))
                fitting = [(len(talk.ids), -k) for k, talk in enumerate(self._waiting)
                           if len(talk.ids) <= left and self._room(used, talk)]
                if not fitting:
                    talk = self._filler(left, used)
                    if not talk:
                        break
                    row.append(talk)
                    left, used = left - len(talk.ids), self._room(used, talk)
                    continue
                talk = self._waiting.pop(-(max(fitting)[1] if row else max(k for _, k in fitting)))
                row.append(talk)
                left, used = left - len(talk.ids), self._room(used, talk)
            rows.append(row)
        return rows

    def _filler(self, left, used):
        """A conversation without sounds that fits: what waits may all be spoken, and the room for sounds be full."""
        if self._shape.kind is None and left > 40:
            for _ in range(4):
                talk = self._draw("silent")
                if len(talk.ids) <= left and self._room(used, talk):
                    return talk
        return None

    def _draw(self, kind):
        while True:
            talk = self._talks.draw(kind)
            if len(talk.ids) <= self._shape.length and all(len(p) <= self._shape.phonemes for _, p in talk.sounds):
                return talk

    def batch(self) -> dict:
        s, v = self._shape, network.CONFIG["vocabulary"]
        b = {"index": np.zeros((s.rows, s.length), np.int64), "position": np.zeros((s.rows, s.length, 3), np.int64),
             "segment": np.full((s.rows, s.length), -1, np.int64), "wanted": np.zeros(s.wanted, np.int64),
             "label": np.full(s.wanted, -100, np.int64), "answer": np.full(s.wanted, -1, np.int64),
             "weight": np.zeros(s.wanted, np.float32), "shown": np.full(s.wanted, -100, np.int64),
             "pixels": np.zeros((s.stills + 2 * s.moving, s.patches, pictures.PATCH_VALUES), np.uint8),
             "grid": np.zeros(s.stills + s.moving, np.int64),
             "under": np.full((s.stills, s.patches), -100, np.int64),
             "held": np.full((s.stills, s.patches // 4, 3), -100, np.int64),
             "part": np.full((s.stills + s.moving, s.patches // 4, 4), -100, np.int64),
             "mel": np.zeros((s.chunks, CHUNK, speech.BINS), np.float16), "frames": np.ones(s.chunks, np.int64),
             "sound_index": np.zeros((s.sounds, 120), np.int64), "sound_length": np.ones(s.sounds, np.int64),
             "phonemes": np.zeros((s.sounds, s.phonemes), np.int64), "phoneme_count": np.zeros(s.sounds, np.int64)}
        kinds: list[str] = []
        still = moving = chunk = sound = place = 0
        per_picture = s.patches // 4
        first_sound = v + per_picture * (s.stills + s.moving)
        for r, row in enumerate(self._choose()):
            at = 0
            for number, talk in enumerate(row):
                starts = []
                for mel, phonemes in talk.sounds:
                    starts.append(first_sound + 50 * chunk)
                    count = network.audio_tokens(mel.shape[0])
                    b["sound_index"][sound, :count] = 50 * chunk + np.arange(count)
                    b["sound_length"][sound] = count
                    spelled = [self._letters[letter] for letter in phonemes if letter in self._letters]
                    b["phonemes"][sound, :len(spelled)], b["phoneme_count"][sound] = spelled, len(spelled)
                    sound += 1
                    for start in range(0, mel.shape[0], CHUNK):
                        part = mel[start:start + CHUNK]
                        b["mel"][chunk, :part.shape[0]], b["frames"][chunk] = part, part.shape[0]
                        chunk += 1
                base = {"still": v + per_picture * still, "moving": v + per_picture * (s.stills + moving)}
                for patches, grid, asked in talk.stills:
                    b["pixels"][still], b["grid"][still] = patches, grid
                    b["under"][still], b["held"][still], b["part"][still] = asked.under, asked.held, asked.part
                    still += 1
                for first, second, grid, part in talk.moving:
                    b["pixels"][s.stills + moving], b["pixels"][s.stills + s.moving + moving] = first, second
                    b["grid"][s.stills + moving], b["part"][s.stills + moving] = grid, part
                    moving += 1
                media = [starts[i] + k if kind == "sound" else base[kind] + per_picture * i + k for kind, i, k in talk.media]
                end = at + len(talk.ids)
                b["index"][r, at:end] = [t if t >= 0 else media[-1 - t] for t in talk.ids]
                b["position"][r, at:end], b["segment"][r, at:end] = talk.position, number
                sizes = np.bincount([answer for _, _, answer, _ in talk.wanted])
                for where, token, answer, shown in talk.wanted:
                    b["shown"][place] = at + shown if shown >= 0 else -100
                    b["wanted"][place], b["label"][place] = r * s.length + at + where, token
                    b["weight"][place] = sizes[answer] ** -0.5
                    b["answer"][place] = len(kinds) + answer
                    place += 1
                kinds += talk.answers
                at = end
        return {name: torch.from_numpy(array) for name, array in b.items()} | {"kinds": kinds, "shape": s}


class Batches(torch.utils.data.IterableDataset):
    """Batches of one shape; parts: (number of a segment, of the second stage?, batches in it).

    What a segment holds depends on the seed and on its number, not on what was drawn before it.
    """

    def __init__(self, folder, tokenizer_file, seed, shape: Shape, alphabet: str,
                 parts=((0, False, sys.maxsize),)):
        self._arguments, self._parts = (folder, tokenizer_file, seed, shape, alphabet), parts

    def __iter__(self):
        from tokenizers import Tokenizer
        folder, file, seed, shape, alphabet = self._arguments
        talks = Talks(folder, Tokenizer.from_file(file), most=shape.length - 10)
        for number, hard, count in self._parts:
            talks.begin(f"{seed} {number} {shape.kind}", hard)
            packer = Packer(talks, shape, alphabet)
            for _ in range(count):
                yield packer.batch()


def alphabet_of(folder: pathlib.Path) -> str:
    """The phonemes that occur, sorted."""
    found = set()
    for name in ("questions", "sentences"):
        for _, phonemes in Pool(folder, name).facts:
            found |= set(phonemes)
    return "".join(sorted(found))
