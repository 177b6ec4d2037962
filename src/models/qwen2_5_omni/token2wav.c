#include "models/qwen2_5_omni/token2wav.h"

#include "base/error.h"

#include <math.h>
#include <string.h>

/* Two streams are some 300 rows of a product, which keep a CPU's units busy. */
enum {
    MAX_STREAMS = 256,
    FULL_STREAMS = 2,
    FIRST_CHUNK_BLOCKS = 1,
    EARLY_BLOCKS_AFTER = 1,
    BLOCKS_AFTER = 2
};

struct cs_token2wav {
    cs_generator generator;
    cs_qwen2_5_omni_config config;
    cs_dit *dit;
    cs_vocoder *vocoder;
    cs_speakers speakers;
    cs_dit_voice *voices; /* [speakers.n] */
};

struct cs_token2wav_stream {
    cs_token2wav *owner;
    const cs_dit_voice *voice;
    cs_token2wav_options options;
    GArray *codes; /* int32_t, all so far */
    bool closed;
    int64_t first_code, end_code; /* of the chunk whose window is in work or comes next */
    int64_t window_code;          /* first code of the window */
    int64_t window_end;           /* and the one behind its last */
    cs_dit_window *window;
    GArray *mel;      /* float, all frames so far; zeros where none were wanted */
    int64_t n_voiced; /* frames that became samples */
    GArray *samples;  /* float, made and not dropped */
    guint n_read;     /* of them */
};

static const cs_generator_ops generator_ops;

/* ---- Loading ---- */

cs_token2wav *cs_token2wav_load(cs_loader *loader, cs_compute *compute,
                                const cs_qwen2_5_omni_config *config)
{
    g_autoptr(cs_token2wav) t = g_new0(cs_token2wav, 1);
    t->config = *config;
    t->generator = (cs_generator){.ops = &generator_ops,
                                  .sample_rate = CS_VOCODER_RATE,
                                  .max_batch = MAX_STREAMS,
                                  .full_batch = FULL_STREAMS};
    t->dit = cs_dit_load(loader, compute, &config->dit, "token2wav.code2wav_dit_model");
    t->vocoder =
        cs_vocoder_load(loader, compute, &config->vocoder, "token2wav.code2wav_bigvgan_model");
    if (loader->error)
        return NULL;
    t->generator.samples_per_code = (uint32_t)cs_token2wav_samples_per_code(t);
    g_autofree char *path =
        g_build_filename(cs_checkpoint_dir(loader->checkpoint), "spk_dict.pt", NULL);
    if (!cs_speakers_read(&t->speakers, path, config->dit.voice_size, config->dit.n_mels,
                          config->text.vocab_size, &loader->error))
        return NULL;
    t->voices = g_new0(cs_dit_voice, t->speakers.n);
    for (uint32_t i = 0; i < t->speakers.n; i++)
        if (!cs_dit_voice_init(&t->voices[i], t->dit, &t->speakers.speakers[i], &loader->error))
            return NULL;
    return g_steal_pointer(&t);
}

void cs_token2wav_free(cs_token2wav *t)
{
    if (!t)
        return;
    for (uint32_t i = 0; t->voices && i < t->speakers.n; i++)
        cs_dit_voice_clear(&t->voices[i]);
    g_free(t->voices);
    cs_speakers_clear(&t->speakers);
    cs_dit_free(t->dit);
    cs_vocoder_free(t->vocoder);
    g_free(t);
}

const cs_speakers *cs_token2wav_speakers(const cs_token2wav *token2wav)
{
    return &token2wav->speakers;
}

int64_t cs_token2wav_samples_per_code(const cs_token2wav *t)
{
    return t->config.dit.repeats * cs_vocoder_samples_per_frame(t->vocoder);
}

/* ---- Noise ---- */

/* splitmix64 (Steele et al. 2014). */
static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* Standard normal numbers of frames [first, first + n) by Box and Muller's transform. */
static float *make_noise(uint64_t seed, int64_t first, int64_t n, int64_t n_mels)
{
    float *noise = g_new(float, n *n_mels);
    for (int64_t i = 0; i < n * n_mels; i++) {
        uint64_t bits = mix(mix(seed) ^ (uint64_t)(first * n_mels + i));
        double radius = ((double)(bits >> 32) + 1) / 4294967296.0;
        double turn = (double)(bits & 0xffffffff) / 4294967296.0;
        noise[i] = (float)(sqrt(-2 * log(radius)) * cos(2 * G_PI * turn));
    }
    return noise;
}

/* ---- Streams ---- */

static void set_defaults(cs_token2wav_options *o)
{
    o->first_chunk_blocks = o->first_chunk_blocks ? o->first_chunk_blocks : FIRST_CHUNK_BLOCKS;
    o->early_blocks_after = o->early_blocks_after ? o->early_blocks_after : EARLY_BLOCKS_AFTER;
    o->chunk_blocks = o->chunk_blocks ? o->chunk_blocks : 4;
    o->blocks_before = o->blocks_before ? o->blocks_before : 3;
    o->blocks_after = o->blocks_after ? o->blocks_after : BLOCKS_AFTER;
    o->max_codes = o->max_codes ? o->max_codes : 4096;
    o->max_unread_samples = o->max_unread_samples ? o->max_unread_samples : 10 * CS_VOCODER_RATE;
}

/* Codes of an attention block; windows begin at multiples of it. A block that holds no whole number
 * of codes is doubled until it does. */
static int64_t codes_of_block(const cs_qwen2_5_omni_dit_config *dit)
{
    int64_t frames = dit->block_size;
    while (frames % dit->repeats != 0)
        frames += dit->block_size;
    return frames / dit->repeats;
}

static int64_t block_codes(const cs_token2wav *t)
{
    return codes_of_block(&t->config.dit);
}

uint32_t cs_token2wav_first_codes(const cs_qwen2_5_omni_config *config)
{
    return (uint32_t)((FIRST_CHUNK_BLOCKS + EARLY_BLOCKS_AFTER) * codes_of_block(&config->dit));
}

cs_token2wav_stream *cs_token2wav_stream_new(cs_token2wav *t, const char *voice,
                                             const cs_token2wav_options *options, GError **error)
{
    const cs_speaker *speaker = cs_speakers_find(&t->speakers, voice);
    if (!speaker) {
        g_autoptr(GString) names = g_string_new(NULL);
        for (uint32_t i = 0; i < t->speakers.n; i++)
            g_string_append_printf(names, "%s%s", i ? ", " : "", t->speakers.speakers[i].name);
        cs_fail(error, CS_ERROR_NOT_FOUND, "voice \"%.40s\": this model has %s", voice, names->str);
        return NULL;
    }
    cs_token2wav_stream *s = g_new0(cs_token2wav_stream, 1);
    s->owner = t;
    s->voice = &t->voices[speaker - t->speakers.speakers];
    s->options = *options;
    set_defaults(&s->options);
    s->end_code = s->options.first_chunk_blocks * block_codes(t);
    s->codes = g_array_new(FALSE, FALSE, sizeof(int32_t));
    s->mel = g_array_new(FALSE, TRUE, sizeof(float));
    s->samples = g_array_new(FALSE, FALSE, sizeof(float));
    return s;
}

void cs_token2wav_stream_free(cs_token2wav_stream *stream)
{
    if (!stream)
        return;
    cs_dit_window_free(stream->window);
    g_array_unref(stream->codes);
    g_array_unref(stream->mel);
    g_array_unref(stream->samples);
    g_free(stream);
}

/* Codes that the window of the present chunk ends with, however many have come. */
static int64_t wanted_end(const cs_token2wav_stream *s)
{
    int64_t block = block_codes(s->owner);
    bool early = s->end_code - s->first_code < s->options.chunk_blocks * block;
    return s->end_code + (early ? s->options.early_blocks_after : s->options.blocks_after) * block;
}

static int64_t window_end(const cs_token2wav_stream *s)
{
    return MIN(wanted_end(s), (int64_t)s->codes->len);
}

static bool enough_codes(const cs_token2wav_stream *s)
{
    return s->closed || (!s->options.whole && s->codes->len >= wanted_end(s));
}

/* A chunk is as long as all before it: what has been heard so far lasts while it is made. */
static void next_chunk(cs_token2wav_stream *s, int64_t end)
{
    int64_t most = s->options.chunk_blocks * block_codes(s->owner);
    s->end_code = end + MIN(most, end);
    s->first_code = end;
}

/* Whether no sample that is wanted depends on the chunk's frames: the vocoder begins at most a
 * chunk and what lies ahead of it before the first one, and looks back from there. */
static bool is_past(const cs_token2wav_stream *s)
{
    const cs_token2wav *t = s->owner;
    int64_t repeats = t->config.dit.repeats;
    int64_t slack = (s->options.chunk_blocks + s->options.blocks_after) * block_codes(t) * repeats +
                    2 * cs_vocoder_context(t->vocoder);
    int64_t first =
        (int64_t)(s->options.first_sample / (uint64_t)cs_vocoder_samples_per_frame(t->vocoder));
    return !s->options.whole && s->end_code * repeats + slack <= first &&
           s->end_code <= s->codes->len;
}

/* Frames that can be voiced of n_frames that are final and n_ahead behind them. */
static int64_t voiced_end(const cs_token2wav_stream *s, int64_t n_frames, int64_t n_ahead)
{
    int64_t all = s->codes->len * s->owner->config.dit.repeats;
    if (n_ahead == 0 && s->closed && n_frames == all)
        return n_frames;
    int64_t end = MIN(n_frames, n_frames + n_ahead - cs_vocoder_context(s->owner->vocoder));
    return MAX(s->n_voiced, end);
}

/* Goes on to the first chunk that matters. */
static void skip_past(cs_token2wav_stream *s)
{
    const cs_qwen2_5_omni_dit_config *c = &s->owner->config.dit;
    while (!s->window && s->first_code < s->codes->len && enough_codes(s) && is_past(s)) {
        int64_t n_frames = s->end_code * c->repeats;
        int64_t n_ahead = (window_end(s) - s->end_code) * c->repeats;
        s->n_voiced = voiced_end(s, n_frames, n_ahead);
        g_array_set_size(s->mel, (guint)(n_frames * c->n_mels));
        next_chunk(s, s->end_code);
    }
}

bool cs_token2wav_stream_push(cs_token2wav_stream *stream, uint32_t n, const int32_t *codes,
                              bool last, GError **error)
{
    if (stream->closed)
        return cs_fail(error, CS_ERROR_INVALID, "speech: codes after the last one");
    if (n > stream->options.max_codes - stream->codes->len)
        return cs_fail(error, CS_ERROR_TOO_LARGE, "speech of more than %u codes",
                       stream->options.max_codes);
    for (uint32_t i = 0; i < n; i++)
        if (codes[i] < 0 || codes[i] > stream->owner->config.dit.n_codes)
            return cs_fail(error, CS_ERROR_INVALID, "code %d, expected 0 to %" G_GINT64_FORMAT,
                           codes[i], stream->owner->config.dit.n_codes);
    g_array_append_vals(stream->codes, codes, n);
    stream->closed = last;
    skip_past(stream);
    return true;
}

uint32_t cs_token2wav_stream_unread(const cs_token2wav_stream *stream)
{
    return stream->samples->len - stream->n_read;
}

bool cs_token2wav_stream_finished(const cs_token2wav_stream *s)
{
    return s->closed && s->first_code >= s->codes->len;
}

bool cs_token2wav_stream_ready(const cs_token2wav_stream *s)
{
    if (s->window)
        return true;
    return s->first_code < s->codes->len && enough_codes(s) &&
           cs_token2wav_stream_unread(s) < s->options.max_unread_samples;
}

static bool open_window(cs_token2wav_stream *s, GError **error)
{
    const cs_qwen2_5_omni_dit_config *c = &s->owner->config.dit;
    int64_t before = s->options.blocks_before * block_codes(s->owner);
    if (s->options.whole)
        s->end_code = s->codes->len;
    s->window_code = MAX(0, s->first_code - before);
    s->window_end = window_end(s);
    int64_t n = s->window_end - s->window_code;
    g_autofree float *noise =
        make_noise(s->options.seed, s->window_code * c->repeats, n * c->repeats, c->n_mels);
    s->window = cs_dit_window_new(s->owner->dit, s->voice, n,
                                  &g_array_index(s->codes, int32_t, s->window_code), noise, error);
    return s->window != NULL;
}

/* The samples of frames whose context is there, or of all when there will be no more. Behind the
 * frames that are final stand n_ahead that a later window will make better: near enough for a
 * context, so that a chunk is heard when it is made. */
static bool voice(cs_token2wav_stream *s, int64_t n_ahead, const float *ahead, GError **error)
{
    const cs_token2wav *t = s->owner;
    int64_t n_mels = t->config.dit.n_mels, context = cs_vocoder_context(t->vocoder);
    int64_t n_frames = s->mel->len / n_mels, rate = cs_vocoder_samples_per_frame(t->vocoder);
    int64_t end = voiced_end(s, n_frames, n_ahead);
    int64_t wanted = MAX((int64_t)s->options.first_sample, s->n_voiced * rate);
    if (end * rate <= wanted) {
        s->n_voiced = end;
        return true;
    }
    int64_t first = MAX(0, s->n_voiced - context), n_own = n_frames - first;
    int64_t n = n_own + MIN(n_ahead, context);
    g_autofree float *mel = g_try_new(float, n *n_mels);
    g_autofree float *made = g_try_new(float, n *rate);
    if (!mel || !made)
        return cs_fail(error, CS_ERROR_FAILED, "no memory for %" G_GINT64_FORMAT " samples",
                       n * rate);
    memcpy(mel, &g_array_index(s->mel, float, first *n_mels), sizeof(*mel) * n_own * n_mels);
    if (n > n_own)
        memcpy(mel + n_own * n_mels, ahead, sizeof(*mel) * (n - n_own) * n_mels);
    if (!cs_vocoder_run(t->vocoder, n, mel, made, error))
        return false;
    g_array_append_vals(s->samples, made + (wanted - first * rate), (guint)(end * rate - wanted));
    s->n_voiced = end;
    return true;
}

/* Takes the chunk's frames out of its window, and goes on to the next chunk. */
static bool finish_window(cs_token2wav_stream *s, GError **error)
{
    const cs_qwen2_5_omni_dit_config *c = &s->owner->config.dit;
    int64_t row = c->repeats * c->n_mels, end = MIN(s->end_code, (int64_t)s->codes->len);
    int64_t n_ahead = s->window_end - end;
    const float *state = cs_dit_window_state(s->window);
    guint n_before = s->mel->len;
    g_array_append_vals(s->mel, state + (s->first_code - s->window_code) * row,
                        (guint)((end - s->first_code) * row));
    if (!voice(s, n_ahead * c->repeats, state + (end - s->window_code) * row, error)) {
        g_array_set_size(s->mel, n_before);
        return false;
    }
    g_clear_pointer(&s->window, cs_dit_window_free);
    next_chunk(s, end);
    return true;
}

bool cs_token2wav_step(cs_token2wav *t, uint32_t n, cs_token2wav_stream *const *streams,
                       GError **error)
{
    cs_dit_window *windows[MAX_STREAMS];
    g_assert(n > 0 && n <= MAX_STREAMS);
    for (uint32_t i = 0; i < n; i++) {
        g_assert(streams[i]->owner == t && cs_token2wav_stream_ready(streams[i]));
        if (!streams[i]->window && !open_window(streams[i], error))
            return false;
        windows[i] = streams[i]->window;
    }
    uint32_t n_left = 0;
    for (uint32_t i = 0; i < n; i++) /* one that failed in the vocoder needs only that */
        if (cs_dit_window_steps(windows[i]) < CS_DIT_STEPS)
            windows[n_left++] = windows[i];
    if (n_left > 0 && !cs_dit_step(t->dit, n_left, windows, error))
        return false;
    for (uint32_t i = 0; i < n; i++)
        if (cs_dit_window_steps(streams[i]->window) == CS_DIT_STEPS &&
            !finish_window(streams[i], error))
            return false;
    return true;
}

uint32_t cs_token2wav_stream_read(cs_token2wav_stream *s, uint32_t n, float *out)
{
    n = MIN(n, cs_token2wav_stream_unread(s));
    if (n > 0)
        memcpy(out, &g_array_index(s->samples, float, s->n_read), n * sizeof *out);
    s->n_read += n;
    if (s->n_read == s->samples->len) {
        g_array_set_size(s->samples, 0);
        s->n_read = 0;
    }
    return n;
}

/* ---- As the component of a generator engine ---- */

cs_generator *cs_token2wav_generator(cs_token2wav *token2wav)
{
    return &token2wav->generator;
}

static cs_generation *generator_open(cs_generator *generator, const char *voice, uint64_t seed,
                                     uint64_t first_sample, GError **error)
{
    const cs_token2wav_options options = {.seed = seed, .first_sample = first_sample};
    return (cs_generation *)cs_token2wav_stream_new((cs_token2wav *)generator, voice, &options,
                                                    error);
}

static void generator_close(cs_generation *generation)
{
    cs_token2wav_stream_free((cs_token2wav_stream *)generation);
}

static bool generator_push(cs_generation *generation, uint32_t n, const int32_t *codes, bool last,
                           GError **error)
{
    return cs_token2wav_stream_push((cs_token2wav_stream *)generation, n, codes, last, error);
}

static bool generator_ready(const cs_generation *generation)
{
    return cs_token2wav_stream_ready((const cs_token2wav_stream *)generation);
}

static bool generator_finished(const cs_generation *generation)
{
    return cs_token2wav_stream_finished((const cs_token2wav_stream *)generation);
}

static bool generator_step(cs_generator *generator, uint32_t n, cs_generation *const *generations,
                           GError **error)
{
    return cs_token2wav_step((cs_token2wav *)generator, n,
                             (cs_token2wav_stream *const *)generations, error);
}

static uint32_t generator_unread(const cs_generation *generation)
{
    return cs_token2wav_stream_unread((const cs_token2wav_stream *)generation);
}

static uint32_t generator_read(cs_generation *generation, uint32_t n, float *out)
{
    return cs_token2wav_stream_read((cs_token2wav_stream *)generation, n, out);
}

static void generator_free(cs_generator *generator)
{
    cs_token2wav_free((cs_token2wav *)generator);
}

static const cs_generator_ops generator_ops = {.open = generator_open,
                                               .close = generator_close,
                                               .push = generator_push,
                                               .ready = generator_ready,
                                               .finished = generator_finished,
                                               .step = generator_step,
                                               .unread = generator_unread,
                                               .read = generator_read,
                                               .free = generator_free};
