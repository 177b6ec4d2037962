/* The options of every subcommand that loads a model. */
#ifndef CS_CLI_MODEL_OPTIONS_H
#define CS_CLI_MODEL_OPTIONS_H

#include "cli/cli.h"
#include "runtime/pipeline/pipeline.h"

typedef struct {
    char *dtype, *kv_budget;
    char *isa;
    gboolean no_speech;
    char *plan;
    int threads, max_context, max_batch_tokens, max_sequences, max_queued;
} cs_cli_model_options;

/* For the table of a subcommand; `o` is a cs_cli_model_options that lives as long as the table. */
#define CS_CLI_MODEL_ENTRIES(o)                                                                    \
    {"dtype",    0,                                                                                \
     0,          G_OPTION_ARG_STRING,                                                              \
     &(o).dtype, "Precision: auto (the checkpoint's), f32 or bf16",                                \
     "TYPE"},                                                                                      \
        {"threads",                                                                                \
         0,                                                                                        \
         0,                                                                                        \
         G_OPTION_ARG_INT,                                                                         \
         &(o).threads,                                                                             \
         "Threads that compute (all CPUs of this process)",                                        \
         "N"},                                                                                     \
        {"isa",    0,                                                                              \
         0,        G_OPTION_ARG_STRING,                                                            \
         &(o).isa, "Instruction set: amx, avx512bf16, avx512, avx2, portable (the best there is)", \
         "NAME"},                                                                                  \
        {"kv-budget",                                                                              \
         0,                                                                                        \
         0,                                                                                        \
         G_OPTION_ARG_STRING,                                                                      \
         &(o).kv_budget,                                                                           \
         "Memory of the KV cache (half of what is free)",                                          \
         "SIZE"},                                                                                  \
        {"max-context",                                                                            \
         0,                                                                                        \
         0,                                                                                        \
         G_OPTION_ARG_INT,                                                                         \
         &(o).max_context,                                                                         \
         "Tokens of prompt and answer together (the model's)",                                     \
         "N"},                                                                                     \
        {"max-batch-tokens",                                                                       \
         0,                                                                                        \
         0,                                                                                        \
         G_OPTION_ARG_INT,                                                                         \
         &(o).max_batch_tokens,                                                                    \
         "Tokens computed in one step (512)",                                                      \
         "N"},                                                                                     \
        {"max-sequences",                                                                          \
         0,                                                                                        \
         0,                                                                                        \
         G_OPTION_ARG_INT,                                                                         \
         &(o).max_sequences,                                                                       \
         "Answers written at the same time (64)",                                                  \
         "N"},                                                                                     \
        {"no-speech",                                                                              \
         0,                                                                                        \
         0,                                                                                        \
         G_OPTION_ARG_NONE,                                                                        \
         &(o).no_speech,                                                                           \
         "Leave out what speaks, and its memory",                                                  \
         NULL},                                                                                    \
        {"plan",    0,                                                                             \
         0,         G_OPTION_ARG_FILENAME,                                                         \
         &(o).plan, "Components in processes of their own, as this plan says (all in this one)",   \
         "FILE"},                                                                                  \
    {                                                                                              \
        "max-queued", 0, 0, G_OPTION_ARG_INT, &(o).max_queued,                                     \
            "Requests accepted before others are refused (1024)", "N"                              \
    }

/* "512M", "2G", "1.5GiB", or bytes. */
bool cs_cli_parse_size(const char *text, const char *option, size_t *size_bytes, GError **error);

/* Loads DIR, showing progress on stderr. */
cs_pipeline *cs_cli_load_model(const char *dir, const cs_cli_model_options *options,
                               GError **error);

#endif
