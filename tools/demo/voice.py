"""What the speaking half is trained on: words said by two voices, their mel frames, the codec, what the talker hears.

    python voice.py WORK models/demo

A voice says each word of the grammar once in the middle of a sentence and once at its end; what it says is made of these
recordings, so that a word always sounds the same. Both voices speak on one note, 100 and 200 Hz, and each recording begins
with a period: a mel frame is then a whole number of periods, and the same frames always mean the same samples. This spares
the vocoder from inventing the phase and the talker from inventing melody.

Codes are 20 ms: two mel frames less the voice's mean, the nearest of CODES clusters. Two kinds of code are no clusters:
0 is what token2wav hears where the code is dropped, and the marks count tokens. The talker hears one token of the answer a code
and speaks much slower; so it first counts the tokens in silence (mark k beside token k), then says each one behind the mark that
it was heard with. The mark stands in the place of the first 20 ms of the word, which the DiT knows from the codes around it.
"""

from __future__ import annotations

import argparse
import ctypes
import pathlib
import pickle
import random
import re
from functools import lru_cache

import numpy as np
import soxr
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import data
import grammar
import network
import speech

RATE, HOP, WINDOW, BINS = 24000, 240, 1024, 80
REPEATS = 2
UNIT = HOP * REPEATS  # samples of a code
CLUSTERS, MARKS = 512, 96  # no answer has more tokens
CODES = CLUSTERS + MARKS
PAD, START, END, MASK = range(CODES + 1, CODES + 5)  # of the talker's vocabulary
TEXT_PAD, TEXT_END = 1144, 1146  # rows of the thinker's vocabulary that no token uses
# Names as published. The token tells the talker who speaks, a vector of COND numbers tells token2wav.
SPEAKERS = {"Chelsie": 1145, "Ethan": 1147}
COND = 16
SPEED = 150  # words a minute
PAUSE = 5  # codes of silence behind a comma
LAST = 8  # and behind the answer


def mark(token: int) -> int:
    """The code that stands for the token-th token of an answer."""
    return 1 + CLUSTERS + token % MARKS


# --- Mel frames -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=None)
def filters() -> torch.Tensor:
    """[1 + WINDOW / 2, BINS]."""
    from transformers.audio_utils import mel_filter_bank
    return torch.from_numpy(mel_filter_bank(1 + WINDOW // 2, BINS, 0.0, RATE / 2, RATE, "slaney", "slaney")).float()


def mel(sound: torch.Tensor) -> torch.Tensor:
    """Natural logarithms of mel amplitudes [..., frames, BINS] of sound [..., frames * HOP] at RATE."""
    edge = (WINDOW - HOP) // 2
    padded = torch.nn.functional.pad(sound.unsqueeze(-2), (edge, edge), mode="reflect").squeeze(-2)
    flat = padded.reshape(-1, padded.shape[-1])
    window = torch.hann_window(WINDOW)
    amplitude = (torch.stft(flat, WINDOW, HOP, window=window, center=False, return_complex=True).abs() ** 2 + 1e-9).sqrt()
    found = torch.log(torch.clamp(filters().T @ amplitude, min=1e-5)).transpose(-1, -2)
    return found.reshape(*sound.shape[:-1], *found.shape[-2:])


# --- The voices -------------------------------------------------------------------------------------------------------

# espeak-ng's voice files. A pitch of p is p - 9 Hz; no flutter and no second pitch: one note. Breath fills the gaps between
# the harmonics of so steady a voice, without which it is hardly understood.
_FORMANTS = {
    "Chelsie": ((105, 80, 150), (110, 80, 160), (110, 70, 150), (110, 70, 150), (115, 80, 150), (115, 80, 150),
                (110, 70, 150), (110, 70, 150), (110, 70, 150)),
    "Ethan": ((100, 100, 100), (96, 97, 100), (96, 97, 100), (96, 103, 100), (95, 103, 100), (95, 103, 100),
              (100, 100, 100), (100, 100, 100), (100, 100, 100))}
_STRESS = {"Chelsie": "0 0 -10 -10 0 0 10 40", "Ethan": "10 10 0 0 0 0 -30 -30"}
NOTE = {"Chelsie": 200, "Ethan": 100}


def voice_file(speaker: str) -> str:
    lines = ["language en-us", f"name {speaker}", "gender male", "flutter 0", "roughness 0",
             f"pitch {NOTE[speaker] + 9} {NOTE[speaker] + 9}", "breath 0 2 3 3 3 3 3 2", f"stressAdd {_STRESS[speaker]}",
             "consonants 125 125"]
    lines += [f"formant {k} {' '.join(map(str, numbers))}" for k, numbers in enumerate(_FORMANTS[speaker])]
    return "\n".join(lines) + "\n"


class _Event(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int), ("identifier", ctypes.c_uint), ("text_position", ctypes.c_int),
                ("length", ctypes.c_int), ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
                ("user", ctypes.c_void_p), ("id", ctypes.c_char * 8)]


class Recorder(speech.Espeak):
    """Records single words: espeak-ng says them in a sentence and tells where each word begins."""

    _TAKE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
    _WORD = 1

    def __init__(self, work: pathlib.Path):
        super().__init__()
        self._starts: list[int] = []
        self._callback = self._TAKE(self._take_words)
        self._library.espeak_SetSynthCallback(self._callback)
        self._files = {speaker: work / f"voice_{speaker.lower()}" for speaker in SPEAKERS}  # espeak-ng wants lower case
        for speaker, file in self._files.items():
            file.write_text(voice_file(speaker))

    def _take_words(self, samples, count, events):
        self._take(samples, count, None)
        k = 0
        while events and events[k].type != 0:
            if events[k].type == self._WORD:
                self._starts.append(events[k].sample)
            k += 1
        return 0

    def word(self, word: str, speaker: str, final: bool) -> np.ndarray:
        """float32 at RATE, a whole number of codes; its first sample begins a period."""
        if self._voice != speaker and self._library.espeak_ng_SetVoiceByFile(str(self._files[speaker]).encode()) != 0:
            raise RuntimeError(f"espeak-ng: {self._files[speaker]} is no voice")
        self._voice = speaker
        for parameter, value in ((self._RATE, SPEED), (self._VOLUME, 80), (self._PITCH, 50), (self._RANGE, 0)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._parts, self._starts = [], []
        text = f"it is {word}{'' if final else ' now'}".encode()
        self._library.espeak_Synth(text, len(text) + 1, 0, 1, 0, 1, None, None)
        self._library.espeak_Synchronize()
        sound = np.concatenate(self._parts).astype(np.float32) / 32768
        sound = soxr.resample(sound, self._rate, RATE)
        first = self._starts[2] * RATE / self._rate
        end = len(sound) if final else round(self._starts[3] * RATE / self._rate)
        if final:
            end = min(len(sound), int(np.flatnonzero(np.abs(sound) > 0.005)[-1]) + HOP)
        first = _in_phase(sound, round(first), end, NOTE[speaker])
        found = sound[first:end]
        units = -(-len(found) // UNIT) if final else max(2, round(len(found) / UNIT))
        return np.pad(found, (0, max(0, units * UNIT - len(found))))[:units * UNIT]


def _in_phase(sound: np.ndarray, first: int, end: int, note: int) -> int:
    """The sample nearest to first where the fundamental of sound[first:end] has phase 0."""
    period = RATE // note
    turn = np.angle((np.exp(-2j * np.pi * np.arange(end - first) / period) * sound[first:end]).sum())
    shift = -turn / (2 * np.pi) * period  # of the first such sample behind (or before) `first`
    return max(0, first + round(shift - period * round(shift / period)))


def words_of(text: str) -> list[tuple[str, bool]]:
    """The words of an answer and whether each stands before a punctuation mark."""
    return [(word.lower(), bool(stop)) for word, stop in re.findall(r"([A-Za-z']+)([,.:?!]?)", text)]


def vocabulary(seed: int) -> list[str]:
    """Every word the model may have to say."""
    rng = random.Random(seed)
    texts = [*_FIXED, *(text for _ in range(20000) for text in _drawn(rng))]
    return sorted({word for text in texts for word, _ in words_of(text)})


_FIXED = (*(answer for _, answer in grammar.SMALL_TALK), grammar.UNKNOWN, grammar.NO_PICTURE, "It does not move.")


def _drawn(rng: random.Random) -> list[str]:
    """One of each kind of thing to say."""
    scene, clip = grammar.random_scene(rng), grammar.random_clip(rng)
    return [grammar.plain(text) for text in (
        grammar.spoken_sentence(rng), grammar.spoken_question(rng), grammar.describe(scene), grammar.question(rng, scene)[2],
        grammar.change(rng, scene)[1], grammar.describe_clip(clip), grammar.clip_question(rng, clip)[2])]


def text_to_say(rng: random.Random, words: list[str]) -> str:
    """A description or a sentence, a short or fixed answer, or a string of words."""
    drawn = _drawn(rng)
    string = " ".join(rng.choice(words) + ("," if rng.random() < 0.1 else "") for _ in range(rng.randint(1, 10)))
    return rng.choices((drawn[2], drawn[0], rng.choice(drawn), rng.choice(_FIXED), grammar.sentence(string.rstrip(","))),
                       (20, 15, 20, 10, 35))[0]


def conditions() -> dict[str, torch.Tensor]:
    """The speakers' vectors [1, COND]: any two that differ will do."""
    sign = torch.where(torch.arange(COND) % 2 == 0, 1.0, -1.0)
    return {"Chelsie": sign[None], "Ethan": -sign[None]}


# --- The codec --------------------------------------------------------------------------------------------------------


def _units(frames: torch.Tensor) -> torch.Tensor:
    return frames.reshape(frames.shape[0] // REPEATS, -1)


def nearest(points: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    half = (centres ** 2).sum(1) / 2
    return torch.cat([(part @ centres.T - half).argmax(1) for part in points.split(8192)])


def cluster(points: torch.Tensor, seed: int, rounds: int = 25) -> torch.Tensor:
    """Lloyd's k-means; a cluster that runs empty starts anew at a point."""
    generator = torch.Generator().manual_seed(seed)
    centres = points[torch.randperm(points.shape[0], generator=generator)[:CLUSTERS]].clone()
    for _ in range(rounds):
        chosen = nearest(points, centres)
        sums = torch.zeros_like(centres).index_add_(0, chosen, points)
        count = torch.bincount(chosen, minlength=centres.shape[0])
        spare = points[torch.randint(points.shape[0], (centres.shape[0],), generator=generator)]
        centres = torch.where(count[:, None] > 0, sums / count.clamp(min=1)[:, None], spare)
    return centres


class Studio:
    """Sounds and codes of any answer, from the recordings."""

    def __init__(self, recordings: dict, centres: torch.Tensor, means: dict[str, torch.Tensor]):
        self.recordings, self.centres, self.means = recordings, centres, means
        self._codes = {}
        for (word, speaker, final), sound in recordings.items():
            frames = mel(torch.nn.functional.pad(torch.from_numpy(sound), (2 * UNIT, 2 * UNIT)))
            points = _units(frames - means[speaker])
            self._codes[word, speaker, final] = (nearest(points, centres) + 1)[2:-2].tolist()
        silence = torch.full((BINS,), float(np.log(1e-5)))
        self.silence = {s: int(nearest((silence - means[s]).repeat(REPEATS)[None], centres)) + 1 for s in SPEAKERS}

    @staticmethod
    def record(work: pathlib.Path, seed: int) -> "Studio":
        recorder = Recorder(work)
        recordings = {(word, speaker, final): recorder.word(word, speaker, final)
                      for speaker in SPEAKERS for word in vocabulary(seed) for final in (False, True)}
        for speaker in SPEAKERS:
            loudest = np.quantile(np.concatenate([s for k, s in recordings.items() if k[1] == speaker]), 0.9995)
            for key in recordings:
                if key[1] == speaker:
                    recordings[key] = np.clip(recordings[key] * (0.6 / loudest), -1, 1).astype(np.float32)
        frames = {key: mel(torch.nn.functional.pad(torch.from_numpy(sound), (2 * UNIT, 2 * UNIT)))
                  for key, sound in recordings.items()}
        means = {s: torch.cat([f for key, f in frames.items() if key[1] == s]).mean(0) for s in SPEAKERS}
        points = torch.cat([_units(f - means[key[1]]) for key, f in frames.items()])
        return Studio(recordings, cluster(points, seed), means)

    def knows(self, text: str) -> bool:
        """Whether every word of a text was recorded."""
        return not re.search("[0-9]", text) and all((word, "Ethan", final) in self.recordings for word, final in words_of(text))

    def _parts(self, tokens: list[str], speaker: str):
        """(codes, recording or None) in order; without a recording the codes are silence. tokens: the text of each token."""
        yield [mark(k + 1) for k in range(len(tokens))], None
        word = ""
        for k, token in enumerate(tokens):
            word += token.strip()
            following = tokens[k + 1] if k + 1 < len(tokens) else "."
            if word.isalpha() and not following[0].isalpha():
                key = word.lower(), speaker, following[0] in ",.:!?"
                yield [mark(k)] + self._codes[key][1:], self.recordings[key]
                word = ""
            elif token.strip().isalpha():
                yield [mark(k)], None
            else:
                word = ""
                yield [mark(k)] + [self.silence[speaker]] * (PAUSE if k + 1 < len(tokens) else LAST), None

    def codes(self, tokens: list[str], speaker: str) -> torch.Tensor:
        return torch.tensor([code for codes, _ in self._parts(tokens, speaker) for code in codes])

    def sound(self, tokens: list[str], speaker: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([np.zeros(len(codes) * UNIT, np.float32) if recording is None else recording
                                                for codes, recording in self._parts(tokens, speaker)]))

    def save(self, path: pathlib.Path) -> None:
        path.write_bytes(pickle.dumps((self.recordings, self.centres, self.means)))

    @staticmethod
    def load(path: pathlib.Path) -> "Studio":
        return Studio(*pickle.loads(path.read_bytes()))


def spelled(tokenizer: Tokenizer, text: str) -> list[str]:
    """The text of each token."""
    encoding = tokenizer.encode(text)
    return [text[a:b] for a, b in encoding.offsets]


def babble(rng: random.Random, words: list[str]) -> list[str]:
    """Tokens of an answer of random words, half of them those of descriptions: what token2wav is trained on."""
    common = words_of(" ".join((*grammar.COLORS, *grammar.SHAPES, *grammar.SIZES, *grammar.CELLS, "a", "and")))
    tokens = []
    for k in range(rng.randint(1, 12)):
        word = rng.choice(common)[0] if rng.random() < 0.5 else rng.choice(words)
        cut = rng.randint(1, len(word)) if rng.random() < 0.25 else len(word)
        tokens += [("" if k == 0 else " ") + word[:cut]] + ([word[cut:]] if cut < len(word) else [])
        if rng.random() < 0.15:
            tokens.append(",")
    return tokens[:-1] + ["."] if tokens[-1] == "," else tokens + ["."]


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


def listen(work: pathlib.Path, model: pathlib.Path, batches: int, seed: int) -> None:
    """WORK/rows.pt: the rows that the thinker leaves behind in conversations."""
    weights = {k: w.float() for k, w in load_file(model / "model.safetensors").items() if k.startswith("thinker.")}
    file, found = str(work / "tokenizer.json"), []
    tokenizer = Tokenizer.from_file(file)
    supply = iter(data.Batches(work / "pools", file, seed, data.Shape(), data.alphabet_of(work / "pools")))
    for _ in range(batches):
        b = next(supply)
        for text, prompt, reply, position in answers(b, heard(weights, b).half(), tokenizer):
            found.append({"text": text, "prompt": prompt.clone(), "reply": reply.clone(), "position": position.clone()})
    torch.save(found, work / "rows.pt")
    print(f"{work}/rows.pt: {len(found)} answers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--seed", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(2)
    studio = Studio.record(options.work, options.seed)
    studio.save(options.work / "studio.pkl")
    print(f"{options.work}/studio.pkl: {len(studio.recordings)} recordings")
    listen(options.work, options.model, options.batches, options.seed)


if __name__ == "__main__":
    main()
