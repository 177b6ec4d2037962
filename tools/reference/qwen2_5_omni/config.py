"""The reduced configuration: the hub's file with the same keys, and every number other than the published one.

Numbers differ from each other too, so that code which reads the wrong field fails: heads, key/value heads, head
sizes, rope sections, window, merge, chunk lengths. Sizes are odd where the network allows it.
"""

SEED = 38  # of the thinker, found by --find-seed
SPEECH_SEED = 4  # of talker and token2wav, found likewise

# Token ids: the trained vocabulary comes first, then the added tokens in the hub's order, then the three text
# tokens of speech, which no tokenizer file names.
BASE_VOCAB = 903
ADDED_TOKENS = [
    # (content, special), as in the published tokenizer from id 151643 on
    ("<|endoftext|>", True),
    ("<|im_start|>", True),
    ("<|im_end|>", True),
    ("<|AUDIO|>", True),
    ("<|audio_bos|>", True),
    ("<|audio_eos|>", True),
    ("<|box_end|>", True),
    ("<|quad_start|>", True),
    ("<|quad_end|>", True),
    ("<|vision_bos|>", True),
    ("<|vision_eos|>", True),
    ("<|vision_pad|>", True),
    ("<|IMAGE|>", True),
    ("<|VIDEO|>", True),
    ("<tool_call>", False),
    ("</tool_call>", False),
    ("<|fim_prefix|>", False),
    ("<|fim_middle|>", False),
    ("<|fim_suffix|>", False),
    ("<|fim_pad|>", False),
    ("<|repo_name|>", False),
    ("<|file_sep|>", False),
]
TOKEN_ID = {content: BASE_VOCAB + i for i, (content, _) in enumerate(ADDED_TOKENS)}
VOCAB_SIZE = 961
TTS_TEXT_PAD, TTS_TEXT_START, TTS_TEXT_END = 954, 955, 956

HIDDEN = 108
PATCH = 12
MEL_BINS = 72
POSITIONS_PER_SECOND = 20
SECONDS_PER_CHUNK = 1

CODEC_VOCAB = 151
CODEC_CODES = 127  # codes the vocoder has embeddings for
CODEC_PAD, CODEC_START, CODEC_END, CODEC_MASK = 141, 142, 143, 145

VISION = {
    "depth": 5,
    "embed_dim": 60,
    "fullatt_block_indexes": [1, 3],
    "hidden_act": "silu",
    "hidden_size": 60,
    "in_channels": 3,
    "in_chans": 3,
    "init_std": 0.02,
    "initializer_range": 0.02,
    "intermediate_size": 92,
    "model_type": "qwen2_5_omni_vision_encoder",
    "num_heads": 5,
    "out_hidden_size": HIDDEN,
    "patch_size": PATCH,
    "spatial_merge_size": 2,
    "spatial_patch_size": PATCH,
    "temporal_patch_size": 2,
    "tokens_per_second": POSITIONS_PER_SECOND,
    "window_size": 72,
}

AUDIO = {
    "activation_dropout": 0.0,
    "activation_function": "gelu",
    "attention_dropout": 0.0,
    "d_model": 70,
    "dropout": 0.0,
    "encoder_attention_heads": 7,
    "encoder_ffn_dim": 130,
    "encoder_layerdrop": 0.0,
    "encoder_layers": 3,
    "init_std": 0.02,
    "initializer_range": 0.02,
    "max_source_positions": 64,
    "model_type": "qwen2_5_omni_audio_encoder",
    "n_window": 27,
    "num_hidden_layers": 3,
    "num_mel_bins": MEL_BINS,
    "output_dim": HIDDEN,
    "scale_embedding": False,
}

TEXT = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "init_std": 0.02,
    "initializer_range": 0.02,
    "intermediate_size": 164,
    "max_position_embeddings": 4096,
    "max_window_layers": 3,
    "model_type": "qwen2_5_omni_text",
    "num_attention_heads": 6,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 2e-06,
    "rope_scaling": {"mrope_section": [2, 4, 3], "rope_type": "default", "type": "default"},
    "rope_theta": 50000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": VOCAB_SIZE,
}

TALKER = {
    "attention_dropout": 0.0,
    "audio_end_token_id": TOKEN_ID["<|audio_eos|>"],
    "audio_start_token_id": TOKEN_ID["<|audio_bos|>"],
    "audio_token_index": TOKEN_ID["<|AUDIO|>"],
    "embedding_size": HIDDEN,
    "head_dim": 28,
    "hidden_act": "silu",
    "hidden_size": 96,
    "image_token_index": TOKEN_ID["<|IMAGE|>"],
    "init_std": 0.02,
    "initializer_range": 0.02,
    "intermediate_size": 170,
    "max_position_embeddings": 4096,
    "max_window_layers": 2,
    "model_type": "qwen2_5_omni_talker",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "position_id_per_seconds": POSITIONS_PER_SECOND,
    "rms_norm_eps": 3e-06,
    "rope_scaling": {"mrope_section": [3, 4, 7], "rope_type": "default", "type": "default"},
    "rope_theta": 70000.0,
    "seconds_per_chunk": SECONDS_PER_CHUNK,
    "sliding_window": 4096,
    "spatial_merge_size": 2,
    "torch_dtype": "bfloat16",
    "tts_codec_end_token_id": CODEC_END,
    "tts_codec_mask_token_id": CODEC_MASK,
    "tts_codec_pad_token_id": CODEC_PAD,
    "tts_codec_start_token_id": CODEC_START,
    "tts_text_end_token_id": TTS_TEXT_END,
    "tts_text_pad_token_id": TTS_TEXT_PAD,
    "tts_text_start_token_id": TTS_TEXT_START,
    "use_cache": True,
    "use_sliding_window": False,
    "video_token_index": TOKEN_ID["<|VIDEO|>"],
    "vision_end_token_id": TOKEN_ID["<|vision_eos|>"],
    "vision_start_token_id": TOKEN_ID["<|vision_bos|>"],
    "vocab_size": CODEC_VOCAB,
}

DIT = {
    "block_size": 14,
    "depth": 3,
    "dim": 48,
    "dropout": 0.1,
    "emb_dim": 36,
    "enc_attention_channels": 18,
    "enc_channels": [20, 20, 20, 20, 60],
    "enc_dilations": [1, 2, 3, 2, 1],
    "enc_dim": 26,
    "enc_emb_dim": 22,
    "enc_kernel_sizes": [5, 3, 5, 3, 1],
    "enc_lin_neurons": 22,
    "enc_res2net_scale": 4,
    "enc_se_channels": 14,
    "ff_mult": 3,
    "head_dim": 20,
    "heads": 2,
    "hidden_size": 48,
    "look_ahead_layers": [1],
    "look_backward_layers": [0, 2],
    "max_position_embeddings": 4096,
    "mel_dim": 40,
    "model_type": "qwen2_5_omni_dit",
    "num_attention_heads": 2,
    "num_embeds": CODEC_CODES,
    "num_hidden_layers": 3,
    "repeats": 2,
    "rope_theta": 10000.0,
    "torch_dtype": "float32",
}

BIGVGAN = {
    "mel_dim": 40,
    "model_type": "qwen2_5_omni_bigvgan",
    "resblock_dilation_sizes": [[1, 3, 5], [1, 2, 4], [1, 3, 7]],
    "resblock_kernel_sizes": [3, 5, 9],
    "torch_dtype": "float32",
    "upsample_initial_channel": 32,
    "upsample_kernel_sizes": [11, 8, 7],
    "upsample_rates": [5, 4, 3],
    "use_bias_at_final": False,
}


def config_json(user_token_id):
    """config.json as the hub's: nested configurations, the keys of the published file."""
    return {
        "architectures": ["Qwen2_5OmniModel"],
        "enable_audio_output": True,
        "enable_talker": True,
        "model_type": "qwen2_5_omni",
        "talker_config": {"architectures": ["Qwen2OmniTalkerForConditionalGeneration"], **TALKER},
        "thinker_config": {
            "architectures": ["Qwen2OmniNaViTThinkerForConditionalGeneration"],
            "audio_config": AUDIO,
            "audio_end_token_id": TOKEN_ID["<|audio_eos|>"],
            "audio_start_token_id": TOKEN_ID["<|audio_bos|>"],
            "audio_token_index": TOKEN_ID["<|AUDIO|>"],
            "bos_token_id": TOKEN_ID["<|im_start|>"],
            "eos_token_id": TOKEN_ID["<|im_end|>"],
            "ignore_index": -100,
            "image_token_index": TOKEN_ID["<|IMAGE|>"],
            "init_std": 0.02,
            "initializer_range": 0.02,
            "model_type": "qwen2_5_omni_thinker",
            "pad_token_id": TOKEN_ID["<|endoftext|>"],
            "position_id_per_seconds": POSITIONS_PER_SECOND,
            "seconds_per_chunk": SECONDS_PER_CHUNK,
            "text_config": TEXT,
            "torch_dtype": "bfloat16",
            "user_token_id": user_token_id,
            "video_token_index": TOKEN_ID["<|VIDEO|>"],
            "vision_config": VISION,
            "vision_end_token_id": TOKEN_ID["<|vision_eos|>"],
            "vision_start_token_id": TOKEN_ID["<|vision_bos|>"],
            "vision_token_id": TOKEN_ID["<|vision_pad|>"],
        },
        "token2wav_config": {
            "bigvgan_config": BIGVGAN,
            "dit_config": DIT,
            "model_type": "qwen2_5_omni_token2wav",
        },
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
    }


# preprocessor_config.json of the hub holds the image processor's and the feature extractor's fields together.
PREPROCESSOR = {
    "chunk_length": 20,
    "dither": 0.0,
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": MEL_BINS,
    "hop_length": 160,
    "image_mean": [0.46, 0.44, 0.42],
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_std": [0.27, 0.26, 0.28],
    "max_pixels": 20736,
    "merge_size": 2,
    "min_pixels": 2304,
    "n_fft": 400,
    "n_samples": 320000,
    "nb_max_frames": 2000,
    "padding_side": "right",
    "padding_value": 0.0,
    "patch_size": PATCH,
    "processor_class": "Qwen2_5OmniProcessor",
    "return_attention_mask": True,
    "sampling_rate": 16000,
    "temporal_patch_size": 2,
}

GENERATION = {
    "_from_model_config": True,
    "bos_token_id": TOKEN_ID["<|im_start|>"],
    "eos_token_id": TOKEN_ID["<|im_end|>"],
    "pad_token_id": TOKEN_ID["<|endoftext|>"],
    "transformers_version": "4.50.0.dev0",
}

# The template as published for Qwen2.5-Omni.
CHAT_TEMPLATE = (
    "{% set audio_count = namespace(value=0) %}{% set image_count = namespace(value=0) %}"
    "{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: "
    "{% endif %}<|vision_bos|><|IMAGE|><|vision_eos|>"
    "{% elif content['type'] == 'audio' or 'audio' in content or 'audio_url' in content %}"
    "{% set audio_count.value = audio_count.value + 1 %}{% if add_audio_id %}Audio {{ audio_count.value }}: "
    "{% endif %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}Video {{ video_count.value }}: "
    "{% endif %}<|vision_bos|><|VIDEO|><|vision_eos|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SPECIAL_NAMES = {
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
    "audio_token": "<|AUDIO|>",
    "image_token": "<|IMAGE|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
}
