/* The runtime over emulated executors: what its tests share. The test program is its own executor
 * (`PROGRAM executor`). */
#ifndef CS_TESTS_RUNTIME_CASE_H
#define CS_TESTS_RUNTIME_CASE_H

#include "runtime/runtime.h"

#include <pthread.h>
#include <sys/types.h>

/* Short times: pings, watchdog, back-off. */
extern const cs_runtime_options quick;
extern const cs_runtime_sink client_sink; /* its user is a client */

/* A plan with encoders apart, two thinkers, and talker and vocoder together. */
#define HOSTED(name) "{\"name\": \"" name "\", \"role\": \"both\"}"
#define ENTRY(name, hosted, replicas, devices)                                                     \
    "{\"name\": \"" name "\", \"components\": [" hosted "], \"node\": \"local\", \"device\": "     \
    "\"emu:test\", \"devices_per_replica\": 1, \"replicas\": " replicas ", \"devices\": [" devices \
    "]}"
#define PLAN(executors, routes)                                                                    \
    "{\"version\": 1, \"model\": \"m\", \"policy\": \"cost\", \"executors\": [" executors          \
    "], \"routes\": [" routes "]}"
#define ROUTE(type, assign)                                                                        \
    "{\"request_type\": \"" type                                                                   \
    "\", \"rate_rps\": 1, \"paths\": [{\"weight\": 1, \"assign\": {" assign "}}]}"
#define SPLIT_PLAN                                                                                 \
    PLAN(ENTRY("enc", HOSTED("image_encoder") "," HOSTED("audio_encoder"), "1", "0") "," ENTRY(    \
             "think", HOSTED("thinker"), "2",                                                      \
             "1, 2") "," ENTRY("speak", HOSTED("talker") "," HOSTED("vocoder"), "1", "3"),         \
         "")

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    GString *text, *events;
    uint64_t audio_bytes, audio_pieces;
    bool done;
    GError *error;
} client;

cs_tasks *plain_tasks(const char *model);
void add_model(cs_tasks *tasks, const char *alias, const char *model);
/* Of emu:test, whose steps take us; extra: more members. */
json_t *devices(const char *extra, int us);
cs_runtime *start_runtime(void);
cs_plan *parse_plan(const char *text, GError **error);
/* plan_text NULL: everything in one executor. */
void deploy(cs_runtime *rt, const char *model, const char *plan_text, const char *extra, int us);
void add_plain_app(cs_runtime *rt, const char *model);
void client_clear(client *c);
/* For on_done; fails the test after a minute. */
void client_wait(client *c);
json_t *make_request(int image_tokens, int audio_tokens, int n_out, int n_audio_out);
/* Initialises the client and takes the request. */
cs_runtime_request *submit(cs_runtime *rt, const char *app, client *c, json_t *request);
/* The emulated answer of n tokens. */
void assert_words(const client *c, int n);
/* One request, answered in full. Counts are of units; 0: none of that kind. */
void ask(cs_runtime *rt, int image_tokens, int audio_tokens, int n_out, int n_audio_out);
/* A number of cs_runtime_status. */
int64_t status_number(cs_runtime *rt, const char *object, const char *key);
int open_descriptors(void);
/* Nothing of any request is left, a moment after its client was told. */
void assert_idle(cs_runtime *rt);
/* Ends it: idle, in time, and no process is left. */
void stop_runtime(cs_runtime *rt);
/* The pid of one; 0 while it is down. */
pid_t random_executor(cs_runtime *rt, GRand *random);

#endif
