/* Entrywise functions as programs: what is done to a block of entries, instruction by instruction, in the first cache.

   A block is a few tiles of TILE bytes: small, so that the processor fetches the next one from memory while it computes
   this one. Registers are blocks in scratch memory. An operand is a register, an input read where it lies, or a value
   that all entries, or all rows, share. Every instruction rounds as the ONNX operator of its name does, in the
   program's order, so results are those of the function's body, bit for bit. */
#ifndef FUSION_ONNX_ENTRYWISE_H
#define FUSION_ONNX_ENTRYWISE_H

#include <stddef.h>
#include <stdint.h>

#define TILE 128

/* The instructions: an opcode, then numbers that belong to it (with the opcode: its header), then operands, results
   first. instructions.py has the same numbers by the same names; tests/test_fused.py compares them.

   FOLD kind transform count y a...: y = t(a) kind t(b) kind ..., from left to right, over `count` terms.
       PLAIN: t(a) = a. MAGNITUDE: t(a) = |a|. PRODUCT: a term is a pair, t(a, b) = a * b. PAIRED: a term is a pair, of
       which t is the minimum where kind is MAXIMUM, and the maximum where kind is MINIMUM.
       kind + ONWARD: one operand more stands before the terms, the result of the terms before these.
   EXCHANGE low high a b: low = min(a, b), high = max(a, b)
   MERGE outputs_mask p q r s a b c d: with l, m the lows of (a, b) and of (c, d), and h, i their highs, p = min(l, m),
       q = max(l, m), r = min(h, i), s = max(h, i). outputs_mask has a bit for each result that something reads, 1 for p
       to 8 for s; the operand of the others is NOWHERE. It has IN_ORDER too if q and r are put in order.
   EIGHT sorted p1 ... p8 a1 ... a8: a1 to a4 and a5 to a8 are each put in order, and then merged by Batcher's network:
       first with fifth, second with sixth, third with seventh, fourth with eighth; then third with fifth, fourth with
       sixth. p1 to p8 are what is then in the eight places. sorted: after that second with third, fourth with fifth,
       sixth with seventh, and all eight are in order.
   SUBTRACT, DIVIDE y a b; ABSOLUTE, NEGATE, ROOT, COPY y a
   WIDEN y a: float16 as float32; NARROW y a: float32 rounded to float16 */
enum { FOLD, EXCHANGE, MERGE, SUBTRACT, DIVIDE, ABSOLUTE, NEGATE, ROOT, COPY, WIDEN, NARROW, EIGHT };
enum { ADD, MULTIPLY, MINIMUM, MAXIMUM, ONWARD };
enum { PLAIN, MAGNITUDE, PRODUCT, PAIRED = 4 }; /* 3 is SCALED, which loops.c alone uses */
enum { IN_ORDER = 16 };
/* an operand is the number of a register, or one of these plus an index */
enum { INPUT = 1 << 20, VALUE = 2 << 20, OUTPUT = 3 << 20, NOWHERE = 4 << 20, OPERAND_KIND = 7 << 20 };

/* A program as Python hands it over: _CProgram of __init__.py has the same fields in the same order. */
typedef struct {
    const char *name;
    int32_t inputs, tensors; /* all inputs; those of one shape, which come first. The others are vectors */
    int32_t element;         /* ONNX's type of the inputs and the output */
    int32_t registers;
    int32_t works;                       /* how many vectors are read and written for one of the output */
    int32_t length;                      /* of the code */
    int32_t value_count, constant_count; /* values: parts of the vectors, then constants */
    const int32_t *code;
    const int32_t *parts; /* for each part of a vector: the input, which part, of how many */
    const double *constants;
} program;

/* Where an operand is, and how many bytes it moves from one tile to the next, and from one block to the next: none
   between tiles where all entries share it, none between blocks where it is scratch. */
typedef struct {
    char *at;
    ptrdiff_t step, advance;
} place;

/* Run a program on a block of tiles; `places` has one for each word of the code that is an operand. */
typedef void runner(const int32_t *code, int32_t length, const place *places, ptrdiff_t tiles);

/* What a build for one instruction set offers. */
typedef struct {
    runner *run_float, *run_double;
    void (*stream)(void *to, const void *from, size_t count); /* a copy that leaves the cache to what is read */
    void (*widen)(float *to, const uint16_t *from, size_t count);
} loops;

extern const loops fusion_onnx_loops_base;
#if defined(__x86_64__)
extern const loops fusion_onnx_loops_avx2;
#endif

#endif
