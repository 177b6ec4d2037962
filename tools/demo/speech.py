"""Speaks sentences with espeak-ng (through its C library) and turns sound into the mel frames the audio encoder hears.

The mel frames are those of the published feature extractor (Whisper's, 128 bins, 16 kHz, 10 ms): the sound is followed
by silence, so that the last frames see zeros.
"""

from __future__ import annotations

import ctypes
import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import soxr
import torch

RATE = 16000
HOP, WINDOW, BINS = 160, 400, 128

VOICES = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-us-nyc")
VARIANTS = ("", "+m1", "+m2", "+m3", "+m5", "+m6", "+m7", "+f1", "+f2", "+f4", "+Alex", "+Annie", "+Andy", "+Mario",
            "+steph", "+linda", "+max", "+belinda", "+Michael", "+Gene")
# Never heard in training: whole voices, for the held-out figures.
UNSEEN_VARIANTS = ("+m4", "+f3", "+edward", "+anika")


@dataclass(frozen=True)
class Voice:
    name: str
    speed: int  # words a minute
    pitch: int  # 0 to 99
    spread: int  # of the pitch, 0 to 99


def random_voice(rng: random.Random, variants=VARIANTS) -> Voice:
    """Speeds and pitches whose last bit is 0; held_out_voice() draws the others, so no setting is in both."""
    return Voice(rng.choice(VOICES) + rng.choice(variants), 2 * rng.randint(65, 95), 2 * rng.randint(13, 37),
                 rng.randint(30, 70))


def held_out_voice(rng: random.Random, unseen_variant: bool = False) -> Voice:
    """A setting (speed, pitch) never used in training; with unseen_variant also a voice never used."""
    return Voice(rng.choice(VOICES) + rng.choice(UNSEEN_VARIANTS if unseen_variant else VARIANTS),
                 2 * rng.randint(65, 94) + 1, 2 * rng.randint(13, 36) + 1, rng.randint(30, 70))


class Espeak:
    """The library is one per process and not thread-safe."""

    _PCM = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    _RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4

    def __init__(self):
        self._library = ctypes.CDLL("libespeak-ng.so.1")
        self._rate = self._library.espeak_Initialize(2, 200, None, 0)  # 2: synchronous, samples come by call-back
        if self._rate <= 0:
            raise RuntimeError("espeak-ng: no voice data found")
        self._parts: list[np.ndarray] = []
        self._callback = self._PCM(self._take)  # kept: the library holds the pointer
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self._voice = ""

    def _take(self, samples, count, _events):
        if samples and count > 0:
            self._parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def _choose(self, name: str) -> None:
        if name != self._voice and self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise RuntimeError(f"espeak-ng: no voice {name}")
        self._voice = name

    def say(self, text: str, voice: Voice) -> np.ndarray:
        """Return the sound as float32 in [-1, 1] at RATE."""
        self._choose(voice.name)
        for parameter, value in ((self._RATE, voice.speed), (self._VOLUME, 80), (self._PITCH, voice.pitch),
                                 (self._RANGE, voice.spread)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._parts = []
        data = text.encode()
        if self._library.espeak_Synth(data, len(data) + 1, 0, 1, 0, 1, None, None) != 0:
            raise RuntimeError(f"espeak-ng: cannot say {text!r}")
        self._library.espeak_Synchronize()
        sound = np.concatenate(self._parts).astype(np.float32) / 32768.0
        return soxr.resample(trim(sound), self._rate, RATE)

    @lru_cache(maxsize=None)
    def phonemes(self, text: str) -> str:
        """American phonemes in IPA without stress marks: the targets of the encoder's auxiliary loss."""
        self._choose("en-us")
        data = ctypes.c_char_p(text.encode())
        found = ""
        while data.value is not None:
            found += self._library.espeak_TextToPhonemes(ctypes.byref(data), 1, 2).decode() + " "
        return "".join(c for c in found if c not in "ˈˌː" and (c.isalpha() or c == " ")).strip()


def trim(sound: np.ndarray) -> np.ndarray:
    """Cut the silence that espeak-ng puts around a sentence, but for 30 ms."""
    loud = np.flatnonzero(np.abs(sound) > 0.004)
    if loud.size == 0:
        return sound
    return sound[max(0, loud[0] - 660):loud[-1] + 660]


def room(rng: random.Random, sound: np.ndarray) -> np.ndarray:
    """Loudness, silence before and after, and background noise (white or rumbling) in two of three sounds."""
    sound = sound / max(1e-4, float(np.abs(sound).max())) * rng.uniform(0.15, 0.95)
    quiet = [np.zeros(int(RATE * rng.uniform(0.0, 0.25)), np.float32) for _ in range(2)]
    sound = np.concatenate([quiet[0], sound, quiet[1]]).astype(np.float32)
    if rng.random() < 0.67:
        noise = np.random.default_rng(rng.randrange(1 << 32)).normal(0, 1, sound.size).astype(np.float32)
        if rng.random() < 0.5:
            kernel = np.ones(rng.randint(2, 12), np.float32)
            noise = np.convolve(noise, kernel / np.sqrt(kernel.size), "same")
        loudness = float(np.sqrt((sound ** 2).mean())) * 10 ** (-rng.uniform(12, 40) / 20)
        sound = sound + noise * loudness
    return np.clip(sound, -1, 1)


@lru_cache(maxsize=None)
def _filters() -> torch.Tensor:
    from transformers.audio_utils import mel_filter_bank
    return torch.from_numpy(mel_filter_bank(1 + WINDOW // 2, BINS, 0.0, 8000.0, RATE, "slaney", "slaney")).float()


def mel(sound: np.ndarray) -> np.ndarray:
    """float16 [frames, BINS], frames = ceil(samples / HOP)."""
    frames = -(-sound.size // HOP)
    padded = torch.nn.functional.pad(torch.from_numpy(sound.astype(np.float32)), (0, WINDOW + HOP))
    power = torch.stft(padded, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True).abs() ** 2
    log = torch.clamp(_filters().T @ power[:, :frames], min=1e-10).log10()
    log = torch.maximum(log, log.max() - 8.0)
    return ((log + 4.0) / 4.0).T.to(torch.float16).numpy()
