#include "graph/graph_internal.h"

#include <string.h>

static void clear_input(void *data)
{
    g_free(((cs_invocation_input *)data)->name);
}

static void clear_invocation(void *data)
{
    cs_invocation *invocation = data;
    json_decref(invocation->params);
    g_array_unref(invocation->inputs);
}

cs_recording *cs_recording_new(void)
{
    cs_recording *r = g_new0(cs_recording, 1);
    r->invocations = g_array_new(FALSE, TRUE, sizeof(cs_invocation));
    r->forwards = g_array_new(FALSE, TRUE, sizeof(cs_forward));
    g_array_set_clear_func(r->invocations, clear_invocation);
    return r;
}

void cs_recording_free(cs_recording *r)
{
    if (!r)
        return;
    for (guint i = 0; i < r->invocations->len; i++)
        g_array_set_clear_func(g_array_index(r->invocations, cs_invocation, i).inputs, clear_input);
    g_array_unref(r->invocations);
    g_array_unref(r->forwards);
    g_free(r);
}

void recording_mark_client(cs_recording *r, uint32_t forward)
{
    cs_forward *f = &g_array_index(r->forwards, cs_forward, forward);
    if (f->to_client)
        return;
    f->to_client = true;
    f->n_consumers++;
}

bool recording_same_invocation(const cs_invocation *a, const cs_invocation *b)
{
    if (a->unit != b->unit || a->inputs->len != b->inputs->len || a->units != b->units ||
        a->output_units != b->output_units || !json_equal(a->params, b->params))
        return false;
    for (guint i = 0; i < a->inputs->len; i++) {
        const cs_invocation_input *x = &g_array_index(a->inputs, cs_invocation_input, i);
        const cs_invocation_input *y = &g_array_index(b->inputs, cs_invocation_input, i);
        if (x->forward != y->forward || strcmp(x->name, y->name) != 0)
            return false;
    }
    return true;
}
