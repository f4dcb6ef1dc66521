/* The loops over tiles, built once for each instruction set: NAME is the table's. */
#include "entrywise.h"

#include <math.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* vectors of 32 bytes whatever the machine has: the compiler splits them; unaligned, as callers' memory is */
typedef float floats __attribute__((vector_size(32), aligned(4), may_alias));
typedef double doubles __attribute__((vector_size(32), aligned(8), may_alias));
typedef int32_t masks32 __attribute__((vector_size(32)));
typedef int64_t masks64 __attribute__((vector_size(32)));

#define ALWAYS static inline __attribute__((always_inline))

/* ONNX's Min and Max hand NaN on. The processors' own instructions do not all, so it is put in where an operand was NaN:
   all bits set are a NaN. */
#if defined(__AVX2__)
#define LESS(vector, masks, suffix)                                                                                    \
    ALWAYS vector low_##vector(vector a, vector b) { return _mm256_min_##suffix(a, b); }                               \
    ALWAYS vector high_##vector(vector a, vector b) { return _mm256_max_##suffix(a, b); }                              \
    ALWAYS masks nan_##vector(vector a, vector b) { return (masks)_mm256_cmp_##suffix(a, b, _CMP_UNORD_Q); }
LESS(floats, masks32, ps)
LESS(doubles, masks64, pd)
#else
#define LESS(vector, masks)                                                                                            \
    ALWAYS vector select_##vector(masks first, vector a, vector b) {                                                   \
        return (vector)(((masks)a & first) | ((masks)b & ~first));                                                     \
    }                                                                                                                  \
    ALWAYS vector low_##vector(vector a, vector b) { return select_##vector(a < b, a, b); }                            \
    ALWAYS vector high_##vector(vector a, vector b) { return select_##vector(a > b, a, b); }                           \
    ALWAYS masks nan_##vector(vector a, vector b) { return (a != a) | (b != b); }
LESS(floats, masks32)
LESS(doubles, masks64)
#endif
#define MARKED(vector, masks)                                                                                          \
    ALWAYS vector mark_##vector(vector a, masks nan) { return (vector)((masks)a | nan); }                              \
    ALWAYS vector min_##vector(vector a, vector b) { return mark_##vector(low_##vector(a, b), nan_##vector(a, b)); }   \
    ALWAYS vector max_##vector(vector a, vector b) { return mark_##vector(high_##vector(a, b), nan_##vector(a, b)); }
MARKED(floats, masks32)
MARKED(doubles, masks64)

ALWAYS floats abs_floats(floats a) { return (floats)((masks32)a & INT32_MAX); }
ALWAYS doubles abs_doubles(doubles a) { return (doubles)((masks64)a & INT64_MAX); }
ALWAYS floats sqrt_floats(floats a) {
#if defined(__AVX2__)
    return _mm256_sqrt_ps(a);
#else
    for (int i = 0; i < 8; i++) a[i] = sqrtf(a[i]);
    return a;
#endif
}
ALWAYS doubles sqrt_doubles(doubles a) {
#if defined(__AVX2__)
    return _mm256_sqrt_pd(a);
#else
    for (int i = 0; i < 4; i++) a[i] = sqrt(a[i]);
    return a;
#endif
}

static float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023, bits;
    float value;
    if (exponent == 0) { /* fraction * 2^-24, exact */
        value = (float)fraction * 0x1p-24f;
        return sign ? -value : value;
    }
    bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
    memcpy(&value, &bits, 4);
    return value;
}

static uint16_t float_to_half(float value) {
    uint32_t bits, sign, rest;
    memcpy(&bits, &value, 4);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return (uint16_t)(sign | 0x7e00); /* NaN */
    if (bits >= 0x477ff000u) return (uint16_t)(sign | 0x7c00); /* rounds beyond 65504 */
    if (bits < 0x38800000u) { /* subnormal: adding 0.5 rounds to a multiple of 2^-24, ties to even */
        float magnitude;
        memcpy(&magnitude, &bits, 4);
        magnitude += 0.5f;
        memcpy(&bits, &magnitude, 4);
        return (uint16_t)(sign | (bits - 0x3f000000u));
    }
    rest = bits - 0x38000000u;
    return (uint16_t)(sign | (rest + 0xfff + (rest >> 13 & 1)) >> 13);
}

static void widen(float *to, const uint16_t *from, size_t count) {
    size_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= count; i += 8) _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + i))));
#endif
    for (; i < count; i++) to[i] = half_to_float(from[i]);
}

static void narrow(uint16_t *to, const float *from, size_t count) {
    size_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= count; i += 8)
        _mm_storeu_si128((__m128i *)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < count; i++) to[i] = float_to_half(from[i]);
}

static void stream(void *to, const void *from, size_t count) {
#if defined(__x86_64__)
    if (((uintptr_t)to & 15) == 0) {
        size_t whole = count & ~(size_t)15;
        for (size_t i = 0; i < whole; i += 16)
            _mm_stream_si128((__m128i *)((char *)to + i), _mm_loadu_si128((const __m128i *)((const char *)from + i)));
        memcpy((char *)to + whole, (const char *)from + whole, count - whole);
        _mm_sfence();
        return;
    }
#endif
    memcpy(to, from, count);
}

#define PLUS(a, b) ((a) + (b))
#define TIMES(a, b) ((a) * (b))

/* NaN is put in once, at the end: wherever any operand was one. */
#define FOLDING_PAIRED(name, vector, masks, outer, inner)                                                              \
    static void name(const place *a, int32_t onward, int32_t count, place d, ptrdiff_t tiles) {                        \
        const place *second = a + (onward ? 1 : 2), *end = a + onward + count * 2;                                     \
        for (ptrdiff_t t = 0; t < tiles; t++) {                                                                        \
            vector *to = (vector *)(d.at + t * d.step);                                                                \
            for (int i = 0; i < 4; i += 2) {                                                                           \
                vector r0 = AT(vector, a)[i], r1 = AT(vector, a)[i + 1], y0 = r0, y1 = r1;                             \
                if (!onward) y0 = AT(vector, a + 1)[i], y1 = AT(vector, a + 1)[i + 1];                                 \
                masks nan0 = nan_##vector(r0, y0), nan1 = nan_##vector(r1, y1);                                        \
                if (!onward) r0 = inner##_##vector(r0, y0), r1 = inner##_##vector(r1, y1);                             \
                for (const place *b = second; b < end; b += 2) {                                                       \
                    vector x0 = AT(vector, b)[i], x1 = AT(vector, b)[i + 1];                                           \
                    y0 = AT(vector, b + 1)[i], y1 = AT(vector, b + 1)[i + 1];                                          \
                    nan0 |= nan_##vector(x0, y0), nan1 |= nan_##vector(x1, y1);                                        \
                    r0 = outer##_##vector(r0, inner##_##vector(x0, y0));                                               \
                    r1 = outer##_##vector(r1, inner##_##vector(x1, y1));                                               \
                }                                                                                                      \
                to[i] = mark_##vector(r0, nan0), to[i + 1] = mark_##vector(r1, nan1);                                  \
            }                                                                                                          \
        }                                                                                                              \
    }

/* Whether the second of every pair is one number for all entries: SCALED is then the transform that follows PRODUCT. */
static int are_scaled(const int32_t *fold, const place *operands) {
    const place *pair = operands + fold[1] / ONWARD, *end = pair + 2 * fold[3];
    if (fold[2] != PRODUCT) return 0;
    while (pair < end && !pair[1].step) pair += 2;
    return pair == end;
}

/* Pointers go into locals first: a store of vectors might, for all the compiler knows, change the places. The four
   vectors of a tile stay in registers from the first operand to the last. */
#define FOLDING(name, vector, kind, load, width)                                                                       \
    static void name(const place *a, int32_t onward, int32_t count, place d, ptrdiff_t tiles) {                        \
        const place *second = a + (onward ? 1 : width), *end = a + onward + count * width;                             \
        for (ptrdiff_t t = 0; t < tiles; t++) {                                                                        \
            vector r0, r1, r2, r3;                                                                                     \
            if (onward) {                                                                                              \
                LOAD(vector, a);                                                                                       \
                r0 = x0, r1 = x1, r2 = x2, r3 = x3;                                                                    \
            } else {                                                                                                   \
                load(vector, a);                                                                                       \
                r0 = x0, r1 = x1, r2 = x2, r3 = x3;                                                                    \
            }                                                                                                          \
            for (const place *b = second; b < end; b += width) {                                                       \
                load(vector, b);                                                                                       \
                r0 = kind(r0, x0), r1 = kind(r1, x1), r2 = kind(r2, x2), r3 = kind(r3, x3);                            \
            }                                                                                                          \
            vector *to = (vector *)(d.at + t * d.step);                                                                \
            to[0] = r0, to[1] = r1, to[2] = r2, to[3] = r3;                                                            \
        }                                                                                                              \
    }
#define AT(vector, place) ((vector *)((place)->at + t * (place)->step))
#define LOAD(vector, place)                                                                                            \
    const vector *from = AT(vector, place);                                                                            \
    vector x0 = from[0], x1 = from[1], x2 = from[2], x3 = from[3]
#define LOAD_MAGNITUDE(vector, place)                                                                                  \
    LOAD(vector, place);                                                                                               \
    x0 = abs_##vector(x0), x1 = abs_##vector(x1), x2 = abs_##vector(x2), x3 = abs_##vector(x3)
#define LOAD_PRODUCT(vector, place)                                                                                    \
    LOAD(vector, place);                                                                                               \
    const vector *by = AT(vector, (place) + 1);                                                                        \
    x0 *= by[0], x1 *= by[1], x2 *= by[2], x3 *= by[3]
#define LOAD_SCALED(vector, place)                                                                                     \
    LOAD(vector, place);                                                                                               \
    const vector by = *(const vector *)(place)[1].at;                                                                  \
    x0 *= by, x1 *= by, x2 *= by, x3 *= by
#define FOLDINGS(vector, kind, name)                                                                                   \
    FOLDING(name##_plain, vector, kind, LOAD, 1)                                                                       \
    FOLDING(name##_magnitude, vector, kind, LOAD_MAGNITUDE, 1)                                                         \
    FOLDING(name##_product, vector, kind, LOAD_PRODUCT, 2)                                                             \
    FOLDING(name##_scaled, vector, kind, LOAD_SCALED, 2)

#define UNARY(vector, apply)                                                                                           \
    for (ptrdiff_t t = 0; t < tiles; t++) {                                                                            \
        LOAD(vector, p + 1);                                                                                           \
        vector *to = AT(vector, p);                                                                                    \
        to[0] = apply(x0), to[1] = apply(x1), to[2] = apply(x2), to[3] = apply(x3);                                    \
    }                                                                                                                  \
    c += 3;                                                                                                            \
    continue
#define BINARY(vector, operator)                                                                                       \
    for (ptrdiff_t t = 0; t < tiles; t++) {                                                                            \
        LOAD(vector, p + 1);                                                                                           \
        const vector *y = AT(vector, p + 2);                                                                           \
        x0 = x0 operator y[0], x1 = x1 operator y[1], x2 = x2 operator y[2], x3 = x3 operator y[3];                    \
        vector *to = AT(vector, p);                                                                                    \
        to[0] = x0, to[1] = x1, to[2] = x2, to[3] = x3;                                                                \
    }                                                                                                                  \
    c += 4;                                                                                                            \
    continue

#define ORDER(vector, a, b)                                                                                            \
    do {                                                                                                               \
        vector low = low_##vector(a, b);                                                                               \
        b = high_##vector(a, b), a = low;                                                                              \
    } while (0)
#define ORDER_FOUR(vector, a, b, c, d)                                                                                 \
    ORDER(vector, a, b); ORDER(vector, c, d); ORDER(vector, a, c); ORDER(vector, b, d); ORDER(vector, b, c)
#define ORDERING_EIGHT(name, vector, masks, sorted)                                                                    \
    static void name##_eight_##sorted(const place *p, ptrdiff_t tiles) {                                               \
        for (ptrdiff_t t = 0; t < tiles; t++) {                                                                        \
            const vector *from[8];                                                                                     \
            vector *to[8];                                                                                             \
            for (int j = 0; j < 8; j++) to[j] = AT(vector, p + j), from[j] = AT(vector, p + 8 + j);                    \
            for (int i = 0; i < 4; i++) {                                                                              \
                vector a = from[0][i], b = from[1][i], c = from[2][i], d = from[3][i];                                 \
                vector e = from[4][i], f = from[5][i], g = from[6][i], h = from[7][i];                                 \
                masks nan = nan_##vector(a, b) | nan_##vector(c, d) | nan_##vector(e, f) | nan_##vector(g, h);         \
                ORDER_FOUR(vector, a, b, c, d);                                                                        \
                ORDER_FOUR(vector, e, f, g, h);                                                                        \
                ORDER(vector, a, e);                                                                                   \
                ORDER(vector, b, f);                                                                                   \
                ORDER(vector, c, g);                                                                                   \
                ORDER(vector, d, h);                                                                                   \
                ORDER(vector, c, e);                                                                                   \
                ORDER(vector, d, f);                                                                                   \
                if (sorted) {                                                                                          \
                    ORDER(vector, b, c);                                                                               \
                    ORDER(vector, d, e);                                                                               \
                    ORDER(vector, f, g);                                                                               \
                }                                                                                                      \
                to[0][i] = mark_##vector(a, nan), to[1][i] = mark_##vector(b, nan);                                    \
                to[2][i] = mark_##vector(c, nan), to[3][i] = mark_##vector(d, nan);                                    \
                to[4][i] = mark_##vector(e, nan), to[5][i] = mark_##vector(f, nan);                                    \
                to[6][i] = mark_##vector(g, nan), to[7][i] = mark_##vector(h, nan);                                    \
            }                                                                                                          \
        }                                                                                                              \
    }

/* Each set of results has a loop of its own, so that a result that nobody reads is not computed. */
#define MERGING(name, vector, masks, outputs_mask)                                                                     \
    static void name##_merge_##outputs_mask(const place *p, ptrdiff_t tiles) {                                         \
        for (ptrdiff_t t = 0; t < tiles; t++) {                                                                        \
            const vector *a = AT(vector, p + 4), *b = AT(vector, p + 5);                                               \
            const vector *d = AT(vector, p + 6), *e = AT(vector, p + 7);                                               \
            vector *to0 = AT(vector, p), *to1 = AT(vector, p + 1), *to2 = AT(vector, p + 2), *to3 = AT(vector, p + 3); \
            for (int i = 0; i < 4; i++) {                                                                              \
                vector w = a[i], x = b[i], y = d[i], z = e[i];                                                         \
                masks nan = nan_##vector(w, x) | nan_##vector(y, z);                                                   \
                vector l1 = low_##vector(w, x), h1 = high_##vector(w, x);                                              \
                vector l2 = low_##vector(y, z), h2 = high_##vector(y, z);                                              \
                vector q = high_##vector(l1, l2), r = low_##vector(h1, h2);                                            \
                if (outputs_mask & IN_ORDER) ORDER(vector, q, r);                                                      \
                if (outputs_mask & 1) to0[i] = mark_##vector(low_##vector(l1, l2), nan);                               \
                if (outputs_mask & 2) to1[i] = mark_##vector(q, nan);                                                  \
                if (outputs_mask & 4) to2[i] = mark_##vector(r, nan);                                                  \
                if (outputs_mask & 8) to3[i] = mark_##vector(high_##vector(h1, h2), nan);                              \
            }                                                                                                          \
        }                                                                                                              \
    }
#define EACH(of, ...)                                                                                                  \
    of(__VA_ARGS__, 0) of(__VA_ARGS__, 1) of(__VA_ARGS__, 2) of(__VA_ARGS__, 3) of(__VA_ARGS__, 4) of(__VA_ARGS__, 5)  \
    of(__VA_ARGS__, 6) of(__VA_ARGS__, 7) of(__VA_ARGS__, 8) of(__VA_ARGS__, 9) of(__VA_ARGS__, 10)                    \
    of(__VA_ARGS__, 11) of(__VA_ARGS__, 12) of(__VA_ARGS__, 13) of(__VA_ARGS__, 14) of(__VA_ARGS__, 15)                \
    of(__VA_ARGS__, 16) of(__VA_ARGS__, 17) of(__VA_ARGS__, 18) of(__VA_ARGS__, 19) of(__VA_ARGS__, 20)                \
    of(__VA_ARGS__, 21) of(__VA_ARGS__, 22) of(__VA_ARGS__, 23) of(__VA_ARGS__, 24) of(__VA_ARGS__, 25)                \
    of(__VA_ARGS__, 26) of(__VA_ARGS__, 27) of(__VA_ARGS__, 28) of(__VA_ARGS__, 29) of(__VA_ARGS__, 30)                \
    of(__VA_ARGS__, 31)
#define MERGED(name, outputs_mask) name##_merge_##outputs_mask,

#define RUN(name, vector, masks)                                                                                       \
    ORDERING_EIGHT(name, vector, masks, 0)                                                                             \
    ORDERING_EIGHT(name, vector, masks, 1)                                                                             \
    EACH(MERGING, name, vector, masks)                                                                                 \
    static void (*const name##_merges[32])(const place *, ptrdiff_t) = {EACH(MERGED, name)};                           \
    FOLDINGS(vector, PLUS, name##_add)                                                                                 \
    FOLDINGS(vector, TIMES, name##_multiply)                                                                           \
    FOLDINGS(vector, min_##vector, name##_minimum)                                                                     \
    FOLDINGS(vector, max_##vector, name##_maximum)                                                                     \
    FOLDING_PAIRED(name##_minimum_paired, vector, masks, low, high)                                                    \
    FOLDING_PAIRED(name##_maximum_paired, vector, masks, high, low)                                                    \
    static void (*const name##_folds[4][5])(const place *, int32_t, int32_t, place, ptrdiff_t) = {                     \
        {name##_add_plain, name##_add_magnitude, name##_add_product, name##_add_scaled},                               \
        {name##_multiply_plain, name##_multiply_magnitude, name##_multiply_product, name##_multiply_scaled},           \
        {name##_minimum_plain, name##_minimum_magnitude, name##_minimum_product, name##_minimum_scaled,                \
         name##_minimum_paired},                                                                                       \
        {name##_maximum_plain, name##_maximum_magnitude, name##_maximum_product, name##_maximum_scaled,                \
         name##_maximum_paired},                                                                                       \
    };                                                                                                                 \
    static void name(const int32_t *code, int32_t length, const place *places, ptrdiff_t tiles) {                      \
        const int32_t *c = code, *end = code + length;                                                                 \
        while (c < end) {                                                                                              \
            const place *p = places + (c - code) + 1;                                                                  \
            switch (*c) {                                                                                              \
            case FOLD:                                                                                                 \
                name##_folds[c[1] % ONWARD][c[2] + are_scaled(c, p + 4)](p + 4, c[1] / ONWARD, c[3], p[3], tiles);     \
                c += 5 + c[1] / ONWARD + c[3] * (c[2] >= PRODUCT ? 2 : 1);                                             \
                continue;                                                                                              \
            case EXCHANGE:                                                                                             \
                for (ptrdiff_t t = 0; t < tiles; t++) {                                                                \
                    const vector *a = AT(vector, p + 2), *b = AT(vector, p + 3);                                       \
                    vector *low = AT(vector, p), *high = AT(vector, p + 1);                                            \
                    for (int i = 0; i < 4; i++) {                                                                      \
                        vector x = a[i], y = b[i];                                                                     \
                        low[i] = min_##vector(x, y), high[i] = max_##vector(x, y);                                     \
                    }                                                                                                  \
                }                                                                                                      \
                c += 5;                                                                                                \
                continue;                                                                                              \
            case MERGE:                                                                                                \
                name##_merges[c[1]](p + 1, tiles);                                                                     \
                c += 10;                                                                                               \
                continue;                                                                                              \
            case EIGHT:                                                                                                \
                (c[1] ? name##_eight_1 : name##_eight_0)(p + 1, tiles);                                                \
                c += 18;                                                                                               \
                continue;                                                                                              \
            case SUBTRACT: BINARY(vector, -);                                                                          \
            case DIVIDE: BINARY(vector, /);                                                                            \
            case ABSOLUTE: UNARY(vector, abs_##vector);                                                                \
            case NEGATE: UNARY(vector, -);                                                                             \
            case ROOT: UNARY(vector, sqrt_##vector);                                                                   \
            case COPY: UNARY(vector, );                                                                                \
            case WIDEN: widen((float *)p[0].at, (const uint16_t *)p[1].at, (size_t)tiles * (TILE / 4)); break;         \
            case NARROW: narrow((uint16_t *)p[0].at, (const float *)p[1].at, (size_t)tiles * (TILE / 4)); break;       \
            }                                                                                                          \
            c += 3;                                                                                                    \
        }                                                                                                              \
    }

RUN(run_float, floats, masks32)
RUN(run_double, doubles, masks64)

const loops NAME = {run_float, run_double, stream, widen};
