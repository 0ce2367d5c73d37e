/* Rotation, noise, Sobel and cutout of `study.py`, which few recipes have: a part of view.h. */

/* In place, `turns` quarter turns against the clock of one plane: a half turn reverses it, a quarter transposes it and
 * reverses the order of rows (counter-clockwise) or of columns. */
INLINE void reverse(float *restrict x, int n) {
    for (int p = 0; p < n / 2; p++) {
        const float kept = x[p];
        x[p] = x[n - 1 - p];
        x[n - 1 - p] = kept;
    }
}

INLINE void swap_rows(float *restrict a, float *restrict b, int n) {
    for (int p = 0; p < n; p++) {
        const float kept = a[p];
        a[p] = b[p];
        b[p] = kept;
    }
}

INLINE void rotate(float *x, int size, int turns) {
    if (turns == 2) {
        reverse(x, size * size);
        return;
    }
    for (int top = 0; top < size; top += ROWS) /* squares of ROWS × ROWS pixels stay in the first-level cache */
        for (int left = top; left < size; left += ROWS)
            for (int i = top; i < size && i < top + ROWS; i++)
                for (int j = left > i ? left : i + 1; j < size && j < left + ROWS; j++) {
                    const float kept = x[(size_t)i * size + j];
                    x[(size_t)i * size + j] = x[(size_t)j * size + i];
                    x[(size_t)j * size + i] = kept;
                }
    if (turns == 1)
        for (int i = 0; i < size / 2; i++) swap_rows(x + (size_t)i * size, x + (size_t)(size - 1 - i) * size, size);
    else
        for (int i = 0; i < size; i++) reverse(x + (size_t)i * size, size);
}

/* -------------------------------------------------------------------------------------------------------- noise */

enum { PART = 256 }; /* pixels whose words and normal numbers lie in the first-level cache */

/* Philox4x32-10 on counters (first + p, c1, c2, c3), see `counter.py`. */
INLINE void philox(uint32_t word[4][PART], uint32_t first, const uint32_t *key) {
    for (int p = 0; p < PART; p++) word[0][p] = first + (uint32_t)p;
    for (int p = 0; p < PART; p++) word[1][p] = key[0], word[2][p] = key[1], word[3][p] = key[2];
    uint32_t k0 = key[3], k1 = key[4];
    for (int round = 0; round < 10; round++) {
        for (int p = 0; p < PART; p++) {
            const uint64_t a = (uint64_t)word[0][p] * 0xD2511F53u, b = (uint64_t)word[2][p] * 0xCD9E8D57u;
            word[0][p] = (uint32_t)(b >> 32) ^ word[1][p] ^ k0;
            word[2][p] = (uint32_t)(a >> 32) ^ word[3][p] ^ k1;
            word[1][p] = (uint32_t)b;
            word[3][p] = (uint32_t)a;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

/* √(-2 ln u) of u = ((word >> 8) + 1) · 2⁻²⁴. The mantissa is brought into [√½, √2); there ln(1 + x) is x - x²/2 + x³ ·
 * a polynomial (the Cephes library's logf), which keeps all places where u is near 1. */
INLINE float radius(uint32_t word) {
    const float whole = (float)(int32_t)((word >> 8) + 1);
    int32_t bits;
    memcpy(&bits, &whole, sizeof bits);
    int32_t exponent = (bits - 0x3F3504F3) >> 23; /* of √½ · 2^exponent ≤ whole */
    bits -= exponent * (1 << 23);
    float x;
    memcpy(&x, &bits, sizeof x);
    x -= 1.0f;
    float y = 7.0376836292e-2f;
    y = y * x - 1.1514610310e-1f;
    y = y * x + 1.1676998740e-1f;
    y = y * x - 1.2420140846e-1f;
    y = y * x + 1.4249322787e-1f;
    y = y * x - 1.6668057665e-1f;
    y = y * x + 2.0000714765e-1f;
    y = y * x - 2.4999993993e-1f;
    y = y * x + 3.3333331174e-1f;
    const float square = x * x, power = (float)(exponent - 24);
    const float log = x + (y * x * square - 0.5f * square) + power * 0.69314718056f;
    return sqrtf(at_least(-2.0f * log, 0.0f));
}

/* cos and sin of 2π · (word >> 8) · 2⁻²⁴: the nearest quarter turn is exact, the rest is at most an eighth of a turn. */
INLINE void unit_circle(uint32_t word, float *cosine, float *sine) {
    const int32_t turn = (int32_t)(word >> 8), quarter = (turn + (1 << 21)) >> 22;
    const float x = (float)(turn - quarter * (1 << 22)) * (1.5707963268f / (1 << 22)), square = x * x;
    const float s = x + x * square * ((-1.9515295891e-4f * square + 8.3321608736e-3f) * square - 1.6666654611e-1f);
    const float c = 1.0f - 0.5f * square +
                    square * square * ((2.443315711809948e-5f * square - 1.388731625493765e-3f) * square + 4.166664568298827e-2f);
    const float a = quarter & 1 ? s : c, b = quarter & 1 ? c : s;
    *cosine = (quarter + 1) & 2 ? -a : a;
    *sine = quarter & 2 ? -b : b;
}

INLINE void add_noise(float *x, int area, float sigma, const uint32_t *key) {
    uint32_t word[4][PART];
    float normal[3][PART], unused;
    for (int begin = 0; begin < area; begin += PART) {
        const int n = area - begin < PART ? area - begin : PART;
        philox(word, (uint32_t)begin, key);
        for (int p = 0; p < PART; p++) {
            const float far = radius(word[0][p]);
            float cosine, sine;
            unit_circle(word[1][p], &cosine, &sine);
            normal[0][p] = far * cosine;
            normal[1][p] = far * sine;
        }
        for (int p = 0; p < PART; p++) {
            float cosine;
            unit_circle(word[3][p], &cosine, &unused);
            normal[2][p] = radius(word[2][p]) * cosine;
        }
        for (int c = 0; c < 3; c++) {
            float *restrict plane = x + (size_t)c * area + begin;
            EACH plane[p] = clip(plane[p] + normal[c][p] * sigma);
        }
    }
}

/* -------------------------------------------------------------------------------------------------------- Sobel */

/* Plane 0 takes the gray level, plane 1 the gradient's length; both then take the latter. */
INLINE void sobel(float *x, int size) {
    const int area = size * size;
    float *restrict gray = x, *restrict length = x + area;
    for (int p = 0; p < area; p++) gray[p] = level(x[p], x[p + area], x[p + 2 * area]);
    for (int i = 0; i < size; i++) {
        const float *up = gray + (size_t)(i ? i - 1 : 0) * size, *row = gray + (size_t)i * size;
        const float *down = gray + (size_t)(i + 1 < size ? i + 1 : i) * size;
        float *restrict out = length + (size_t)i * size;
#define GRADIENT(j, before, after) do { \
            const float x_ = ((up[after] + row[after] * 2.0f) + down[after]) - ((up[before] + row[before] * 2.0f) + down[before]); \
            const float y_ = ((down[before] + down[j] * 2.0f) + down[after]) - ((up[before] + up[j] * 2.0f) + up[after]); \
            out[j] = clip(sqrtf(x_ * x_ + y_ * y_) * 0.25f); \
        } while (0)
        GRADIENT(0, 0, 1);
        for (int j = 1; j < size - 1; j++) GRADIENT(j, j - 1, j + 1);
        GRADIENT(size - 1, size - 2, size - 1);
#undef GRADIENT
    }
    memcpy(gray, length, sizeof(float) * (size_t)area);
    memcpy(length + area, length, sizeof(float) * (size_t)area);
}

INLINE void fill_square(float *x, int size, const int32_t *cutout, float level) {
    for (int c = 0; c < 3; c++)
        for (int i = cutout[0]; i < cutout[0] + cutout[2]; i++)
            for (int j = cutout[1]; j < cutout[1] + cutout[2]; j++) x[((size_t)c * size + i) * size + j] = level;
}

/* ---------------------------------------------------------------------------------------------------- one view */

/* Whether the view is normalised only after these operations. */
INLINE int studied(const Job *job, int view) {
    return job->turns && (job->noise[view] > 0.0f || job->sobel[view] || job->cutout[3 * (size_t)view + 2] > 0);
}

INLINE void turn_view(const Job *job, int view, float *x) {
    if (!job->turns || !job->turns[view]) return;
    for (int c = 0; c < 3; c++) rotate(x + (size_t)c * job->size * job->size, job->size, job->turns[view]);
}

INLINE void study_view(const Job *job, int view, float *x) {
    if (!studied(job, view)) return;
    const int size = job->size, area = size * size;
    if (job->noise[view] > 0.0f) add_noise(x, area, job->noise[view], job->key + 5 * (size_t)view);
    if (job->sobel[view]) sobel(x, size);
    fill_square(x, size, job->cutout + 3 * (size_t)view, job->cutout_fill);
    for (int c = 0; c < 3; c++) normalise(job, c, x + (size_t)c * area, area);
}
