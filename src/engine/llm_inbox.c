#include "engine/llm_internal.h"

struct llm_inbox {
    gint refs;
    pthread_mutex_t lock;
    pthread_cond_t posted;
    llm_message *first, *last;
    uint32_t n_requests, max_requests;
    bool closed;
};

llm_inbox *llm_inbox_new(uint32_t max_requests)
{
    llm_inbox *inbox = g_new0(llm_inbox, 1);
    inbox->refs = 1;
    inbox->max_requests = max_requests;
    pthread_mutex_init(&inbox->lock, NULL);
    pthread_cond_init(&inbox->posted, NULL);
    return inbox;
}

llm_inbox *llm_inbox_ref(llm_inbox *inbox)
{
    g_atomic_int_inc(&inbox->refs);
    return inbox;
}

void llm_inbox_unref(llm_inbox *inbox)
{
    if (!inbox || !g_atomic_int_dec_and_test(&inbox->refs))
        return;
    while (inbox->first) {
        llm_message *message = inbox->first;
        inbox->first = message->next;
        llm_message_free(message);
    }
    pthread_cond_destroy(&inbox->posted);
    pthread_mutex_destroy(&inbox->lock);
    g_free(inbox);
}

static void clear_message(llm_message *message)
{
    cs_shared_tensor_unref(message->rows);
    g_clear_error(&message->error);
    llm_request_unref(message->request);
}

void llm_message_free(llm_message *message)
{
    clear_message(message);
    g_free(message);
}

static bool enqueue(llm_inbox *inbox, const llm_message *message)
{
    bool submits = message->kind == MESSAGE_SUBMIT;
    if (inbox->closed || (submits && inbox->n_requests >= inbox->max_requests))
        return false;
    inbox->n_requests += submits;
    llm_message *node = g_memdup2(message, sizeof *message);
    node->next = NULL;
    if (inbox->last)
        inbox->last->next = node;
    else
        inbox->first = node;
    inbox->last = node;
    pthread_cond_signal(&inbox->posted);
    return true;
}

bool llm_inbox_post(llm_inbox *inbox, llm_message message)
{
    pthread_mutex_lock(&inbox->lock);
    bool taken = enqueue(inbox, &message);
    pthread_mutex_unlock(&inbox->lock);
    if (!taken)
        clear_message(&message);
    return taken;
}

llm_message *llm_inbox_take(llm_inbox *inbox, bool wait, bool *closed)
{
    pthread_mutex_lock(&inbox->lock);
    while (wait && !inbox->first && !inbox->closed)
        pthread_cond_wait(&inbox->posted, &inbox->lock);
    llm_message *messages = inbox->first;
    inbox->first = inbox->last = NULL;
    *closed = inbox->closed;
    pthread_mutex_unlock(&inbox->lock);
    return messages;
}

void llm_inbox_leave(llm_inbox *inbox)
{
    pthread_mutex_lock(&inbox->lock);
    inbox->n_requests--;
    pthread_mutex_unlock(&inbox->lock);
}

void llm_inbox_close(llm_inbox *inbox)
{
    pthread_mutex_lock(&inbox->lock);
    inbox->closed = true;
    pthread_cond_signal(&inbox->posted);
    pthread_mutex_unlock(&inbox->lock);
}

uint32_t llm_inbox_requests(llm_inbox *inbox)
{
    pthread_mutex_lock(&inbox->lock);
    uint32_t n = inbox->n_requests;
    pthread_mutex_unlock(&inbox->lock);
    return n;
}
