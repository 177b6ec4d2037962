/* State of one simulation, shared by sim.c (the events) and sim_state.c (set-up and results). */
#ifndef CS_PLAN_SIM_INTERNAL_H
#define CS_PLAN_SIM_INTERNAL_H

#include "plan/sim.h"

#define SIM_SCRATCH 1024
#define SIM_MIXED_MIN 32 /* tokens of a prompt that a step beside decode may always have */

typedef enum { SIM_ARRIVAL, SIM_ROUND, SIM_DELIVER } sim_event_kind;
typedef enum { SIM_NONE, SIM_TEXT, SIM_AUDIO, SIM_IMAGE } sim_output;

typedef struct {
    double t;
    guint64 order;
    guint32 a, b; /* round: server, generation; delivery: request slot, edge */
    sim_event_kind kind;
} sim_event;

typedef struct {
    guint32 *items, head, n, capacity;
} sim_queue;

/* One stage of one request. */
typedef struct {
    guint32 server;
    guint32 units;                  /* of which its iterations are */
    guint32 total, done, available; /* iterations; total 1 for stages that do not iterate */
    guint32 base, target;           /* in the stage's iteration count */
    guint32 chunks_sent;
    float cost;        /* units of a batch, prompt tokens, or weight in each iteration */
    double done_cost;  /* of a prompt in chunks, which may be many ... */
    float slice;       /* ... and what of it is in this round */
    float kv;          /* bytes while it runs */
    float chunk_every; /* iterations between chunks it sends; 0: none */
    guint16 waiting;   /* inputs still missing */
    bool queued, holds, reserves, starved, first_pending;
} sim_job;

typedef struct {
    double t0, first;
    guint64 edges; /* bit set of those the type uses */
    guint type;
    guint8 stages_left;
    guint8 first_kind;
    bool counted;
} sim_request;

typedef struct sim_stage {
    int index; /* of the problem */
    cs_stage_kind kind;
    sim_queue queue;
    guint32 *active, n_active;
    guint32 iteration;
    guint32 reserved;          /* decode places of prompts in prefill on this server */
    double weight;             /* of the active jobs */
    guint32 turns_left;        /* of an encoder's batch */
    guint32 ticket;            /* when it was put together */
    bool in_turn;              /* this round is one of its turns */
    double turn_s;             /* each takes so long */
    double work, mixed_work;   /* prompt tokens of this round; at most so many beside decode */
    struct sim_stage *decode;  /* prefill: the other half on this server */
    struct sim_stage *prefill; /* decode: likewise */
    int twin_offset;           /* job id of the twin minus this job's */
} sim_stage;

typedef struct {
    const cs_exec_type *exec;
    cs_exec_type *limited; /* exec is this copy where the layout has limits; NULL else */
    size_t site, node;
    sim_stage *stages;
    int n_stages;
    int stage_of[CS_PLAN_MAX_STAGES];
    double kv_used;
    guint32 n_holding, outstanding, generation, rounds, tickets;
    double round_start, round_s, free_at;
    bool running;
} sim_server;

typedef struct {
    cs_stage_kind kind;
    guint8 output;
    guint32 first_piece, piece, piece_extra;
    int out[CS_PLAN_MAX_EDGES], n_out;     /* edges that leave the stage */
    int gates[CS_PLAN_MAX_EDGES], n_gates; /* streamed edges that bound its progress */
} sim_stage_info;

typedef struct {
    const cs_layout_route **routes;
    double *cumulative;
    guint n;
} sim_paths;

typedef struct {
    const cs_problem *p;
    const cs_sim_options *o;
    cs_sim_result *r;
    double rate, now, last_arrival, on_time;
    size_t n_requests, n_warm_up, next_trace, arrivals_pending, in_flight, max_in_flight;
    bool stop;
    cs_rng rng_time, rng_size, rng_noise;
    guint32 n_stages;
    size_t n_edges, n_sites;
    sim_stage_info info[CS_PLAN_MAX_STAGES];
    int gated[CS_PLAN_MAX_EDGES]; /* the stage whose progress a streamed edge bounds, -1: none */

    sim_event *heap;
    size_t n_heap, heap_capacity;
    guint64 order;

    sim_server *servers;
    size_t n_servers;
    guint32 *first_server; /* [n_sites + 1] */
    double *link_free;
    sim_paths *paths;    /* [n_types] */
    guint64 *drawn;      /* [n_types] */
    guint8 *first_kind;  /* [n_types] which output's beginning counts as the first */
    guint *problem_type; /* by workload type */

    sim_request *requests; /* [n_slots] */
    sim_job *jobs;         /* [n_slots][n_stages] */
    guint16 *got, *sent;   /* [n_slots][n_edges] chunks */
    double *bytes;         /* [n_slots][n_edges] */
    guint32 *free_slots, n_free, n_slots;

    GArray **latencies; /* [n_types] pairs of float: latency, first */
    size_t *missed;
    double *may_miss;
    double bin_s;
    guint32 scratch[SIM_SCRATCH];
} sim;

void sim_init(sim *s, const cs_layout *layout);
void sim_clear(sim *s);
/* More request slots. */
void sim_grow(sim *s);
/* Fills the result from what was counted. */
void sim_finish(sim *s);

#endif
