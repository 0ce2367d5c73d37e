/* Compiled once an instruction set: vectors of WIDTH numbers, functions of its TARGET, ROWS of the queue at a time.
 *
 * Lanes are rows of z, two vectors of them a panel; a pair of elements of a queue row is broadcast. So a panel stays in
 * the first cache while the group passes by, and maxima need no reduction across lanes. */
#define NAMED(name) JOINED(name, WIDTH)
#define JOINED(name, width) JOIN(name, width)
#define JOIN(name, width) name##width
#define ints NAMED(ints)
#define floats NAMED(floats)
#define halves NAMED(halves)
#define shorts NAMED(shorts)
#define store_row NAMED(store_row)
#define largest NAMED(largest)
#define pairs_of NAMED(pairs_of)

typedef int32_t ints __attribute__((vector_size(4 * WIDTH), aligned(2), may_alias));
typedef float floats __attribute__((vector_size(4 * WIDTH), aligned(2), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * WIDTH), aligned(2), may_alias));
typedef int32_t pairs_of __attribute__((may_alias)); /* two int16 that lie side by side */
typedef int16_t shorts __attribute__((vector_size(2 * WIDTH), aligned(2), may_alias));
/* WIDTH numbers of a row of the queue. */
#define WIDENED(p) ((floats)(__builtin_convertvector(*(const halves *)(p), ints) << 16))

/* One row of the queue as integers of length ONE, `pairs` of them; returns what a unit of its products stands for. A
 * row without a direction (zeros, NaN, infinity) becomes zeros. Squares are summed in PARTS, whatever WIDTH is. */
TARGET static float store_row(int16_t *restrict out, const uint16_t *restrict row, int64_t width, int64_t pairs) {
    floats squares[PARTS / WIDTH] = {0};
    float total = 0.0f;
    int64_t k = 0;
    for (; k + PARTS <= width; k += PARTS)
        for (int v = 0; v < PARTS / WIDTH; v++) {
            const floats x = WIDENED(row + k + v * WIDTH);
            squares[v] += x * x;
        }
    for (int part = 0; part < PARTS; part++) total += squares[part / WIDTH][part % WIDTH];
    for (; k < width; k++) total += widened(row[k]) * widened(row[k]);
    const float length = sqrtf(total);
    const int real = length > 0.0f && length < INFINITY;
    const float up = real ? ONE / length : 0.0f;
    /* In 1.5 · 2^23 + x the low bits are those of x as an integer, rounded to nearest. */
    const float magic = 12582912.0f;
    for (k = 0; real && k + WIDTH <= width; k += WIDTH)
        *(shorts *)(out + k) = __builtin_convertvector((ints)(WIDENED(row + k) * up + magic), shorts);
    for (k = real ? k : 0; k < 2 * pairs; k++) {
        const union { float number; uint32_t bits; } x = {(k < width && real ? widened(row[k]) : 0.0f) * up + magic};
        out[k] = (int16_t)x.bits;
    }
    return real ? length / (ONE * ONE) : 0.0f;
}

/* The largest score of `count` rows with each lane of one panel. */
TARGET static void largest(
    float *peaks, const int16_t *panel, const int16_t *rows, const float *unit, int count, int64_t pairs) {
    floats top[2];
    for (int v = 0; v < 2; v++) top[v] = (floats){0} - INFINITY;
    for (int start = 0; start < count; start += ROWS) {
        const pairs_of *row[ROWS];
        float scale[ROWS];
        ints sum[ROWS][2] = {0};
        for (int i = 0; i < ROWS; i++) {
            const int at = start + i < count ? start + i : count - 1; /* the last row again, where the group ends */
            row[i] = (const pairs_of *)rows + at * pairs;
            scale[i] = unit[at];
        }
#pragma GCC unroll 4
        for (int64_t k = 0; k < pairs; k++) {
            const ints *own = (const ints *)(panel + k * 4 * WIDTH);
            for (int i = 0; i < ROWS; i++) {
                const ints pair = (ints){0} + row[i][k];
                for (int v = 0; v < 2; v++) sum[i][v] = ADD_PRODUCTS(sum[i][v], pair, own[v]);
            }
        }
        for (int i = 0; i < ROWS; i++)
            for (int v = 0; v < 2; v++) top[v] = LARGER(top[v], __builtin_convertvector(sum[i][v], floats) * scale[i]);
    }
    for (int v = 0; v < 2; v++) *(floats *)(peaks + v * WIDTH) = top[v];
}

/* Groups of the queue, one after another: packed, then compared with all rows of z. */
TARGET static void SCAN(Job *job) {
    const int64_t groups = (job->length + GROUP - 1) / GROUP, pairs = (job->width + 1) / 2, lanes = 2 * WIDTH;
    int16_t *rows = malloc(sizeof(int16_t) * 2 * GROUP * (size_t)pairs);
    if (!rows) {
        atomic_fetch_add(&job->failed, 1);
        return;
    }
    for (int64_t group; (group = atomic_fetch_add(&job->next, 1)) < groups;) {
        const int64_t first = group * GROUP, left = job->length - first;
        const int count = left < GROUP ? (int)left : GROUP;
        float unit[GROUP];
        for (int i = 0; i < count; i++)
            unit[i] = store_row(rows + i * 2 * pairs, job->queue + (first + i) * job->width, job->width, pairs);
        float *peaks = job->peaks + group * job->panels * lanes;
        for (int64_t panel = 0; panel < job->panels; panel++)
            largest(peaks + panel * lanes, job->unit + panel * pairs * 2 * lanes, rows, unit, count, pairs);
    }
    free(rows);
}

/* Rows of z, one after another, each with its chosen rows of the queue. */
TARGET static void SCORE(Pick *job) {
    for (int64_t row; (row = atomic_fetch_add(&job->next, 1)) < job->rows;) {
        const float *unit = job->unit + row * job->width;
        for (int64_t i = row * job->count; i < (row + 1) * job->count; i++) {
            const uint16_t *other = job->queue + job->place[i] * job->width;
            floats sums[PARTS / WIDTH] = {0};
            float total = 0.0f;
            int64_t k = 0;
            for (; k + PARTS <= job->width; k += PARTS)
                for (int v = 0; v < PARTS / WIDTH; v++)
                    sums[v] += *(const floats *)(unit + k + v * WIDTH) * WIDENED(other + k + v * WIDTH);
            for (int part = 0; part < PARTS; part++) total += sums[part / WIDTH][part % WIDTH];
            for (; k < job->width; k++) total += unit[k] * widened(other[k]);
            job->score[i] = total;
        }
    }
}

#undef ints
#undef floats
#undef halves
#undef shorts
#undef store_row
#undef largest
#undef pairs_of
#undef NAMED
#undef JOINED
#undef JOIN
#undef WIDTH
#undef TARGET
#undef ROWS
#undef ADD_PRODUCTS
#undef LARGER
#undef SCAN
#undef SCORE
#undef WIDENED
