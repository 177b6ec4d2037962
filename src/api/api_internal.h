/* What the files of the API share. */
#ifndef CS_API_API_INTERNAL_H
#define CS_API_API_INTERNAL_H

#include "api/api.h"
#include "api/apps.h"
#include "api/content.h"
#include "api/http.h"
#include "api/metrics.h"
#include "api/sound.h"

struct cs_api {
    GPtrArray *models; /* cs_pipeline *, borrowed; the first is asked when none is named */
    cs_http *http;
    cs_metrics *metrics;
    cs_apps *apps;
    cs_media_policy policy;
    char *media_dir;
    GThreadPool *fetchers; /* of remote media; NULL when not allowed */
    GThreadPool *makers;   /* of sound */
    int64_t started_s;

    GMutex lock;
    GCond no_jobs;
    GHashTable *jobs; /* set of generation requests that run */
    guint n_jobs;     /* and those that are being freed: they use the API */
    gint draining;    /* atomic */
};

/* generate.c: all generation endpoints. The body is borrowed during the call. */
void cs_api_generate(cs_api *api, cs_exchange *x, cs_endpoint endpoint, const cs_body *body);
/* Ends all jobs with an error; their clients are told. */
void cs_api_generate_end_all(cs_api *api);
/* The body of a job for the fetchers' pool. */
void cs_api_generate_fetch(gpointer job, gpointer api);

/* Responds with the fault. */
void cs_api_fail(cs_exchange *x, const cs_fault *fault);
/* NULL, and a fault, when it is not served. id NULL: the first. */
cs_pipeline *cs_api_find_model(const cs_api *api, const char *id, cs_fault *fault);

/* page.c */
extern const char cs_api_page_html[];

#endif
