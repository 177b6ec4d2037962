#include "api/sound.h"

#define N_MAKERS 2

struct cs_sound {
    gint refs;
    cs_sound_options options;
    cs_audio_encoder *encoder; /* of the maker that has the sound */

    GMutex lock;     /* what follows */
    GArray *samples; /* float, to be encoded */
    bool ended;      /* no more will come */
    bool in_making;  /* a maker has it, or will */
    bool complete;
    GByteArray *bytes; /* made and not taken */
    uint64_t n_made;   /* samples in them */
    GError *error;
};

cs_sound *cs_sound_new(const cs_sound_options *options)
{
    cs_sound *s = g_new0(cs_sound, 1);
    s->refs = 1;
    s->options = *options;
    cs_exchange_ref(options->x);
    s->samples = g_array_new(FALSE, FALSE, sizeof(float));
    s->bytes = g_byte_array_new();
    g_mutex_init(&s->lock);
    return s;
}

void cs_sound_unref(cs_sound *s)
{
    if (!s || !g_atomic_int_dec_and_test(&s->refs))
        return;
    cs_audio_encoder_free(s->encoder);
    cs_exchange_unref(s->options.x);
    g_array_unref(s->samples);
    g_byte_array_unref(s->bytes);
    g_clear_error(&s->error);
    g_mutex_clear(&s->lock);
    g_free(s);
}

/* ---- making ---- */

/* With the lock held. */
static bool has_work(const cs_sound *s)
{
    if (s->complete || s->error)
        return false;
    return s->ended || s->samples->len > 0;
}

/* With the lock held. */
static void give_to_maker(cs_sound *s)
{
    if (s->in_making || !has_work(s))
        return;
    s->in_making = true;
    g_atomic_int_inc(&s->refs);
    g_thread_pool_push(s->options.makers, s, NULL);
}

/* The header of a whole WAV file is made when its length is known; until then its samples are. */
static bool waits_for_header(const cs_sound *s)
{
    return s->options.whole && s->options.format == CS_AUDIO_WAV;
}

static bool encode(cs_sound *s, const GArray *samples, bool last, GByteArray *out, GError **error)
{
    const cs_sound_options *o = &s->options;
    if (!s->encoder)
        s->encoder = cs_audio_encoder_new(waits_for_header(s) ? CS_AUDIO_PCM16 : o->format,
                                          o->sample_rate, 0, o->pool, out, error);
    return s->encoder &&
           cs_audio_encoder_write(s->encoder, (const float *)(const void *)samples->data,
                                  samples->len, out, error) &&
           (!last || cs_audio_encoder_finish(s->encoder, out, error));
}

/* With the lock held: what stands before the samples of a whole WAV file. */
static void add_header(cs_sound *s)
{
    g_autoptr(GByteArray) samples = g_steal_pointer(&s->bytes);
    s->bytes = g_byte_array_sized_new(samples->len + 64);
    cs_audio_encoder_free(cs_audio_encoder_new(CS_AUDIO_WAV, s->options.sample_rate, s->n_made,
                                               NULL, s->bytes, NULL));
    g_byte_array_append(s->bytes, samples->data, samples->len);
}

/* The body of a maker. */
static void make(gpointer data, gpointer unused)
{
    cs_sound *s = data;
    g_mutex_lock(&s->lock);
    while (has_work(s)) {
        g_autoptr(GArray) samples = g_steal_pointer(&s->samples);
        g_autoptr(GByteArray) bytes = g_byte_array_new();
        g_autoptr(GError) error = NULL;
        bool last = s->ended;
        s->samples = g_array_new(FALSE, FALSE, sizeof(float));
        g_mutex_unlock(&s->lock);
        bool ok = encode(s, samples, last, bytes, &error);
        g_mutex_lock(&s->lock);
        if (ok) {
            g_byte_array_append(s->bytes, bytes->data, bytes->len);
            s->n_made += samples->len;
            s->complete = last;
            if (last && waits_for_header(s))
                add_header(s);
        } else {
            s->error = g_steal_pointer(&error);
        }
        cs_exchange_wake(s->options.x);
    }
    s->in_making = false;
    g_mutex_unlock(&s->lock);
    cs_sound_unref(s);
}

GThreadPool *cs_sound_makers_new(void)
{
    return g_thread_pool_new(make, NULL, N_MAKERS, FALSE, NULL);
}

/* ---- in and out ---- */

void cs_sound_add(cs_sound *s, uint32_t n_samples, const float *samples)
{
    g_mutex_lock(&s->lock);
    g_array_append_vals(s->samples, samples, n_samples);
    give_to_maker(s);
    g_mutex_unlock(&s->lock);
}

void cs_sound_end(cs_sound *s)
{
    g_mutex_lock(&s->lock);
    s->ended = true;
    give_to_maker(s);
    g_mutex_unlock(&s->lock);
}

bool cs_sound_take(cs_sound *s, GByteArray *out, uint64_t *n_samples, bool *complete,
                   GError **error)
{
    g_mutex_lock(&s->lock);
    if (s->complete || !waits_for_header(s)) {
        g_byte_array_append(out, s->bytes->data, s->bytes->len);
        g_byte_array_set_size(s->bytes, 0);
        *n_samples += s->n_made;
        s->n_made = 0;
    }
    *complete = s->complete;
    if (s->error)
        g_propagate_error(error, g_error_copy(s->error));
    bool ok = !s->error;
    g_mutex_unlock(&s->lock);
    return ok;
}
