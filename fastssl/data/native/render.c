/* The native renderer: every view in one call, the mathematics of `render.py`, without Python and without torch.
 *
 * A view is made whole by one thread, in the same operations and the same order on every machine: no contraction, sums
 * in sixteen fixed lanes. So its bits depend neither on its batch, nor on the number of threads, nor on the
 * instruction set, which is chosen when the first job comes.
 */
#include "job.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Versions of `RenderView` that this machine can run, slowest first: bits 0 plain, 1 AVX2, 2 AVX-512. */
int fastssl_versions(void) {
    int versions = 1;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) versions |= 2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        versions |= 4;
#endif
    return versions;
}

static RenderView *version_of(int versions) {
#if defined(__x86_64__)
    if (versions & 4) return fastssl_view_avx512;
    if (versions & 2) return fastssl_view_avx2;
#endif
    (void)versions;
    return fastssl_view_plain;
}

/* A thread keeps its memory from one job to the next: fresh pages are slow. */
static _Thread_local struct { void *memory; size_t bytes; } kept;

static int taps_for(int length, int size, int bicubic) {
    const float scale = (float)length / (float)size;
    return (int)ceilf(2.0f * (bicubic ? 2.0f : 1.0f) * (scale > 1.0f ? scale : 1.0f)) + 2;
}

/* Most pixels on one side of the middle of a blur. */
static int longest_half(const Job *job) {
    float sigma = 0.0f;
    for (int view = 0; view < job->count; view++) sigma = job->sigma[view] > sigma ? job->sigma[view] : sigma;
    return job->pil_blur ? (int)sigma + 2 : job->blur_taps / 2; /* (√(4 σ² + 1) - 1) / 2 < σ, and a fractional edge */
}

/* Places of equal parts in one piece of memory, each on a cache line of its own; without `at` it only counts. */
static void *take(char **at, size_t *bytes, size_t wanted) {
    const size_t rounded = (wanted + 63) / 64 * 64;
    void *place = *at;
    if (*at) *at += rounded;
    *bytes += rounded;
    return place;
}

static size_t lay_out(const Job *job, Scratch *s, char *at) {
    const size_t size = (size_t)job->size, number = sizeof(float);
    const size_t wide = (3 * (size_t)job->longest_width + SPAN - 1) / SPAN * SPAN;
    const size_t half = (size_t)longest_half(job), passes = job->pil_blur ? 3 : 1;
    size_t bytes = 0;
    s->down_taps = taps_for(job->longest_height, job->size, job->bicubic);
    s->across_taps = taps_for(job->longest_width, job->size, job->bicubic);
    s->pitch = (job->size + GROUP - 1) / GROUP * GROUP;
    const size_t tall = (size_t)ROWS * ((size_t)job->longest_height / size + 1) + 2 * (size_t)s->down_taps;
    s->view = size <= HELD ? take(&at, &bytes, number * 3 * size * size) : NULL;
    s->window = take(&at, &bytes, number * tall * SPAN);
    s->tile = take(&at, &bytes, number * ROWS * SPAN);
    s->columns = take(&at, &bytes, number * wide * ROWS);
    s->across = take(&at, &bytes, number * size * (size_t)s->across_taps);
    s->down = take(&at, &bytes, number * size * (size_t)s->down_taps);
    s->across_first = take(&at, &bytes, sizeof(int32_t) * size);
    s->across_count = take(&at, &bytes, sizeof(int32_t) * size);
    s->down_first = take(&at, &bytes, sizeof(int32_t) * size);
    s->down_count = take(&at, &bytes, sizeof(int32_t) * size);
    for (int i = 0; i < 2; i++) s->line[i] = take(&at, &bytes, number * ((size_t)s->pitch + 2 * half + GROUP));
    s->rings = take(&at, &bytes, number * passes * 3 * (size_t)slots_for((int)half) * (size_t)s->pitch);
    return bytes;
}

static int allocate(const Job *job, Scratch *s) {
    const size_t bytes = lay_out(job, s, NULL) + 64;
    if (kept.bytes < bytes) {
        free(kept.memory);
        kept.memory = malloc(bytes);
        kept.bytes = kept.memory ? bytes : 0;
        if (!kept.memory) return 1;
        memset(kept.memory, 0, bytes); /* what fills up a vector must be a number */
    }
    lay_out(job, s, (char *)(((uintptr_t)kept.memory + 63) / 64 * 64));
    return 0;
}

/* Render views until none is left; any number of threads may call it with one job. 0, or 1 without memory.
 *
 * versions: the best of these, which this machine must have, is used. */
int fastssl_render(Job *job, int versions) {
    Scratch scratch;
    if (allocate(job, &scratch)) return 1;
    RenderView *render_view = version_of(versions);
    for (int view; (view = atomic_fetch_add(&job->next, 1)) < job->count;) render_view(job, &scratch, view);
    return 0;
}

/* So that Python and C cannot disagree about the layout without noticing: the place of its last field, as padding behind
 * that could hide one field more. */
int fastssl_job_size(void) { return (int)offsetof(Job, next); }
