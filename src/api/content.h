/* What a request is about: messages with media, or prompts. */
#ifndef CS_API_CONTENT_H
#define CS_API_CONTENT_H

#include "api/params.h"

/* How media may come, beside data URLs. */
typedef struct {
    bool allow_remote;       /* https URLs are fetched */
    const char *media_dir;   /* file URLs inside this directory are read; NULL: none */
    size_t max_medium_bytes; /* of one medium, decoded from base64, fetched or read */
} cs_media_policy;

/* A medium of the request: its bytes are there, or a URL has to be fetched first. */
typedef struct {
    cs_modality modality;
    uint32_t max_pixels; /* as in cs_request_medium */
    char *param;         /* the field it came in, "messages[0].content[1].image_url.url" */
    GBytes *bytes;       /* NULL: remote */
    char *url;           /* NULL unless remote */
} cs_content_medium;

typedef struct {
    json_t *messages;      /* chat: ready for cs_request */
    GPtrArray *media;      /* chat: cs_content_medium *, in order of appearance */
    GPtrArray *prompts;    /* completion: char *, texts; NULL when they are ids */
    GPtrArray *prompt_ids; /* completion: GArray * of int32_t; NULL when they are texts */
} cs_content;

bool cs_content_read_messages(cs_content *content, const cs_body *body,
                              const cs_media_policy *policy, cs_fault *fault);
/* Ids are checked against vocab_size. */
bool cs_content_read_prompt(cs_content *content, const cs_body *body, uint32_t vocab_size,
                            cs_fault *fault);
void cs_content_clear(cs_content *content);

#endif
