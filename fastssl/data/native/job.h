/* What Python asks for, what a thread works in, and one view whole, in versions for several instruction sets. */
#ifndef FASTSSL_JOB_H
#define FASTSSL_JOB_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum {
    ROWS = 16,       /* rows of a view that are resized together */
    SPAN = 128,      /* floats of a source row that are resized together: 42 pixels and two channels */
    CHUNK = 1024,    /* pixels that pass through all colour operations while they lie in the first-level cache */
    GROUP = 32,      /* floats that a blur sums together */
    HELD = 256,      /* side of the largest view that is made in a thread's own memory, 0.8 MB */
    MOST_TAPS = 1024 /* of a blur */
};

/* One group of views; `__init__.py` fills it in. N images, M views. */
typedef struct {
    const uint8_t *const *pixels; /* [N] rows of interleaved RGB, contiguous */
    const int32_t *widths;        /* [N] */
    const int64_t *shown;         /* [M] */
    const float *box;             /* [M, 4] y0, x0, height, width: whole numbers inside the image */
    const uint8_t *flip, *jitter; /* [M] */
    const float *factors;         /* [M, 4] brightness, contrast, saturation, hue */
    const int8_t *order;          /* [M, 4] */
    const uint8_t *gray;          /* [M] */
    const float *sigma;           /* [M] 0 for no blur */
    const uint8_t *solarize, *invert;
    float *out;                   /* [M, 3, S, S] */
    const int8_t *turns;          /* [M] quarter turns; NULL if no view has any operation of study.h */
    const float *noise;           /* [M] σ, 0 for none */
    const uint32_t *key;          /* [M, 5] three words of the noise's counters, two of their key */
    const uint8_t *sobel;         /* [M] */
    const int32_t *cutout;        /* [M, 3] top, left, side; side 0 for none */
    int32_t count, size, bicubic, pil_blur, additive_brightness, tensorflow_color, grayscale_first, blur_taps;
    int32_t longest_height, longest_width; /* of any box */
    int32_t enabled[4];           /* which colour operations the recipe has */
    float mean[3], std[3], cutout_fill;
    atomic_int next;              /* views that threads have taken */
} Job;

/* A symmetric kernel, applied `passes` times. */
typedef struct {
    int half, passes, reflected;
    float weight[MOST_TAPS / 2 + 1]; /* of the pixels at a distance 0 … half */
} Kernel;

typedef struct {
    float *view;          /* [3, S, S] while it is worked on: here it stays in a cache; NULL for one that is too large */
    float *window;        /* [source rows of ROWS rows of a view, SPAN] */
    float *tile;          /* [ROWS, SPAN] resized along y */
    float *columns;       /* [3 w, rounded up to SPAN, ROWS] the same, transposed */
    float *across, *down; /* [S, taps] weights */
    int32_t *across_first, *across_count, *down_first, *down_count;
    int32_t across_taps, down_taps;
    float *line[2], *rings; /* for the blur: two rows with borders, and rows that wait, [passes, channels, slots, pitch] */
    int32_t pitch;          /* S, rounded up to GROUP */
    Kernel kernel;
} Scratch;

/* Rows of a blur's ring: a power of two, so that a row's place is a mask and no division. */
static inline int slots_for(int half) {
    int slots = 4;
    while (slots < 2 * half + 1) slots *= 2;
    return slots;
}

typedef void RenderView(const Job *job, Scratch *scratch, int view);
RenderView fastssl_view_plain, fastssl_view_avx2, fastssl_view_avx512;

#endif
