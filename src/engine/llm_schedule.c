#include "engine/llm_internal.h"

/* ---- Order of arrival ---- */

static bool arrived_before(const llm_sequence *a, const llm_sequence *b)
{
    if (a->request->arrival != b->request->arrival)
        return a->request->arrival < b->request->arrival;
    return a->choice < b->choice;
}

void llm_schedule_wait(cs_llm_engine *engine, llm_sequence *sequence)
{
    llm_sequence *previous = engine->waiting_last;
    while (previous && arrived_before(sequence, previous))
        previous = previous->waiting_previous;
    llm_sequence *next = previous ? previous->waiting_next : engine->waiting_first;
    sequence->waiting_previous = previous;
    sequence->waiting_next = next;
    *(previous ? &previous->waiting_next : &engine->waiting_first) = sequence;
    *(next ? &next->waiting_previous : &engine->waiting_last) = sequence;
    sequence->state = SEQUENCE_WAITING;
    engine->n_waiting++;
}

static void stop_waiting(cs_llm_engine *engine, llm_sequence *sequence)
{
    llm_sequence *previous = sequence->waiting_previous, *next = sequence->waiting_next;
    *(previous ? &previous->waiting_next : &engine->waiting_first) = next;
    *(next ? &next->waiting_previous : &engine->waiting_last) = previous;
    engine->n_waiting--;
}

/* Choices that a sequence will fork into, beside itself. */
static uint32_t forks_to_come(const llm_sequence *sequence)
{
    const cs_llm_request *request = sequence->request;
    return request->forked ? 0 : request->n_choices - 1;
}

void llm_schedule_run(cs_llm_engine *engine, llm_sequence *sequence)
{
    uint32_t at = engine->n_running++;
    g_assert(engine->n_running <= engine->options.max_sequences);
    for (; at > 0 && arrived_before(sequence, engine->running[at - 1]); at--)
        engine->running[at] = engine->running[at - 1];
    engine->running[at] = sequence;
    sequence->state = SEQUENCE_RUNNING;
}

static void release_blocks(cs_llm_engine *engine, llm_sequence *sequence)
{
    /* The last first: of what nobody holds, ends of prefixes are taken before their beginnings. */
    while (sequence->n_blocks > 0)
        cs_kv_cache_release(engine->kv, sequence->blocks[--sequence->n_blocks]);
    sequence->n_past = 0;
    sequence->n_published = 0;
}

static void stop_running(cs_llm_engine *engine, llm_sequence *sequence)
{
    uint32_t at = 0;
    while (engine->running[at] != sequence)
        at++;
    engine->n_running--;
    for (; at < engine->n_running; at++)
        engine->running[at] = engine->running[at + 1];
    engine->n_unborn -= forks_to_come(sequence);
    release_blocks(engine, sequence);
}

void llm_schedule_remove(cs_llm_engine *engine, llm_sequence *sequence)
{
    if (sequence->state == SEQUENCE_WAITING)
        stop_waiting(engine, sequence);
    else if (sequence->state == SEQUENCE_RUNNING)
        stop_running(engine, sequence);
    sequence->state = SEQUENCE_ENDED;
}

/* ---- Blocks ---- */

static void preempt(cs_llm_engine *engine, llm_sequence *sequence)
{
    bool stalled = llm_sequence_ready_rows(sequence, 1) == 0;
    sequence->needed_row = stalled ? sequence->n_past : 0;
    stop_running(engine, sequence);
    llm_schedule_wait(engine, sequence);
    engine->stats.preemptions++;
}

/* Makes the block of row n_past exist and belong to this sequence alone. When none is left, those
 * that arrived last give theirs back, at the end the sequence itself: false then. */
static bool own_next_block(cs_llm_engine *engine, llm_sequence *sequence)
{
    const uint32_t index = sequence->n_past / CS_LLM_BLOCK_TOKENS;
    for (;;) {
        bool exists = index < sequence->n_blocks;
        if (exists && cs_kv_cache_holders(engine->kv, sequence->blocks[index]) == 1)
            return true;
        int32_t fresh = cs_kv_cache_take(engine->kv);
        if (fresh < 0) {
            llm_sequence *victim = engine->running[engine->n_running - 1];
            preempt(engine, victim);
            if (victim == sequence)
                return false;
            continue;
        }
        if (exists) {
            block_copy copy = {.to = fresh, .from = sequence->blocks[index]};
            engine->copies[engine->n_copies++] = copy;
            cs_kv_cache_release(engine->kv, copy.from);
        } else {
            sequence->n_blocks++;
        }
        sequence->blocks[index] = fresh;
        return true;
    }
}

/* Holds the blocks of the longest prefix that is cached: whole blocks only, without the last known
 * row (its logits are wanted) and rows whose hidden states are. */
static void hold_cached_prefix(cs_llm_engine *engine, llm_sequence *sequence)
{
    const cs_llm_request *request = sequence->request;
    uint32_t limit = MIN(llm_sequence_rows(sequence) - 1, request->n_cacheable_rows);
    limit = MIN(limit, sequence->n_hidden_done) / CS_LLM_BLOCK_TOKENS;
    if (engine->options.no_prefix_cache)
        limit = 0;
    cs_kv_key previous = cs_kv_cache_root(request->cache_salt);
    for (uint32_t i = 0; i < limit; i++) {
        cs_kv_row rows[CS_LLM_BLOCK_TOKENS];
        llm_sequence_kv_rows(sequence, i, rows);
        if (i == sequence->n_keys)
            sequence->keys[sequence->n_keys++] = cs_kv_cache_key(previous, rows);
        int32_t block = cs_kv_cache_find(engine->kv, sequence->keys[i], previous, rows);
        if (block < 0)
            break;
        sequence->blocks[sequence->n_blocks++] = block;
        previous = sequence->keys[i];
    }
    sequence->n_past = sequence->n_blocks * CS_LLM_BLOCK_TOKENS;
    sequence->n_published = sequence->n_blocks;
}

/* Holds blocks for all known rows, or none. Running sequences keep a block each in reserve, so
 * that what is admitted now is not preempted at once. */
static bool hold_known_rows(cs_llm_engine *engine, llm_sequence *sequence)
{
    uint32_t total = llm_blocks_of(llm_sequence_rows(sequence));
    uint32_t reserve = MIN(engine->n_running, cs_kv_cache_total(engine->kv) / 16);
    hold_cached_prefix(engine, sequence);
    if (cs_kv_cache_available(engine->kv) < total - sequence->n_blocks + reserve) {
        release_blocks(engine, sequence);
        return false;
    }
    while (sequence->n_blocks < total)
        sequence->blocks[sequence->n_blocks++] = cs_kv_cache_take(engine->kv);
    return true;
}

/* ---- The batch ---- */

static const llm_item_chunk *chunk_of(const llm_item *item, uint32_t row)
{
    guint low = 0, high = item->chunks->len;
    while (high - low > 1) {
        guint middle = low + (high - low) / 2;
        if (g_array_index(item->chunks, llm_item_chunk, middle).first_row <= row)
            low = middle;
        else
            high = middle;
    }
    return &g_array_index(item->chunks, llm_item_chunk, low);
}

/* Item rows may lie in several tensors: a span for each. */
static void add_item_rows(cs_llm_engine *engine, const llm_item *item, uint32_t source_row,
                          uint32_t batch_row, uint32_t n)
{
    while (n > 0) {
        const llm_item_chunk *chunk = chunk_of(item, source_row);
        uint32_t within = source_row - chunk->first_row;
        uint32_t part = MIN(n, (uint32_t)chunk->rows->t.rows - within);
        engine->spans[engine->batch.n_spans++] = (cs_llm_span){
            .row = batch_row, .n = part, .source = &chunk->rows->t, .source_row = within};
        source_row += part;
        batch_row += part;
        n -= part;
    }
}

static void add_spans(cs_llm_engine *engine, const llm_sequence *sequence)
{
    const cs_llm_request *request = sequence->request;
    for (uint32_t i = 0, n_run; i < sequence->n_new; i += n_run) {
        uint32_t item, source_row;
        if (llm_request_source(request, sequence->n_past + i, sequence->n_new - i, &item,
                               &source_row, &n_run))
            add_item_rows(engine, &request->items[item], source_row, sequence->first_batch_row + i,
                          n_run);
    }
}

static void add_rows(cs_llm_engine *engine, llm_sequence *sequence, uint32_t n)
{
    cs_llm_batch *batch = &engine->batch;
    const uint32_t end = sequence->n_past + n;
    sequence->n_new = n;
    sequence->first_batch_row = batch->n_rows;
    for (uint32_t i = 0; i < n; i++) {
        engine->token_ids[batch->n_rows + i] = llm_sequence_token(sequence, sequence->n_past + i);
        llm_sequence_position(sequence, sequence->n_past + i, engine->positions[batch->n_rows + i]);
    }
    add_spans(engine, sequence);
    batch->n_rows += n;
    engine->sequences[batch->n_sequences] =
        (cs_llm_sequence){.n_past = sequence->n_past, .n_new = n, .kv_blocks = sequence->blocks};
    engine->in_step[batch->n_sequences++] = sequence;
    sequence->logit_row = -1;
    if (end == llm_sequence_rows(sequence)) {
        sequence->logit_row = (int32_t)batch->n_logit_rows;
        engine->logit_rows[batch->n_logit_rows++] = batch->n_rows - 1;
    }
    engine->step_wants_hidden |= end > sequence->n_hidden_done;
}

/* ---- Scheduling ---- */

static uint32_t rows_to_do(const llm_sequence *sequence)
{
    return llm_sequence_rows(sequence) - sequence->n_past;
}

static void schedule_decodes(cs_llm_engine *engine)
{
    /* Preemption takes sequences off the end of `running`, never one already in the batch. */
    for (uint32_t i = 0; i < engine->n_running; i++) {
        llm_sequence *sequence = engine->running[i];
        if (rows_to_do(sequence) == 1 && llm_sequence_ready_rows(sequence, 1) == 1 &&
            own_next_block(engine, sequence))
            add_rows(engine, sequence, 1);
    }
    engine->n_decode_rows = engine->batch.n_rows;
}

static uint32_t schedule_prefills(cs_llm_engine *engine, uint32_t budget)
{
    for (uint32_t i = 0; i < engine->n_running && budget > 0; i++) {
        llm_sequence *sequence = engine->running[i];
        if (rows_to_do(sequence) == 1)
            continue;
        uint32_t n = llm_sequence_ready_rows(sequence, budget);
        if (n > 0)
            add_rows(engine, sequence, n);
        budget -= n;
    }
    return budget;
}

static void start(cs_llm_engine *engine, llm_sequence *sequence)
{
    cs_llm_request *request = sequence->request;
    stop_waiting(engine, sequence);
    llm_schedule_run(engine, sequence);
    engine->n_unborn += forks_to_come(sequence);
    if (request->admitted)
        return;
    request->admitted = true;
    request->usage.cached_tokens = MIN(sequence->n_past, request->n_prompt);
    engine->stats.cached_tokens += request->usage.cached_tokens;
}

/* Whether a waiting sequence would get on: the first row to be computed is there, and what it last
 * stood still for. */
static bool may_start(const llm_sequence *sequence)
{
    const cs_llm_request *request = sequence->request;
    const uint32_t first = request->import_kv ? request->n_prompt : 0;
    return !llm_kv_is_awaited(request) && llm_sequence_row_is_ready(sequence, first) &&
           llm_sequence_row_is_ready(sequence, MAX(first, sequence->needed_row));
}

/* In order of arrival. Who waits for an embedding is passed over; who waits for memory or a place
 * is not, or large requests would starve. */
static void admit(cs_llm_engine *engine, uint32_t budget)
{
    llm_sequence *next;
    for (llm_sequence *sequence = engine->waiting_first; sequence && budget > 0; sequence = next) {
        next = sequence->waiting_next;
        if (!may_start(sequence))
            continue;
        uint32_t places = engine->n_running + engine->n_unborn + 1 + forks_to_come(sequence);
        if (places > engine->options.max_sequences || !hold_known_rows(engine, sequence))
            return;
        start(engine, sequence);
        if (sequence->request->import_kv)
            llm_kv_import(engine, sequence);
        uint32_t n = llm_sequence_ready_rows(sequence, budget);
        if (n > 0)
            add_rows(engine, sequence, n);
        budget -= n;
    }
}

static bool anyone_may_start(const cs_llm_engine *engine)
{
    const llm_sequence *sequence = engine->waiting_first;
    while (sequence && !may_start(sequence))
        sequence = sequence->waiting_next;
    return sequence != NULL;
}

/* When all that run stand still, for embeddings that have not come, they make way for those that
 * could get on: whom they wait for may itself wait for these. */
static void make_way(cs_llm_engine *engine)
{
    while (engine->batch.n_rows == 0 && engine->n_imports == 0 && engine->n_running > 0 &&
           anyone_may_start(engine)) {
        preempt(engine, engine->running[engine->n_running - 1]);
        admit(engine, engine->options.max_step_tokens);
    }
}

void llm_schedule(cs_llm_engine *engine)
{
    engine->batch = (cs_llm_batch){.token_ids = engine->token_ids,
                                   .positions = (const int32_t(*)[3])engine->positions,
                                   .sequences = engine->sequences,
                                   .spans = engine->spans,
                                   .logit_rows = engine->logit_rows};
    engine->n_copies = engine->n_imports = 0;
    engine->step_wants_hidden = false;
    schedule_decodes(engine);
    uint32_t budget = engine->options.max_step_tokens - engine->batch.n_rows;
    if (engine->batch.n_rows > 0)
        budget = MIN(budget, engine->mixed_chunk_rows);
    admit(engine, schedule_prefills(engine, budget));
    make_way(engine);
}
