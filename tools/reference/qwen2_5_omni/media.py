"""The pictures, sounds and videos of the requests: synthetic, seeded, odd in size and length."""

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image, ImageDraw

# name: (width, height, seed). Wide, tall, small, and larger than max_pixels.
IMAGES = {
    "harbour.jpg": (231, 147, 1),
    "tower.png": (53, 149, 2),
    "banner.jpg": (301, 67, 3),
    "stamp.png": (31, 29, 4),
}


def picture(width, height, seed):
    """Sky, ground, discs, lines and grain: every frequency is in it, and no two patches are equal."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack(
        [
            120
            + 90 * np.sin(x / (17 + 3 * c) + seed) * np.cos(y / (23 - 2 * c))
            + 40 * (y / height - 0.5) * (c - 1)
            for c in range(3)
        ],
        axis=-1,
    )
    image = Image.fromarray(np.clip(base + rng.normal(0, 6, base.shape), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(9):
        cx, cy, radius = (
            rng.integers(0, width),
            rng.integers(0, height),
            rng.integers(4, 6 + min(width, height) // 5),
        )
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        draw.ellipse(
            [cx - radius, cy - radius, cx + radius, cy + radius],
            fill=colour,
            outline=(255, 255, 255),
        )
        draw.line([int(rng.integers(0, width)), 0, int(cx), int(cy)], fill=colour[::-1], width=2)
    return image


def voice(seconds, rate, seed, channels=1):
    """A gliding harmonic tone with syllables, formants and breath, in 16-bit steps."""
    rng = np.random.default_rng(seed)
    n = int(round(seconds * rate))
    t = np.arange(n) / rate
    pitch = 110 + 40 * np.sin(2 * np.pi * 0.7 * t + seed) + 15 * np.sin(2 * np.pi * 5.3 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    out = []
    for channel in range(channels):
        formant = 700 + 500 * np.sin(2 * np.pi * (1.1 + 0.3 * channel) * t + seed)
        wave = sum(
            np.sin(k * phase) / (1 + ((k * pitch - formant) / 350) ** 2)
            + 0.15 * np.sin(k * phase + channel) / k
            for k in range(1, 24)
        )
        envelope = np.clip(np.sin(2 * np.pi * (2.9 - 0.4 * channel) * t + 0.3 * seed), 0, 1) ** 0.7
        out.append(0.16 * wave * envelope + 0.01 * rng.normal(size=n))
    samples = np.stack(out, axis=-1)
    return np.clip(np.round(samples * 32767), -32768, 32767).astype(np.int16)


def write_video(path, frames, fps, samples, rate):
    """MP4 with PNG frames and ALAC sound: decoding is exact, so every decoder gives the same pixels."""
    with tempfile.TemporaryDirectory() as scratch:
        for i, frame in enumerate(frames):
            frame.save(Path(scratch) / f"{i:04d}.png")
        command = [
            "ffmpeg",
            "-v",
            "error",
            "-y",
            "-framerate",
            str(fps),
            "-i",
            f"{scratch}/%04d.png",
        ]
        if samples is not None:
            soundfile.write(f"{scratch}/sound.wav", samples, rate, subtype="PCM_16")
            command += ["-i", f"{scratch}/sound.wav", "-c:a", "alac"]
        command += [
            "-c:v",
            "png",
            "-pix_fmt",
            "rgb24",
            "-map_metadata",
            "-1",
            "-fflags",
            "+bitexact",
        ]
        subprocess.run(
            command + ["-flags:v", "+bitexact", "-flags:a", "+bitexact", str(path)], check=True
        )


def scene(count, width, height, seed):
    """A still background with a moving disc."""
    background = picture(width, height, seed).quantize(24).convert("RGB")
    frames = []
    for i in range(count):
        frame = background.copy()
        cx, cy = 6 + (width - 12) * i // max(count - 1, 1), height // 2 + (i * 5) % 11 - 5
        ImageDraw.Draw(frame).ellipse(
            [cx - 7, cy - 7, cx + 7, cy + 7], fill=(250, 30 + 8 * i % 200, 10)
        )
        frames.append(frame)
    return frames


def write(directory):
    directory.mkdir(parents=True, exist_ok=True)
    for name, (width, height, seed) in IMAGES.items():
        picture(width, height, seed).save(
            directory / name, **({"quality": 88} if name.endswith("jpg") else {})
        )
    soundfile.write(directory / "greeting.wav", voice(1.873, 16000, 5), 16000, subtype="PCM_16")
    soundfile.write(directory / "bell.flac", voice(0.741, 16000, 6), 16000, subtype="PCM_16")
    soundfile.write(
        directory / "stereo.wav", voice(0.317, 44100, 7, channels=2), 44100, subtype="PCM_16"
    )
    # 17 frames at 5 per second: 3.4 s, from which 6 frames are sampled at 2 per second; the sound is shorter.
    write_video(directory / "walk.mp4", scene(17, 61, 43, 8), 5, voice(2.617, 16000, 9), 16000)
