/* EDGE × EDGE floats, rows to columns: as many as a vector is wide, in log₂(EDGE) exchanges between pairs of rows. */
#if WIDTH == 16
enum { EDGE = 16 };
typedef vec edge;
#define PAIRS(a, b, i, j, k, l) \
    __builtin_shufflevector(a, b, i, j, k, l, i + 4, j + 4, k + 4, l + 4, \
        i + 8, j + 8, k + 8, l + 8, i + 12, j + 12, k + 12, l + 12)
#define EVERY_OTHER(a, b, i) \
    __builtin_shufflevector(a, b, i, i + 1, i + 2, i + 3, i + 8, i + 9, i + 10, i + 11, \
        i + 16, i + 17, i + 18, i + 19, i + 24, i + 25, i + 26, i + 27)
INLINE void transpose(const float *from, size_t from_pitch, float *to, size_t to_pitch) {
    edge x[16], y[16];
    for (int i = 0; i < 16; i++) x[i] = GET(from + (size_t)i * from_pitch);
    for (int i = 0; i < 16; i += 2) {
        y[i] = PAIRS(x[i], x[i + 1], 0, 16, 1, 17);
        y[i + 1] = PAIRS(x[i], x[i + 1], 2, 18, 3, 19);
    }
    for (int i = 0; i < 16; i += 4)
        for (int k = 0; k < 2; k++) {
            x[i + 2 * k] = PAIRS(y[i + k], y[i + k + 2], 0, 1, 16, 17);
            x[i + 2 * k + 1] = PAIRS(y[i + k], y[i + k + 2], 2, 3, 18, 19);
        }
    for (int i = 0; i < 16; i += 8)
        for (int k = i; k < i + 4; k++) {
            y[k] = EVERY_OTHER(x[k], x[k + 4], 0);
            y[k + 4] = EVERY_OTHER(x[k], x[k + 4], 4);
        }
    for (int k = 0; k < 4; k++) {
        AT(to + (size_t)k * to_pitch) = EVERY_OTHER(y[k], y[k + 8], 0);
        AT(to + (size_t)(k + 8) * to_pitch) = EVERY_OTHER(y[k], y[k + 8], 4);
        AT(to + (size_t)(k + 4) * to_pitch) = EVERY_OTHER(y[k + 4], y[k + 12], 0);
        AT(to + (size_t)(k + 12) * to_pitch) = EVERY_OTHER(y[k + 4], y[k + 12], 4);
    }
}
#elif WIDTH == 8
enum { EDGE = 8 };
typedef float edge __attribute__((vector_size(32), aligned(4), may_alias));
#define PAIRS(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define OTHER_PAIRS(a, b) __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define QUADS(a, b) __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define OTHER_QUADS(a, b) __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#define HALVES(a, b) __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11)
#define OTHER_HALVES(a, b) __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15)
INLINE void transpose(const float *from, size_t from_pitch, float *to, size_t to_pitch) {
    edge x[8], y[8];
    for (int i = 0; i < 8; i++) x[i] = *(const edge *)(from + (size_t)i * from_pitch);
    for (int i = 0; i < 8; i += 2) y[i] = PAIRS(x[i], x[i + 1]), y[i + 1] = OTHER_PAIRS(x[i], x[i + 1]);
    for (int i = 0; i < 8; i += 4)
        for (int k = 0; k < 2; k++)
            x[i + 2 * k] = QUADS(y[i + k], y[i + k + 2]), x[i + 2 * k + 1] = OTHER_QUADS(y[i + k], y[i + k + 2]);
    for (int i = 0; i < 4; i++) {
        *(edge *)(to + (size_t)i * to_pitch) = HALVES(x[i], x[i + 4]);
        *(edge *)(to + (size_t)(i + 4) * to_pitch) = OTHER_HALVES(x[i], x[i + 4]);
    }
}
#else
enum { EDGE = 4 };
typedef float edge __attribute__((vector_size(16), aligned(4), may_alias));
INLINE void transpose(const float *from, size_t from_pitch, float *to, size_t to_pitch) {
    const edge a = *(const edge *)from, b = *(const edge *)(from + from_pitch);
    const edge c = *(const edge *)(from + 2 * from_pitch), d = *(const edge *)(from + 3 * from_pitch);
    const edge ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), AB = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const edge cd = __builtin_shufflevector(c, d, 0, 4, 1, 5), CD = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    *(edge *)to = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
    *(edge *)(to + to_pitch) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
    *(edge *)(to + 2 * to_pitch) = __builtin_shufflevector(AB, CD, 0, 1, 4, 5);
    *(edge *)(to + 3 * to_pitch) = __builtin_shufflevector(AB, CD, 2, 3, 6, 7);
}
#endif
