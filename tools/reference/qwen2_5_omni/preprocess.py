"""Media files to the network's inputs, with the family's own processors."""

import json
import math
import subprocess

import librosa
import numpy as np
import torch
from PIL import Image
from transformers import (
    Qwen2_5OmniProcessor,
    Qwen2TokenizerFast,
    Qwen2VLImageProcessor,
    WhisperFeatureExtractor,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from . import config, requests

# Per frame, as the processor's defaults: they are in no file of the checkpoint.
VIDEO_MIN_PIXELS = 128 * 28 * 28
VIDEO_MAX_PIXELS = 768 * 28 * 28
VIDEO_FPS = 2.0
VIDEO_MIN_FRAMES, VIDEO_MAX_FRAMES = 4, 768


def processor(directory):
    fields = json.loads((directory / "preprocessor_config.json").read_text())
    return Qwen2_5OmniProcessor(
        image_processor=Qwen2VLImageProcessor.from_pretrained(directory),
        video_processor=Qwen2VLVideoProcessor(
            **{
                k: fields[k]
                for k in (
                    "image_mean",
                    "image_std",
                    "patch_size",
                    "merge_size",
                    "temporal_patch_size",
                )
            }
        ),
        feature_extractor=WhisperFeatureExtractor.from_pretrained(directory),
        tokenizer=Qwen2TokenizerFast.from_pretrained(directory),
        chat_template=json.loads((directory / "chat_template.json").read_text())["chat_template"],
    )


def sample_indices(total_frames, video_fps, fps=VIDEO_FPS):
    """Which frames are looked at: evenly spaced from the first to the last, an even number of them."""
    count = total_frames / video_fps * fps
    limit = min(VIDEO_MAX_FRAMES, total_frames) // 2 * 2
    count = min(min(max(count, VIDEO_MIN_FRAMES), limit), total_frames)
    count = math.floor(count / 2) * 2
    return torch.linspace(0, total_frames - 1, count).round().long().tolist()


def decode_video(path):
    """All frames as uint8 [frames, height, width, 3], and frames per second."""
    probe = subprocess.run(
        ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", "stream=width,height,r_frame_rate",
         "-of", "json", str(path)],
        check=True, capture_output=True,
    )  # fmt: skip
    stream = json.loads(probe.stdout)["streams"][0]
    numerator, denominator = stream["r_frame_rate"].split("/")
    raw = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
        check=True, capture_output=True,
    ).stdout  # fmt: skip
    frames = np.frombuffer(raw, np.uint8).reshape(-1, stream["height"], stream["width"], 3)
    return frames, int(numerator) / int(denominator)


def video_frames(path):
    """Sampled frames, resized by Pillow as pictures are, [frames, 3, height, width] uint8."""
    frames, fps = decode_video(path)
    out = []
    for i in sample_indices(len(frames), fps):
        height, width = smart_resize(
            *frames[i].shape[:2],
            factor=2 * config.PATCH,
            min_pixels=VIDEO_MIN_PIXELS,
            max_pixels=VIDEO_MAX_PIXELS,
        )
        resized = Image.fromarray(frames[i]).resize((width, height), Image.Resampling.BICUBIC)
        out.append(np.asarray(resized).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(out))


def sound(path):
    """Mono float32 at 16 kHz."""
    if path.suffix != ".mp4":
        return librosa.load(path, sr=16000)[0]
    raw = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", str(path), "-map", "0:a:0", "-f", "s16le", "-ac", "1", "-"],
        check=True, capture_output=True,
    ).stdout  # fmt: skip
    return np.frombuffer(raw, np.int16).astype(np.float32) / 32768.0


def prompt(proc, messages):
    # The processor's own method takes no plain string as a system message; the template does.
    return proc.tokenizer.apply_chat_template(
        requests.hub_messages(messages),
        chat_template=proc.chat_template,
        add_generation_prompt=True,
        tokenize=False,
    )


def inputs(proc, media, messages, use_audio_in_video):
    """The processor's output for one request, and the 16 kHz samples that went in."""
    images = [Image.open(media / n).convert("RGB") for n in requests.files(messages, "image_url")]
    videos = [video_frames(media / n) for n in requests.files(messages, "video_url")]
    names = [
        p[p["type"]]["url"]
        for m in messages
        if not isinstance(m["content"], str)
        for p in m["content"]
        if p["type"] == "audio_url" or (use_audio_in_video and p["type"] == "video_url")
    ]
    sounds = [sound(media / n) for n in names]
    out = proc(
        text=prompt(proc, messages),
        images=images or None,
        videos=videos or None,
        audio=sounds or None,
        return_tensors="pt",
        videos_kwargs={
            "do_resize": False,
            "do_sample_frames": False,
            "fps": VIDEO_FPS,
            "seconds_per_chunk": config.SECONDS_PER_CHUNK,
            "position_id_per_seconds": config.POSITIONS_PER_SECOND,
            "use_audio_in_video": use_audio_in_video,
        },
    )
    return out, sounds
