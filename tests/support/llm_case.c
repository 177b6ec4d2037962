#include "support/llm_case.h"

#include <math.h>
#include <string.h>

/* ---- Cases ---- */

llm_case *llm_case_new(uint64_t text, uint32_t n, uint32_t max_tokens)
{
    llm_case *c = g_new0(llm_case, 1);
    int32_t *ids = g_new(int32_t, n);
    uint64_t state = text;
    for (uint32_t i = 0; i < n; i++) {
        state = fake_fold(state, i);
        ids[i] = (int32_t)(state % FAKE_VOCAB);
    }
    c->options = (cs_llm_request_options){.n_tokens = n,
                                          .token_ids = ids,
                                          .n_choices = 1,
                                          .max_tokens = max_tokens,
                                          .sampling = CS_SAMPLING_GREEDY};
    return c;
}

#define GROW(pointer, n) ((pointer) = g_realloc_n((void *)(pointer), (n), sizeof *(pointer)))

void llm_case_add_item(llm_case *c, uint64_t content, uint32_t row, uint32_t rows)
{
    cs_llm_request_options *o = &c->options;
    uint32_t item = o->n_items++;
    GROW(o->items, o->n_items);
    GROW(c->contents, o->n_items);
    GROW(c->item_rows, o->n_items);
    ((cs_llm_input_item *)o->items)[item] =
        (cs_llm_input_item){.content_hash = {content, ~content}, .n_rows = rows};
    c->contents[item] = content;
    c->item_rows[item] = rows;
    uint32_t span = o->n_spans++;
    GROW(o->spans, o->n_spans);
    ((cs_llm_input_span *)o->spans)[span] =
        (cs_llm_input_span){.row = row, .n = rows, .item = item, .source_row = 0};
}

static void add_reply_item(llm_case *c, uint64_t content, uint32_t rows)
{
    cs_llm_request_options *o = &c->options;
    llm_case_add_item(c, content, 0, rows);
    o->n_spans--;
    ((cs_llm_input_item *)o->items)[o->n_items - 1] = (cs_llm_input_item){.n_rows = 0};
    o->has_reply_item = true;
    o->reply_item = o->n_items - 1;
}

/* Positions like a multimodal prompt's: three axes that jump. */
static void set_positions(llm_case *c)
{
    int32_t(*positions)[3] = g_malloc_n(c->options.n_tokens, sizeof *positions);
    for (uint32_t i = 0; i < c->options.n_tokens; i++) {
        positions[i][0] = (int32_t)(i / 2);
        positions[i][1] = (int32_t)(i / 3);
        positions[i][2] = (int32_t)(i + 5);
    }
    c->options.positions = (const int32_t(*)[3])positions;
    c->options.next_position = (int32_t)c->options.n_tokens + 9;
}

static void random_sampling(GRand *rand, cs_sampling_params *params)
{
    params->seed = g_rand_int(rand);
    if (g_rand_boolean(rand))
        params->temperature = (float)g_rand_double_range(rand, 0.2, 1.5);
    if (g_rand_boolean(rand))
        params->top_k = g_rand_int_range(rand, 1, 40);
    if (g_rand_boolean(rand))
        params->top_p = (float)g_rand_double_range(rand, 0.3, 1);
    if (g_rand_int_range(rand, 0, 3) == 0)
        params->repetition_penalty = (float)g_rand_double_range(rand, 0.8, 1.5);
    if (g_rand_int_range(rand, 0, 3) == 0)
        params->frequency_penalty = (float)g_rand_double_range(rand, -1, 1);
    if (g_rand_int_range(rand, 0, 4) == 0) {
        cs_token_bias *bias = g_new(cs_token_bias, 1);
        *bias = (cs_token_bias){g_rand_int_range(rand, 0, FAKE_VOCAB), -3};
        params->biases = bias;
        params->n_biases = 1;
    }
    params->n_logprobs = g_rand_int_range(rand, -1, 4);
}

static void random_items(GRand *rand, llm_case *c)
{
    uint32_t row = (uint32_t)g_rand_int_range(rand, 0, 40);
    while (row + 50 < c->options.n_tokens && c->options.n_items < 3) {
        uint32_t content = (uint32_t)g_rand_int_range(rand, 1, 4);
        llm_case_add_item(c, content, row, 10 + 10 * content);
        row += 10 + 10 * content + (uint32_t)g_rand_int_range(rand, 0, 30);
    }
    if (c->options.n_items > 0 && g_rand_int_range(rand, 0, 4) == 0)
        memset(((cs_llm_input_item *)c->options.items)[0].content_hash, 0, 16);
}

llm_case *llm_case_random(GRand *rand)
{
    /* Few texts, so that many requests share a beginning. */
    llm_case *c = llm_case_new((uint64_t)g_rand_int_range(rand, 0, 4),
                               (uint32_t)g_rand_int_range(rand, 1, 190),
                               (uint32_t)g_rand_int_range(rand, 1, 60));
    cs_llm_request_options *o = &c->options;
    if (g_rand_boolean(rand))
        set_positions(c);
    if (g_rand_boolean(rand))
        random_items(rand, c);
    if (g_rand_int_range(rand, 0, 8) == 0)
        add_reply_item(c, 77, (uint32_t)g_rand_int_range(rand, 1, 30));
    random_sampling(rand, &o->sampling);
    if (g_rand_int_range(rand, 0, 3) == 0)
        o->n_choices = (uint32_t)g_rand_int_range(rand, 2, CASE_MAX_CHOICES + 1);
    if (g_rand_boolean(rand)) {
        int32_t *ids = g_new(int32_t, 2);
        ids[0] = g_rand_int_range(rand, 0, FAKE_VOCAB);
        ids[1] = g_rand_int_range(rand, 0, FAKE_VOCAB);
        o->stop_ids = ids;
        o->n_stop_ids = 2;
        o->min_tokens = (uint32_t)g_rand_int_range(rand, 0, 10);
    }
    if (g_rand_int_range(rand, 0, 4) == 0)
        c->stop_after = (uint32_t)g_rand_int_range(rand, 1, 20);
    if (g_rand_int_range(rand, 0, 4) == 0) {
        o->hidden_states = true;
        o->hidden_from_row = (uint32_t)g_rand_int_range(rand, 0, (gint32)o->n_tokens + 1);
    }
    o->cache_salt[0] = (uint64_t)g_rand_int_range(rand, 0, 2);
    llm_case_solve(c);
    return c;
}

static void clear_answers(llm_answer *answers)
{
    for (int i = 0; i < CASE_MAX_CHOICES; i++) {
        g_clear_pointer(&answers[i].tokens, g_array_unref);
        g_clear_pointer(&answers[i].logprobs, g_array_unref);
        g_clear_pointer(&answers[i].hidden, g_array_unref);
    }
}

static void init_answers(llm_answer *answers)
{
    for (int i = 0; i < CASE_MAX_CHOICES; i++)
        answers[i] = (llm_answer){.tokens = g_array_new(FALSE, FALSE, sizeof(int32_t)),
                                  .logprobs = g_array_new(FALSE, FALSE, sizeof(float)),
                                  .hidden = g_array_new(FALSE, FALSE, sizeof(float))};
}

void llm_case_free(llm_case *c)
{
    if (!c)
        return;
    cs_llm_request_options *o = &c->options;
    g_free((void *)o->token_ids);
    g_free((void *)o->positions);
    g_free((void *)o->spans);
    g_free((void *)o->items);
    g_free((void *)o->generated);
    g_free((void *)o->stop_ids);
    g_free((void *)o->sampling.biases);
    g_free(c->contents);
    g_free(c->item_rows);
    clear_answers(c->expected);
    g_free(c);
}

/* Of one choice, not solved. */
static llm_case *duplicate(const llm_case *c)
{
    llm_case *r = g_new0(llm_case, 1);
    const cs_llm_request_options *from = &c->options;
    cs_llm_request_options *o = &r->options;
    *r = *c;
    memset(r->expected, 0, sizeof r->expected);
    o->token_ids = g_memdup2(from->token_ids, from->n_tokens * sizeof(int32_t));
    o->positions = g_memdup2(from->positions, from->n_tokens * sizeof *from->positions);
    o->spans = g_memdup2(from->spans, from->n_spans * sizeof *from->spans);
    o->items = g_memdup2(from->items, from->n_items * sizeof *from->items);
    o->stop_ids = g_memdup2(from->stop_ids, from->n_stop_ids * sizeof(int32_t));
    o->sampling.biases =
        g_memdup2(from->sampling.biases, from->sampling.n_biases * sizeof *from->sampling.biases);
    r->contents = g_memdup2(c->contents, from->n_items * sizeof *c->contents);
    r->item_rows = g_memdup2(c->item_rows, from->n_items * sizeof *c->item_rows);
    o->n_choices = 1;
    return r;
}

static llm_case *resumed(const llm_case *c, uint32_t n)
{
    llm_case *r = duplicate(c);
    r->options.generated = g_memdup2(c->expected[0].tokens->data, n * sizeof(int32_t));
    r->options.n_generated = n;
    return r;
}

llm_case *llm_case_resumed(const llm_case *c, uint32_t n)
{
    llm_case *r = resumed(c, n);
    llm_case_solve(r);
    return r;
}

llm_case *llm_case_prefill(const llm_case *c)
{
    llm_case *r = duplicate(c);
    r->options.max_tokens = 1;
    r->options.export_kv = true;
    llm_case_solve(r);
    return r;
}

llm_case *llm_case_decode(const llm_case *c)
{
    llm_case *r = resumed(c, 1);
    r->options.import_kv = true;
    r->options.hidden_from_row = MAX(r->options.hidden_from_row, r->options.n_tokens);
    llm_case_solve(r);
    return r;
}

/* ---- The oracle ---- */

static const float *oracle_embedding(const llm_case *c, cs_shared_tensor **tensors, uint32_t row)
{
    const cs_llm_request_options *o = &c->options;
    for (uint32_t i = 0; i < o->n_spans; i++) {
        const cs_llm_input_span *span = &o->spans[i];
        if (row >= span->row && row < span->row + span->n)
            return (const float *)tensors[span->item]->t.data +
                   (size_t)(span->source_row + row - span->row) * FAKE_HIDDEN;
    }
    if (row < o->n_tokens || !o->has_reply_item)
        return NULL;
    uint32_t reply = MIN(row - o->n_tokens, c->item_rows[o->reply_item] - 1);
    return (const float *)tensors[o->reply_item]->t.data + (size_t)reply * FAKE_HIDDEN;
}

typedef struct {
    const llm_case *c;
    cs_shared_tensor **tensors;
    cs_sampler *sampler;
    cs_token_counts *counts;
    uint32_t row, choice;
    uint64_t state;
    llm_answer *answer;
} oracle_run;

static void oracle_input(oracle_run *run, int32_t id)
{
    const cs_llm_request_options *o = &run->c->options;
    int32_t position[3];
    for (int axis = 0; axis < 3; axis++) {
        int32_t next = o->positions ? o->next_position : (int32_t)o->n_tokens;
        position[axis] = run->row >= o->n_tokens ? next + (int32_t)(run->row - o->n_tokens)
                         : o->positions          ? o->positions[run->row][axis]
                                                 : (int32_t)run->row;
    }
    const float *embedding = oracle_embedding(run->c, run->tensors, run->row);
    run->state = fake_fold(run->state, fake_kv_entry(id, position, embedding));
    bool wanted = o->hidden_states && run->row >= o->hidden_from_row;
    if (wanted && (run->row >= o->n_tokens || run->choice == 0)) {
        float hidden[FAKE_HIDDEN];
        fake_hidden(run->state, hidden);
        g_array_append_vals(run->answer->hidden, hidden, FAKE_HIDDEN);
    }
    run->row++;
}

/* The next token; false when the answer ends before it. */
static bool oracle_draw(oracle_run *run, uint32_t index, cs_sampled_token *token)
{
    const cs_llm_request_options *o = &run->c->options;
    float logits[FAKE_VOCAB];
    fake_logits(run->state, logits);
    cs_sampling_request request = {.params = &o->sampling,
                                   .counts = run->counts,
                                   .n_banned = index < o->min_tokens ? o->n_stop_ids : 0,
                                   .banned = o->stop_ids,
                                   .choice = o->first_choice + run->choice,
                                   .index = index};
    g_assert_true(cs_sampler_draw(run->sampler, logits, &request, token, NULL));
    for (uint32_t i = 0; i < o->n_stop_ids; i++)
        if (o->stop_ids[i] == token->id)
            return false;
    return true;
}

static void oracle_generate(oracle_run *run)
{
    const cs_llm_request_options *o = &run->c->options;
    llm_answer *answer = run->answer;
    for (uint32_t i = 0; i < o->n_generated; i++)
        cs_token_counts_add_output(run->counts, o->generated[i]);
    uint32_t n = o->n_generated;
    answer->reason = CS_LLM_FINISH_LENGTH;
    answer->finished = true;
    while (n < o->max_tokens) {
        /* What the engine computes: all known rows, then a token. */
        while (run->row < o->n_tokens + n) {
            uint32_t g = run->row - o->n_tokens;
            int32_t id = run->row < o->n_tokens ? o->token_ids[run->row]
                         : g < o->n_generated
                             ? o->generated[g]
                             : g_array_index(answer->tokens, int32_t, g - o->n_generated);
            oracle_input(run, id);
        }
        cs_sampled_token token;
        if (!oracle_draw(run, n, &token)) {
            answer->reason = CS_LLM_FINISH_STOP_ID;
            return;
        }
        g_array_append_val(answer->tokens, token.id);
        g_array_append_val(answer->logprobs, token.logprob);
        cs_token_counts_add_output(run->counts, token.id);
        n++;
        if (run->c->stop_after > 0 && answer->tokens->len >= run->c->stop_after) {
            answer->reason = CS_LLM_FINISH_SINK;
            return;
        }
    }
}

void llm_case_solve(llm_case *c)
{
    const cs_llm_request_options *o = &c->options;
    g_autofree cs_shared_tensor **tensors = g_new(cs_shared_tensor *, MAX(o->n_items, 1));
    for (uint32_t i = 0; i < o->n_items; i++)
        tensors[i] = fake_embeddings(c->contents[i], c->item_rows[i]);
    init_answers(c->expected);
    cs_sampler *sampler = cs_sampler_new(FAKE_VOCAB);
    for (uint32_t choice = 0; choice < o->n_choices; choice++) {
        oracle_run run = {.c = c,
                          .tensors = tensors,
                          .sampler = sampler,
                          .counts = cs_token_counts_new(FAKE_VOCAB),
                          .choice = choice,
                          .answer = &c->expected[choice]};
        for (uint32_t i = 0; i < o->n_tokens; i++)
            cs_token_counts_add_prompt(run.counts, o->token_ids[i]);
        oracle_generate(&run);
        cs_token_counts_free(run.counts);
    }
    cs_sampler_free(sampler);
    for (uint32_t i = 0; i < o->n_items; i++)
        cs_shared_tensor_unref(tensors[i]);
}

/* ---- The client ---- */

static bool on_token(void *user, const cs_llm_token *token)
{
    llm_client *client = user;
    const cs_llm_request_options *o = &client->c->options;
    llm_answer *answer = &client->answers[token->choice - o->first_choice];
    g_assert_false(answer->finished);
    g_assert_cmpuint(token->index, ==, o->n_generated + answer->tokens->len);
    g_array_append_val(answer->tokens, token->token->id);
    g_array_append_val(answer->logprobs, token->token->logprob);
    pthread_mutex_lock(&client->lock);
    client->n_tokens++;
    pthread_cond_broadcast(&client->changed);
    pthread_mutex_unlock(&client->lock);
    if (client->n_tokens == client->c->cancel_after)
        cs_llm_request_cancel(client->request);
    return client->c->stop_after == 0 || answer->tokens->len < client->c->stop_after;
}

static void on_hidden(void *user, uint32_t choice, uint32_t row, uint32_t n, const float *hidden)
{
    llm_client *client = user;
    const cs_llm_request_options *o = &client->c->options;
    llm_answer *answer = &client->answers[choice - o->first_choice];
    uint32_t first = choice == o->first_choice ? o->hidden_from_row : o->n_tokens;
    first = MAX(first, o->hidden_from_row);
    g_assert_cmpuint(row, ==, first + answer->hidden->len / FAKE_HIDDEN);
    g_array_append_vals(answer->hidden, hidden, n * FAKE_HIDDEN);
}

static void on_kv(void *user, uint32_t block, const void *bytes)
{
    llm_client *client = user;
    g_assert_cmpuint(block, ==, client->kv->len);
    g_assert_cmpuint(client->n_tokens, ==, 0);
    cs_shared_tensor *copy = cs_shared_tensor_new(CS_DTYPE_U8, 1, FAKE_BLOCK_BYTES);
    memcpy(copy->t.data, bytes, FAKE_BLOCK_BYTES);
    g_ptr_array_add(client->kv, copy);
}

static void on_finish(void *user, uint32_t choice, cs_llm_finish reason)
{
    llm_client *client = user;
    llm_answer *answer = &client->answers[choice - client->c->options.first_choice];
    g_assert_false(answer->finished);
    answer->finished = true;
    answer->reason = reason;
}

static void on_done(void *user, const cs_llm_usage *usage, const GError *error)
{
    llm_client *client = user;
    pthread_mutex_lock(&client->lock);
    g_assert_false(client->done);
    client->done = true;
    client->done_us = g_get_monotonic_time();
    client->usage = *usage;
    client->error = error ? g_error_copy(error) : NULL;
    pthread_cond_broadcast(&client->changed);
    pthread_mutex_unlock(&client->lock);
}

static const cs_llm_sink client_sink = {.on_token = on_token,
                                        .on_hidden = on_hidden,
                                        .on_kv = on_kv,
                                        .on_finish = on_finish,
                                        .on_done = on_done};

llm_client *llm_client_start(cs_llm_engine *engine, const llm_case *c, bool with_items,
                             GError **error)
{
    llm_client *client = g_new0(llm_client, 1);
    client->c = c;
    init_answers(client->answers);
    client->kv = g_ptr_array_new_with_free_func((GDestroyNotify)cs_shared_tensor_unref);
    pthread_mutex_init(&client->lock, NULL);
    pthread_cond_init(&client->changed, NULL);
    cs_llm_request_options options = c->options;
    g_autofree cs_llm_input_item *items = g_memdup2(options.items, options.n_items * sizeof *items);
    for (uint32_t i = 0; with_items && i < options.n_items; i++)
        items[i].tensor = fake_embeddings(c->contents[i], c->item_rows[i]);
    options.items = items;
    /* Tokens may come before the handle is stored: on_token waits for the lock. */
    pthread_mutex_lock(&client->lock);
    client->request = cs_llm_engine_submit(engine, &options, &client_sink, client, error);
    pthread_mutex_unlock(&client->lock);
    for (uint32_t i = 0; with_items && i < options.n_items; i++)
        cs_shared_tensor_unref(items[i].tensor);
    if (!client->request) {
        llm_client_free(client);
        return NULL;
    }
    return client;
}

void llm_client_provide(llm_client *client, uint32_t item, uint32_t first, uint32_t n)
{
    const llm_case *c = client->c;
    g_autoptr(cs_shared_tensor) whole = fake_embeddings(c->contents[item], c->item_rows[item]);
    g_autoptr(cs_shared_tensor) part = cs_shared_tensor_new(CS_DTYPE_F32, n, FAKE_HIDDEN);
    memcpy(part->t.data, (float *)whole->t.data + (size_t)first * FAKE_HIDDEN,
           (size_t)n * FAKE_HIDDEN * sizeof(float));
    cs_llm_request_provide(client->request, item, part, first + n == c->item_rows[item]);
}

void llm_client_wait_tokens(llm_client *client, uint32_t n)
{
    pthread_mutex_lock(&client->lock);
    while (client->n_tokens < n && !client->done)
        pthread_cond_wait(&client->changed, &client->lock);
    pthread_mutex_unlock(&client->lock);
}

void llm_client_wait(llm_client *client)
{
    llm_client_wait_tokens(client, UINT32_MAX);
}

static void check_floats(const GArray *a, const GArray *b, guint n)
{
    for (guint i = 0; i < n; i++)
        g_assert_cmpfloat(g_array_index(a, float, i), ==, g_array_index(b, float, i));
}

void llm_client_check_beginning(const llm_client *client)
{
    for (uint32_t choice = 0; choice < client->c->options.n_choices; choice++) {
        const llm_answer *answer = &client->answers[choice];
        const llm_answer *expected = &client->c->expected[choice];
        g_assert_cmpuint(answer->tokens->len, <=, expected->tokens->len);
        for (guint i = 0; i < answer->tokens->len; i++)
            g_assert_cmpint(g_array_index(answer->tokens, int32_t, i), ==,
                            g_array_index(expected->tokens, int32_t, i));
        check_floats(answer->logprobs, expected->logprobs, answer->logprobs->len);
        g_assert_cmpuint(answer->hidden->len, <=, expected->hidden->len);
        check_floats(answer->hidden, expected->hidden, answer->hidden->len);
    }
}

void llm_client_check(const llm_client *client)
{
    g_assert_true(client->done);
    g_assert_no_error(client->error);
    llm_client_check_beginning(client);
    uint32_t completion = 0;
    for (uint32_t choice = 0; choice < client->c->options.n_choices; choice++) {
        const llm_answer *answer = &client->answers[choice];
        const llm_answer *expected = &client->c->expected[choice];
        g_assert_true(answer->finished);
        g_assert_cmpint(answer->reason, ==, expected->reason);
        g_assert_cmpuint(answer->tokens->len, ==, expected->tokens->len);
        g_assert_cmpuint(answer->hidden->len, ==, expected->hidden->len);
        completion += answer->tokens->len + (answer->reason == CS_LLM_FINISH_STOP_ID);
    }
    g_assert_cmpuint(client->usage.prompt_tokens, ==, client->c->options.n_tokens);
    g_assert_cmpuint(client->usage.completion_tokens, ==, completion);
}

void llm_client_free(llm_client *client)
{
    if (!client)
        return;
    if (client->request)
        cs_llm_request_release(client->request);
    g_clear_error(&client->error);
    clear_answers(client->answers);
    g_ptr_array_unref(client->kv);
    pthread_cond_destroy(&client->changed);
    pthread_mutex_destroy(&client->lock);
    g_free(client);
}

uint32_t llm_engine_blocks_held(cs_llm_engine *engine)
{
    cs_llm_engine_stats stats;
    for (int i = 0; i < 5000; i++) {
        cs_llm_engine_stats_get(engine, &stats);
        if (stats.requests == 0 && stats.running == 0 && stats.waiting == 0)
            break;
        g_usleep(1000);
    }
    g_assert_cmpuint(stats.running + stats.waiting + stats.requests, ==, 0);
    return stats.kv_blocks_used;
}
