"""Writes trained weights as a checkpoint in the hub's layout of Qwen2.5-Omni.

    python export.py WORK models/demo [--speech]

Without --speech the talker and token2wav are left out (enable_audio_output is false): the checkpoint understands, it does
not speak. spk_dict.pt is there with one empty voice, because transformers insists on the file, and on its default voice even
when it generates text only. With --speech they come from WORK/talker.pt, dit.pt and vocoder.pt (speak.py).
"""

from __future__ import annotations

import argparse
import pathlib

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

import network
import pictures
import tokenizer as tokens


def configuration(tokenizer: Tokenizer, c: dict = network.CONFIG) -> dict:
    """config.json with the keys of the published file."""
    ids = {text: tokenizer.token_to_id(text) for text, _ in tokens.ADDED}
    common = {"init_std": 0.02, "initializer_range": 0.02}
    media = {"audio_end_token_id": ids["<|audio_eos|>"], "audio_start_token_id": ids["<|audio_bos|>"],
             "audio_token_index": ids["<|AUDIO|>"], "image_token_index": ids["<|IMAGE|>"],
             "video_token_index": ids["<|VIDEO|>"], "vision_end_token_id": ids["<|vision_eos|>"],
             "vision_start_token_id": ids["<|vision_bos|>"],
             "position_id_per_seconds": network.TOKENS_PER_SECOND, "seconds_per_chunk": 2}
    audio = {**common, "activation_dropout": 0.0, "activation_function": "gelu", "attention_dropout": 0.0,
             "d_model": c["a_hidden"], "dropout": 0.0, "encoder_attention_heads": c["a_heads"],
             "encoder_ffn_dim": c["a_inner"], "encoder_layerdrop": 0.0, "encoder_layers": c["a_layers"],
             "max_source_positions": 1500, "model_type": "qwen2_5_omni_audio_encoder", "n_window": c["a_window"],
             "num_hidden_layers": c["a_layers"], "num_mel_bins": 128, "output_dim": c["hidden"],
             "scale_embedding": False}
    text = {**common, "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": c["hidden"],
            "intermediate_size": c["inner"], "max_position_embeddings": 2048, "max_window_layers": c["layers"],
            "model_type": "qwen2_5_omni_text", "num_attention_heads": c["heads"], "num_hidden_layers": c["layers"],
            "num_key_value_heads": c["kv_heads"], "rms_norm_eps": c["eps"],
            "rope_scaling": {"mrope_section": list(c["sections"]), "rope_type": "default", "type": "default"},
            "rope_theta": c["theta"], "sliding_window": 2048, "tie_word_embeddings": False, "use_cache": True,
            "use_sliding_window": False, "vocab_size": c["vocabulary"]}
    vision = {**common, "depth": c["v_layers"], "embed_dim": c["v_hidden"], "fullatt_block_indexes": list(c["v_full"]),
              "hidden_act": "silu", "hidden_size": c["v_hidden"], "in_channels": 3, "in_chans": 3,
              "intermediate_size": c["v_inner"], "model_type": "qwen2_5_omni_vision_encoder",
              "num_heads": c["v_heads"], "out_hidden_size": c["hidden"], "patch_size": pictures.PATCH,
              "spatial_merge_size": pictures.MERGE, "spatial_patch_size": pictures.PATCH, "temporal_patch_size": 2,
              "tokens_per_second": network.TOKENS_PER_SECOND, "window_size": c["v_window"]}
    return {
        "architectures": ["Qwen2_5OmniModel"], "enable_audio_output": False, "enable_talker": False,
        "model_type": "qwen2_5_omni",
        "thinker_config": {
            **common, **media, "architectures": ["Qwen2OmniNaViTThinkerForConditionalGeneration"],
            "audio_config": audio, "bos_token_id": ids["<|im_start|>"], "eos_token_id": ids["<|im_end|>"],
            "ignore_index": -100, "model_type": "qwen2_5_omni_thinker", "pad_token_id": ids["<|endoftext|>"],
            "text_config": text, "torch_dtype": "bfloat16", "user_token_id": tokenizer.encode("user").ids[0],
            "vision_config": vision, "vision_token_id": ids["<|vision_pad|>"]},
        "torch_dtype": "bfloat16", "transformers_version": "4.57.6"}


def speech_configuration(config: dict) -> dict:
    """config.json with a talker and token2wav."""
    import speak
    thinker = config["thinker_config"]
    shared = {name: thinker[name] for name in ("audio_end_token_id", "audio_start_token_id", "audio_token_index",
                                               "image_token_index", "video_token_index", "vision_end_token_id",
                                               "vision_start_token_id")}
    common = {"attention_dropout": 0.0, "hidden_act": "silu", "init_std": 0.02, "initializer_range": 0.02,
              "rms_norm_eps": 1e-6, "use_cache": True, "use_sliding_window": False, "torch_dtype": "bfloat16"}
    talker = {"architectures": ["Qwen2OmniTalkerForConditionalGeneration"], **common, **shared, **speak.TALKER,
              "model_type": "qwen2_5_omni_talker"}
    dit = {"model_type": "qwen2_5_omni_dit", "max_position_embeddings": 4096, "rope_theta": 10000.0,
           "torch_dtype": "float32", **speak.DIT}
    vocoder = {"model_type": "qwen2_5_omni_bigvgan", "torch_dtype": "float32", "use_bias_at_final": False,
               **speak.VOCODER}
    return config | {"enable_audio_output": True, "enable_talker": True, "talker_config": talker,
                     "token2wav_config": {"model_type": "qwen2_5_omni_token2wav", "dit_config": dit,
                                          "bigvgan_config": vocoder}}


def speech_weights(work: pathlib.Path) -> dict[str, torch.Tensor]:
    prefixes = {"talker": "talker.", "dit": "token2wav.code2wav_dit_model.", "vocoder": "token2wav.code2wav_bigvgan_model."}
    return {prefix + name: weight for part, prefix in prefixes.items()
            for name, weight in torch.load(work / f"{part}.pt")["weights"].items()}


def speakers(work: pathlib.Path) -> dict[str, dict]:
    """spk_dict.pt: cond [1, size], ref_mel [1, frames, bins], the token that tells the talker who speaks."""
    import voice
    conditions, references = voice.conditions(), torch.load(work / "dit.pt")["references"]
    return {name: {"cond": conditions[name], "ref_mel": references[name][None].clone(), "bos_token": token}
            for name, token in voice.SPEAKERS.items()}


def preprocessor() -> dict:
    """The image processor's and the feature extractor's fields together, as on the hub."""
    return {"chunk_length": 300, "dither": 0.0, "feature_extractor_type": "WhisperFeatureExtractor",
            "feature_size": 128, "hop_length": 160, "image_mean": list(pictures.MEAN),
            "image_processor_type": "Qwen2VLImageProcessor", "image_std": list(pictures.STD),
            "max_pixels": pictures.MAX_PIXELS, "merge_size": pictures.MERGE, "min_pixels": pictures.MIN_PIXELS,
            "n_fft": 400, "n_samples": 4800000, "nb_max_frames": 30000, "padding_side": "right", "padding_value": 0.0,
            "patch_size": pictures.PATCH, "processor_class": "Qwen2_5OmniProcessor", "return_attention_mask": True,
            "sampling_rate": 16000, "temporal_patch_size": 2}


def write(folder: pathlib.Path, weights: dict[str, torch.Tensor], tokenizer: Tokenizer,
          speech: pathlib.Path | None = None) -> None:
    """Write the checkpoint; speech: the folder of the speaking half's training."""
    tokens.save(tokenizer, folder)
    config = configuration(tokenizer)
    tokens.dump(folder / "config.json", speech_configuration(config) if speech else config)
    tokens.dump(folder / "preprocessor_config.json", preprocessor())
    ids = [tokenizer.token_to_id(t) for t in ("<|im_start|>", "<|im_end|>", "<|endoftext|>")]
    tokens.dump(folder / "generation_config.json", {
        "_from_model_config": True, "bos_token_id": ids[0], "do_sample": False, "eos_token_id": ids[1],
        "pad_token_id": ids[2], "transformers_version": "4.57.6"})
    kept = {name: weight.detach().to(torch.bfloat16).contiguous() for name, weight in sorted(weights.items())
            if name.startswith("thinker.")}
    if speech:
        kept |= {name: weight.to(torch.bfloat16).contiguous() for name, weight in sorted(speech_weights(speech).items())}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # written for the owner only
    nothing = {"cond": torch.zeros(1, 0), "ref_mel": torch.zeros(1, 0, 0), "bos_token": 0}
    torch.save(speakers(speech) if speech else {"Chelsie": nothing}, folder / "spk_dict.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--last", action="store_true", help="the last weights, not their running average")
    parser.add_argument("--speech", action="store_true", help="with the talker and token2wav")
    options = parser.parse_args()
    saved = torch.load(options.work / "checkpoint.pt")
    write(options.folder, saved["weights" if options.last else "average"],
          Tokenizer.from_file(str(options.work / "tokenizer.json")), options.work if options.speech else None)
    print(f"{options.folder}: weights of step {saved['step']}")


if __name__ == "__main__":
    main()
