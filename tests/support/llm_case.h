/* A generation request, its answer by an oracle that knows no batches, and a client that collects
 * what an engine answers.
 */
#ifndef CS_TESTS_LLM_CASE_H
#define CS_TESTS_LLM_CASE_H

#include "engine/llm_engine.h"
#include "support/fake_llm.h"

#include <pthread.h>

enum { CASE_MAX_CHOICES = 4 };

typedef struct {
    GArray *tokens;   /* int32_t, resumed ones not counted */
    GArray *logprobs; /* float */
    GArray *hidden;   /* float [rows, FAKE_HIDDEN], from first_hidden_row on */
    bool finished;
    cs_llm_finish reason;
} llm_answer;

typedef struct {
    cs_llm_request_options options; /* its arrays belong to the case */
    uint64_t *contents;             /* [n_items] what fake_embeddings makes the items of */
    uint32_t *item_rows;            /* [n_items] */
    uint32_t stop_after;            /* the sink stops a choice after so many tokens; 0: never */
    uint32_t cancel_after;          /* the client cancels after so many tokens; 0: never */
    llm_answer expected[CASE_MAX_CHOICES];
} llm_case;

/* A prompt of n text tokens drawn from `text`, a seed: equal texts have equal beginnings. Greedy,
 * max_tokens of output, one choice. */
llm_case *llm_case_new(uint64_t text, uint32_t n, uint32_t max_tokens);
/* Everything at random; small enough for 8 blocks of KV a choice. */
llm_case *llm_case_random(GRand *rand);
void llm_case_add_item(llm_case *c, uint64_t content, uint32_t row, uint32_t rows);
/* Fills `expected`; after it the case is constant. */
void llm_case_solve(llm_case *c);
/* The same request after `n` tokens of choice 0 were handed out; solved. */
llm_case *llm_case_resumed(const llm_case *c, uint32_t n);
/* Its prompt and first token alone, with export_kv; solved. */
llm_case *llm_case_prefill(const llm_case *c);
/* What follows the first token of choice 0, with import_kv; solved. */
llm_case *llm_case_decode(const llm_case *c);
void llm_case_free(llm_case *c);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(llm_case, llm_case_free)

typedef struct {
    const llm_case *c;
    cs_llm_request *request;
    llm_answer answers[CASE_MAX_CHOICES];
    GPtrArray *kv; /* cs_shared_tensor, a block each: what on_kv gave */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint32_t n_tokens; /* over all choices, under lock */
    bool done;
    gint64 done_us;
    GError *error;
    cs_llm_usage usage;
} llm_client;

/* Items come with the request when `with_items`, else by llm_client_provide. */
llm_client *llm_client_start(cs_llm_engine *engine, const llm_case *c, bool with_items,
                             GError **error);
/* Rows [first, first + n) of an item. */
void llm_client_provide(llm_client *client, uint32_t item, uint32_t first, uint32_t n);
void llm_client_wait_tokens(llm_client *client, uint32_t n); /* or the end */
void llm_client_wait(llm_client *client);
/* The answer is complete and the oracle's, to the last bit. */
void llm_client_check(const llm_client *client);
/* What came before the request ended is the beginning of the oracle's answer. */
void llm_client_check_beginning(const llm_client *client);
void llm_client_free(llm_client *client); /* accepts NULL */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(llm_client, llm_client_free)

/* Waits until no sequence is left and returns the blocks still held: 0 unless they leak. */
uint32_t llm_engine_blocks_held(cs_llm_engine *engine);

#endif
