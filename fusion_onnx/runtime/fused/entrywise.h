/* Entrywise functions as programs: what is done to a block of entries, instruction by instruction, in the first cache.

   A block is a few tiles of TILE bytes: small, so that the processor fetches the next one from memory while it computes
   this one. Registers are blocks in scratch memory; an operand is a register, an input read where it lies, or a value
   that all entries, or all rows, share. Every instruction rounds as the ONNX operator of
   its name does, in the program's order, so results are those of the function's body, bit for bit. */
#ifndef FUSION_ONNX_ENTRYWISE_H
#define FUSION_ONNX_ENTRYWISE_H

#include <stddef.h>
#include <stdint.h>

#define TILE 128

/* FOLD kind transform count dst operands...: dst = t(a) kind t(b) kind ..., from left to right; PRODUCT takes pairs, and
   so does PAIRED: the minimum of each pair where kind is MAXIMUM, its maximum where it is MINIMUM;
   kind + ONWARD: the first operand, before those counted, is what has been folded so far
   EXCHANGE low high a b: low = min(a, b), high = max(a, b)
   MERGE wanted p q r s a b c d: p = min(l, m), q = max(l, m) of the lows l, m of a, b and c, d; r, s the same of the
   highs; wanted has a bit for each that somebody asks for, the first is 1, and 16 if q and r are put in order as well;
   NOWHERE is where the others go
   EIGHT sorted p... a...: a to d and e to h are put in order, then the two are exchanged, first with first to last with
   last, then the third and fourth of the lows with the first and second of the highs; from the first low to the last
   high; sorted: then the second with the third to the sixth with the seventh, and all are in order
   SUBTRACT, DIVIDE dst a b; ABSOLUTE, NEGATE, ROOT, COPY dst a
   WIDEN dst a: float16 as float32; NARROW dst a: float32 rounded to float16 */
enum { FOLD, EXCHANGE, MERGE, SUBTRACT, DIVIDE, ABSOLUTE, NEGATE, ROOT, COPY, WIDEN, NARROW, EIGHT };
enum { ADD, MULTIPLY, MINIMUM, MAXIMUM, ONWARD };
enum { PLAIN, MAGNITUDE, PRODUCT, PAIRED = 4 };
/* an operand is a register, or one of these plus an index */
enum { INPUT = 1 << 20, VALUE = 2 << 20, OUTPUT = 3 << 20, NOWHERE = 4 << 20, OPERAND_KIND = 7 << 20 };

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
