#include "engine/llm_internal.h"

#include "base/error.h"
#include "base/os.h"

#include <string.h>

/* ---- Ends ---- */

static void unlink_request(cs_llm_engine *engine, cs_llm_request *request)
{
    *(request->previous ? &request->previous->next : &engine->requests) = request->next;
    if (request->next)
        request->next->previous = request->previous;
    request->previous = NULL;
    request->next = engine->ended;
    engine->ended = request;
}

static void count_end(cs_llm_engine_stats *stats, const GError *error)
{
    if (!error)
        stats->requests_finished++;
    else if (g_error_matches(error, CS_ERROR, CS_ERROR_CANCELLED))
        stats->requests_cancelled++;
    else
        stats->requests_failed++;
}

void llm_end_request(cs_llm_engine *engine, cs_llm_request *request, const GError *error)
{
    if (request->done)
        return;
    request->done = true;
    for (uint32_t i = 0; i < request->n_choices; i++)
        llm_schedule_remove(engine, &request->sequences[i]);
    unlink_request(engine, request);
    count_end(&engine->stats, error);
    llm_inbox_leave(engine->inbox);
    llm_publish_stats(engine);
    engine->called_sinks = true;
    request->sink.on_done(request->user, &request->usage, error);
}

void llm_finish_sequence(cs_llm_engine *engine, llm_sequence *sequence, cs_llm_finish reason)
{
    cs_llm_request *request = sequence->request;
    llm_schedule_remove(engine, sequence);
    engine->called_sinks = true;
    request->sink.on_finish(request->user, sequence->choice, reason);
    if (--request->n_live == 0)
        llm_end_request(engine, request, NULL);
}

/* ---- What a step gives ---- */

/* Offers blocks that have become full to the prefix cache. */
static void publish_blocks(cs_llm_engine *engine, llm_sequence *sequence)
{
    const cs_llm_request *request = sequence->request;
    if (engine->options.no_prefix_cache)
        return;
    uint32_t full = MIN(sequence->n_past, request->n_cacheable_rows) / CS_LLM_BLOCK_TOKENS;
    for (; sequence->n_published < full; sequence->n_published++) {
        const uint32_t i = sequence->n_published;
        cs_kv_row rows[CS_LLM_BLOCK_TOKENS];
        llm_sequence_kv_rows(sequence, i, rows);
        cs_kv_key previous = i > 0 ? sequence->keys[i - 1] : cs_kv_cache_root(request->cache_salt);
        if (i == sequence->n_keys)
            sequence->keys[sequence->n_keys++] = cs_kv_cache_key(previous, rows);
        cs_kv_cache_publish(engine->kv, sequence->blocks[i], sequence->keys[i], previous, rows);
    }
}

static void hand_out_hidden(cs_llm_engine *engine, llm_sequence *sequence)
{
    const cs_llm_request *request = sequence->request;
    const uint32_t end = sequence->n_past, start = end - sequence->n_new;
    const uint32_t first = MAX(start, sequence->n_hidden_done);
    if (first >= end)
        return;
    sequence->n_hidden_done = end;
    engine->called_sinks = true;
    size_t batch_row = sequence->first_batch_row + (first - start);
    request->sink.on_hidden(request->user, sequence->choice, first, end - first,
                            engine->hidden + batch_row * engine->llm->hidden_size);
}

static bool is_stop_id(const cs_llm_request *request, int32_t id)
{
    for (uint32_t i = 0; i < request->n_stop_ids; i++)
        if (request->stop_ids[i] == id)
            return true;
    return false;
}

static void accept_token(cs_llm_engine *engine, llm_sequence *sequence,
                         const cs_sampled_token *token)
{
    cs_llm_request *request = sequence->request;
    request->usage.completion_tokens++;
    engine->stats.completion_tokens++;
    if (is_stop_id(request, token->id)) {
        llm_finish_sequence(engine, sequence, CS_LLM_FINISH_STOP_ID);
        return;
    }
    cs_llm_token out = {.choice = sequence->choice, .index = sequence->n_generated, .token = token};
    sequence->generated[sequence->n_generated++] = token->id;
    if (sequence->counts)
        cs_token_counts_add_output(sequence->counts, token->id);
    engine->called_sinks = true;
    if (!request->sink.on_token(request->user, &out))
        llm_finish_sequence(engine, sequence, CS_LLM_FINISH_SINK);
    else if (sequence->n_generated == request->max_tokens)
        llm_finish_sequence(engine, sequence, CS_LLM_FINISH_LENGTH);
}

static void draw_token(cs_llm_engine *engine, llm_sequence *sequence, const float *logits)
{
    cs_llm_request *request = sequence->request;
    bool too_early = sequence->n_generated < request->min_tokens;
    cs_sampling_request draw = {.params = &request->sampling,
                                .counts = sequence->counts,
                                .n_banned = too_early ? request->n_stop_ids : 0,
                                .banned = request->stop_ids,
                                .choice = sequence->choice,
                                .index = sequence->n_generated};
    cs_sampled_token token;
    g_autoptr(GError) error = NULL;
    if (cs_sampler_draw(engine->sampler, logits, &draw, &token, &error)) {
        accept_token(engine, sequence, &token);
        return;
    }
    g_prefix_error(&error, "%s: ", engine->name);
    llm_end_request(engine, request, error);
}

/* The other choices of a request go on from the first one's prompt. */
static void fork_choices(cs_llm_engine *engine, const llm_sequence *first)
{
    cs_llm_request *request = first->request;
    engine->n_unborn -= request->n_choices - 1;
    request->forked = true;
    for (uint32_t c = 1; c < request->n_choices; c++) {
        llm_sequence *fork = &request->sequences[c];
        fork->n_past = first->n_past;
        fork->n_blocks = first->n_blocks;
        fork->n_keys = first->n_keys;
        fork->n_published = first->n_published;
        fork->n_hidden_done = first->n_hidden_done;
        memcpy(fork->blocks, first->blocks, first->n_blocks * sizeof *first->blocks);
        memcpy(fork->keys, first->keys, first->n_keys * sizeof *first->keys);
        for (uint32_t i = 0; i < fork->n_blocks; i++)
            cs_kv_cache_hold(engine->kv, fork->blocks[i]);
        llm_schedule_run(engine, fork);
    }
}

static void advance(cs_llm_engine *engine, llm_sequence *sequence)
{
    cs_llm_request *request = sequence->request;
    sequence->n_past += sequence->n_new;
    publish_blocks(engine, sequence);
    hand_out_hidden(engine, sequence);
    if (sequence->logit_row < 0)
        return;
    const float *logits = engine->logits + (size_t)sequence->logit_row * engine->llm->vocab_size;
    if (request->forked || request->n_choices == 1) {
        draw_token(engine, sequence, logits);
        return;
    }
    fork_choices(engine, sequence);
    for (uint32_t c = 0; c < request->n_choices && !request->done; c++)
        draw_token(engine, &request->sequences[c], logits);
}

/* ---- The step ---- */

/* When the step is wanted, by its most urgent sequence; 0: one of them is nobody's speech. */
static int64_t due_us(const cs_llm_engine *engine)
{
    int64_t now = cs_now_us(), due = INT64_MAX;
    for (uint32_t i = 0; i < engine->batch.n_sequences; i++) {
        const llm_sequence *sequence = engine->in_step[i];
        const cs_llm_pace *pace = &sequence->request->pace;
        if (pace->token_us == 0)
            return 0;
        int64_t ahead = (int64_t)sequence->n_past - sequence->request->n_prompt - pace->n_at_once;
        due = MIN(due, ahead < 0 ? sequence->request->asked_us : now + ahead * pace->token_us);
    }
    return due == INT64_MAX ? 0 : due;
}

static bool run_forward(cs_llm_engine *engine, int64_t *forward_us, GError **error)
{
    cs_llm *llm = engine->llm;
    float *hidden = engine->step_wants_hidden ? engine->hidden : NULL;
    cs_turn_take(engine->options.turn, due_us(engine));
    int64_t start = cs_now_us();
    for (uint32_t i = 0; i < engine->n_copies; i++)
        llm->ops->copy_block(llm, engine->copies[i].to, engine->copies[i].from);
    llm_kv_write_imports(engine);
    bool ok = engine->batch.n_rows == 0 ||
              llm->ops->forward(llm, &engine->batch, engine->logits, hidden, error);
    for (uint32_t i = 0; ok && i < engine->batch.n_sequences; i++)
        llm_kv_export(engine, engine->in_step[i]);
    *forward_us = cs_now_us() - start;
    cs_turn_give(engine->options.turn);
    return ok;
}

/* Keeps steps of generating sequences near their target by the rows of prompts they carry along:
 * as many as the target allows at the pace of this step, and at least a block, which costs little
 * more than one row. A step says little about one of many more rows: up by doubling at most. */
static void adapt_mixed_chunk(cs_llm_engine *engine, int64_t forward_us)
{
    const uint64_t target_us = engine->options.mixed_step_target_us;
    const uint64_t prompt_rows = engine->batch.n_rows - engine->n_decode_rows;
    const uint64_t now = engine->mixed_chunk_rows;
    if (target_us == UINT32_MAX || prompt_rows < CS_LLM_BLOCK_TOKENS)
        return;
    uint64_t rows = MIN(prompt_rows * target_us / (uint64_t)MAX(forward_us, 1), 2 * now);
    if (rows > now && prompt_rows < now)
        return;
    engine->mixed_chunk_rows =
        (uint32_t)CLAMP(rows, CS_LLM_BLOCK_TOKENS, engine->options.max_step_tokens);
}

/* A fault of the component ends the requests whose rows it computed, and no others. */
static void fail_step(cs_llm_engine *engine, const GError *error)
{
    for (uint32_t i = 0; i < engine->batch.n_sequences; i++)
        llm_end_request(engine, engine->in_step[i]->request, error);
}

void llm_step(cs_llm_engine *engine)
{
    g_autoptr(GError) error = NULL;
    int64_t forward_us;
    if (!run_forward(engine, &forward_us, &error)) {
        fail_step(engine, error);
        return;
    }
    for (uint32_t i = 0; i < engine->batch.n_sequences; i++)
        if (!engine->in_step[i]->request->done)
            advance(engine, engine->in_step[i]);
    adapt_mixed_chunk(engine, forward_us);
    engine->stats.steps++;
    engine->stats.step_rows += engine->batch.n_rows;
    engine->stats.forward_time_us += (uint64_t)forward_us;
}
