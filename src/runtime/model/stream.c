/* What jobs hand to each other: within the executor as tensors, to other executors as chunks of the
 * sidecar. */
#include "base/error.h"
#include "runtime/model/internal.h"

#include <string.h>

/* --- hand-over within the executor --- */

typedef struct {
    uint64_t request;
    uint32_t stream;
} handover_key;

typedef struct {
    GPtrArray *tensors; /* cs_shared_tensor *, all so far; NULL where all have been taken */
    guint n_taken;      /* of a stream */
    uint32_t limit;     /* of those not taken; 0: any */
    bool produced;      /* the producer's job has ended */
    bool complete;      /* and without an error */
    int left; /* consumers whose jobs have not ended; below 0: the producer is yet to come */
} handover;

static guint hash_key(const void *p)
{
    const handover_key *key = p;
    return (guint)(key->request * 31 + key->stream);
}

static gboolean equal_keys(const void *a, const void *b)
{
    const handover_key *x = a, *y = b;
    return x->request == y->request && x->stream == y->stream;
}

static void unref_tensor(void *tensor)
{
    cs_shared_tensor_unref(tensor); /* accepts NULL */
}

static void free_handover(void *data)
{
    handover *h = data;
    g_ptr_array_unref(h->tensors);
    g_free(h);
}

GHashTable *model_handovers_new(void)
{
    return g_hash_table_new_full(hash_key, equal_keys, g_free, free_handover);
}

static handover *get_handover(model *m, uint64_t request, uint32_t stream)
{
    handover_key key = {request, stream};
    handover *h = g_hash_table_lookup(m->handovers, &key);
    if (!h) {
        h = g_new0(handover, 1);
        h->tensors = g_ptr_array_new_with_free_func(unref_tensor);
        g_hash_table_insert(m->handovers, g_memdup2(&key, sizeof(key)), h);
    }
    return h;
}

static void wake_jobs(model *m)
{
    cs_loop_post(cs_executor_loop(m->host), model_poll_all, m);
}

/* False: who reads it is slow. */
static bool put_handover(model_job *producer, uint32_t output, cs_shared_tensor *tensor)
{
    const cs_job *job = producer->job;
    handover *h = get_handover(producer->owner, job->request, job->outputs[output].stream);
    if (h->limit > 0 && h->tensors->len - h->n_taken >= h->limit)
        return false;
    g_ptr_array_add(h->tensors, cs_shared_tensor_ref(tensor));
    wake_jobs(producer->owner);
    return true;
}

cs_shared_tensor *model_handover_look(model_job *consumer, uint32_t input)
{
    const cs_job *job = consumer->job;
    const handover *h = get_handover(consumer->owner, job->request, job->inputs[input].stream);
    return h->tensors->len > 0 ? h->tensors->pdata[0] : NULL;
}

/* The next of a stream, whose only consumer this is; with the reference. */
static cs_receive take_handover(model_job *consumer, uint32_t input, cs_shared_tensor **tensor)
{
    const cs_job *job = consumer->job;
    handover *h = get_handover(consumer->owner, job->request, job->inputs[input].stream);
    if (h->n_taken == h->tensors->len)
        return h->complete ? CS_RECEIVE_END : CS_RECEIVE_AGAIN;
    *tensor = g_steal_pointer(&h->tensors->pdata[h->n_taken++]);
    if (h->limit > 0)
        wake_jobs(consumer->owner);
    return CS_RECEIVE_CHUNK;
}

void model_handovers_enter(model *m, const cs_job *job)
{
    for (uint32_t i = 0; i < job->n_outputs; i++)
        if (job->outputs[i].n_local > 0)
            get_handover(m, job->request, job->outputs[i].stream)->left +=
                (int)job->outputs[i].n_local;
}

static void drop_handover(model *m, uint64_t request, uint32_t stream)
{
    handover_key key = {request, stream};
    const handover *h = g_hash_table_lookup(m->handovers, &key);
    if (h->produced && h->left == 0)
        g_hash_table_remove(m->handovers, &key);
}

void model_handovers_leave(model *m, const cs_job *job, bool failed)
{
    for (uint32_t i = 0; i < job->n_inputs; i++) {
        if (!job->inputs[i].local)
            continue;
        get_handover(m, job->request, job->inputs[i].stream)->left--;
        drop_handover(m, job->request, job->inputs[i].stream);
    }
    for (uint32_t i = 0; i < job->n_outputs; i++) {
        if (job->outputs[i].n_local == 0)
            continue;
        handover *h = get_handover(m, job->request, job->outputs[i].stream);
        h->produced = true;
        h->complete = !failed; /* else the gateway cancels who waits for it */
        wake_jobs(m);
        drop_handover(m, job->request, job->outputs[i].stream);
    }
}

/* --- streamed outputs --- */

void model_outbox_init(model_outbox *box, uint32_t output)
{
    *box = (model_outbox){.output = output};
    g_queue_init(&box->fresh);
    g_queue_init(&box->ripe);
}

void model_outbox_limit(model_job *producer, const model_outbox *box, uint32_t n_chunks)
{
    const cs_job *job = producer->job;
    const cs_job_output *o = &job->outputs[box->output];
    if (o->sender)
        cs_sender_limit(o->sender, n_chunks);
    else if (o->n_local > 0)
        get_handover(producer->owner, job->request, o->stream)->limit = n_chunks;
}

void model_outbox_clear(model_outbox *box)
{
    g_queue_clear_full(&box->fresh, unref_tensor);
    g_queue_clear_full(&box->ripe, unref_tensor);
}

bool model_outbox_is_empty(const model_outbox *box)
{
    return box->fresh.length + box->ripe.length == 0;
}

void model_stream_put(model_job *producer, model_outbox *box, cs_shared_tensor *chunk)
{
    g_queue_push_tail(&box->fresh, cs_shared_tensor_ref(chunk));
    model_later(producer);
}

void model_outbox_ripen(model_outbox *box)
{
    while (box->fresh.length > 0)
        g_queue_push_tail(&box->ripe, g_queue_pop_head(&box->fresh));
}

/* False: there is no room now, or *error. */
static bool send_tensor(cs_sender *sender, cs_shared_tensor *tensor, GError **error)
{
    const cs_tensor *t = &tensor->t;
    g_autoptr(GError) why = NULL;
    gsize size_bytes = (gsize)(t->rows * t->cols) * cs_dtype_size_bytes(t->dtype);
    g_autoptr(GBytes) bytes =
        g_bytes_new_with_free_func(t->data, size_bytes, unref_tensor, cs_shared_tensor_ref(tensor));
    cs_chunk_desc desc = {
        .type = t->dtype, .rank = 2, .shape = {(uint64_t)t->rows, (uint64_t)t->cols}};
    if (cs_sender_put_bytes(sender, bytes, &desc, 0, &why))
        return true;
    if (!g_error_matches(why, CS_ERROR, CS_ERROR_BUSY))
        g_propagate_error(error, g_steal_pointer(&why));
    return false;
}

bool model_output_send(model_job *producer, uint32_t output, cs_shared_tensor *tensor,
                       GError **error)
{
    const cs_job_output *o = &producer->job->outputs[output];
    if (o->n_local > 0)
        return put_handover(producer, output, tensor);
    return !o->sender || send_tensor(o->sender, tensor, error);
}

bool model_outbox_flush(model_job *producer, model_outbox *box, GError **error)
{
    while (box->ripe.length > 0) {
        if (!model_output_send(producer, box->output, box->ripe.head->data, error))
            return false;
        cs_shared_tensor_unref(g_queue_pop_head(&box->ripe));
    }
    return box->fresh.length == 0;
}

/* --- inputs --- */

uint32_t model_find_input(const cs_job *job, const char *name, uint32_t from)
{
    while (from < job->n_inputs && strcmp(job->inputs[from].name, name) != 0)
        from++;
    return from;
}

cs_receive model_take_chunk(cs_job *job, uint32_t input, cs_chunk *chunk, GError **error)
{
    cs_receive got = cs_receiver_get(job->inputs[input].receiver, 0, 0, chunk, error);
    if (got == CS_RECEIVE_END)
        cs_fail(error, CS_ERROR_FAILED, "%s: input %s ended without data", job->component,
                job->inputs[input].name);
    return got;
}

bool model_check_chunk(const cs_job *job, const cs_chunk *chunk, cs_dtype dtype, GError **error)
{
    const cs_chunk_desc *d = &chunk->desc;
    uint64_t room = chunk->size_bytes / cs_dtype_size_bytes(dtype);
    return (d->type == dtype && d->rank == 2 && d->shape[0] > 0 && d->shape[1] > 0 &&
            d->shape[1] <= room && d->shape[0] <= room / d->shape[1]) ||
           cs_fail(error, CS_ERROR_FAILED, "%s: an input that is malformed", job->component);
}

/* A copy of the chunk: what reads it may hold it longer than the sidecar should. */
static cs_shared_tensor *copy_chunk(const cs_job *job, const cs_chunk *chunk, cs_dtype dtype,
                                    GError **error)
{
    if (!model_check_chunk(job, chunk, dtype, error))
        return NULL;
    int64_t rows = (int64_t)chunk->desc.shape[0], cols = (int64_t)chunk->desc.shape[1];
    cs_shared_tensor *tensor = cs_shared_tensor_new(dtype, rows, cols);
    if (tensor)
        memcpy(tensor->t.data, chunk->data, (size_t)(rows * cols) * cs_dtype_size_bytes(dtype));
    else
        cs_fail(error, CS_ERROR_FAILED, "%s: no memory", job->component);
    return tensor;
}

cs_receive model_stream_next(model_job *consumer, uint32_t input, uint64_t *n_taken, cs_dtype dtype,
                             cs_shared_tensor **tensor, GError **error)
{
    cs_job *job = consumer->job;
    cs_chunk chunk;
    if (job->inputs[input].local)
        return take_handover(consumer, input, tensor);
    cs_receiver *receiver = job->inputs[input].receiver;
    cs_receive got = cs_receiver_get(receiver, *n_taken, 0, &chunk, error);
    if (got != CS_RECEIVE_CHUNK)
        return got;
    *tensor = copy_chunk(job, &chunk, dtype, error);
    cs_receiver_release(receiver, (*n_taken)++);
    return *tensor ? CS_RECEIVE_CHUNK : CS_RECEIVE_ERROR;
}
