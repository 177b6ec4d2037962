-- Qwen2.5-Omni: images, video, sound and text in; text and speech out.
--
--   image_encoder --\
--                    thinker --hidden states--> talker --codes--> vocoder --> speech
--   audio_encoder --/       \--> text
--
-- Sizes are in tokens of the thinker unless they say otherwise. `config` is the checkpoint's
-- config.json.

local f32 = 4
local thinker_config = config.thinker_config
local text_config = thinker_config.text_config
local talker_config = config.enable_audio_output ~= false and config.talker_config or nil

local function kv_bytes(c) -- keys and values of one token over all layers, in bf16
    local head_dim = c.head_dim or c.hidden_size // c.num_attention_heads
    return 2 * 2 * c.num_hidden_layers * c.num_key_value_heads * head_dim
end

local function embeddings(arguments)
    return arguments.units * text_config.hidden_size * f32
end

local image_encoder = unit {
    name = "image_encoder", kind = "encoder",
    config = thinker_config.vision_config,
    weights = { "thinker.visual." },
    outputs = { embeddings = { bytes = embeddings } },
}

local audio_encoder = unit {
    name = "audio_encoder", kind = "encoder",
    config = thinker_config.audio_config,
    weights = { "thinker.audio_tower." },
    outputs = { embeddings = { bytes = embeddings } },
}

local thinker = unit {
    name = "thinker", kind = "llm", split = true, to_user = "text",
    config = text_config,
    weights = { "thinker.model.", "thinker.lm_head." },
    kv_bytes_per_token = kv_bytes(text_config),
    outputs = {
        text = { streamed = true, bytes = function(a) return a.output_units * 4 end },
        -- the talker takes a token's last hidden state and its embedding
        hidden = { streamed = true, bytes = function(a)
            return (a.units + a.output_units) * 2 * text_config.hidden_size * f32
        end },
    },
}

local talker = talker_config and unit {
    name = "talker", kind = "llm",
    config = talker_config,
    weights = { "talker." },
    kv_bytes_per_token = kv_bytes(talker_config),
    outputs = { codes = { streamed = true, bytes = function(a) return a.output_units * 4 end } },
}

local vocoder = talker_config and unit {
    name = "vocoder", kind = "generator", to_user = "audio",
    config = config.token2wav_config,
    weights = { "token2wav." },
    -- one codec token is 480 samples of 16 bits
    outputs = { audio = { streamed = true, bytes = function(a) return a.units * 480 * 2 end } },
}

local encoders = { image = image_encoder, video = image_encoder, audio = audio_encoder }

local function kind(modality, speech)
    return function(sizes)
        local media = array {}
        if modality then
            local size = modality == "audio" and sizes.audio_in_tokens or sizes[modality .. "_tokens"]
            media[1] = { modality = modality, tokens = size }
        end
        return {
            media = media,
            text_in_tokens = sizes.text_in_tokens,
            text_out_tokens = sizes.text_out_tokens,
            audio_out_tokens = speech and sizes.audio_out_tokens or 0,
            speech = speech,
        }
    end
end

return task {
    name = "qwen2_5_omni",

    requests = { -- nil: this checkpoint does not speak
        text_to_text = kind(nil, false),
        image_to_text = kind("image", false),
        video_to_text = kind("video", false),
        audio_to_text = kind("audio", false),
        text_to_speech = talker and kind(nil, true),
        image_to_speech = talker and kind("image", true),
        video_to_speech = talker and kind("video", true),
        audio_to_speech = talker and kind("audio", true),
    },

    invoke = function(request)
        local media, prompt_tokens = {}, request.text_in_tokens
        for i, medium in ipairs(request.media) do
            local encoder = encoders[medium.modality]
            if not encoder then
                error("this model takes no " .. tostring(medium.modality), 0)
            end
            media[i] = encoder {
                units = medium.tokens, medium = i - 1, attachment = medium.attachment,
            }.embeddings
            prompt_tokens = prompt_tokens + medium.tokens
        end
        local answer = thinker {
            units = prompt_tokens, output_units = request.text_out_tokens,
            media = media, speech = request.speech or false,
            attachment = request.attachment, affinity = request.affinity,
        }
        if not request.speech then
            return { text = answer.text }
        end
        if not talker then
            error("this checkpoint has no talker", 0)
        end
        local speech = talker {
            units = prompt_tokens + request.text_out_tokens, output_units = request.audio_out_tokens,
            hidden = answer.hidden, attachment = request.speech_attachment,
        }
        local sound = vocoder {
            units = request.audio_out_tokens,
            codes = speech.codes, attachment = request.speech_attachment,
        }
        -- the codes too: from them a speech goes on whose executors are lost
        return { text = answer.text, codes = speech.codes, audio = sound.audio }
    end,
}
