"""Random weights that make every block count, saved in the hub's layout."""

import math

import torch
from safetensors.torch import save_file
from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration

from . import config, tokenizer

SHARDS = 3
BRANCH_ENDS = (
    "o_proj.weight",
    "down_proj.weight",
    "attn.proj.weight",
    "out_proj.weight",
    "fc2.weight",
)


def draw(name, parameter, generator):
    """Std near 1.3/sqrt(fan in) for matrices and kernels, 1 for embeddings, norms 1 +- 0.2, biases +- 0.1."""

    def normal(std):
        return torch.randn(parameter.shape, generator=generator) * std

    def uniform(low, high):
        return torch.rand(parameter.shape, generator=generator) * (high - low) + low

    if name.endswith(("alpha", "beta")):  # of the vocoder's periodic activation, logarithms
        return uniform(-0.4, 0.4)
    if parameter.dim() == 1:
        return uniform(0.8, 1.2) if name.endswith("weight") else uniform(-0.1, 0.1)
    if "embed_tokens" in name or "audio_bos_eos" in name or "codec_embed" in name:
        return normal(1.0)
    fan_in = math.prod(parameter.shape[1:])
    if ".ups." in name:  # transposed: [in, out, kernel], each output sees kernel/stride taps
        fan_in = parameter.shape[0] * parameter.shape[2] / 2.4
    gain = 1.3
    if name.startswith("thinker.") and name.endswith(BRANCH_ENDS):
        gain = 0.6  # a branch's share of the residual stream: bf16 rounding of the reference stays under its bar
    elif name.startswith("thinker.") and name.endswith(
        ("q_proj.weight", "k_proj.weight", "attn.q.weight", "attn.k.weight")
    ):
        gain = 1.1  # attention is sharp but not one-hot
    if name.endswith("lm_head.weight") or name.endswith("codec_head.weight"):
        gain = 2.6  # keeps the best two logits apart
    elif "bigvgan" in name:
        # The waveform is clamped to +-1: small enough not to clip, large enough to be heard.
        gain = 2.0 if "conv_post" in name else 0.45 if "resblocks" in name else 0.8
    elif "attn_norm.linear" in name or "norm_out.linear" in name:
        gain = 0.5  # scales and gates of the DiT stay near their useful range
    elif "code2wav_dit_model" in name:
        gain = 0.9
    return normal(gain / math.sqrt(fan_in))


def build(seed, speech_seed, user_token_id):
    cfg = Qwen2_5OmniConfig(**config.config_json(user_token_id))
    torch.manual_seed(seed)
    model = Qwen2_5OmniForConditionalGeneration(cfg).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(draw(name, parameter, generator).to(torch.bfloat16).to(parameter.dtype))
        redraw_speech(model, speech_seed)
    return model


def redraw_speech(model, seed):
    """Talker and token2wav from a seed of their own: they can be drawn anew without touching the thinker."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if not name.startswith("thinker."):
                parameter.copy_(
                    draw(name, parameter, generator).to(torch.bfloat16).to(parameter.dtype)
                )
        # No code without an embedding in the vocoder is ever the best, but the end: a trained talker knows that too.
        head = model.talker.codec_head.weight
        end = head[config.CODEC_END].clone()
        head[config.CODEC_CODES :] *= 0.02
        head[config.CODEC_END] = end
        # Log-mel values lie around -3, where the vocoder's decibels are not clamped.
        model.token2wav.code2wav_dit_model.proj_out.bias -= 3.0


def speakers(seed):
    """Two voices of unequal length, as spk_dict.pt holds them."""
    generator = torch.Generator().manual_seed(seed + 1)
    voices = {}
    for name, frames in (("Ethan", 41), ("Chelsie", 53)):
        voices[name] = {
            "cond": torch.randn([1, config.DIT["enc_emb_dim"]], generator=generator),
            "ref_mel": torch.randn([1, frames, config.DIT["mel_dim"]], generator=generator) * 1.5
            - 3.0,
            "bos_token": config.TTS_TEXT_START if name == "Chelsie" else config.TTS_TEXT_PAD - 1,
        }
    return voices


def write_shards(model, directory):
    """bf16 weights in three shards, cut where the names are sorted so that tensors of one component are split."""
    tensors = {}
    for name, tensor in sorted(model.state_dict().items()):
        keep_f32 = name.endswith("inv_freq")
        tensors[name] = (
            tensor.detach().to(torch.float32 if keep_f32 else torch.bfloat16).contiguous()
        )
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    shards, size = [{}], 0
    for name, tensor in tensors.items():
        if size >= total / SHARDS and len(shards) < SHARDS:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.numel() * tensor.element_size()
    index = {"metadata": {"total_size": total}, "weight_map": {}}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, directory / file, metadata={"format": "pt"})
        index["weight_map"].update({name: file for name in shard})
    index["weight_map"] = dict(sorted(index["weight_map"].items()))
    tokenizer.write_json(directory / "model.safetensors.index.json", index)


def write(directory, thinker, speech):
    """The checkpoint directory, from the seeds of its two halves."""
    directory.mkdir(parents=True, exist_ok=True)
    for stale in directory.iterdir():
        stale.unlink()
    user_token_id = tokenizer.save(directory)
    tokenizer.write_json(directory / "config.json", config.config_json(user_token_id))
    tokenizer.write_json(directory / "preprocessor_config.json", config.PREPROCESSOR)
    tokenizer.write_json(directory / "generation_config.json", config.GENERATION)
    write_shards(build(thinker, speech, user_token_id), directory)
    torch.save(speakers(thinker), directory / "spk_dict.pt")


def load(directory, dtype=torch.float32):
    model = Qwen2_5OmniForConditionalGeneration.from_pretrained(
        directory, dtype=dtype, attn_implementation="sdpa"
    )
    return model.eval()
