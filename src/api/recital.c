#include "api/recital.h"

#include <string.h>

/* Long enough that a step from or to silence is no click, too short to be heard as a fade. */
#define FADE_SECONDS 0.005

/* What is usual in reading aloud; the speaker's own pauses at his ends come on top. */
static const double pause_seconds[] = {[CS_PASSAGE_CHARACTER] = 0,
                                       [CS_PASSAGE_WORD] = 0.02,
                                       [CS_PASSAGE_CLAUSE] = 0.12,
                                       [CS_PASSAGE_SENTENCE] = 0.25,
                                       [CS_PASSAGE_PARAGRAPH] = 0.5};

typedef struct {
    GArray *samples; /* float: come, and not yet heard */
    uint64_t n_heard;
    uint32_t n_pause; /* samples behind it */
    bool ended;
} passage;

struct cs_recital {
    uint32_t n_passages, current, n_fade;
    passage *passages;
};

cs_recital *cs_recital_new(const GArray *passages, uint32_t sample_rate)
{
    cs_recital *r = g_new0(cs_recital, 1);
    r->n_passages = passages ? passages->len : 1;
    r->n_fade = (uint32_t)(FADE_SECONDS * sample_rate);
    r->passages = g_new0(passage, r->n_passages);
    for (uint32_t i = 0; i < r->n_passages; i++)
        r->passages[i].samples = g_array_new(FALSE, FALSE, sizeof(float));
    for (uint32_t i = 0; i + 1 < r->n_passages; i++) {
        cs_passage_end end = g_array_index(passages, cs_passage, i).end;
        r->passages[i].n_pause = (uint32_t)(pause_seconds[end] * sample_rate);
    }
    return r;
}

void cs_recital_free(cs_recital *r)
{
    if (!r)
        return;
    for (uint32_t i = 0; i < r->n_passages; i++)
        g_array_unref(r->passages[i].samples);
    g_free(r->passages);
    g_free(r);
}

/* Of a sample that is so many from the end at which silence is. */
static float gain(const cs_recital *r, uint64_t distance)
{
    return distance < r->n_fade ? (float)(distance + 1) / (float)(r->n_fade + 1) : 1;
}

/* Hands out all but the last samples of the current passage: those are faded when it has ended. */
static void hear(cs_recital *r, GArray *out)
{
    passage *p = &r->passages[r->current];
    float *samples = (float *)(void *)p->samples->data;
    bool first = r->current == 0, last = r->current + 1 == r->n_passages;
    uint32_t n = p->samples->len, n_kept = last || p->ended ? 0 : MIN(n, r->n_fade);
    if (n == n_kept)
        return;
    for (uint32_t i = 0; i < n - n_kept; i++) {
        float in = first ? 1 : gain(r, p->n_heard + i);
        float off = last || !p->ended ? 1 : gain(r, n - 1 - i);
        samples[i] *= MIN(in, off);
    }
    g_array_append_vals(out, samples, n - n_kept);
    p->n_heard += n - n_kept;
    g_array_remove_range(p->samples, 0, n - n_kept);
}

void cs_recital_add(cs_recital *r, uint32_t i, uint32_t n, const float *samples, GArray *out)
{
    g_array_append_vals(r->passages[i].samples, samples, n);
    if (i == r->current)
        hear(r, out);
}

void cs_recital_end(cs_recital *r, uint32_t i, GArray *out)
{
    r->passages[i].ended = true;
    while (r->current < r->n_passages) {
        passage *p = &r->passages[r->current];
        hear(r, out);
        if (!p->ended)
            return;
        if (++r->current < r->n_passages) {
            guint at = out->len;
            g_array_set_size(out, at + p->n_pause);
            memset((float *)(void *)out->data + at, 0, p->n_pause * sizeof(float));
        }
    }
}

uint32_t cs_recital_current(const cs_recital *r)
{
    return r->current;
}
