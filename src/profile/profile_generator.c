/* Generators: speeches of each length, as many at once as the engine steps together. A unit of work
 * is a code of each; a sample is what a unit took in the mean of a whole speech. What a piece costs
 * beyond its codes, because windows overlap, counts as so many codes more. */
#include "base/error.h"
#include "base/os.h"
#include "profile/profile_internal.h"

#include <math.h>
#include <string.h>

#define MAX_STREAMS 64
#define MAX_PIECES 64 /* of a speech that is looked at */
#define SEED 1

typedef struct {
    profile_run *run;
    cs_generator *generator;
    int32_t n_codes; /* that there are */
    /* Of the last speech. */
    double piece_s[MAX_PIECES]; /* each made in so long */
    uint32_t piece_codes[MAX_PIECES];
    uint32_t n_pieces; /* of which the first MAX_PIECES are here */
} generator_bench;

static cs_generation *open_stream(const generator_bench *b, uint32_t number, GError **error)
{
    const cs_speech *speech = b->run->model->speech;
    return b->generator->ops->open(b->generator, speech->voice ? speech->voice : speech->voices[0],
                                   SEED + number, 0, error);
}

static bool push_codes(const generator_bench *b, cs_generation *stream, uint32_t n, bool last,
                       GError **error)
{
    g_autofree int32_t *codes = g_new(int32_t, n);
    for (uint32_t i = 0; i < n; i++)
        codes[i] = (int32_t)((i * 2654435761u >> 8) % (uint32_t)b->n_codes);
    return b->generator->ops->push(stream, n, codes, last, error);
}

static uint32_t drop_samples(const generator_bench *b, cs_generation *stream)
{
    float samples[4096];
    uint32_t total = 0, n;
    while ((n = b->generator->ops->read(stream, G_N_ELEMENTS(samples), samples)) > 0)
        total += n;
    return total;
}

/* ---- how it streams ---- */

/* Feeds a stream code by code: when it first had enough, and how much it made of that. */
static bool watch_stream(generator_bench *b, cs_generation *stream, GError **error)
{
    const cs_generator_ops *ops = b->generator->ops;
    uint32_t n_codes = 0, made = 0, before = 0, limit = b->generator->samples_per_code;
    while (n_codes < b->run->options->speech_codes.values[b->run->options->speech_codes.n - 1]) {
        if (!ops->ready(stream)) {
            n_codes++;
            if (!push_codes(b, stream, 1, false, error))
                return false;
            continue;
        }
        if (!ops->step(b->generator, 1, &stream, error))
            return false;
        uint32_t piece = drop_samples(b, stream) / limit;
        if (piece == 0)
            continue;
        made += piece;
        if (b->run->stream.piece == 0) {
            b->run->stream.first_piece = piece;
            b->run->stream.ahead = n_codes - piece;
        }
        b->run->stream.piece = MAX(b->run->stream.piece, piece);
        if (piece == before) /* they do not grow any more */
            break;
        before = piece;
    }
    return true;
}

static void say_stream(const profile_run *run)
{
    const cs_profiler_stream *s = &run->stream;
    if (!run->options->say || s->piece == 0)
        return;
    g_autofree char *line = g_strdup_printf(
        "%s: its first %.0f codes come of %.0f, later up to %.0f at once; a piece costs %.0f more",
        run->component, s->first_piece, s->first_piece + s->ahead, s->piece, s->piece_extra);
    run->options->say(run->options->user, line);
}

/* ---- how fast it is ---- */

/* Steps n streams, which are alike, to their end. */
static bool run_streams(generator_bench *b, uint32_t n, cs_generation *const *streams,
                        double *took_s, GError **error)
{
    const cs_generator_ops *ops = b->generator->ops;
    double since_s = 0;
    b->n_pieces = 0;
    *took_s = 0;
    while (!ops->finished(streams[0])) {
        profile_let_others(b->run);
        int64_t start = cs_now_us();
        if (!ops->step(b->generator, n, streams, error))
            return false;
        double step_s = (double)(cs_now_us() - start) * 1e-6;
        since_s += step_s;
        *took_s += step_s;
        uint32_t made = 0;
        for (uint32_t i = 0; i < n; i++)
            made = drop_samples(b, streams[i]) / b->generator->samples_per_code;
        if (made == 0)
            continue;
        if (b->n_pieces < MAX_PIECES) {
            b->piece_codes[b->n_pieces] = made;
            b->piece_s[b->n_pieces] = since_s;
        }
        b->n_pieces++;
        since_s = 0;
    }
    return true;
}

static bool time_speech(generator_bench *b, uint32_t n, uint32_t n_codes, double *took_s,
                        GError **error)
{
    cs_generation *streams[MAX_STREAMS] = {0};
    bool ok = true;
    for (uint32_t i = 0; i < n && ok; i++)
        ok = (streams[i] = open_stream(b, i, error)) != NULL &&
             push_codes(b, streams[i], n_codes, true, error);
    ok = ok && run_streams(b, n, streams, took_s, error);
    for (uint32_t i = 0; i < n; i++)
        b->generator->ops->close(streams[i]);
    return ok;
}

/* What a piece costs beyond its codes, in codes: pieces of different lengths on a line, each by the
 * shorter of its times in two speeches. Those at the end look less far ahead and are left out. */
static bool fit_pieces(generator_bench *b, GError **error)
{
    const cs_profiler_list *lengths = &b->run->options->speech_codes;
    double took_s, before_s[MAX_PIECES];
    for (int i = 0; i < 2; i++) {
        memcpy(before_s, b->piece_s, sizeof before_s);
        if (!time_speech(b, 1, lengths->values[lengths->n - 1], &took_s, error))
            return false;
    }
    double n = 0, x = 0, y = 0, xx = 0, xy = 0;
    for (uint32_t i = 0; i + 2 < MIN(b->n_pieces, MAX_PIECES); i++) {
        double codes = b->piece_codes[i];
        n++;
        x += codes;
        y += MIN(b->piece_s[i], before_s[i]);
        xx += codes * codes;
        xy += codes * MIN(b->piece_s[i], before_s[i]);
    }
    double spread = n * xx - x * x, slope = spread > 0 ? (n * xy - x * y) / spread : 0;
    double base = n > 0 ? (y - slope * x) / n : 0;
    if (slope > 0 && base > 0)
        b->run->stream.piece_extra = MIN(round(base / slope), b->run->stream.piece);
    return true;
}

/* Of a speech that was just made, in codes: those it has, and what its pieces cost beyond. */
static double work_of(const generator_bench *b, uint32_t n_codes)
{
    return n_codes + b->n_pieces * b->run->stream.piece_extra;
}

static bool time_speeches(generator_bench *b, profile_point *point, uint32_t n, uint32_t n_codes,
                          GError **error)
{
    while (!profile_point_is_done(point)) {
        double took_s;
        if (!time_speech(b, n, n_codes, &took_s, error))
            return false;
        profile_point_add(point, took_s / work_of(b, n_codes));
    }
    return true;
}

/* What the first piece and the longest took, and how fast that is. */
static void say_speech(const generator_bench *b, const profile_point *point, uint32_t n,
                       uint32_t n_codes)
{
    const cs_profiler_options *o = b->run->options;
    double second = (double)b->generator->sample_rate / b->generator->samples_per_code;
    uint32_t most = 0;
    if (!o->say || point->n == 0 || b->n_pieces == 0)
        return;
    for (uint32_t i = 0; i < MIN(b->n_pieces, MAX_PIECES); i++)
        most = b->piece_codes[i] > b->piece_codes[most] ? i : most;
    profile_point_say(b->run, point, "%u speech%s of %u codes, for a code of each", n,
                      n == 1 ? "" : "es", n_codes);
    g_autofree char *line = g_strdup_printf(
        "    %.3g s of sound in a second; the first %u codes took %.4g ms, later %u %.4g ms",
        n * n_codes / (second * work_of(b, n_codes) * point->sum_s / point->n), b->piece_codes[0],
        1e3 * b->piece_s[0], b->piece_codes[most], 1e3 * b->piece_s[most]);
    o->say(o->user, line);
}

static bool measure(generator_bench *b, GError **error)
{
    const cs_profiler_options *o = b->run->options;
    uint32_t full = b->generator->full_batch ? b->generator->full_batch : b->generator->max_batch;
    cs_profiler_entry *entry = profile_add_entry(b->run, CS_ROLE_BOTH);
    entry->max_batch = MIN(full, MAX_STREAMS);
    double share_s = o->seconds / o->speech_codes.n / (1 + log2(entry->max_batch));
    for (uint32_t n = 1; n < 2 * entry->max_batch; n *= 2)
        for (uint32_t k = 0; k < o->speech_codes.n; k++) {
            uint32_t n_streams = MIN(n, entry->max_batch), n_codes = o->speech_codes.values[k];
            profile_point point = profile_point_new(b->run, entry, n_streams, share_s, 0);
            if (!time_speeches(b, &point, n_streams, n_codes, error))
                return false;
            say_speech(b, &point, n_streams, n_codes);
        }
    return true;
}

bool profile_generator(profile_run *run, cs_generator *generator, GError **error)
{
    generator_bench b = {
        .run = run, .generator = generator, .n_codes = run->model->speech->n_codes};
    cs_generation *stream = open_stream(&b, 0, error);
    bool ok = stream && watch_stream(&b, stream, error);
    generator->ops->close(stream);
    if (!ok || !fit_pieces(&b, error))
        return false;
    say_stream(run);
    if (!measure(&b, error))
        return false;
    profile_note_activations(run, 0);
    return true;
}
