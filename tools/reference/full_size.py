"""A Qwen2.5-Omni checkpoint with random bf16 weights at the published sizes. See README.md."""

import argparse
import copy
import io
import json
import pickle
import struct
import sys
import time
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np

TINY = (
    Path(__file__).resolve().parents[2] / "tests" / "golden" / "qwen2_5_omni" / "qwen2.5-omni-tiny"
)
SHARD_BYTES = 4 << 30
FIRST_ADDED = 151643  # the published id of the first added token

TEXT = {
    # hidden, layers, heads, kv heads, intermediate, vocabulary, rope sections
    "0.5b": (896, 24, 14, 2, 4864, 151936, [8, 12, 12]),
    "1.5b": (1536, 28, 12, 2, 8960, 151936, [16, 24, 24]),
    "3b": (2048, 36, 16, 2, 11008, 151936, [16, 24, 24]),
    "7b": (3584, 28, 28, 4, 18944, 152064, [16, 24, 24]),
}
VISION = {
    "depth": 32, "embed_dim": 1280, "fullatt_block_indexes": [7, 15, 23, 31], "hidden_size": 1280,
    "intermediate_size": 3420, "num_heads": 16, "patch_size": 14, "spatial_patch_size": 14, "tokens_per_second": 25,
    "window_size": 112,
}  # fmt: skip
AUDIO = {
    "d_model": 1280, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120, "encoder_layers": 32,
    "max_source_positions": 1500, "n_window": 100, "num_hidden_layers": 32, "num_mel_bins": 128,
}  # fmt: skip
TALKER = {
    # hidden, layers, heads, kv heads, intermediate, head size, rope sections
    "3b": (896, 24, 14, 2, 4864, 64, [16, 16, 0]),
    "7b": (896, 24, 12, 4, 18944, 128, [16, 24, 24]),
}
DIT = {
    "block_size": 24, "depth": 22, "dim": 1024, "emb_dim": 512, "enc_attention_channels": 64,
    "enc_channels": [256, 256, 256, 256, 768], "enc_dilations": [1, 2, 3, 4, 1], "enc_dim": 128, "enc_emb_dim": 192,
    "enc_kernel_sizes": [5, 3, 3, 3, 1], "enc_lin_neurons": 192, "enc_res2net_scale": 2, "enc_se_channels": 64,
    "ff_mult": 2, "head_dim": 64, "heads": 16, "hidden_size": 1024, "look_ahead_layers": [10],
    "look_backward_layers": [0, 20], "max_position_embeddings": 32768, "mel_dim": 80, "num_attention_heads": 16,
    "num_embeds": 8193, "num_hidden_layers": 22, "repeats": 2, "rope_theta": 10000.0,
}  # fmt: skip
BIGVGAN = {
    "mel_dim": 80, "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]], "resblock_kernel_sizes": [3, 7, 11],
    "upsample_initial_channel": 1536, "upsample_kernel_sizes": [11, 7, 4, 4, 4, 4], "upsample_rates": [5, 3, 2, 2, 2, 2],
}  # fmt: skip


def linear(name, rows, columns, bias=True):
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)


def conv(name, out_channels, in_channels, kernel, bias=True):
    yield f"{name}.weight", (out_channels, in_channels, kernel)
    if bias:
        yield f"{name}.bias", (out_channels,)


def norm(name, size, bias=False):
    yield f"{name}.weight", (size,)
    if bias:
        yield f"{name}.bias", (size,)


def decoder(prefix, c, head):
    hidden, ffn = c["hidden_size"], c["intermediate_size"]
    for i in range(c["num_hidden_layers"]):
        layer = f"{prefix}.layers.{i}"
        yield from norm(f"{layer}.input_layernorm", hidden)
        yield from linear(f"{layer}.self_attn.q_proj", c["num_attention_heads"] * head, hidden)
        yield from linear(f"{layer}.self_attn.k_proj", c["num_key_value_heads"] * head, hidden)
        yield from linear(f"{layer}.self_attn.v_proj", c["num_key_value_heads"] * head, hidden)
        yield from linear(
            f"{layer}.self_attn.o_proj", hidden, c["num_attention_heads"] * head, bias=False
        )
        yield from norm(f"{layer}.post_attention_layernorm", hidden)
        yield from linear(f"{layer}.mlp.gate_proj", ffn, hidden, bias=False)
        yield from linear(f"{layer}.mlp.up_proj", ffn, hidden, bias=False)
        yield from linear(f"{layer}.mlp.down_proj", hidden, ffn, bias=False)
    yield from norm(f"{prefix}.norm", hidden)


def vision(c):
    p, hidden, ffn = "thinker.visual", c["hidden_size"], c["intermediate_size"]
    yield (
        f"{p}.patch_embed.proj.weight",
        (hidden, c["in_channels"], c["temporal_patch_size"], c["patch_size"], c["patch_size"]),
    )
    for i in range(c["depth"]):
        block = f"{p}.blocks.{i}"
        yield from norm(f"{block}.norm1", hidden)
        yield from norm(f"{block}.norm2", hidden)
        for name in ("q", "k", "v", "proj"):
            yield from linear(f"{block}.attn.{name}", hidden, hidden)
        yield from linear(f"{block}.mlp.gate_proj", ffn, hidden)
        yield from linear(f"{block}.mlp.up_proj", ffn, hidden)
        yield from linear(f"{block}.mlp.down_proj", hidden, ffn)
    merged = hidden * c["spatial_merge_size"] ** 2
    yield from norm(f"{p}.merger.ln_q", hidden)
    yield from linear(f"{p}.merger.mlp.0", merged, merged)
    yield from linear(f"{p}.merger.mlp.2", c["out_hidden_size"], merged)


def audio(c):
    p, d, ffn = "thinker.audio_tower", c["d_model"], c["encoder_ffn_dim"]
    yield from conv(f"{p}.conv1", d, c["num_mel_bins"], 3)
    yield from conv(f"{p}.conv2", d, d, 3)
    yield f"{p}.audio_bos_eos_token.weight", (2, c["output_dim"])
    for i in range(c["encoder_layers"]):
        layer = f"{p}.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from linear(f"{layer}.self_attn.{name}", d, d, bias=name != "k_proj")
        yield from norm(f"{layer}.self_attn_layer_norm", d, bias=True)
        yield from linear(f"{layer}.fc1", ffn, d)
        yield from linear(f"{layer}.fc2", d, ffn)
        yield from norm(f"{layer}.final_layer_norm", d, bias=True)
    yield from norm(f"{p}.ln_post", d, bias=True)
    yield from linear(f"{p}.proj", c["output_dim"], d)


def thinker(c):
    text = c["text_config"]
    yield "thinker.model.embed_tokens.weight", (text["vocab_size"], text["hidden_size"])
    yield from decoder("thinker.model", text, text["hidden_size"] // text["num_attention_heads"])
    if not text["tie_word_embeddings"]:
        yield "thinker.lm_head.weight", (text["vocab_size"], text["hidden_size"])
    yield from vision(c["vision_config"])
    yield from audio(c["audio_config"])


def talker(c):
    yield from linear("talker.thinker_to_talker_proj", c["hidden_size"], c["embedding_size"])
    yield "talker.model.embed_tokens.weight", (c["vocab_size"], c["embedding_size"])
    yield from decoder("talker.model", c, c["head_dim"])
    yield "talker.codec_head.weight", (c["vocab_size"], c["hidden_size"])


def speaker_encoder(p, c):
    channels, kernels, scale = c["enc_channels"], c["enc_kernel_sizes"], c["enc_res2net_scale"]
    yield from conv(f"{p}.blocks.0.conv", channels[0], c["mel_dim"], kernels[0])
    for i in range(1, len(channels) - 1):
        block = f"{p}.blocks.{i}"
        yield from conv(f"{block}.tdnn1.conv", channels[i], channels[i - 1], 1)
        for j in range(scale - 1):
            yield from conv(
                f"{block}.res2net_block.blocks.{j}.conv",
                channels[i] // scale,
                channels[i] // scale,
                kernels[i],
            )
        yield from conv(f"{block}.tdnn2.conv", channels[i], channels[i], 1)
        yield from conv(f"{block}.se_block.conv1", c["enc_se_channels"], channels[i], 1)
        yield from conv(f"{block}.se_block.conv2", channels[i], c["enc_se_channels"], 1)
    last = channels[-1]
    yield from conv(f"{p}.mfa.conv", last, last, kernels[-1])
    yield from conv(f"{p}.asp.tdnn.conv", c["enc_attention_channels"], 3 * last, 1)
    yield from conv(f"{p}.asp.conv", last, c["enc_attention_channels"], 1)
    yield from conv(f"{p}.fc", c["enc_dim"], 2 * last, 1)


def dit(c):
    p, dim = "token2wav.code2wav_dit_model", c["hidden_size"]
    inner = c["head_dim"] * c["num_attention_heads"]
    yield f"{p}.rotary_embed.inv_freq", (c["head_dim"] // 2,)
    yield from linear(f"{p}.time_embed.time_mlp.0", dim, 256)
    yield from linear(f"{p}.time_embed.time_mlp.2", dim, dim)
    yield f"{p}.text_embed.codec_embed.weight", (c["num_embeds"] + 1, c["emb_dim"])
    yield from linear(
        f"{p}.input_embed.proj", dim, c["mel_dim"] + c["enc_dim"] + c["enc_emb_dim"] + c["emb_dim"]
    )
    yield from speaker_encoder(f"{p}.input_embed.spk_encoder", c)
    for i in range(c["num_hidden_layers"]):
        block = f"{p}.transformer_blocks.{i}"
        yield from linear(f"{block}.attn_norm.linear", 6 * dim, dim)
        for name in ("to_q", "to_k", "to_v"):
            yield from linear(f"{block}.attn.{name}", inner, dim)
        yield from linear(f"{block}.attn.to_out.0", dim, inner)
        yield from linear(f"{block}.ff.ff.0", dim * c["ff_mult"], dim)
        yield from linear(f"{block}.ff.ff.3", dim, dim * c["ff_mult"])
    yield from linear(f"{p}.norm_out.linear", 2 * dim, dim)
    yield from linear(f"{p}.proj_out", c["mel_dim"], dim)


def bigvgan(c):
    p, channels = "token2wav.code2wav_bigvgan_model", c["upsample_initial_channel"]
    yield from conv(f"{p}.conv_pre", channels, c["mel_dim"], 7)
    for i, kernel in enumerate(c["upsample_kernel_sizes"]):
        yield f"{p}.ups.{i}.0.weight", (channels, channels // 2, kernel)
        yield f"{p}.ups.{i}.0.bias", (channels // 2,)
        channels //= 2
        for j, width in enumerate(c["resblock_kernel_sizes"]):
            block = f"{p}.resblocks.{i * len(c['resblock_kernel_sizes']) + j}"
            for k in range(3):
                yield from conv(f"{block}.convs1.{k}", channels, channels, width)
                yield from conv(f"{block}.convs2.{k}", channels, channels, width)
            for k in range(6):
                yield f"{block}.activations.{k}.act.alpha", (channels,)
                yield f"{block}.activations.{k}.act.beta", (channels,)
    yield f"{p}.activation_post.act.alpha", (channels,)
    yield f"{p}.activation_post.act.beta", (channels,)
    yield f"{p}.conv_post.weight", (1, channels, 7)


def tensors(config):
    """Name and shape of every tensor of a checkpoint with this configuration."""
    yield from thinker(config["thinker_config"])
    if config["enable_audio_output"]:
        yield from talker(config["talker_config"])
        yield from dit(config["token2wav_config"]["dit_config"])
        yield from bigvgan(config["token2wav_config"]["bigvgan_config"])


def tiny_config():
    return json.loads((TINY / "config.json").read_text())


def check_names():
    """The names above, for the small checkpoint's configuration, are those that the reference wrote."""
    expected = {}
    for path in TINY.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        expected.update({k: tuple(v["shape"]) for k, v in header.items() if k != "__metadata__"})
    found = dict(tensors(tiny_config()))
    if found != expected:
        wrong = {k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k)}
        sys.exit(f"tensors differ from the reference's: {sorted(wrong)[:5]}")


def full_config(options, first_added):
    config = copy.deepcopy(tiny_config())
    shift = first_added - min(
        id_ for id_ in json.loads((TINY / "added_tokens.json").read_text()).values()
    )
    thinker_config = config["thinker_config"]
    for section in (thinker_config, config["talker_config"]):
        for key, value in section.items():
            if (
                key.endswith(("_token_index", "_token_id"))
                and "codec" not in key
                and key != "user_token_id"
            ):
                section[key] = value + shift
        section["position_id_per_seconds"], section["seconds_per_chunk"] = 25, 2
    hidden, layers, heads, kv_heads, ffn, vocab, sections = TEXT[options.text]
    thinker_config["text_config"].update(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=ffn, vocab_size=vocab, max_position_embeddings=32768, max_window_layers=layers,
        rms_norm_eps=1e-06, rope_theta=1000000.0, sliding_window=32768, tie_word_embeddings=options.tie,
        rope_scaling={"mrope_section": sections, "rope_type": "default", "type": "default"},
    )  # fmt: skip
    thinker_config["vision_config"].update(
        **(VISION if options.vision == "full" else {}), out_hidden_size=hidden
    )
    thinker_config["audio_config"].update(
        **(AUDIO if options.audio == "full" else {}), output_dim=hidden
    )
    config["enable_audio_output"] = options.speech != "none"
    if options.speech != "none":
        hidden_t, layers, heads, kv_heads, ffn, head, sections = TALKER[options.speech]
        config["talker_config"].update(
            embedding_size=hidden, hidden_size=hidden_t, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=kv_heads, intermediate_size=ffn, head_dim=head, vocab_size=8448,
            max_position_embeddings=32768, max_window_layers=layers, rms_norm_eps=1e-06, rope_theta=1000000.0,
            rope_scaling={"mrope_section": sections, "rope_type": "default", "type": "default"}, sliding_window=32768,
            tts_codec_pad_token_id=8292, tts_codec_start_token_id=8293, tts_codec_end_token_id=8294,
            tts_codec_mask_token_id=8296, tts_text_pad_token_id=151859, tts_text_start_token_id=151860,
            tts_text_end_token_id=151861,
        )  # fmt: skip
        config["token2wav_config"]["dit_config"].update(DIT)
        config["token2wav_config"]["bigvgan_config"].update(BIGVGAN)
    if options.layers:
        cut_layers(config, options.layers)
    return config


def cut_layers(node, most):
    """At most so many layers in each component; what names layers by number names those that are left."""
    for key, value in node.items():
        if isinstance(value, dict):
            cut_layers(value, most)
        elif key in ("num_hidden_layers", "encoder_layers", "max_window_layers", "depth"):
            node[key] = min(value, most)
        elif key in ("fullatt_block_indexes", "look_ahead_layers", "look_backward_layers"):
            node[key] = [i for i in value if i < most] or [most - 1]


class Weights:
    """bf16 bytes of any number of values: slices of one block of normal numbers for each scale."""

    BLOCK = 1 << 24

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.normal = self.rng.standard_normal(self.BLOCK, dtype=np.float32)
        self.blocks = {}

    @staticmethod
    def bf16(values):
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)

    def scaled(self, scale):
        if scale not in self.blocks:
            if len(self.blocks) > 8:
                self.blocks.clear()
            self.blocks[scale] = self.bf16(self.normal * np.float32(scale))
        return self.blocks[scale]

    def write(self, file, name, shape):
        count = int(np.prod(shape))
        if name.endswith("inv_freq"):
            values = 1.0 / 10000.0 ** (np.arange(count, dtype=np.float32) / count)
            file.write(self.bf16(values.astype(np.float32)).tobytes())
        elif len(shape) == 1 and name.endswith("weight"):
            file.write(self.bf16(self.rng.uniform(0.8, 1.2, count).astype(np.float32)).tobytes())
        else:
            fan_in = 100 if len(shape) == 1 else np.prod(shape[1:])
            embedding = "embed_tokens" in name or "codec_embed" in name
            block = self.scaled(1.0 if embedding else float(np.round(1.0 / np.sqrt(fan_in), 5)))
            while count:
                start = int(self.rng.integers(0, self.BLOCK // 2))
                part = min(count, self.BLOCK - start)
                file.write(block[start : start + part].data)
                count -= part


def write_shards(out, config, seed):
    shards, size = [[]], 0
    for name, shape in tensors(config):
        count = 2 * int(np.prod(shape))
        if size + count > SHARD_BYTES and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append((name, shape, count))
        size += count
    weights, weight_map, total = Weights(seed), {}, 0
    for i, shard in enumerate(shards):
        file_name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for name, shape, count in shard:
            header[name] = {
                "dtype": "BF16",
                "shape": list(shape),
                "data_offsets": [offset, offset + count],
            }
            offset += count
            weight_map[name] = file_name
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with (out / file_name).open("wb", buffering=1 << 20) as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name, shape, _ in shard:
                weights.write(file, name, shape)
        total += offset
        print(f"{file_name}: {offset / 1e9:.2f} GB", flush=True)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return total


def write_tokenizer(out, first_added):
    """The small tokenizer, grown by pairs of its own tokens to the published number of merges."""
    saved = json.loads((TINY / "tokenizer.json").read_text(encoding="utf-8"))
    vocab, merges = saved["model"]["vocab"], saved["model"]["merges"]
    shift = first_added - len(vocab)
    tokens = list(vocab)
    rng = np.random.default_rng(1)
    while len(vocab) < first_added:
        for a, b in rng.integers(0, len(tokens), (first_added, 2)):
            text = tokens[a] + tokens[b]
            if text not in vocab and len(vocab) < first_added:
                vocab[text] = len(vocab)
                merges.append([tokens[a], tokens[b]])
    for token in saved["added_tokens"]:
        token["id"] += shift
    (out / "tokenizer.json").write_text(
        json.dumps(saved, indent=2, ensure_ascii=False), encoding="utf-8"
    )
    (out / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (out / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    added = json.loads((TINY / "added_tokens.json").read_text(encoding="utf-8"))
    (out / "added_tokens.json").write_text(
        json.dumps({k: v + shift for k, v in added.items()}, indent=2) + "\n"
    )
    settings = json.loads((TINY / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["added_tokens_decoder"] = {
        str(int(k) + shift): v for k, v in settings["added_tokens_decoder"].items()
    }
    (out / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def write_processor(out, options, first_added):
    fields = json.loads((TINY / "preprocessor_config.json").read_text())
    if options.vision == "full":
        fields.update(image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711],
                      min_pixels=3136, max_pixels=12845056, patch_size=14)  # fmt: skip
    fields.update(chunk_length=300, n_samples=4800000, nb_max_frames=30000)
    fields["feature_size"] = 128 if options.audio == "full" else fields["feature_size"]
    (out / "preprocessor_config.json").write_text(json.dumps(fields, indent=2) + "\n")
    generation = json.loads((TINY / "generation_config.json").read_text())
    shift = first_added - min(json.loads((TINY / "added_tokens.json").read_text()).values())
    generation = {k: v + shift if k.endswith("_token_id") else v for k, v in generation.items()}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    for name in ("special_tokens_map.json", "chat_template.json"):
        (out / name).write_bytes((TINY / name).read_bytes())


def write_speakers(out, seed):
    """spk_dict.pt in torch's zip format, which pickles references to three names of torch."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    class FloatStorage:
        __module__, __qualname__ = "torch", "FloatStorage"

    def _rebuild_tensor_v2():
        raise NotImplementedError  # only its name is written

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = (
        "torch._utils",
        "_rebuild_tensor_v2",
    )
    torch.FloatStorage, utils._rebuild_tensor_v2 = FloatStorage, _rebuild_tensor_v2

    class Storage:
        def __init__(self, key, count):
            self.key, self.count = key, count

    class Tensor:
        def __init__(self, key, values):
            self.key, self.values = key, values

        def __reduce__(self):
            strides = tuple(s // 4 for s in self.values.strides)
            storage = Storage(self.key, self.values.size)
            return _rebuild_tensor_v2, (
                storage,
                0,
                self.values.shape,
                strides,
                False,
                OrderedDict(),
            )

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return (
                ("storage", FloatStorage, value.key, "cpu", value.count)
                if isinstance(value, Storage)
                else None
            )

    rng, arrays = np.random.default_rng(seed), []

    def tensor(*shape):
        arrays.append(rng.standard_normal(shape, dtype=np.float32))
        return Tensor(str(len(arrays) - 1), arrays[-1])

    voices = {
        name: {
            "cond": tensor(1, DIT["enc_emb_dim"]),
            "ref_mel": tensor(1, frames, DIT["mel_dim"]),
            "bos_token": token,
        }
        for name, frames, token in (("Ethan", 300, 151870), ("Chelsie", 281, 151872))
    }
    data = io.BytesIO()
    sys.modules.update({"torch": torch, "torch._utils": utils})
    Pickler(data, protocol=2).dump(voices)
    with zipfile.ZipFile(out / "spk_dict.pt", "w", zipfile.ZIP_STORED) as file:
        file.writestr("spk_dict/data.pkl", data.getvalue())
        file.writestr("spk_dict/byteorder", "little")
        for key, values in enumerate(arrays):
            file.writestr(f"spk_dict/data/{key}", values.tobytes())
        file.writestr("spk_dict/version", "3\n")


def main():
    parser = argparse.ArgumentParser(
        prog="tools/reference/full_size",
        description=__doc__,
        epilog="example: tools/reference/full_size /tmp/omni --text 0.5b",
    )
    parser.add_argument("out", type=Path, help="directory to make; its name is the model's name")
    parser.add_argument(
        "--text",
        choices=TEXT,
        default="0.5b",
        help="size of the thinker's LLM (default %(default)s)",
    )
    parser.add_argument(
        "--vision", choices=("full", "tiny"), default="full", help="image and video encoder"
    )
    parser.add_argument("--audio", choices=("full", "tiny"), default="full", help="audio encoder")
    parser.add_argument(
        "--speech", choices=("none", *TALKER), default="none", help="talker and token2wav"
    )
    parser.add_argument(
        "--tie", action="store_true", help="lm_head is embed_tokens, as in the smallest text models"
    )
    parser.add_argument(
        "--layers", type=int, default=0, help="at most so many layers in each component (all)"
    )
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    check_names()
    start = time.time()
    options.out.mkdir(parents=True, exist_ok=True)
    config = full_config(options, FIRST_ADDED)
    (options.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_tokenizer(options.out, FIRST_ADDED)
    write_processor(options.out, options, FIRST_ADDED)
    total = write_shards(options.out, config, options.seed)
    if options.speech != "none":
        write_speakers(options.out, options.seed)
    print(f"{options.out}: {total / 2e9:.2f} billion parameters in {time.time() - start:.1f} s")


main()
