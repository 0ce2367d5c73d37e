/* A lookup in a bfloat16 queue: of every group of its rows the largest score, in fixed point, and scores of some rows.
 *
 * A processor without matrix units takes twice as many products of 16-bit integers as of floats, and sums them in 32
 * bits without rounding. A row of length one times 32,767 keeps 15 bits below the point, where bfloat16 has 8 bits of
 * each element. Sums cannot overflow: of rows of lengths a and b all partial sums are within a · b (Cauchy-Schwarz), and
 * every row is brought to the length 32,767, whatever it had.
 */
#include <math.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define ONE 32767.0f /* the length of a row in fixed point */
#define GROUP 64     /* rows of the queue with one maximum */
#define PARTS 16     /* partial sums of a float sum, so that every version has the same bits */

/* `_Job` of __init__.py, field for field. */
typedef struct {
    const int16_t *unit;   /* [panels, pairs, lanes, 2]: rows of length ONE, side by side; zeros fill up */
    const uint16_t *queue; /* [length, width] bfloat16 */
    float *peaks;          /* [groups, panels · lanes] */
    int64_t panels, length, width;
    int64_t version;        /* one bit of fastssl_scan_versions; a panel has twice the lanes of its vector */
    _Atomic int64_t next;   /* the first group that nobody has taken */
    _Atomic int64_t failed; /* threads that found no memory */
} Job;

/* `_Pick` of __init__.py, field for field: scores in fp32 of chosen rows. */
typedef struct {
    const float *unit;     /* [rows, width] */
    const uint16_t *queue; /* [., width] bfloat16 */
    const int64_t *place;  /* [rows, count], rows of the queue */
    float *score;          /* [rows, count] */
    int64_t rows, count, width, version;
    _Atomic int64_t next; /* the first row that nobody has taken */
} Pick;

/* bfloat16 is the upper half of a float. */
static inline float widened(uint16_t half) {
    const union { uint32_t bits; float number; } x = {(uint32_t)half << 16};
    return x.number;
}

#if defined(__x86_64__)
#include <immintrin.h>

#define WIDTH 8
#define TARGET __attribute__((target("avx2")))
#define ROWS 4
#define ADD_PRODUCTS(sum, a, b) (ints)_mm256_add_epi32((__m256i)(sum), _mm256_madd_epi16((__m256i)(a), (__m256i)(b)))
#define LARGER(a, b) (floats)_mm256_max_ps((__m256)(a), (__m256)(b))
#define SCAN scan_avx2
#define SCORE score_avx2
#include "scan.h"

#define WIDTH 16
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vnni")))
#define ROWS 8
#define ADD_PRODUCTS(sum, a, b) (ints)_mm512_dpwssd_epi32((__m512i)(sum), (__m512i)(a), (__m512i)(b))
#define LARGER(a, b) (floats)_mm512_max_ps((__m512)(a), (__m512)(b))
#define SCAN scan_avx512
#define SCORE score_avx512
#include "scan.h"
#endif

/* Versions that this machine can run, slowest first: bits 0 AVX2, 1 AVX-512 with VNNI. Elsewhere none. */
int fastssl_scan_versions(void) {
    int versions = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) versions |= 1;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni"))
        versions |= 2;
#endif
    return versions;
}

/* Take groups until none is left; any number of threads may call it with one job. */
void fastssl_scan(Job *job) {
#if defined(__x86_64__)
    job->version == 2 ? scan_avx512(job) : scan_avx2(job);
#else
    (void)job; /* no version can be asked for */
#endif
}

/* The same with the rows of a `Pick`, whose memory is the caller's. */
void fastssl_score(Pick *job) {
#if defined(__x86_64__)
    job->version == 2 ? score_avx512(job) : score_avx2(job);
#else
    (void)job;
#endif
}

/* So that Python and C cannot disagree about the layouts without noticing. */
int fastssl_scan_job(void) { return (int)sizeof(Job); }
int fastssl_score_job(void) { return (int)sizeof(Pick); }
