/* target += weight · (online - target) over lists of float arrays, in one sweep of all of them.
 *
 * Memory is the limit. A core follows several streams at once and waits less for each, so that a piece is walked in
 * STREAMS places at the same time. Threads take pieces in turn: one that is kept from computing does not hold the
 * others up, as it would at the end of every array.
 */
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#define PIECE 131072 /* numbers, 512 KB of each array */
#define STREAMS 4
#define WIDTH 8

typedef float floats __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

#if defined(__x86_64__) && defined(__gnu_linux__)
#define BEST __attribute__((target_clones("default", "fma"))) /* one rounding fewer, as in torch.lerp */
#else
#define BEST
#endif

/* `_Job` of __init__.py, field for field. */
typedef struct {
    float *const *target;
    const float *const *online;
    const int64_t *sizes;
    int64_t count;
    float weight;
    _Atomic int64_t next; /* the first piece that nobody has taken */
} Job;

static inline void average(float *target, const float *online, int64_t count, float weight) {
    const int64_t apart = count / STREAMS / WIDTH * WIDTH;
    for (int64_t i = 0; i < apart; i += WIDTH)
        for (int stream = 0; stream < STREAMS; stream++) {
            floats *own = (floats *)(target + stream * apart + i);
            *own += weight * (*(const floats *)(online + stream * apart + i) - *own);
        }
    for (int64_t i = STREAMS * apart; i < count; i++) target[i] += weight * (online[i] - target[i]);
}

/* Take pieces until none is left; any number of threads may call it with one job. */
BEST void fastssl_average(Job *job) {
    int64_t first = 0, array = 0; /* the first piece of an array */
    for (;;) {
        const int64_t piece = atomic_fetch_add(&job->next, 1);
        for (int64_t pieces; array < job->count; first += pieces, array++) {
            pieces = (job->sizes[array] + PIECE - 1) / PIECE;
            if (piece < first + pieces) break;
        }
        if (array >= job->count) return;
        const int64_t start = (piece - first) * PIECE, left = job->sizes[array] - start;
        average(job->target[array] + start, job->online[array] + start, left < PIECE ? left : PIECE, job->weight);
    }
}

typedef struct {
    uintptr_t first, after;
} Span;

static int earlier(const void *left, const void *right) {
    const uintptr_t one = ((const Span *)left)->first, other = ((const Span *)right)->first;
    return (one > other) - (one < other);
}

/* Whether every array of a job has memory that no other one shares; 0 as well for want of memory to tell. */
int fastssl_average_apart(const Job *job) {
    Span *spans = malloc(sizeof(Span) * (2 * (size_t)job->count + 1));
    if (!spans) return 0;
    int64_t held = 0;
    int apart = 1;
    for (int64_t i = 0; i < 2 * job->count; i++) {
        const int64_t array = i / 2, size = job->sizes[array];
        const float *first = i % 2 ? job->online[array] : job->target[array];
        if (!size) continue;
        apart &= first != NULL;
        spans[held++] = (Span){(uintptr_t)first, (uintptr_t)first + sizeof(float) * (uintptr_t)size};
    }
    qsort(spans, (size_t)held, sizeof(Span), earlier);
    for (int64_t i = 1; i < held; i++) apart &= spans[i - 1].after <= spans[i].first;
    free(spans);
    return apart;
}

/* So that Python and C cannot disagree about the layout without noticing. */
int fastssl_average_job(void) { return (int)sizeof(Job); }
