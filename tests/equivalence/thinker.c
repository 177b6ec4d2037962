/* The thinker of the golden checkpoint in the LLM engine: a batch of one = a batch of sixteen mixed
 * requests, chunked = whole prefill, preempted = not, prefix cache on = off, resumed =
 * uninterrupted, prefill and decode apart = together, beside encoders on its device = alone: the
 * same greedy tokens and, bit for bit, the same log-probabilities. In f32 and in bf16, on every
 * instruction set of this CPU that the argument list names.
 *
 * Prompts and positions are those of the golden requests. In place of encoders' outputs stand
 * random embeddings: what an encoder gives is not the matter here.
 */
#include "base/error.h"
#include "engine/encoder_engine.h"
#include "engine/llm_engine.h"
#include "golden/golden.h"
#include "models/qwen2_5_omni/audio.h"
#include "models/qwen2_5_omni/decoder.h"
#include "models/qwen2_5_omni/vision.h"

#include <pthread.h>

enum { N_GOLDEN = 11, N_REQUESTS = 16, OUTPUT = 64 };

/* ---- The model ---- */

typedef struct {
    cs_checkpoint *checkpoint;
    cs_qwen2_5_omni_config config;
    cs_compute *compute;
    cs_parameters *parameters;
    cs_dtype dtype;
} model;

static const char *golden_dir;
static size_t block_bytes; /* of KV, of the engines now */

static void model_open(model *m, cs_dtype dtype)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *dir = g_build_filename(golden_dir, "qwen2.5-omni-tiny", NULL);
    m->dtype = dtype;
    m->checkpoint = cs_checkpoint_open(dir, &error);
    g_assert_no_error(error);
    cs_qwen2_5_omni_config_read(&m->config, cs_checkpoint_config(m->checkpoint), dir, &error);
    g_assert_no_error(error);
    m->compute = cs_compute_new(&(cs_compute_options){.n_threads = 2}, &error);
    g_assert_no_error(error);
    m->parameters = cs_parameters_new(m->compute);
}

static void model_close(model *m)
{
    cs_parameters_free(m->parameters);
    cs_compute_free(m->compute);
    cs_checkpoint_close(m->checkpoint);
}

static cs_llm_engine *model_engine(model *m, uint32_t n_blocks, cs_llm_engine_options options)
{
    g_autoptr(GError) error = NULL;
    cs_loader loader = {
        .checkpoint = m->checkpoint, .parameters = m->parameters, .dtype = m->dtype};
    cs_llm *llm = cs_qwen2_decoder_load(&loader, m->compute, &m->config.text, "thinker.model",
                                        "thinker", "lm_head.weight");
    cs_loader_finish(&loader, &error);
    g_assert_no_error(error);
    block_bytes = llm->kv_block_bytes;
    options.kv_budget_bytes = n_blocks * llm->kv_block_bytes;
    cs_llm_engine *engine = cs_llm_engine_new(llm, &options, &error);
    g_assert_no_error(error);
    return engine;
}

/* ---- Requests ---- */

typedef struct {
    uint32_t n_tokens;
    int32_t *ids;
    int32_t (*positions)[3];
    int32_t next_position;
    GArray *spans, *items;
    int32_t greedy[OUTPUT]; /* the reference's */
} request;

static request requests[N_GOLDEN];

/* A run of placeholders gets random embeddings of its own. */
static void add_span(request *r, uint32_t row, uint32_t n, uint32_t hidden)
{
    cs_llm_input_item item = {.n_rows = n, .content_hash = {row + 1, n}};
    item.tensor = cs_shared_tensor_new(CS_DTYPE_F32, n, hidden);
    g_autoptr(GRand) rand = g_rand_new_with_seed(row * 1000 + n);
    for (uint32_t i = 0; i < n * hidden; i++)
        ((float *)item.tensor->t.data)[i] = (float)g_rand_double_range(rand, -1.7, 1.7);
    cs_llm_input_span span = {.row = row, .n = n, .item = r->items->len};
    g_array_append_val(r->items, item);
    g_array_append_val(r->spans, span);
}

static void find_spans(request *r, const cs_qwen2_5_omni_config *config)
{
    for (uint32_t row = 0, n; row < r->n_tokens; row += n) {
        int32_t id = r->ids[row];
        for (n = 1; row + n < r->n_tokens && r->ids[row + n] == id;)
            n++;
        if (id == config->image_token || id == config->video_token || id == config->audio_token)
            add_span(r, row, n, (uint32_t)config->text.hidden_size);
    }
}

static void read_request(request *r, uint32_t index, const cs_qwen2_5_omni_config *config)
{
    g_autofree char *name = g_strdup_printf("req%02u.safetensors", index);
    golden_file file = golden_open(golden_dir, name);
    const cs_checkpoint_tensor *ids = golden_get(&file, "input_ids");
    const int32_t *positions = golden_get(&file, "position_ids")->data;
    r->n_tokens = (uint32_t)ids->shape[0];
    r->ids = g_memdup2(ids->data, ids->size_bytes);
    r->positions = g_malloc_n(r->n_tokens, sizeof *r->positions);
    for (uint32_t i = 0; i < r->n_tokens; i++)
        for (uint32_t axis = 0; axis < 3; axis++)
            r->positions[i][axis] = positions[axis * r->n_tokens + i];
    r->next_position =
        (int32_t)r->n_tokens + *(const int32_t *)golden_get(&file, "position_delta")->data;
    memcpy(r->greedy, golden_get(&file, "greedy_tokens")->data, sizeof r->greedy);
    golden_close(&file);
    r->spans = g_array_new(FALSE, FALSE, sizeof(cs_llm_input_span));
    r->items = g_array_new(FALSE, FALSE, sizeof(cs_llm_input_item));
    find_spans(r, config);
}

/* ---- Runs ---- */

typedef struct {
    int32_t ids[OUTPUT];
    float logprobs[OUTPUT];
    uint32_t n;
} answer;

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint32_t n_done;
} run_state;

typedef struct {
    run_state *state;
    answer *answer;
    uint32_t max_tokens;
    GPtrArray *kv; /* cs_shared_tensor: blocks to give out or to take in; NULL: neither */
} ticket;

static bool on_token(void *user, const cs_llm_token *token)
{
    ticket *t = user;
    g_assert_cmpuint(token->index, ==, t->answer->n);
    t->answer->ids[token->index] = token->token->id;
    t->answer->logprobs[token->index] = token->token->logprob;
    t->answer->n++;
    return true;
}

static void on_kv(void *user, uint32_t block, const void *bytes)
{
    const ticket *t = user;
    g_assert_cmpuint(block, ==, t->kv->len);
    cs_shared_tensor *copy = cs_shared_tensor_new(CS_DTYPE_U8, 1, (int64_t)block_bytes);
    memcpy(copy->t.data, bytes, block_bytes);
    g_ptr_array_add(t->kv, copy);
}

static void on_finish(void *user, uint32_t choice, cs_llm_finish reason)
{
    g_assert_cmpint(reason, ==, CS_LLM_FINISH_LENGTH);
}

static void on_done(void *user, const cs_llm_usage *usage, const GError *error)
{
    ticket *t = user;
    g_assert_no_error(error);
    pthread_mutex_lock(&t->state->lock);
    t->state->n_done++;
    pthread_cond_signal(&t->state->changed);
    pthread_mutex_unlock(&t->state->lock);
}

static void submit(cs_llm_engine *engine, uint32_t index, ticket *t)
{
    static const cs_llm_sink sink = {
        .on_token = on_token, .on_kv = on_kv, .on_finish = on_finish, .on_done = on_done};
    const request *r = &requests[index % N_GOLDEN];
    cs_llm_request_options options = {.n_tokens = r->n_tokens,
                                      .token_ids = r->ids,
                                      .positions = (const int32_t(*)[3])r->positions,
                                      .next_position = r->next_position,
                                      .n_spans = r->spans->len,
                                      .spans = (const cs_llm_input_span *)r->spans->data,
                                      .n_items = r->items->len,
                                      .items = (const cs_llm_input_item *)r->items->data,
                                      .generated = t->answer->ids,
                                      .n_generated = t->answer->n,
                                      .max_tokens = t->max_tokens,
                                      .export_kv = t->kv && t->answer->n == 0,
                                      .import_kv = t->kv && t->answer->n > 0,
                                      .sampling = CS_SAMPLING_GREEDY};
    options.sampling.n_logprobs = 0;
    g_autoptr(GError) error = NULL;
    cs_llm_request *handle = cs_llm_engine_submit(engine, &options, &sink, t, &error);
    g_assert_no_error(error);
    for (guint i = 0; options.import_kv && i < t->kv->len; i++)
        cs_llm_request_provide_kv(handle, t->kv->pdata[i]);
    cs_llm_request_release(handle);
}

/* Requests [0, n), `at_once` in flight together, up to max_tokens. answers[i].n tokens of each are
 * known already. kv [n], unless NULL: blocks go there when none is known, and come from there. */
static void run_some(cs_llm_engine *engine, uint32_t n, uint32_t at_once, uint32_t max_tokens,
                     answer *answers, GPtrArray **kv)
{
    run_state state = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    ticket tickets[N_REQUESTS];
    for (uint32_t i = 0; i < n; i++) {
        pthread_mutex_lock(&state.lock);
        while (i >= state.n_done + at_once)
            pthread_cond_wait(&state.changed, &state.lock);
        pthread_mutex_unlock(&state.lock);
        tickets[i] = (ticket){&state, &answers[i], max_tokens, kv ? kv[i] : NULL};
        submit(engine, i, &tickets[i]);
    }
    pthread_mutex_lock(&state.lock);
    while (state.n_done < n)
        pthread_cond_wait(&state.changed, &state.lock);
    pthread_mutex_unlock(&state.lock);
}

static void run(cs_llm_engine *engine, uint32_t n, uint32_t at_once, answer *answers)
{
    run_some(engine, n, at_once, OUTPUT, answers, NULL);
}

static void assert_equal(const answer *answers, const answer *expected, const char *what)
{
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        const answer *e = &expected[i % N_GOLDEN];
        g_assert_cmpuint(answers[i].n, ==, OUTPUT);
        for (uint32_t j = 0; j < OUTPUT; j++)
            if (answers[i].ids[j] != e->ids[j] || answers[i].logprobs[j] != e->logprobs[j])
                g_error("%s: request %u, token %u: id %d (%.9g), alone %d (%.9g)", what, i, j,
                        answers[i].ids[j], (double)answers[i].logprobs[j], e->ids[j],
                        (double)e->logprobs[j]);
    }
}

typedef struct {
    const char *what;
    uint32_t n_blocks;
    cs_llm_engine_options options;
    bool preempts, caches;
} variant;

static const variant variants[] = {
    {"sixteen at once", 512, {.no_prefix_cache = true}, false, false},
    {"chunks of 7",
     512,
     {.max_step_tokens = 7, .max_sequences = 7, .no_prefix_cache = true},
     false,
     false},
    {"chunks of 50", 512, {.max_step_tokens = 50, .no_prefix_cache = true}, false, false},
    {"scarce memory", 24, {.no_prefix_cache = true}, true, false},
    {"prefix cache", 512, {.max_sequences = 3}, false, true},
    {"scarce memory with prefix cache", 24, {.max_step_tokens = 64}, true, false},
};

static void check_variant(model *m, const variant *v, const answer *alone)
{
    answer *answers = g_new0(answer, N_REQUESTS);
    cs_llm_engine *engine = model_engine(m, v->n_blocks, v->options);
    run(engine, N_REQUESTS, N_REQUESTS, answers);
    assert_equal(answers, alone, v->what);
    cs_llm_engine_stats stats;
    cs_llm_engine_stats_get(engine, &stats);
    if (v->preempts)
        g_assert_cmpuint(stats.preemptions, >, 0);
    if (v->caches)
        g_assert_cmpuint(stats.cached_tokens, >, 0);
    cs_llm_engine_free(engine);
    g_free(answers);
}

/* Each answer goes on from where another engine left it. */
static void check_resumed(model *m, const answer *alone)
{
    answer *answers = g_new0(answer, N_REQUESTS);
    for (uint32_t i = 0; i < N_REQUESTS; i++) {
        answers[i] = alone[i % N_GOLDEN];
        answers[i].n = i * 4;
    }
    cs_llm_engine *engine = model_engine(m, 512, (cs_llm_engine_options){0});
    run(engine, N_REQUESTS, N_REQUESTS, answers);
    assert_equal(answers, alone, "resumed");
    cs_llm_engine_free(engine);
    g_free(answers);
}

/* One engine computes prompts and first tokens, the other goes on from its KV blocks. */
static void check_split(model *m, const answer *alone)
{
    answer *answers = g_new0(answer, N_REQUESTS);
    GPtrArray *kv[N_REQUESTS];
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        kv[i] = g_ptr_array_new_with_free_func((GDestroyNotify)cs_shared_tensor_unref);
    cs_llm_engine *prefill = model_engine(m, 512, (cs_llm_engine_options){.max_step_tokens = 80});
    run_some(prefill, N_REQUESTS, N_REQUESTS, 1, answers, kv);
    cs_llm_engine_free(prefill);
    cs_llm_engine *decode = model_engine(m, 512, (cs_llm_engine_options){.no_prefix_cache = true});
    run_some(decode, N_REQUESTS, N_REQUESTS, OUTPUT, answers, kv);
    cs_llm_engine_stats stats;
    cs_llm_engine_stats_get(decode, &stats);
    g_assert_cmpuint(stats.step_rows, <=, N_REQUESTS * OUTPUT);
    assert_equal(answers, alone, "prefill and decode apart");
    cs_llm_engine_free(decode);
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        g_ptr_array_unref(kv[i]);
    g_free(answers);
}

/* ---- Beside encoders ---- */

enum { N_ENCODERS = 2, N_ITEMS = 3, N_JOBS = 24 };

typedef struct {
    cs_encoder *encoder;
    cs_encoder_item items[N_ITEMS];
    float *inputs[N_ITEMS];
    cs_shared_tensor *alone[N_ITEMS];
    gint n_done;
} encoder_load;

typedef struct {
    encoder_load *load;
    uint32_t item;
} encoder_ticket;

static void on_encoded(void *user, cs_shared_tensor *output, const GError *error)
{
    const encoder_ticket *t = user;
    const cs_tensor *expected = &t->load->alone[t->item]->t;
    g_assert_no_error(error);
    g_assert_cmpmem(output->t.data, (size_t)(output->t.rows * output->t.cols) * sizeof(float),
                    expected->data, (size_t)(expected->rows * expected->cols) * sizeof(float));
    g_atomic_int_inc(&t->load->n_done);
}

static void set_item(encoder_load *load, uint32_t i, int64_t rows, int64_t cols,
                     const int32_t grid[3])
{
    g_autoptr(GRand) rand = g_rand_new_with_seed((guint32)(rows * 100 + cols));
    g_autoptr(GError) error = NULL;
    load->inputs[i] = g_new(float, rows *cols);
    for (int64_t j = 0; j < rows * cols; j++)
        load->inputs[i][j] = (float)g_rand_double_range(rand, -1.5, 1.5);
    load->items[i] =
        (cs_encoder_item){.input = cs_tensor_view(load->inputs[i], CS_DTYPE_F32, rows, cols),
                          .grid = {grid[0], grid[1], grid[2]}};
    load->encoder->ops->forward(load->encoder, 1, &load->items[i], &load->alone[i], &error);
    g_assert_no_error(error);
}

static void open_loads(model *m, encoder_load loads[N_ENCODERS])
{
    static const int32_t grids[N_ITEMS][3] = {{1, 8, 12}, {2, 4, 6}, {1, 20, 14}};
    const cs_qwen2_5_omni_vision_config *v = &m->config.vision;
    g_autoptr(GError) error = NULL;
    cs_loader loader = {
        .checkpoint = m->checkpoint, .parameters = m->parameters, .dtype = m->dtype};
    loads[0].encoder = cs_qwen2_5_omni_vision_load(&loader, m->compute, v, "thinker.visual");
    loads[1].encoder =
        cs_qwen2_5_omni_audio_load(&loader, m->compute, &m->config.audio, "thinker.audio_tower");
    cs_loader_finish(&loader, &error);
    g_assert_no_error(error);
    int64_t patch = v->in_channels * v->temporal_patch_size * v->patch_size * v->patch_size;
    for (uint32_t i = 0; i < N_ITEMS; i++) {
        const int32_t *g = grids[i];
        set_item(&loads[0], i, (int64_t)g[0] * g[1] * g[2], patch, g);
        set_item(&loads[1], i, 120 + 150 * i, m->config.audio.n_mels, (const int32_t[3]){0});
    }
}

static cs_encoder_engine *submit_load(encoder_load *load, encoder_ticket *tickets, cs_turn *turn,
                                      cs_turn *batches)
{
    g_autoptr(GError) error = NULL;
    cs_encoder_engine_options options = {.turn = turn, .batches = batches, .max_batch_cost = 300};
    cs_encoder_engine *engine = cs_encoder_engine_new(load->encoder, &options, &error);
    g_assert_no_error(error);
    for (uint32_t i = 0; i < N_JOBS; i++) {
        tickets[i] = (encoder_ticket){load, i % N_ITEMS};
        cs_encoder_job_options job = {
            .input.item = load->items[i % N_ITEMS], .on_done = on_encoded, .user = &tickets[i]};
        cs_encoder_job *handle = cs_encoder_engine_submit(engine, &job, &error);
        g_assert_no_error(error);
        cs_encoder_job_release(handle);
    }
    return engine;
}

/* The engines take turns on one device, between the encoders' layers too: nobody's activations are
 * touched by the others. */
static void check_colocated(model *m, const answer *alone)
{
    g_autoptr(cs_turn) turn = cs_turn_new(), batches = cs_turn_new();
    encoder_load loads[N_ENCODERS] = {0};
    encoder_ticket tickets[N_ENCODERS][N_JOBS];
    cs_encoder_engine *encoders[N_ENCODERS];
    answer *answers = g_new0(answer, N_REQUESTS);
    open_loads(m, loads);
    cs_llm_engine *engine = model_engine(m, 512, (cs_llm_engine_options){.turn = turn});
    for (int e = 0; e < N_ENCODERS; e++)
        encoders[e] = submit_load(&loads[e], tickets[e], turn, batches);
    run(engine, N_REQUESTS, N_REQUESTS, answers);
    assert_equal(answers, alone, "beside encoders");
    for (int e = 0; e < N_ENCODERS; e++) {
        while (g_atomic_int_get(&loads[e].n_done) < N_JOBS)
            g_usleep(1000);
        cs_encoder_engine_free(encoders[e]);
        for (uint32_t i = 0; i < N_ITEMS; i++) {
            cs_shared_tensor_unref(loads[e].alone[i]);
            g_free(loads[e].inputs[i]);
        }
    }
    cs_llm_engine_free(engine);
    g_free(answers);
}

static void check_dtype(cs_dtype dtype)
{
    model m;
    model_open(&m, dtype);
    for (uint32_t i = 0; i < N_GOLDEN && !requests[i].ids; i++)
        read_request(&requests[i], i, &m.config);
    answer *alone = g_new0(answer, N_GOLDEN);
    cs_llm_engine *engine = model_engine(
        &m, 512, (cs_llm_engine_options){.max_step_tokens = 4096, .no_prefix_cache = true});
    run(engine, N_GOLDEN, 1, alone);
    cs_llm_engine_free(engine);
    for (uint32_t i = 0; i < N_GOLDEN && dtype == CS_DTYPE_F32; i++)
        if (requests[i].spans->len == 0)
            g_assert_cmpmem(alone[i].ids, sizeof alone[i].ids, requests[i].greedy,
                            sizeof requests[i].greedy);
    for (size_t i = 0; i < G_N_ELEMENTS(variants); i++)
        check_variant(&m, &variants[i], alone);
    check_resumed(&m, alone);
    check_split(&m, alone);
    check_colocated(&m, alone);
    g_free(alone);
    model_close(&m);
}

static void test_f32(void)
{
    check_dtype(CS_DTYPE_F32);
}

static void test_bf16(void)
{
    check_dtype(CS_DTYPE_BF16);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    golden_dir = argv[1];
    g_test_add_func("/thinker-equivalence/f32", test_f32);
    g_test_add_func("/thinker-equivalence/bf16", test_bf16);
    return g_test_run();
}
