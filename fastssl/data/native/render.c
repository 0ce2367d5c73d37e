/* The native renderer: every view in one call, the mathematics of `render.py`, without Python and without torch.
 *
 * A view is made whole by one thread, in the same operations and the same order on every machine: no contraction, sums
 * in sixteen fixed lanes. So its bits depend neither on its batch, nor on the number of threads, nor on the
 * instruction set, which is chosen when the library is loaded.
 *
 * Resampling is separable. Rows first: interleaved bytes, contiguous. Then sixteen finished rows are transposed, so
 * that the columns' weights are scalars and sixteen rows are one vector: nothing is gathered.
 */
#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__)
#define EVERY_MACHINE __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EVERY_MACHINE
#endif
#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16, CHUNK = 1024, MOST_TAPS = 1024 };
typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
typedef float quad __attribute__((vector_size(4 * sizeof(float)), aligned(sizeof(float)), may_alias));

/* One group of views; `native.py` fills it in. N images, M views. */
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
    int32_t count, size, bicubic, pil_blur, additive_brightness, grayscale_first, blur_taps;
    int32_t longest_height, longest_width; /* of any box */
    int32_t enabled[4];           /* which colour operations the recipe has */
    float mean[3], std[3];
    atomic_int next;              /* views that threads have taken */
} Job;

typedef struct {
    float *window;  /* [taps, 3 w, rounded up to whole lanes] the source rows in use, as floats */
    const float **taken; /* [taps] which of them, in order */
    float *rows;    /* [LANES, 3 w, rounded up to whole lanes] resized along y */
    float *columns; /* the same, transposed */
    float *across, *down; /* [S, taps] weights */
    int32_t *across_first, *across_count, *down_first, *down_count;
    float *plane, *line; /* for the blur: [S, pitch], [S + taps] */
    int32_t pitch;       /* S, rounded up to whole lanes */
    int32_t across_taps, down_taps;
} Scratch;

INLINE float at_least(float x, float low) { return x > low ? x : low; }
INLINE float clip(float x) { x = x > 0.0f ? x : 0.0f; return x < 1.0f ? x : 1.0f; }

/* ------------------------------------------------------------------------------------------------------- resize */

INLINE float filter(float x, int bicubic) {
    if (!bicubic) return at_least(1.0f - x, 0.0f);
    if (x < 1.0f) return (1.5f * x - 2.5f) * x * x + 1.0f;
    if (x < 2.0f) return ((2.5f - 0.5f * x) * x - 4.0f) * x + 2.0f;
    return 0.0f;
}

static int taps_for(int length, int size, int bicubic) {
    float scale = (float)length / (float)size;
    return (int)ceilf(2.0f * (bicubic ? 2.0f : 1.0f) * at_least(scale, 1.0f)) + 2;
}

/* Antialiased weights from `length` pixels to `size`, PIL's and torchvision's. */
INLINE void weigh(float *weight, int32_t *first, int32_t *count, int taps, int length, int size, int bicubic, int flip) {
    const float scale = (float)length / (float)size, wide = at_least(scale, 1.0f);
    const float reach = (bicubic ? 2.0f : 1.0f) * wide;
    for (int i = 0; i < size; i++) {
        const int row = flip ? size - 1 - i : i;
        const float center = ((float)i + 0.5f) * scale;
        const float begin = at_least(floorf(center - reach + 0.5f), 0.0f);
        const float stop = floorf(center + reach + 0.5f);
        const int n = (int)((stop < (float)length ? stop : (float)length) - begin);
        float *w = weight + (size_t)row * taps, total = 0.0f;
        for (int t = 0; t < n; t++) {
            w[t] = filter(fabsf((begin + (float)t - (center - 0.5f)) / wide), bicubic);
            total += w[t];
        }
        for (int t = 0; t < n; t++) w[t] /= total;
        first[row] = (int32_t)begin;
        count[row] = n;
    }
}

/* One source row as floats, once: neighbouring output rows share it. */
INLINE void widen(float *restrict out, const uint8_t *restrict source, int width) {
    for (int k = 0; k < width; k++) out[k] = (float)source[k];
}

/* One output row: Σ weight · source row, over 3 w interleaved numbers, rounded up to whole lanes. */
INLINE void blend_rows(float *out, const float *const *rows, const float *weight, int n, size_t pitch) {
    for (size_t k = 0; k < pitch; k += LANES) {
        lanes sum = *(const lanes *)(rows[0] + k) * weight[0];
        for (int t = 1; t < n; t++) sum += *(const lanes *)(rows[t] + k) * weight[t];
        *(lanes *)(out + k) = sum;
    }
}

INLINE void transpose(const float *from, size_t from_pitch, float *to, size_t to_pitch) {
    const quad a = *(const quad *)from, b = *(const quad *)(from + from_pitch);
    const quad c = *(const quad *)(from + 2 * from_pitch), d = *(const quad *)(from + 3 * from_pitch);
    const quad ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), AB = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const quad cd = __builtin_shufflevector(c, d, 0, 4, 1, 5), CD = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    *(quad *)to = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
    *(quad *)(to + to_pitch) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
    *(quad *)(to + 2 * to_pitch) = __builtin_shufflevector(AB, CD, 0, 1, 4, 5);
    *(quad *)(to + 3 * to_pitch) = __builtin_shufflevector(AB, CD, 2, 3, 6, 7);
}

/* Up to four neighbouring pixels of sixteen rows, all channels, to `out` (row `top`, column i of the view). */
INLINE void store_pixels(float tile[3][4][LANES], float *out, int size, int rows, int pixels) {
    const size_t area = (size_t)size * size;
    for (int c = 0; c < 3; c++, out += area) {
        if (rows == LANES && pixels == 4) {
            for (int l = 0; l < LANES; l += 4) transpose(&tile[c][0][l], LANES, out + (size_t)l * size, size);
        } else {
            for (int l = 0; l < rows; l++)
                for (int j = 0; j < pixels; j++) out[(size_t)l * size + j] = tile[c][j][l];
        }
    }
}

INLINE void resize(const Job *job, Scratch *s, int view, float *out) {
    const int size = job->size;
    const float *box = job->box + 4 * (size_t)view;
    const int y0 = (int)box[0], x0 = (int)box[1], h = (int)box[2], w = (int)box[3], wide = 3 * w;
    const size_t pitch = ((size_t)wide + LANES - 1) / LANES * LANES;
    const int64_t image = job->shown[view];
    const size_t stride = 3 * (size_t)job->widths[image];
    const uint8_t *source = job->pixels[image] + (size_t)y0 * stride + 3 * (size_t)x0;
    weigh(s->down, s->down_first, s->down_count, s->down_taps, h, size, job->bicubic, 0);
    weigh(s->across, s->across_first, s->across_count, s->across_taps, w, size, job->bicubic, job->flip[view]);
    int widened = 0; /* source rows that have been in the window */
    for (int top = 0; top < size; top += LANES) {
        const int block = size - top < LANES ? size - top : LANES;
        for (int l = 0; l < block; l++) {
            const int first = s->down_first[top + l], count = s->down_count[top + l];
            if (widened < first) widened = first;
            for (; widened < first + count; widened++)
                widen(s->window + (size_t)(widened % s->down_taps) * pitch, source + (size_t)widened * stride, wide);
            for (int t = 0; t < count; t++) s->taken[t] = s->window + (size_t)((first + t) % s->down_taps) * pitch;
            blend_rows(s->rows + l * pitch, s->taken, s->down + (size_t)(top + l) * s->down_taps, count, pitch);
        }
        for (size_t k = 0; k < pitch; k += 4)
            for (int l = 0; l < LANES; l += 4) transpose(s->rows + l * pitch + k, pitch, s->columns + k * LANES + l, LANES);
        for (int i = 0; i < size; i += 4) {
            const int pixels = size - i < 4 ? size - i : 4;
            float tile[3][4][LANES];
            for (int j = 0; j < pixels; j++) {
                const float *weight = s->across + (size_t)(i + j) * s->across_taps;
                const lanes *column = (const lanes *)s->columns + 3 * (size_t)s->across_first[i + j];
                lanes red = {0}, green = {0}, blue = {0};
                for (int t = 0; t < s->across_count[i + j]; t++, column += 3) {
                    red += column[0] * weight[t];
                    green += column[1] * weight[t];
                    blue += column[2] * weight[t];
                }
                for (int l = 0; l < LANES; l++) tile[0][j][l] = clip(red[l] * (1.0f / 255.0f));
                for (int l = 0; l < LANES; l++) tile[1][j][l] = clip(green[l] * (1.0f / 255.0f));
                for (int l = 0; l < LANES; l++) tile[2][j][l] = clip(blue[l] * (1.0f / 255.0f));
            }
            store_pixels(tile, out + (size_t)top * size + i, size, block, pixels);
        }
    }
}

/* ------------------------------------------------------------------------------------------------------- colour */

/* Operations on n ≤ CHUNK pixels: three short planes that stay in the first-level cache from one to the next. */
#define PIXELS float *restrict r, float *restrict g, float *restrict b, int n
#define EACH for (int p = 0; p < n; p++)
INLINE float level(float r, float g, float b) { return (r * 0.2989f + g * 0.587f) + b * 0.114f; }

INLINE void brightness(PIXELS, float amount, int additive) {
    if (additive)
        EACH r[p] = clip(r[p] + amount), g[p] = clip(g[p] + amount), b[p] = clip(b[p] + amount);
    else
        EACH r[p] = clip(r[p] * amount), g[p] = clip(g[p] * amount), b[p] = clip(b[p] * amount);
}

INLINE void contrast(PIXELS, float amount, float pivot) {
    const float offset = pivot * (1.0f - amount);
    EACH r[p] = clip(r[p] * amount + offset), g[p] = clip(g[p] * amount + offset), b[p] = clip(b[p] * amount + offset);
}

INLINE void saturation(PIXELS, float amount) {
    EACH {
        const float gray = level(r[p], g[p], b[p]) * (1.0f - amount);
        r[p] = clip(r[p] * amount + gray);
        g[p] = clip(g[p] * amount + gray);
        b[p] = clip(b[p] * amount + gray);
    }
}

/* A turn of the HSV wheel that keeps value and chroma; see `color.py`. */
INLINE void hue(PIXELS, float amount) {
    const float turn = amount * 6.0f;
    EACH {
        const float red = r[p], green = g[p], blue = b[p];
        float high = red > green ? red : green, low = red < green ? red : green;
        high = high > blue ? high : blue;
        low = low < blue ? low : blue;
        const float chroma = high - low, scale = 1.0f / at_least(chroma, 1e-20f);
        const float if_red = (green - blue) * scale, if_green = (blue - red) * scale + 2.0f;
        const float if_blue = (red - green) * scale + 4.0f;
        float h = high == green ? if_green : if_blue;
        h = (high == red ? if_red : h) + turn;
        h -= floorf(h * (1.0f / 6.0f)) * 6.0f;
        r[p] = high - chroma * clip(2.0f - fabsf(h - 3.0f));
        g[p] = low + chroma * clip(2.0f - fabsf(h - 2.0f));
        b[p] = low + chroma * clip(2.0f - fabsf(h - 4.0f));
    }
}

INLINE double sum_of(const float *x, int n) {
    lanes sums = {0};
    double total = 0.0;
    int p = 0;
    for (; p + LANES <= n; p += LANES) sums += *(const lanes *)(x + p);
    for (; p < n; p++) total += x[p];
    for (int l = 0; l < LANES; l++) total += sums[l];
    return total;
}

/* What comes after the blur: solarize, invert, normalise. */
INLINE void finish(const Job *job, int view, PIXELS) {
    float *restrict planes[3] = {r, g, b};
    for (int c = 0; c < 3; c++) {
        float *restrict x = planes[c];
        const float mean = job->mean[c], inverse = 1.0f / job->std[c];
        if (job->solarize[view]) EACH x[p] = x[p] < 1.0f - x[p] ? x[p] : 1.0f - x[p];
        if (job->invert[view]) EACH x[p] = 1.0f - x[p];
        if (mean != 0.0f || inverse != 1.0f) EACH x[p] = (x[p] - mean) * inverse;
    }
}

enum { BRIGHTNESS, CONTRAST, SATURATION, HUE };

/* Jitter, grayscale and, without a blur, what comes after it. Contrast needs the mean of all pixels as they are before it, so there are two sweeps. */
INLINE void color(const Job *job, int view, float *x, int area) {
    const float *factor = job->factors + 4 * (size_t)view;
    int operations[4], count = 0, pivoted = 0;
    for (int k = 0; k < 4 && job->jitter[view]; k++) {
        const int operation = job->order[4 * (size_t)view + k];
        if (!job->enabled[operation]) continue;
        if (operation == CONTRAST) pivoted = count;
        operations[count++] = operation;
    }
    const int with_contrast = count && operations[pivoted] == CONTRAST;
    float pivot = 0.0f;
    for (int sweep = with_contrast ? 0 : 1; sweep < 2; sweep++) {
        const int first = sweep && with_contrast ? pivoted : 0, stop = sweep ? count : pivoted;
        double total[3] = {0.0, 0.0, 0.0};
        for (int begin = 0; begin < area; begin += CHUNK) {
            const int n = area - begin < CHUNK ? area - begin : CHUNK;
            float *r = x + begin, *g = r + area, *b = g + area;
            if (job->gray[view] && job->grayscale_first && sweep == !with_contrast)
                EACH r[p] = g[p] = b[p] = level(r[p], g[p], b[p]);
            for (int k = first; k < stop; k++) {
                switch (operations[k]) {
                case BRIGHTNESS: brightness(r, g, b, n, factor[BRIGHTNESS], job->additive_brightness); break;
                case CONTRAST: contrast(r, g, b, n, factor[CONTRAST], pivot); break;
                case SATURATION: saturation(r, g, b, n, factor[SATURATION]); break;
                default: hue(r, g, b, n, factor[HUE]);
                }
            }
            if (!sweep)
                total[0] += sum_of(r, n), total[1] += sum_of(g, n), total[2] += sum_of(b, n);
            else if (job->gray[view] && !job->grayscale_first)
                EACH r[p] = g[p] = b[p] = level(r[p], g[p], b[p]);
            if (sweep && !(job->sigma[view] > 0.0f)) finish(job, view, r, g, b, n);
        }
        pivot = level((float)(total[0] / area), (float)(total[1] / area), (float)(total[2] / area));
    }
}

/* --------------------------------------------------------------------------------------------------------- blur */

INLINE int reflect(int i, int size) { i = abs(i); return i < size ? i : 2 * (size - 1) - i; }
INLINE int repeat(int i, int size) { i = i > 0 ? i : 0; return i < size ? i : size - 1; }

/* One plane, both axes; borders reflected (a Gaussian) or repeated (PIL's boxes). */
INLINE void convolve(float *restrict x, Scratch *s, int size, const float *kernel, int taps, int reflected) {
    const int half = taps / 2, pitch = s->pitch;
    float *restrict line = s->line, *restrict plane = s->plane;
    for (int i = 0; i < size; i++) {
        const float *row = x + (size_t)i * size;
        memcpy(line + half, row, sizeof(float) * (size_t)size);
        for (int k = 1; k <= half; k++) {
            line[half - k] = row[reflected ? reflect(-k, size) : 0];
            line[half + size - 1 + k] = row[reflected ? reflect(size - 1 + k, size) : size - 1];
        }
        for (int j = 0; j < size; j += LANES) {
            lanes sum = {0};
            for (int t = 0; t < taps; t++) sum += *(const lanes *)(line + j + t) * kernel[t];
            *(lanes *)(plane + (size_t)i * pitch + j) = sum;
        }
    }
    for (int i = 0; i < size; i++) {
        const float *rows[MOST_TAPS];
        for (int t = 0; t < taps; t++) {
            const int at = i + t - half;
            rows[t] = plane + (size_t)(reflected ? reflect(at, size) : repeat(at, size)) * pitch;
        }
        for (int j = 0; j < size; j += LANES) {
            lanes sum = {0};
            for (int t = 0; t < taps; t++) sum += *(const lanes *)(rows[t] + j) * kernel[t];
            memcpy(x + (size_t)i * size + j, &sum, sizeof(float) * (size_t)(size - j < LANES ? size - j : LANES));
        }
    }
}

INLINE void blur(const Job *job, Scratch *s, float sigma, float *x) {
    const int size = job->size;
    float kernel[MOST_TAPS];
    int taps = job->blur_taps, passes = 1;
    if (job->pil_blur) { /* three box blurs with fractional edges whose variances add up */
        const double variance = (double)sigma * sigma / 3.0;
        const int whole = (int)floor((sqrt(12.0 * variance + 1.0) - 1.0) / 2.0);
        const double edge = (2 * whole + 1) * ((double)whole * (whole + 1) - 3.0 * variance) /
                            (6.0 * (variance - (double)(whole + 1) * (whole + 1)));
        const double inner = 1.0 / (2.0 * (whole + edge) + 1.0);
        taps = 2 * whole + 3;
        passes = 3;
        for (int t = 0; t < taps; t++) kernel[t] = (float)inner;
        kernel[0] = kernel[taps - 1] = (float)(edge * inner);
    } else {
        double total = 0.0;
        for (int t = 0; t < taps; t++) {
            const double d = (t - taps / 2) / (double)sigma;
            total += exp(-0.5 * d * d);
        }
        /* Weights that no sum can see would be denormal numbers, which take a hundred times as long. */
        int half = taps / 2;
        while (half && exp(-0.5 * (half / (double)sigma) * (half / (double)sigma)) < 1e-12) half--;
        taps = 2 * half + 1;
        for (int t = 0; t < taps; t++) {
            const double d = (t - half) / (double)sigma;
            kernel[t] = (float)(exp(-0.5 * d * d) / total);
        }
    }
    if (taps < 2) return;
    for (int c = 0; c < 3; c++)
        for (int pass = 0; pass < passes; pass++)
            convolve(x + (size_t)c * size * size, s, size, kernel, taps, !job->pil_blur);
    for (int p = 0; p < 3 * size * size; p++) x[p] = clip(x[p]);
}

/* --------------------------------------------------------------------------------------------------------- views */

EVERY_MACHINE
static void render_view(const Job *job, Scratch *s, int view) {
    const int area = job->size * job->size;
    float *x = job->out + 3 * (size_t)area * view;
    resize(job, s, view, x);
    color(job, view, x, area);
    if (!(job->sigma[view] > 0.0f)) return;
    blur(job, s, job->sigma[view], x);
    for (int begin = 0; begin < area; begin += CHUNK) {
        const int n = area - begin < CHUNK ? area - begin : CHUNK;
        finish(job, view, x + begin, x + begin + area, x + begin + 2 * area, n);
    }
}

/* A thread keeps its memory from one job to the next: fresh pages are slow. */
static _Thread_local struct { void *memory; size_t bytes; } kept;

static int allocate(const Job *job, Scratch *s) {
    const size_t size = (size_t)job->size, row = 3 * (size_t)job->longest_width + LANES, wide = row * LANES;
    s->down_taps = taps_for(job->longest_height, job->size, job->bicubic);
    s->across_taps = taps_for(job->longest_width, job->size, job->bicubic);
    s->pitch = (job->size + LANES - 1) / LANES * LANES;
    const size_t plane = size * (size_t)s->pitch, line = size + MOST_TAPS + LANES;
    const size_t window = row * (size_t)s->down_taps;
    const size_t floats = 2 * wide + window + size * (size_t)(s->down_taps + s->across_taps) + plane + line;
    const size_t bytes = sizeof(float *) * (size_t)s->down_taps + sizeof(float) * (floats + 4 * size);
    if (kept.bytes < bytes) {
        free(kept.memory);
        kept.memory = malloc(bytes);
        kept.bytes = kept.memory ? bytes : 0;
        if (!kept.memory) return 1;
    }
    s->taken = kept.memory; /* pointers first, for their alignment */
    float *at = (float *)(s->taken + s->down_taps);
    memset(at, 0, sizeof(float) * (floats + 4 * size)); /* what fills up a vector must be a number */
    s->window = at, at += window;
    s->columns = at, at += wide;
    s->rows = at, at += wide;
    s->down = at, at += size * (size_t)s->down_taps;
    s->across = at, at += size * (size_t)s->across_taps;
    s->plane = at, at += plane;
    s->line = at, at += line;
    int32_t *numbers = (int32_t *)at;
    s->down_first = numbers, s->down_count = numbers + size;
    s->across_first = numbers + 2 * size, s->across_count = numbers + 3 * size;
    return 0;
}

/* Render views until none is left; any number of threads may call it with one job. 0, or 1 without memory. */
int fastssl_render(Job *job) {
    Scratch scratch;
    if (allocate(job, &scratch)) return 1;
    for (int view; (view = atomic_fetch_add(&job->next, 1)) < job->count;) render_view(job, &scratch, view);
    return 0;
}

/* So that Python and C cannot disagree about the layout without noticing. */
int fastssl_job_size(void) { return (int)sizeof(Job); }
