#include "plan/sim.h"

#include "base/error.h"
#include "plan/sim_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_REQUESTS 10000
#define DEFAULT_WARM_UP 0.05
#define DEFAULT_IN_FLIGHT 200000
#define SCATTER_DRAWS 8
#define GOLDEN 0.6180339887498949 /* of the low-discrepancy sequence for paths */

/* ---- events: a binary heap by time; ties go to the earlier insertion, so runs repeat ---- */

static inline bool event_before(const sim_event *a, const sim_event *b)
{
    return a->t < b->t || (a->t == b->t && a->order < b->order);
}

static void event_push(sim *s, double t, sim_event_kind kind, guint32 a, guint32 b)
{
    if (s->n_heap == s->heap_capacity) {
        s->heap_capacity = s->heap_capacity ? s->heap_capacity * 2 : 1024;
        s->heap = g_renew(sim_event, s->heap, s->heap_capacity);
    }
    sim_event event = {.t = t, .order = s->order++, .kind = kind, .a = a, .b = b};
    size_t i = s->n_heap++;
    while (i > 0 && event_before(&event, &s->heap[(i - 1) / 2])) {
        s->heap[i] = s->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    s->heap[i] = event;
}

static sim_event event_pop(sim *s)
{
    sim_event top = s->heap[0], last = s->heap[--s->n_heap];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= s->n_heap)
            break;
        if (child + 1 < s->n_heap && event_before(&s->heap[child + 1], &s->heap[child]))
            child++;
        if (!event_before(&s->heap[child], &last))
            break;
        s->heap[i] = s->heap[child];
        i = child;
    }
    s->heap[i] = last;
    return top;
}

/* ---- queues of jobs ---- */

static void queue_push(sim_queue *q, guint32 job)
{
    if (q->n == q->capacity) {
        guint32 capacity = q->capacity ? q->capacity * 2 : 16;
        guint32 *items = g_new(guint32, capacity);
        for (guint32 i = 0; i < q->n; i++)
            items[i] = q->items[(q->head + i) % q->capacity];
        g_free(q->items);
        *q = (sim_queue){items, 0, q->n, capacity};
    }
    q->items[(q->head + q->n++) % q->capacity] = job;
}

static guint32 queue_pop(sim_queue *q)
{
    guint32 job = q->items[q->head];
    q->head = (q->head + 1) % q->capacity;
    q->n--;
    return job;
}

/* ---- accounting ---- */

static void spread(const sim *s, float *bins, size_t stride, double from, double to, double value)
{
    if (!bins || s->bin_s <= 0)
        return;
    while (from < to) {
        size_t bin = (size_t)(from / s->bin_s);
        if (bin >= s->o->bins)
            return;
        double end = MIN(to, (double)(bin + 1) * s->bin_s);
        if (end <= from)
            end = to; /* rounding: the bin's border is not above `from` */
        bins[bin * stride] += (float)((end - from) * value);
        from = end;
    }
}

static void account_busy(sim *s, const sim_server *server, double from, double to)
{
    s->r->busy[server->site] += to - from;
    if (s->r->busy_bins)
        spread(s, s->r->busy_bins + server->site, s->n_sites, from, to, 1);
}

/* ---- rounds ---- */

static void round_start(sim *s, guint32 id);

static inline sim_job *job_at(sim *s, guint32 job)
{
    return &s->jobs[job];
}

/* KV memory the job will hold; half its output on average. */
static bool kv_admit(const sim_server *server, const sim_job *job)
{
    return server->kv_used + job->kv <= server->exec->kv_budget_bytes || server->n_holding == 0;
}

static void kv_take(sim_server *server, sim_job *job)
{
    server->kv_used += job->kv;
    server->n_holding++;
    job->holds = true;
}

static void kv_release(sim_server *server, sim_job *job)
{
    if (!job->holds)
        return;
    server->kv_used -= job->kv;
    server->n_holding--;
    job->holds = false;
}

static void fill_batch(sim *s, sim_server *server, sim_stage *stage, const cs_exec_stage *x)
{
    double units = 0;
    while (stage->queue.n > 0 && stage->n_active < (guint32)x->batch) {
        guint32 job = queue_pop(&stage->queue);
        stage->active[stage->n_active++] = job;
        units += job_at(s, job)->cost;
    }
    if (stage->n_active == 0)
        return;
    stage->ticket = ++server->tickets;
    stage->turns_left = (guint32)x->profile->turns;
    stage->turn_s = (x->fixed_s + x->per_unit_s * units) / stage->turns_left;
}

/* Whether a batch, among those that are computed in turns, is the one whose turns these are: they
 * are computed one after the other, in the order in which they were put together. */
static bool is_first_batch(const sim_server *server, const sim_stage *stage)
{
    for (int i = 0; i < server->n_stages; i++) {
        const sim_stage *other = &server->stages[i];
        if (other->kind == CS_STAGE_BATCH && other->n_active > 0 && other->ticket < stage->ticket &&
            server->exec->stages[other->index].profile->turns > 1)
            return false;
    }
    return true;
}

/* The next turn of a batch, if it is its. */
static double start_batch(const sim_server *server, sim_stage *stage, const cs_exec_stage *x)
{
    stage->in_turn =
        stage->n_active > 0 && (x->profile->turns == 1 || is_first_batch(server, stage));
    return stage->in_turn ? stage->turn_s : 0;
}

/* The decode job of a prompt if it runs on the same server, which then keeps a place in the decode
 * batch and the memory for it; NULL if the cache will move elsewhere. */
static sim_job *decode_here(sim *s, const sim_stage *stage, guint32 id)
{
    sim_job *twin = stage->decode ? job_at(s, id + (guint32)stage->twin_offset) : NULL;
    return twin && twin->server == job_at(s, id)->server ? twin : NULL;
}

static bool admit_prompt(sim *s, sim_server *server, const sim_stage *stage, guint32 id,
                         const cs_exec_stage *x)
{
    sim_job *job = job_at(s, id), *twin = decode_here(s, stage, id);
    if (stage->n_active >= (guint32)x->batch)
        return false;
    if (twin) {
        const cs_exec_stage *d = &server->exec->stages[stage->decode->index];
        if (stage->decode->n_active + stage->decode->queue.n + stage->decode->reserved >=
            (guint32)d->batch)
            return false;
    }
    return job->kv <= 0 || kv_admit(server, twin ? twin : job);
}

static bool is_decoding(const sim_stage *decode)
{
    return decode->n_active + decode->queue.n > 0;
}

static double start_prefill(sim *s, sim_server *server, sim_stage *stage, const cs_exec_stage *x)
{
    double budget = x->profile->chunk_units > 0 ? x->profile->chunk_units : INFINITY, work = 0;
    if (x->profile->mixed_step_s > 0 && stage->decode && is_decoding(stage->decode))
        budget = MIN(budget, stage->mixed_work);
    for (guint32 i = 0; i < stage->n_active; i++) { /* prompts begun in earlier rounds */
        sim_job *job = job_at(s, stage->active[i]);
        job->slice = (float)MIN(budget, (double)(job->cost - job->done_cost));
        budget -= job->slice;
        work += job->slice;
    }
    while (stage->queue.n > 0 && budget > 0) {
        guint32 id = stage->queue.items[stage->queue.head];
        if (!admit_prompt(s, server, stage, id, x))
            break;
        queue_pop(&stage->queue);
        sim_job *job = job_at(s, id);
        sim_job *twin = decode_here(s, stage, id);
        if (twin) {
            stage->decode->reserved++;
            twin->reserves = true;
        }
        kv_take(server, twin ? twin : job);
        stage->active[stage->n_active++] = id;
        job->slice = (float)MIN(budget, (double)job->cost);
        budget -= job->slice;
        work += job->slice;
    }
    stage->work = work;
    return stage->n_active ? x->fixed_s + x->per_unit_s * work : 0;
}

/* What of prompts the next steps beside decode may have, after one that took so long: as the LLM
 * engine adapts it. */
static void adapt_mixed_work(sim_stage *stage, const cs_profile *profile, double seconds)
{
    double work =
        MIN(stage->work * profile->mixed_step_s / MAX(seconds, 1e-9), 2 * stage->mixed_work);
    if (stage->work < SIM_MIXED_MIN ||
        (work > stage->mixed_work && stage->work < stage->mixed_work))
        return;
    stage->mixed_work = MAX(work, SIM_MIXED_MIN);
}

/* The end of the piece that begins at or contains iteration `done`. */
static guint32 piece_end(const sim_stage_info *info, guint32 done)
{
    guint32 piece = info->first_piece, end = piece + info->piece_extra;
    while (end <= done && piece < info->piece) {
        piece = MIN(info->piece, 2 * piece);
        end += piece + info->piece_extra;
    }
    guint32 whole = piece + info->piece_extra;
    return end > done ? end : end + (done - end) / whole * whole + whole;
}

/* The iteration, counted by the stage, at which something happens to the job next. */
static void set_target(sim *s, sim_stage *stage, sim_job *job)
{
    const sim_stage_info *info = &s->info[stage->index];
    guint32 next = MIN(job->total, job->available);
    if (info->piece > 1)
        next = MIN(next, piece_end(info, job->done));
    else if (job->first_pending && job->done < 1)
        next = MIN(next, 1);
    if (job->chunk_every > 0) {
        guint32 border = (guint32)ceil(((double)job->chunks_sent + 1) * job->chunk_every - 1e-6);
        next = MIN(next, MAX(border, job->done + 1));
    }
    job->target = stage->iteration + (next - job->done);
    job->base = stage->iteration - job->done;
}

static double start_iterate(sim *s, sim_server *server, sim_stage *stage, const cs_exec_stage *x)
{
    while (stage->queue.n > 0 && stage->n_active < (guint32)x->batch) {
        guint32 id = stage->queue.items[stage->queue.head];
        sim_job *job = job_at(s, id);
        if (job->kv > 0 && !job->holds) {
            if (!kv_admit(server, job))
                break;
            kv_take(server, job);
        }
        queue_pop(&stage->queue);
        stage->active[stage->n_active++] = id;
        stage->weight += job->cost;
        set_target(s, stage, job);
    }
    if (stage->n_active == 0)
        return 0;
    /* prompts that are computed in the same step have paid for it */
    bool shared = stage->prefill && stage->prefill->n_active > 0;
    double paid = shared ? server->exec->stages[stage->prefill->index].fixed_s : 0;
    return MAX(x->fixed_s - paid, 0) + x->per_unit_s * stage->weight;
}

/* Rounds until something happens: a job of an iterating stage reaches its target, or a batch or a
 * part of a prompt is done. */
static guint32 rounds_ahead(sim *s, const sim_server *server)
{
    guint32 rounds = G_MAXUINT32;
    for (int i = 0; i < server->n_stages; i++) {
        const sim_stage *stage = &server->stages[i];
        if (stage->kind == CS_STAGE_PREFILL && stage->n_active > 0)
            return 1;
        if (stage->kind == CS_STAGE_BATCH && stage->in_turn)
            rounds = MIN(rounds, stage->turns_left);
        if (stage->kind != CS_STAGE_ITERATE)
            continue;
        for (guint32 k = 0; k < stage->n_active; k++)
            rounds = MIN(rounds, job_at(s, stage->active[k])->target - stage->iteration);
    }
    return rounds == G_MAXUINT32 ? 1 : MAX(rounds, 1);
}

static void round_start(sim *s, guint32 id)
{
    sim_server *server = &s->servers[id];
    double seconds = 0, prefill_s = 0;
    bool work = false;
    for (int i = 0; i < server->n_stages; i++) {
        sim_stage *stage = &server->stages[i];
        if (stage->kind == CS_STAGE_BATCH && stage->n_active == 0)
            fill_batch(s, server, stage, &server->exec->stages[stage->index]);
    }
    for (int i = 0; i < server->n_stages; i++) {
        sim_stage *stage = &server->stages[i];
        const cs_exec_stage *x = &server->exec->stages[stage->index];
        double step = stage->kind == CS_STAGE_BATCH     ? start_batch(server, stage, x)
                      : stage->kind == CS_STAGE_PREFILL ? start_prefill(s, server, stage, x)
                                                        : start_iterate(s, server, stage, x);
        work |= stage->n_active > 0;
        seconds += step;
        if (stage->kind == CS_STAGE_PREFILL)
            prefill_s = step;
        else if (stage->prefill && stage->prefill->n_active > 0)
            adapt_mixed_work(stage->prefill, server->exec->stages[stage->prefill->index].profile,
                             prefill_s + step);
    }
    server->running = work; /* also where it costs nothing: the round then ends at once */
    if (!work)
        return;
    server->rounds = rounds_ahead(s, server);
    server->round_start = s->now;
    server->round_s = seconds;
    event_push(s, s->now + server->rounds * seconds, SIM_ROUND, id, ++server->generation);
}

/* Something new for a server that is in the middle of many rounds: stop after the current one. */
static void round_cut(sim *s, guint32 id)
{
    sim_server *server = &s->servers[id];
    if (!server->running) {
        round_start(s, id);
        return;
    }
    if (server->rounds <= 1 || server->round_s <= 0)
        return;
    double elapsed = (s->now - server->round_start) / server->round_s;
    guint32 rounds = (guint32)MIN(floor(elapsed) + 1, (double)server->rounds);
    if (rounds < server->rounds) {
        server->rounds = rounds;
        event_push(s, server->round_start + rounds * server->round_s, SIM_ROUND, id,
                   ++server->generation);
    }
}

/* ---- requests ---- */

static void finish_request(sim *s, guint32 slot)
{
    sim_request *q = &s->requests[slot];
    const cs_workload_type *type = &s->p->workload->types[s->p->types[q->type].workload_type];
    double latency = s->now - q->t0, first = (q->first > 0 ? q->first : s->now) - q->t0;
    s->r->completed++;
    s->in_flight--;
    if (q->counted) {
        bool met = latency <= type->latency_s && first <= type->first_s;
        float values[2] = {(float)latency, (float)first};
        g_array_append_vals(s->latencies[q->type], values, 2);
        s->r->types[q->type].met += met;
        s->missed[q->type] += !met;
        s->r->types[q->type].mean_s += latency;
        s->r->types[q->type].first_mean_s += first;
        if (s->o->stop_when_missed && (double)s->missed[q->type] > s->may_miss[q->type])
            s->stop = true;
    }
    s->free_slots[s->n_free++] = slot;
}

/* The job has all it needs to start on its server. */
static void job_ready(sim *s, guint32 id)
{
    sim_job *job = job_at(s, id);
    sim_server *server = &s->servers[job->server];
    sim_stage *stage = &server->stages[server->stage_of[id % s->n_stages]];
    if (job->reserves) { /* its place in the decode batch was kept since its prompt began */
        stage->reserved--;
        job->reserves = false;
    }
    job->queued = true;
    queue_push(&stage->queue, id);
    round_cut(s, job->server);
}

/* Iterations of the pieces that are whole with so many units. */
static guint32 whole_pieces(const sim_stage_info *info, guint32 units)
{
    guint32 iterations = 0, piece = info->first_piece;
    for (guint32 end = piece; end <= units; end += piece) {
        iterations += piece + info->piece_extra;
        piece = MIN(info->piece, 2 * piece);
    }
    return iterations;
}

/* How many units a streaming consumer may do with what has arrived. */
static void update_available(sim *s, guint32 slot, int stage)
{
    sim_job *job = job_at(s, slot * s->n_stages + (guint32)stage);
    const sim_stage_info *info = &s->info[stage];
    guint32 available = job->units;
    for (int i = 0; i < info->n_gates; i++) {
        int a = info->gates[i];
        const cs_stage_edge *edge = &s->p->edges[a];
        guint16 got = s->got[slot * s->n_edges + (guint32)a];
        if (!(s->requests[slot].edges >> a & 1) || got >= edge->chunks)
            continue;
        double share = (double)got / edge->chunks;
        guint32 made = job_at(s, slot * s->n_stages + (guint32)edge->from)->total;
        double units = edge->ahead < 0 ? share * job->units : share * made - edge->ahead;
        available = MIN(available, (guint32)MAX(units, 0));
    }
    job->available = available == job->units ? job->total
                     : info->piece > 1       ? whole_pieces(info, available)
                                             : available;
}

/* A chunk (or the whole) of edge a has reached the consumer. */
static void deliver(sim *s, guint32 slot, guint32 a)
{
    const cs_stage_edge *edge = &s->p->edges[a];
    const cs_problem_type *type = &s->p->types[s->requests[slot].type];
    s->r->bytes_delivered += s->bytes[slot * s->n_edges + a] / edge->chunks;
    guint16 got = ++s->got[slot * s->n_edges + a];
    guint32 id = slot * s->n_stages + (guint32)edge->to;
    int gated = s->gated[a];
    if (gated >= 0 && (type->stages >> gated & 1)) {
        update_available(s, slot, gated);
        sim_job *job = job_at(s, slot * s->n_stages + (guint32)gated);
        if (job->starved && job->available > job->done) {
            job->starved = false;
            job_ready(s, slot * s->n_stages + (guint32)gated);
        }
    }
    bool streams = gated >= 0;
    if (got == (streams ? 1 : edge->chunks) && --job_at(s, id)->waiting == 0) {
        sim_job *job = job_at(s, id);
        if (s->info[edge->to].kind == CS_STAGE_ITERATE && job->available <= job->done)
            job->starved = true;
        else
            job_ready(s, id);
    }
}

/* Sends one chunk of edge a: at once inside a server, else over the node or the link, in turn. */
static void send_chunk(sim *s, guint32 slot, guint32 a)
{
    const cs_stage_edge *edge = &s->p->edges[a];
    const cs_cluster *c = s->p->cluster;
    sim_job *from = job_at(s, slot * s->n_stages + (guint32)edge->from);
    sim_job *to = job_at(s, slot * s->n_stages + (guint32)edge->to);
    double bytes = s->bytes[slot * s->n_edges + a] / edge->chunks;
    s->r->bytes_sent += bytes;
    if (from->server == to->server) {
        deliver(s, slot, a);
        return;
    }
    size_t i = s->servers[from->server].node, j = s->servers[to->server].node;
    size_t link = i * c->n_nodes + j;
    double seconds = bytes > 0 ? bytes / c->bandwidth[link] : 0, start = s->now;
    if (i != j) {
        start = MAX(s->now, s->link_free[link]);
        s->link_free[link] = start + seconds;
        s->r->link_busy[link] += seconds;
        if (s->r->link_bins && seconds > 0)
            spread(s, s->r->link_bins, 1, start, start + seconds, bytes / seconds);
    }
    event_push(s, start + seconds + c->latency[link] + c->hop_overhead_s, SIM_DELIVER, slot, a);
}

static void send_from(sim *s, guint32 slot, int stage, bool whole)
{
    const cs_problem_type *type = &s->p->types[s->requests[slot].type];
    const sim_stage_info *info = &s->info[stage];
    for (int i = 0; i < info->n_out; i++) {
        int a = info->out[i];
        if (!cs_problem_type_uses(type, &s->p->edges[a]))
            continue;
        int chunks = s->p->edges[a].chunks;
        guint16 *sent = &s->sent[slot * s->n_edges + (guint32)a];
        sim_job *job = job_at(s, slot * s->n_stages + (guint32)stage);
        int due = whole ? chunks : (int)((double)job->done / job->total * chunks + 1e-9);
        for (; *sent < due; ++*sent)
            send_chunk(s, slot, (guint32)a);
    }
}

static void finish_job(sim *s, guint32 id)
{
    guint32 slot = id / s->n_stages;
    int stage = (int)(id % s->n_stages);
    sim_job *job = job_at(s, id);
    sim_request *q = &s->requests[slot];
    s->servers[job->server].outstanding--;
    job->done = job->total;
    if (s->info[stage].output && q->first == 0 && s->info[stage].output == q->first_kind)
        q->first = s->now;
    kv_release(&s->servers[job->server], job);
    send_from(s, slot, stage, true);
    if (--q->stages_left == 0)
        finish_request(s, slot);
}

/* ---- the end of rounds ---- */

static void end_batch(sim *s, sim_stage *stage, guint32 rounds)
{
    guint32 n = stage->n_active;
    if (!stage->in_turn)
        return;
    stage->turns_left -= MIN(rounds, stage->turns_left);
    if (stage->turns_left > 0)
        return;
    stage->in_turn = false;
    stage->n_active = 0;
    memcpy(s->scratch, stage->active, n * sizeof s->scratch[0]);
    g_autofree guint32 *spill =
        n > SIM_SCRATCH ? g_memdup2(stage->active, n * sizeof *spill) : NULL;
    for (guint32 i = 0; i < n; i++)
        finish_job(s, spill ? spill[i] : s->scratch[i]);
}

static void end_prefill(sim *s, sim_stage *stage)
{
    guint32 kept = 0, done = 0, n = stage->n_active;
    g_autofree guint32 *finished = n > SIM_SCRATCH ? g_new(guint32, n) : NULL;
    guint32 *out = finished ? finished : s->scratch;
    for (guint32 i = 0; i < n; i++) {
        sim_job *job = job_at(s, stage->active[i]);
        job->done_cost += job->slice;
        if (job->done_cost >= job->cost * (1 - 1e-6f))
            out[done++] = stage->active[i];
        else
            stage->active[kept++] = stage->active[i];
    }
    stage->n_active = kept;
    for (guint32 i = 0; i < done; i++)
        finish_job(s, out[i]);
}

/* A job at its target: it ends, sends a chunk, starves, lets others have their pieces, or just had
 * its first unit. */
static bool job_at_target(sim *s, sim_stage *stage, guint32 id)
{
    sim_job *job = job_at(s, id);
    guint32 slot = id / s->n_stages;
    int index = (int)(id % s->n_stages);
    job->done = stage->iteration - job->base;
    if (job->first_pending) {
        job->first_pending = false;
        if (s->requests[slot].first == 0)
            s->requests[slot].first = s->now;
    }
    if (job->done >= job->total)
        return false;
    if (job->chunk_every > 0) {
        send_from(s, slot, index, false);
        job->chunks_sent = (guint32)floor((double)job->done / job->chunk_every + 1e-6);
    }
    if (job->done >= job->available) {
        job->starved = true;
        return false;
    }
    if (s->info[index].piece > 1 && stage->queue.n > 0) {
        queue_push(&stage->queue, id);
        return false;
    }
    set_target(s, stage, job);
    return true;
}

static void end_iterate(sim *s, sim_stage *stage, guint32 rounds)
{
    if (stage->n_active == 0)
        return;
    stage->iteration += rounds;
    guint32 kept = 0, left = 0, n = stage->n_active;
    g_autofree guint32 *leaving = n > SIM_SCRATCH ? g_new(guint32, n) : NULL;
    guint32 *out = leaving ? leaving : s->scratch;
    for (guint32 i = 0; i < n; i++) {
        guint32 id = stage->active[i];
        if (job_at(s, id)->target > stage->iteration || job_at_target(s, stage, id)) {
            stage->active[kept++] = id;
            continue;
        }
        stage->weight -= job_at(s, id)->cost;
        if (job_at(s, id)->done >= job_at(s, id)->total)
            out[left++] = id;
    }
    stage->n_active = kept;
    if (kept == 0)
        stage->weight = 0;
    for (guint32 i = 0; i < left; i++)
        finish_job(s, out[i]);
}

static void end_round(sim *s, guint32 id)
{
    sim_server *server = &s->servers[id];
    account_busy(s, server, server->round_start, s->now);
    guint32 rounds = server->rounds;
    server->rounds = 0; /* so that work that arrives below does not start a round of its own */
    for (int i = 0; i < server->n_stages; i++) {
        sim_stage *stage = &server->stages[i];
        if (stage->kind == CS_STAGE_BATCH)
            end_batch(s, stage, rounds);
        else if (stage->kind == CS_STAGE_PREFILL)
            end_prefill(s, stage);
        else
            end_iterate(s, stage, rounds);
    }
    round_start(s, id);
}

/* ---- arrivals ---- */

static double next_gap(sim *s)
{
    const cs_workload *w = s->p->workload;
    double mean = 1 / s->rate;
    switch (w->arrivals) {
    case CS_ARRIVALS_POISSON:
        return mean * cs_rng_exponential(&s->rng_time);
    case CS_ARRIVALS_UNIFORM:
        return mean;
    case CS_ARRIVALS_BURSTY: { /* two exponential phases with balanced means */
        double q = 0.5 * (1 + sqrt((w->cv2 - 1) / (w->cv2 + 1)));
        bool fast = cs_rng_uniform(&s->rng_time) < q;
        return mean / (2 * (fast ? q : 1 - q)) * cs_rng_exponential(&s->rng_time);
    }
    case CS_ARRIVALS_DUTY: {
        double period = w->on_s + w->off_s;
        double gap = mean * w->on_s / period * cs_rng_exponential(&s->rng_time);
        s->on_time += gap;
        double t = floor(s->on_time / w->on_s) * period + fmod(s->on_time, w->on_s);
        return t - s->last_arrival;
    }
    case CS_ARRIVALS_TRACE:
        break;
    }
    return 0;
}

static void schedule_arrival(sim *s)
{
    const cs_workload *w = s->p->workload;
    if (s->r->arrived + s->arrivals_pending >= s->n_requests)
        return;
    double t;
    if (w->arrivals == CS_ARRIVALS_TRACE) {
        size_t i = s->next_trace++ % w->n_trace, lap = (s->next_trace - 1) / w->n_trace;
        double span = w->trace[w->n_trace - 1].t * (double)w->n_trace / (double)(w->n_trace - 1);
        t = (w->trace[i].t + (double)lap * span) * w->rate_rps / s->rate;
    } else {
        t = s->last_arrival + next_gap(s);
    }
    s->last_arrival = t;
    s->arrivals_pending++;
    event_push(s, t, SIM_ARRIVAL, 0, 0);
}

static void draw_request(sim *s, sim_request *q, double sizes[CS_SIZE_COUNT])
{
    const cs_workload *w = s->p->workload;
    memset(sizes, 0, sizeof(double) * CS_SIZE_COUNT);
    if (w->arrivals == CS_ARRIVALS_TRACE) {
        const cs_trace_entry *entry = &w->trace[s->r->arrived % w->n_trace];
        q->type = s->problem_type[entry->type];
        for (int k = 0; k < CS_SIZE_COUNT; k++)
            sizes[k] = entry->sizes[k];
        return;
    }
    double u = cs_rng_uniform(&s->rng_size);
    q->type = 0;
    while (q->type + 1 < s->p->n_types && u >= s->p->types[q->type].share)
        u -= s->p->types[q->type++].share;
    const cs_workload_type *type = &w->types[s->p->types[q->type].workload_type];
    for (int k = 0; k < CS_SIZE_COUNT; k++)
        sizes[k] = cs_dist_sample(&type->sizes[k], &s->rng_size);
}

static const cs_layout_route *draw_route(sim *s, guint type)
{
    const sim_paths *paths = &s->paths[type];
    double u = fmod((double)s->drawn[type]++ * GOLDEN + 0.5, 1.0);
    guint low = 0, high = paths->n - 1;
    while (low < high) {
        guint mid = (low + high) / 2;
        if (u < paths->cumulative[mid])
            high = mid;
        else
            low = mid + 1;
    }
    return paths->routes[low];
}

static guint32 choose_server(const sim *s, size_t site)
{
    guint32 best = s->first_server[site], end = s->first_server[site + 1];
    for (guint32 i = best + 1; i < end; i++)
        if (s->o->dispatch == CS_DISPATCH_LEAST_WORK
                ? MAX(s->servers[i].free_at, s->now) < MAX(s->servers[best].free_at, s->now)
                : s->servers[i].outstanding < s->servers[best].outstanding)
            best = i;
    return best;
}

/* Mean of what `steps` steps take over what they should. Many are drawn as few. */
static double scatter(sim *s, const cs_profile *profile, guint32 steps)
{
    if (!profile->scatter)
        return 1;
    guint32 draws = MIN(steps, SCATTER_DRAWS);
    double sum = 0;
    for (guint32 i = 0; i < draws; i++)
        sum +=
            profile->scatter[(size_t)(cs_rng_uniform(&s->rng_noise) * (double)profile->n_scatter)];
    return sum / draws;
}

static void init_job(sim *s, guint32 slot, int stage, const cs_layout_route *route,
                     const double *sizes)
{
    const cs_problem *p = s->p;
    const sim_stage_info *info = &s->info[stage];
    size_t site = (size_t)route->exec[stage] * p->cluster->n_nodes + (size_t)route->node[stage];
    sim_job *job = job_at(s, slot * s->n_stages + (guint32)stage);
    *job = (sim_job){.server = G_MAXUINT32};
    for (int k = 0; k < stage; k++)
        if ((p->types[route->type].stages >> k & 1) && route->exec[k] == route->exec[stage] &&
            route->node[k] == route->node[stage])
            job->server = job_at(s, slot * s->n_stages + (guint32)k)->server;
    if (job->server == G_MAXUINT32)
        job->server = choose_server(s, site);
    sim_server *server = &s->servers[job->server];
    const cs_exec_stage *x = &server->exec->stages[stage];
    double units = cs_size_formula_value(&p->stages[stage].units, sizes);
    bool iterates = info->kind == CS_STAGE_ITERATE;
    job->total = job->units = 1;
    if (iterates) {
        units = CLAMP(ceil(units - 1e-9), 1, 1e9);
        job->total = (guint32)MIN(cs_stage_steps(&p->stages[stage], units), 2e9);
        job->units = info->piece > 1 ? (guint32)units : job->total;
    }
    double noise = scatter(s, x->profile, job->total);
    job->cost = (float)(noise * (iterates ? cs_size_formula_value(&p->stages[stage].weight, sizes)
                                          : units));
    job->available = job->total;
    if (p->stages[stage].kv_bytes_per_token > 0) {
        double prompt = cs_size_formula_value(&p->stages[stage].prompt_units, sizes);
        job->kv = (float)(p->stages[stage].kv_bytes_per_token *
                          (prompt + (iterates ? job->total / 2.0 : 0)));
    }
    server->outstanding++;
    double seconds = iterates ? job->total * (x->fixed_s / x->batch + x->per_unit_s * job->cost)
                              : x->fixed_s / x->batch + x->per_unit_s * job->cost;
    server->free_at = MAX(server->free_at, s->now) + seconds;
}

static void init_edges(sim *s, guint32 slot, const double *sizes)
{
    const cs_problem_type *type = &s->p->types[s->requests[slot].type];
    sim_request *q = &s->requests[slot];
    for (size_t a = 0; a < s->n_edges; a++) {
        const cs_stage_edge *edge = &s->p->edges[a];
        s->got[slot * s->n_edges + a] = s->sent[slot * s->n_edges + a] = 0;
        if (!cs_problem_type_uses(type, edge))
            continue;
        q->edges |= (guint64)1 << a;
        s->bytes[slot * s->n_edges + a] = cs_size_formula_value(&edge->bytes, sizes);
        job_at(s, slot * s->n_stages + (guint32)edge->to)->waiting++;
        sim_job *from = job_at(s, slot * s->n_stages + (guint32)edge->from);
        if (edge->chunks > 1 && s->info[edge->from].kind == CS_STAGE_ITERATE) {
            float every = (float)from->total / (float)edge->chunks;
            from->chunk_every = from->chunk_every > 0 ? MIN(from->chunk_every, every) : every;
        }
    }
    for (guint32 k = 0; k < s->n_stages; k++)
        if ((type->stages >> k & 1) && s->info[k].n_gates > 0)
            update_available(s, slot, (int)k);
}

static guint32 take_slot(sim *s)
{
    if (s->n_free == 0) {
        guint32 old = s->n_slots;
        sim_grow(s);
        for (guint32 i = s->n_slots; i > old; i--)
            s->free_slots[s->n_free++] = i - 1;
    }
    return s->free_slots[--s->n_free];
}

static void arrive(sim *s)
{
    double sizes[CS_SIZE_COUNT];
    guint32 slot = take_slot(s);
    sim_request *q = &s->requests[slot];
    *q = (sim_request){.t0 = s->now};
    draw_request(s, q, sizes);
    q->counted = s->r->arrived >= s->n_warm_up;
    s->r->arrived++;
    s->arrivals_pending--;
    s->in_flight++;
    const cs_problem_type *type = &s->p->types[q->type];
    const cs_layout_route *route = draw_route(s, q->type);
    q->stages_left = (guint8)__builtin_popcount(type->stages);
    q->first_kind = s->first_kind[q->type];
    for (guint32 k = 0; k < s->n_stages; k++)
        if (type->stages >> k & 1)
            init_job(s, slot, (int)k, route, sizes);
    init_edges(s, slot, sizes);
    for (guint32 k = 0; k < s->n_stages; k++) {
        if (!(type->stages >> k & 1))
            continue;
        sim_job *job = job_at(s, slot * s->n_stages + k);
        job->first_pending = s->info[k].kind == CS_STAGE_ITERATE && s->info[k].output &&
                             s->info[k].output == q->first_kind && s->info[k].output != SIM_IMAGE;
        if (job->waiting == 0 && !job->queued)
            job_ready(s, slot * s->n_stages + k);
    }
    schedule_arrival(s);
    if (s->in_flight > s->max_in_flight)
        s->stop = true;
}

/* ---- the loop ---- */

static void run(sim *s)
{
    schedule_arrival(s);
    while (s->n_heap > 0 && !s->stop) {
        sim_event event = event_pop(s);
        if (event.kind == SIM_ROUND && s->servers[event.a].generation != event.b)
            continue;
        s->now = event.t;
        s->r->events++;
        if (event.kind == SIM_ROUND)
            end_round(s, event.a);
        else if (event.kind == SIM_DELIVER)
            deliver(s, event.a, event.b);
        else
            arrive(s);
        if ((s->r->events & 0xffff) == 0) {
            if (s->o->progress)
                s->o->progress((double)s->r->arrived / (double)s->n_requests, s->o->progress_data);
            s->r->cancelled = s->o->cancel && *s->o->cancel;
            s->stop |= s->r->cancelled;
        }
    }
    s->r->gave_up = s->stop;
}

bool cs_sim_run(const cs_layout *layout, const cs_sim_options *options, cs_sim_result *result,
                GError **error)
{
    *result = (cs_sim_result){0};
    if (!cs_layout_check(layout, error))
        return false;
    sim s = {.p = layout->problem, .o = options, .r = result};
    s.rate = options->rate_rps > 0 ? options->rate_rps : s.p->workload->rate_rps;
    s.n_requests = options->requests ? options->requests : DEFAULT_REQUESTS;
    s.n_warm_up = (size_t)((double)s.n_requests *
                           (options->warm_up > 0 ? options->warm_up : DEFAULT_WARM_UP));
    s.max_in_flight = options->max_in_flight ? options->max_in_flight : DEFAULT_IN_FLIGHT;
    sim_init(&s, layout);
    run(&s);
    sim_finish(&s);
    sim_clear(&s);
    return true;
}
