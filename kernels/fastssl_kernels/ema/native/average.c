/* target += weight · (online - target) over lists of float arrays, in one sweep of all of them.
 *
 * The memory is the limit, so that nothing but the loop is written here. Arrays are cut into pieces that threads take
 * in turn: a thread that is kept from computing does not hold the others up, as it would at the end of every array.
 */
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define PIECE 65536 /* numbers, 256 KB of each array */

/* `_Job` of __init__.py, field for field. */
typedef struct {
    float *const *target;
    const float *const *online;
    const int64_t *sizes;
    int64_t count;
    float weight;
    _Atomic int64_t next; /* the first piece that nobody has taken */
} Job;

/* Take pieces until none is left; any number of threads may call it with one job. */
int fastssl_average(Job *job) {
    int64_t first = 0, array = 0; /* the first piece of an array */
    for (;;) {
        const int64_t piece = atomic_fetch_add(&job->next, 1);
        for (int64_t pieces; array < job->count; first += pieces, array++) {
            pieces = (job->sizes[array] + PIECE - 1) / PIECE;
            if (piece < first + pieces) break;
        }
        if (array >= job->count) return 0;
        const int64_t start = (piece - first) * PIECE, left = job->sizes[array] - start;
        float *target = job->target[array] + start;
        const float *online = job->online[array] + start, weight = job->weight;
        for (int64_t i = 0, n = left < PIECE ? left : PIECE; i < n; i++) target[i] += weight * (online[i] - target[i]);
    }
}

/* So that Python and C cannot disagree about the layout without noticing: the place of its last field. */
int fastssl_average_job_size(void) { return (int)offsetof(Job, next); }
