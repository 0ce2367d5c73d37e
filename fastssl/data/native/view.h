/* One view, whole: compiled once an instruction set, with WIDTH floats a vector and its functions' TARGET.
 *
 * The pixels of a view are visited twice at most. The first visit resizes sixteen rows and takes them through the colour
 * operations before contrast, which needs the mean of all pixels; the second does what is left, and blurs row by row.
 *
 * Resampling is separable. Along y first: source rows are contiguous. The result is transposed, so that along x the
 * weights are scalars and sixteen rows are neighbours: nothing is gathered.
 */
#include "job.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#if WIDTH > 4
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline)) TARGET
typedef float vec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
#define AT(p) (*(vec *)(p))
#define GET(p) (*(const vec *)(p))

INLINE float at_least(float x, float low) { return x > low ? x : low; }
INLINE float clip(float x) { x = x > 0.0f ? x : 0.0f; return x < 1.0f ? x : 1.0f; }

/* ------------------------------------------------------------------------------------------------------- resize */

INLINE float filter(float x, int bicubic) {
    if (!bicubic) return at_least(1.0f - x, 0.0f);
    if (x < 1.0f) return (1.5f * x - 2.5f) * x * x + 1.0f;
    if (x < 2.0f) return ((2.5f - 0.5f * x) * x - 4.0f) * x + 2.0f;
    return 0.0f;
}

/* Antialiased weights from `length` pixels to `size`, PIL's and torchvision's, times `unit`. */
INLINE void weigh(
    float *weight, int32_t *first, int32_t *count, int taps, int length, int size, int bicubic, int flip, float unit) {
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
        const float share = unit / total;
        for (int t = 0; t < n; t++) w[t] *= share;
        first[row] = (int32_t)begin;
        count[row] = n;
    }
}

/* Part of a source row as floats, once: neighbouring output rows share it. Compilers miss the one instruction. */
INLINE void widen(float *restrict out, const uint8_t *restrict source, int n) {
    int k = 0;
#if WIDTH == 16
    for (; k + 16 <= n; k += 16)
        _mm512_storeu_ps(out + k, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(source + k)))));
#elif WIDTH == 8
    for (; k + 8 <= n; k += 8)
        _mm256_storeu_ps(out + k, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(source + k)))));
#endif
    for (; k < n; k++) out[k] = (float)source[k];
}

/* One output row: Σ weight · source row, over SPAN interleaved numbers. */
INLINE void blend(float *restrict out, const float *restrict window, const float *restrict weight, int n) {
    enum { VECTORS = 4 };
    for (int k = 0; k < SPAN; k += VECTORS * WIDTH) {
        vec sum[VECTORS];
        for (int v = 0; v < VECTORS; v++) sum[v] = GET(window + k + v * WIDTH) * weight[0];
        for (int t = 1; t < n; t++)
            for (int v = 0; v < VECTORS; v++) sum[v] += GET(window + t * SPAN + k + v * WIDTH) * weight[t];
        for (int v = 0; v < VECTORS; v++) AT(out + k + v * WIDTH) = sum[v];
    }
}

#include "transpose.h"

/* Rows top … top + block - 1 of a view, along y: to `columns`, [3 w, ROWS]. */
INLINE void resize_down(const Scratch *s, const uint8_t *source, size_t stride, int wide, int top, int block) {
    const int begin = s->down_first[top], stop = s->down_first[top + block - 1] + s->down_count[top + block - 1];
    const size_t ahead = (size_t)(stop - begin) * stride;
    for (int k = 0; k < wide; k += SPAN) {
        const int n = wide - k < SPAN ? wide - k : SPAN;
        for (int y = begin; y < stop; y++) {
            float *row = s->window + (size_t)(y - begin) * SPAN;
            const uint8_t *bytes = source + (size_t)y * stride + k;
            __builtin_prefetch(bytes + ahead);
            __builtin_prefetch(bytes + ahead + 64);
            if (n == SPAN) {
                widen(row, bytes, SPAN);
            } else {
                widen(row, bytes, n);
                memset(row + n, 0, sizeof(float) * (size_t)(SPAN - n));
            }
        }
        for (int l = 0; l < block; l++) {
            const int i = top + l;
            const float *rows = s->window + (size_t)(s->down_first[i] - begin) * SPAN;
            blend(s->tile + l * SPAN, rows, s->down + (size_t)i * s->down_taps, s->down_count[i]);
        }
        const int used = (n + EDGE - 1) / EDGE * EDGE;
        for (int j = 0; j < used; j += EDGE)
            for (int l = 0; l < ROWS; l += EDGE)
                transpose(s->tile + l * SPAN + j, SPAN, s->columns + (size_t)(k + j) * ROWS + l, ROWS);
    }
}

/* The same rows along x: to `out`, [3, size, size] from row `top` on. */
INLINE void resize_across(const Scratch *s, float *out, int size, int block) {
    enum { PARTS = ROWS / WIDTH };
    const size_t area = (size_t)size * (size_t)size;
    for (int i = 0; i < size; i += EDGE) {
        const int pixels = size - i < EDGE ? size - i : EDGE;
        float tile[3][EDGE][ROWS];
        for (int j = 0; j < pixels; j++) {
            const float *weight = s->across + (size_t)(i + j) * s->across_taps;
            const float *column = s->columns + 3 * ROWS * (size_t)s->across_first[i + j];
            vec sum[3][PARTS];
            for (int c = 0; c < 3; c++)
                for (int p = 0; p < PARTS; p++) sum[c][p] = GET(column + c * ROWS + p * WIDTH) * weight[0];
            for (int t = 1; t < s->across_count[i + j]; t++)
                for (int c = 0; c < 3; c++)
                    for (int p = 0; p < PARTS; p++)
                        sum[c][p] += GET(column + (3 * t + c) * ROWS + p * WIDTH) * weight[t];
            for (int c = 0; c < 3; c++)
                for (int p = 0; p < PARTS; p++) AT(&tile[c][j][p * WIDTH]) = sum[c][p];
        }
        for (int c = 0; c < 3; c++) {
            float *plane = out + area * (size_t)c + i;
            if (block == ROWS && pixels == EDGE) {
                for (int l = 0; l < ROWS; l += EDGE) transpose(&tile[c][0][l], ROWS, plane + (size_t)l * size, size);
            } else {
                for (int l = 0; l < block; l++)
                    for (int j = 0; j < pixels; j++) plane[(size_t)l * size + j] = tile[c][j][l];
            }
        }
    }
}

/* ------------------------------------------------------------------------------------------------------- colour */

/* Operations on n ≤ CHUNK pixels: three short planes that stay in the first-level cache from one to the next. */
#define PIXELS float *restrict r, float *restrict g, float *restrict b, int n
#define EACH for (int p = 0; p < n; p++)
INLINE float level(float r, float g, float b) { return (r * 0.2989f + g * 0.587f) + b * 0.114f; }

/* A bicubic filter leaves [0, 1]. */
INLINE void clip_all(PIXELS) {
    EACH r[p] = clip(r[p]), g[p] = clip(g[p]), b[p] = clip(b[p]);
}

INLINE void brightness(PIXELS, float amount, int additive) {
    if (additive)
        EACH r[p] = clip(r[p] + amount), g[p] = clip(g[p] + amount), b[p] = clip(b[p] + amount);
    else
        EACH r[p] = clip(r[p] * amount), g[p] = clip(g[p] * amount), b[p] = clip(b[p] * amount);
}

INLINE void contrast(PIXELS, float amount, const float pivot[3]) {
    const float to_r = pivot[0] * (1.0f - amount), to_g = pivot[1] * (1.0f - amount), to_b = pivot[2] * (1.0f - amount);
    EACH r[p] = clip(r[p] * amount + to_r), g[p] = clip(g[p] * amount + to_g), b[p] = clip(b[p] * amount + to_b);
}

INLINE void saturation(PIXELS, float amount) {
    EACH {
        const float gray = level(r[p], g[p], b[p]) * (1.0f - amount);
        r[p] = clip(r[p] * amount + gray);
        g[p] = clip(g[p] * amount + gray);
        b[p] = clip(b[p] * amount + gray);
    }
}

/* S of HSV times `amount`, at most 1; see `color.py`. */
INLINE void hsv_saturation(PIXELS, float amount) {
    EACH {
        float high = r[p] > g[p] ? r[p] : g[p], low = r[p] < g[p] ? r[p] : g[p];
        high = high > b[p] ? high : b[p];
        low = low < b[p] ? low : b[p];
        const float most = high / at_least(high - low, 1e-20f), factor = most < amount ? most : amount;
        const float value = high * (1.0f - factor);
        r[p] = clip(r[p] * factor + value);
        g[p] = clip(g[p] * factor + value);
        b[p] = clip(b[p] * factor + value);
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

INLINE void remove_color(PIXELS) {
    EACH r[p] = g[p] = b[p] = level(r[p], g[p], b[p]);
}

/* Adds the sums of the three planes to `total`, in sixteen lanes whatever the width of a vector. */
INLINE void add_sums(const float *r, const float *g, const float *b, int n, double total[3]) {
    enum { PARTS = ROWS / WIDTH };
    const float *planes[3] = {r, g, b};
    vec sum[3][PARTS] = {{{0}}};
    int p = 0;
    for (; p + ROWS <= n; p += ROWS)
        for (int c = 0; c < 3; c++)
            for (int v = 0; v < PARTS; v++) sum[c][v] += GET(planes[c] + p + v * WIDTH);
    for (int c = 0; c < 3; c++) {
        for (int q = p; q < n; q++) total[c] += planes[c][q];
        for (int l = 0; l < ROWS; l++) total[c] += sum[c][l / WIDTH][l % WIDTH];
    }
}

INLINE void normalise(const Job *job, int channel, float *restrict x, int n) {
    const float mean = job->mean[channel], inverse = 1.0f / job->std[channel];
    if (mean != 0.0f || inverse != 1.0f) EACH x[p] = (x[p] - mean) * inverse;
}

#include "study.h"

/* What comes after the blur, on one channel: solarize, invert and, unless other operations follow, normalise. */
INLINE void finish(const Job *job, int view, int channel, float *restrict x, int n) {
    if (job->solarize[view]) EACH x[p] = x[p] < 1.0f - x[p] ? x[p] : 1.0f - x[p];
    if (job->invert[view]) EACH x[p] = 1.0f - x[p];
    if (!studied(job, view)) normalise(job, channel, x, n);
}

enum { BRIGHTNESS, CONTRAST, SATURATION, HUE };

/* The colour operations of a view in its order. Contrast begins the second visit: it needs the mean before it. */
typedef struct {
    int operation[4], count, second; /* second: where the second visit begins; count, if there is no contrast */
    int blurred;
    float pivot[3]; /* of contrast, a channel each */
    double total[3];
} Plan;

INLINE Plan plan(const Job *job, int view, int blurred) {
    Plan made = {.blurred = blurred};
    made.second = -1;
    for (int k = 0; k < 4 && job->jitter[view]; k++) {
        const int operation = job->order[4 * (size_t)view + k];
        if (!job->enabled[operation]) continue;
        if (operation == CONTRAST) made.second = made.count;
        made.operation[made.count++] = operation;
    }
    if (made.second < 0) made.second = made.count;
    return made;
}

INLINE void operate(const Job *job, int view, const Plan *made, int first, int stop, PIXELS) {
    const float *factor = job->factors + 4 * (size_t)view;
    for (int k = first; k < stop; k++) {
        switch (made->operation[k]) {
        case BRIGHTNESS: brightness(r, g, b, n, factor[BRIGHTNESS], job->additive_brightness); break;
        case CONTRAST: contrast(r, g, b, n, factor[CONTRAST], made->pivot); break;
        case SATURATION:
            if (job->tensorflow_color) hsv_saturation(r, g, b, n, factor[SATURATION]);
            else saturation(r, g, b, n, factor[SATURATION]);
            break;
        default: hue(r, g, b, n, factor[HUE]);
        }
    }
}

/* Both visits, on `pixels` pixels of all channels from x on. */
INLINE void color(const Job *job, int view, Plan *made, int visit, float *x, size_t area, int pixels) {
    const int contrasted = made->second < made->count, last = visit || !contrasted;
    for (int begin = 0; begin < pixels; begin += CHUNK) {
        const int n = pixels - begin < CHUNK ? pixels - begin : CHUNK;
        float *r = x + begin, *g = r + area, *b = g + area;
        if (!visit) {
            if (job->bicubic) clip_all(r, g, b, n);
            if (job->gray[view] && job->grayscale_first) remove_color(r, g, b, n);
            operate(job, view, made, 0, made->second, r, g, b, n);
            if (contrasted) add_sums(r, g, b, n, made->total);
        } else {
            operate(job, view, made, made->second, made->count, r, g, b, n);
        }
        if (!last) continue;
        if (job->gray[view] && !job->grayscale_first) remove_color(r, g, b, n);
        if (!made->blurred) finish(job, view, 0, r, n), finish(job, view, 1, g, n), finish(job, view, 2, b, n);
    }
}

/* --------------------------------------------------------------------------------------------------------- blur */

/* Whether there is a blur; its weights to `kernel`. */
INLINE int weigh_blur(const Job *job, int view, Kernel *kernel) {
    const double sigma = (double)job->sigma[view];
    if (!(sigma > 0.0)) return 0;
    if (job->pil_blur) { /* three box blurs with fractional edges whose variances add up */
        const double variance = sigma * sigma / 3.0;
        const int whole = (int)floor((sqrt(12.0 * variance + 1.0) - 1.0) / 2.0);
        const double edge = (2 * whole + 1) * ((double)whole * (whole + 1) - 3.0 * variance) /
                            (6.0 * (variance - (double)(whole + 1) * (whole + 1)));
        const double inner = 1.0 / (2.0 * (whole + edge) + 1.0);
        kernel->half = whole + 1, kernel->passes = 3, kernel->reflected = 0;
        for (int k = 0; k <= whole; k++) kernel->weight[k] = (float)inner;
        kernel->weight[whole + 1] = (float)(edge * inner);
        return 1;
    }
    int half = job->blur_taps / 2;
    double total = 1.0;
    for (int k = 1; k <= half; k++) total += 2.0 * exp(-0.5 * (k / sigma) * (k / sigma));
    /* Weights that no sum can see would be denormal numbers, which take a hundred times as long. */
    while (half && exp(-0.5 * (half / sigma) * (half / sigma)) < 1e-9) half--;
    kernel->half = half, kernel->passes = 1, kernel->reflected = 1;
    for (int k = 0; k <= half; k++) kernel->weight[k] = (float)(exp(-0.5 * (k / sigma) * (k / sigma)) / total);
    return half > 0;
}

/* Where a kernel that reaches over the border looks: reflected (a Gaussian), or the outermost pixel (PIL's boxes). */
INLINE int inside(int i, int size, int reflected) {
    if (!reflected) return i < 0 ? 0 : i < size ? i : size - 1;
    i = abs(i);
    return i < size ? i : 2 * (size - 1) - i;
}

/* out[j] = weight[0] · row[0][j] + Σ weight[k] · (row[-k][j] + row[k][j]), over `pitch` floats. */
INLINE void smooth(float *restrict out, const float *const *row, const float *weight, int half, int pitch) {
    enum { VECTORS = GROUP / WIDTH < 4 ? GROUP / WIDTH : 4 };
    for (int j = 0; j < pitch; j += VECTORS * WIDTH) {
        vec sum[VECTORS];
        for (int v = 0; v < VECTORS; v++) sum[v] = GET(row[0] + j + v * WIDTH) * weight[0];
        for (int k = 1; k <= half; k++) {
            const float *before = row[-k] + j, *behind = row[k] + j;
            for (int v = 0; v < VECTORS; v++)
                sum[v] += (GET(before + v * WIDTH) + GET(behind + v * WIDTH)) * weight[k];
        }
        for (int v = 0; v < VECTORS; v++) AT(out + j + v * WIDTH) = sum[v];
    }
}

/* One row along x, `passes` times: to `out`. */
INLINE void blur_across(const Scratch *s, const Kernel *kernel, const float *row, float *out, int size) {
    const int half = kernel->half;
    memcpy(s->line[0] + half, row, sizeof(float) * (size_t)size);
    for (int pass = 0; pass < kernel->passes; pass++) {
        float *line = s->line[pass & 1];
        const float *shifted[MOST_TAPS], **middle = shifted + half;
        for (int k = 1; k <= half; k++) {
            line[half - k] = line[half + inside(-k, size, kernel->reflected)];
            line[half + size - 1 + k] = line[half + inside(size - 1 + k, size, kernel->reflected)];
        }
        for (int k = -half; k <= half; k++) middle[k] = line + half + k;
        float *to = pass + 1 < kernel->passes ? s->line[(pass + 1) & 1] + half : out;
        smooth(to, middle, kernel->weight, half, s->pitch);
    }
}

/* Rows go through the passes one behind the other: row y of pass p is made when row y + half of the pass before is. */
INLINE void second_visit(const Job *job, Scratch *s, int view, Plan *made, float *x, size_t area) {
    const Kernel *kernel = &s->kernel;
    const int size = job->size, half = kernel->half, passes = kernel->passes, slots = slots_for(half), slot = slots - 1;
    const int contrasted = made->second < made->count, rows = CHUNK / size > 0 ? CHUNK / size : 1;
    if (!made->blurred) {
        color(job, view, made, 1, x, area, (int)area);
        return;
    }
    for (int now = 0; now < size + passes * half; now++) {
        if (contrasted && now < size && now % rows == 0)
            color(job, view, made, 1, x + (size_t)now * size, area, (size - now < rows ? size - now : rows) * size);
        for (int c = 0; c < 3; c++) {
            float *plane = x + area * (size_t)c, *ring = s->rings + (size_t)(c * passes * slots) * s->pitch;
            if (now < size) blur_across(s, kernel, plane + (size_t)now * size, ring + (size_t)(now & slot) * s->pitch, size);
            for (int pass = 0; pass < passes; pass++, ring += (size_t)slots * s->pitch) {
                const int y = now - (pass + 1) * half;
                if (y < 0 || y >= size) continue;
                const float *around[MOST_TAPS], **middle = around + half;
                for (int k = -half; k <= half; k++)
                    middle[k] = ring + (size_t)(inside(y + k, size, kernel->reflected) & slot) * s->pitch;
                if (pass + 1 < passes) {
                    smooth(ring + (size_t)(slots + (y & slot)) * s->pitch, middle, kernel->weight, half, s->pitch);
                    continue;
                }
                float *out = plane + (size_t)y * size;
                smooth(s->line[0], middle, kernel->weight, half, s->pitch);
                for (int j = 0; j < size; j++) out[j] = clip(s->line[0][j]);
                finish(job, view, c, out, size);
            }
        }
    }
}

/* --------------------------------------------------------------------------------------------------------- views */

/* To memory without reading it first: nobody looks at a view before its batch is whole. */
INLINE void put_away(float *restrict out, const float *restrict x, size_t n) {
    size_t i = 0;
#if WIDTH > 4
    for (; i < n && (uintptr_t)(out + i) % (4 * WIDTH); i++) out[i] = x[i];
    for (; i + WIDTH <= n; i += WIDTH) {
#if WIDTH == 16
        _mm512_stream_ps(out + i, GET(x + i));
#else
        _mm256_stream_ps(out + i, GET(x + i));
#endif
    }
    _mm_sfence();
#endif
    memcpy(out + i, x + i, sizeof(float) * (n - i));
}

TARGET void RENDER_VIEW(const Job *job, Scratch *s, int view) {
    const int size = job->size, flip = job->flip[view];
    const size_t area = (size_t)size * (size_t)size;
    const float *box = job->box + 4 * (size_t)view;
    const int y0 = (int)box[0], x0 = (int)box[1], h = (int)box[2], w = (int)box[3];
    const int64_t image = job->shown[view];
    const size_t stride = 3 * (size_t)job->widths[image];
    const uint8_t *source = job->pixels[image] + (size_t)y0 * stride + 3 * (size_t)x0;
    float *out = job->out + 3 * area * (size_t)view, *x = s->view ? s->view : out;
    Plan made = plan(job, view, weigh_blur(job, view, &s->kernel));
    weigh(s->down, s->down_first, s->down_count, s->down_taps, h, size, job->bicubic, 0, 1.0f);
    weigh(s->across, s->across_first, s->across_count, s->across_taps, w, size, job->bicubic, flip, 1.0f / 255.0f);
    for (int top = 0; top < size; top += ROWS) {
        const int block = size - top < ROWS ? size - top : ROWS;
        resize_down(s, source, stride, 3 * w, top, block);
        resize_across(s, x + (size_t)top * size, size, block);
        color(job, view, &made, 0, x + (size_t)top * size, area, block * size);
    }
    turn_view(job, view, x); /* what was done before belongs to each pixel alone */
    const double pixels = (double)area;
    for (int c = 0; c < 3; c++) made.pivot[c] = (float)(made.total[c] / pixels);
    if (!job->tensorflow_color) {
        const float gray = level(made.pivot[0], made.pivot[1], made.pivot[2]);
        made.pivot[0] = made.pivot[1] = made.pivot[2] = gray;
    }
    if (made.blurred || made.second < made.count) second_visit(job, s, view, &made, x, area);
    study_view(job, view, x);
    if (x != out) put_away(out, x, 3 * area);
}
