"""Small media files of every accepted format, and what the reference decodes from them.

Images are opened by Pillow and converted as qwen_omni_utils' to_rgb does, sounds are loaded by librosa, video frames are
decoded by FFmpeg and resized by Pillow, some by torchvision. Pixels are kept as 64-bit FNV-1a of rows of RGB bytes, sounds as 16 kHz float32.
"""

import argparse
import io
import json
import math
import subprocess
import tempfile
from pathlib import Path

import librosa
import numpy as np
import soundfile
import torch
from PIL import Image, ImageDraw
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

VIDEO_MIN_PIXELS, VIDEO_MAX_PIXELS, FACTOR = 128 * 28 * 28, 768 * 28 * 28, 28


def fnv1a64(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


def picture(width, height, seed, mode="RGB"):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    n = len(mode)
    base = np.stack(
        [128 + 100 * np.sin(x / (5 + 2 * c) + seed) * np.cos(y / (7 - c)) for c in range(n)],
        axis=-1,
    )
    array = np.clip(base + rng.normal(0, 9, base.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(array if n > 1 else array[..., 0], mode)


def to_rgb(image):
    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.split()[3])
        return white
    return image.convert("RGB")


def images():
    """name -> bytes."""
    out = {}

    def save(name, image, **options):
        buffer = io.BytesIO()
        image.save(buffer, **options)
        out[name] = buffer.getvalue()

    w, h = 37, 29
    save("baseline.jpg", picture(w, h, 1), format="JPEG", quality=85)
    save("progressive.jpg", picture(w, h, 2), format="JPEG", quality=75, progressive=True)
    save("full_chroma.jpg", picture(w, h, 3), format="JPEG", quality=90, subsampling=0)
    save("half_chroma.jpg", picture(w, h, 4), format="JPEG", quality=60, subsampling=1)
    save("grey.jpg", picture(w, h, 5, "L"), format="JPEG")
    save("cmyk.jpg", picture(w, h, 6, "CMYK"), format="JPEG", quality=90)
    save(
        "rotated_exif.jpg",
        picture(w, h, 7),
        format="JPEG",
        exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0",
    )
    save("colour.png", picture(w, h, 10), format="PNG")
    save("alpha.png", picture(w, h, 11, "RGBA"), format="PNG")
    save("grey.png", picture(w, h, 12, "L"), format="PNG")
    save(
        "grey_alpha.png",
        Image.merge("LA", [picture(w, h, 13, "L"), picture(w, h, 14, "L")]),
        format="PNG",
    )
    save("palette.png", picture(w, h, 15).quantize(30), format="PNG")
    save("palette_key.png", picture(w, h, 16).quantize(11), format="PNG", transparency=3)
    save(
        "colour_key.png",
        picture(w, h, 16).quantize(5).convert("RGB"),
        format="PNG",
        transparency=(1, 2, 3),
    )
    save("bits1.png", picture(w, h, 17, "L").convert("1"), format="PNG")
    save("bits4.png", picture(w, h, 18).quantize(13), format="PNG", bits=4)
    deep = (np.arange(w * h).reshape(h, w) * 63 % 65536).astype(np.uint16)
    save("grey16.png", Image.fromarray(deep), format="PNG")
    save("lossy.webp", picture(w, h, 20), format="WEBP", quality=70)
    save("lossless.webp", picture(w, h, 21), format="WEBP", lossless=True)
    save("alpha.webp", picture(w, h, 22, "RGBA"), format="WEBP", quality=80)
    frames = [picture(w, h, 23 + i) for i in range(3)]
    save(
        "animated.webp",
        frames[0],
        format="WEBP",
        save_all=True,
        append_images=frames[1:],
        quality=70,
    )
    save("plain.gif", picture(w, h, 30), format="GIF")
    save("interlaced.gif", picture(w, h, 31).quantize(16), format="GIF", interlace=1)
    save("key.gif", picture(w, h, 32).quantize(9), format="GIF", transparency=2)
    save("animated.gif", frames[0], format="GIF", save_all=True, append_images=frames[1:])
    save("grey.gif", picture(w, h, 33, "L"), format="GIF")
    noise = np.random.default_rng(9).integers(0, 256, (120, 150), dtype=np.uint8)
    save("full_table.gif", Image.fromarray(noise), format="GIF")
    # Adam7 and 16-bit colour are not written by Pillow.
    out["interlaced.png"] = ffmpeg_image(
        picture(w, h, 40), "png", ["-pred", "mixed", "-flags", "+ildct"]
    )
    out["colour16.png"] = ffmpeg_image(picture(w, h, 41), "png", ["-pix_fmt", "rgb48be"])
    out["alpha16.png"] = ffmpeg_image(picture(w, h, 42, "RGBA"), "png", ["-pix_fmt", "rgba64be"])
    return out


def ffmpeg_image(image, codec, options):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-i",
        "-",
        "-c:v",
        codec,
        *options,
        "-fflags",
        "+bitexact",
        "-f",
        "image2pipe",
        "-",
    ]
    return subprocess.run(command, input=buffer.getvalue(), check=True, capture_output=True).stdout


def wave(seconds, rate, channels, seed):
    t = np.arange(int(seconds * rate)) / rate
    rng = np.random.default_rng(seed)
    return np.stack(
        [
            0.3 * np.sin(2 * np.pi * (220 + 70 * c) * t)
            + 0.2 * np.sin(2 * np.pi * 3100 * t * (1 + t))
            + 0.02 * rng.normal(size=t.size)
            for c in range(channels)
        ],
        axis=-1,
    )


def write_sounds(directory):
    def write(name, seconds, rate, channels, seed, **options):
        soundfile.write(directory / name, wave(seconds, rate, channels, seed), rate, **options)

    write("pcm16.wav", 0.31, 16000, 1, 1, subtype="PCM_16")
    write("pcm24_stereo.wav", 0.17, 48000, 2, 2, subtype="PCM_24")
    write("pcm8.wav", 0.3, 8000, 1, 3, subtype="PCM_U8")
    write("float.wav", 0.2, 22050, 2, 4, subtype="FLOAT")
    write("three.flac", 0.2, 44100, 3, 5, subtype="PCM_16")
    write("deep.flac", 0.2, 16000, 1, 6, subtype="PCM_24")
    write("vorbis.ogg", 0.4, 44100, 2, 7, format="OGG", subtype="VORBIS")
    for name, options in {
        "voice.mp3": ["-c:a", "libmp3lame", "-b:a", "64k"],
        "opus.ogg": ["-c:a", "libopus", "-b:a", "32k"],
        "aac.m4a": ["-c:a", "aac", "-b:a", "64k"],
    }.items():
        rate = 48000 if name == "opus.ogg" else 44100
        run_ffmpeg(directory / name, wave(0.5, rate, 1, 8), rate, options)
    return sorted(
        p.name for p in directory.iterdir() if p.suffix in {".wav", ".flac", ".ogg", ".mp3", ".m4a"}
    )


def run_ffmpeg(path, samples, rate, options):
    with tempfile.TemporaryDirectory() as scratch:
        soundfile.write(f"{scratch}/in.wav", samples, rate, subtype="PCM_16")
        command = [
            "ffmpeg",
            "-v",
            "error",
            "-y",
            "-i",
            f"{scratch}/in.wav",
            *options,
            "-map_metadata",
            "-1",
            "-fflags",
            "+bitexact",
        ]
        subprocess.run(command + ["-flags:a", "+bitexact", str(path)], check=True)


VIDEOS = {
    # name: (width, height, frames, fps, options)
    "h264.mp4": (
        64,
        48,
        33,
        12,
        ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-bf", "2", "-crf", "26"],
    ),
    "vp9.webm": (
        50,
        66,
        24,
        24,
        ["-c:v", "libvpx-vp9", "-crf", "40", "-b:v", "0", "-pix_fmt", "yuv420p"],
    ),
    "av1.mp4": (
        64,
        64,
        10,
        5,
        ["-c:v", "libaom-av1", "-crf", "45", "-b:v", "0", "-cpu-used", "8", "-pix_fmt", "yuv420p"],
    ),
    "turned.mp4": (64, 32, 8, 4, ["-c:v", "mpeg4", "-q:v", "4"]),
}


def write_videos(directory):
    for name, (width, height, count, fps, options) in VIDEOS.items():
        with tempfile.TemporaryDirectory() as scratch:
            background = picture(width, height, 50).quantize(12).convert("RGB")
            for i in range(count):
                frame = background.copy()
                x = 5 + (width - 10) * i // count
                ImageDraw.Draw(frame).ellipse(
                    [x - 6, height // 2 - 6, x + 6, height // 2 + 6],
                    fill=(250, 240 - 5 * i, 9 * i % 256),
                )
                frame.save(f"{scratch}/{i:03d}.png")
            soundfile.write(
                f"{scratch}/s.wav", wave(count / fps, 48000, 2, 60), 48000, subtype="PCM_16"
            )
            sound = ["-c:a", "libopus" if name.endswith("webm") else "aac", "-b:a", "48k"]
            command = [
                "ffmpeg",
                "-v",
                "error",
                "-y",
                "-framerate",
                str(fps),
                "-i",
                f"{scratch}/%03d.png",
            ]
            if name != "turned.mp4":
                command += ["-i", f"{scratch}/s.wav", *sound]
            command += [
                *options,
                "-map_metadata",
                "-1",
                "-fflags",
                "+bitexact",
                "-flags:v",
                "+bitexact",
            ]
            target = f"{scratch}/out.mp4" if name == "turned.mp4" else str(directory / name)
            subprocess.run(command + [target], check=True)
            if (
                name == "turned.mp4"
            ):  # shown turned by a quarter, as telephones mark their recordings
                subprocess.run(
                    ["ffmpeg", "-v", "error", "-y", "-i", target, "-c", "copy", "-metadata:s:v:0", "rotate=90",
                     "-fflags", "+bitexact", str(directory / name)],
                    check=True,
                )  # fmt: skip


def smart_resize(height, width):
    h, w = (max(FACTOR, round(v / FACTOR) * FACTOR) for v in (height, width))
    if h * w < VIDEO_MIN_PIXELS:
        beta = math.sqrt(VIDEO_MIN_PIXELS / (height * width))
        h, w = (math.ceil(v * beta / FACTOR) * FACTOR for v in (height, width))
    return h, w


def decoded_frames(path):
    """The sampled frames, uint8 [n, height, width, 3], and how many there are in all."""
    width, height, count, fps, _ = VIDEOS[path.name]
    if path.name == "turned.mp4":
        width, height = height, width
    raw = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-sws_flags", "bilinear", "-vsync", "0", "-"],
        check=True, capture_output=True,
    ).stdout  # fmt: skip
    frames = np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)
    n = math.floor(min(max(len(frames) / fps * 2.0, 4), len(frames) // 2 * 2) / 2) * 2
    indices = [round(i * (len(frames) - 1) / (n - 1)) for i in range(n)]
    return frames[indices], len(frames)


def expected_video(path):
    frames, count = decoded_frames(path)
    h, w = smart_resize(*frames.shape[1:3])
    pixels = b"".join(
        Image.fromarray(frame).resize((w, h), Image.Resampling.BICUBIC).tobytes()
        for frame in frames
    )
    return {
        "file": path.name, "source_frames": count, "frames": len(frames), "width": w, "height": h, "fnv1a64": fnv1a64(pixels),
    }  # fmt: skip


def write_tensor_resize(path):
    """Frames of 56 x 56 as qwen_omni_utils resizes them, with torchvision."""
    frames, _ = decoded_frames(path)
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    small = resize(tensor, [56, 56], interpolation=InterpolationMode.BICUBIC, antialias=True)
    pixels = small.permute(0, 2, 3, 1).contiguous().numpy().tobytes()
    path.with_name(f"{path.name}.56x56.rgb").write_bytes(pixels)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).resolve().parents[3] / "tests/golden/media_formats",
    )
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    expected = {"version": 1, "images": [], "sounds": [], "videos": []}
    for name, data in images().items():
        (out / name).write_bytes(data)
        rgb = to_rgb(Image.open(out / name))
        expected["images"].append(
            {
                "file": name,
                "width": rgb.width,
                "height": rgb.height,
                "fnv1a64": fnv1a64(rgb.tobytes()),
            }
        )
    for name in write_sounds(out):
        samples = librosa.load(out / name, sr=16000)[0]
        (out / f"{name}.f32").write_bytes(samples.astype("<f4").tobytes())
        expected["sounds"].append({"file": name, "samples": len(samples)})
    write_videos(out)
    for name in ("h264.mp4", "vp9.webm"):
        write_tensor_resize(out / name)
    expected["videos"] = [expected_video(out / name) for name in VIDEOS]
    (out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


main()
