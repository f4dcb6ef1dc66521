/* Entrywise programs as custom operators of ONNX Runtime, on its CPU provider and its threads.

   Python declares a domain of operators, each with its program, and enters it into a session's options through
   RegisterCustomOps, which ONNX Runtime calls. What is declared is never freed: sessions hold on to it. */
#include "entrywise.h"

#include <stdlib.h>
#include <string.h>

/* ONNX Runtime's C API is a table of functions that only ever grows; these are the places of those used here. */
enum {
    CREATE_STATUS = 0,
    CREATE_CUSTOM_OP_DOMAIN = 26,
    CUSTOM_OP_DOMAIN_ADD = 27,
    ADD_CUSTOM_OP_DOMAIN = 28,
    GET_TENSOR_MUTABLE_DATA = 51,
    GET_DIMENSIONS_COUNT = 61,
    GET_DIMENSIONS = 62,
    GET_TENSOR_TYPE_AND_SHAPE = 65,
    KERNEL_CONTEXT_GET_INPUT = 90,
    KERNEL_CONTEXT_GET_OUTPUT = 91,
    RELEASE_TENSOR_TYPE_AND_SHAPE_INFO = 99,
    KERNEL_CONTEXT_PARALLEL_FOR = 274,
    API_VERSION = 17, /* of onnxruntime 1.17, the first to have all of these */
};
enum { INVALID_ARGUMENT = 2, OUT_OF_MEMORY = 1 };
enum { FLOAT = 1, HALF = 10, DOUBLE = 11 }; /* ONNX's element types */

typedef void *status; /* NULL is success */
typedef struct {
    const void *const *(*get_api)(uint32_t version);
    const char *(*get_version)(void);
} api_base;

/* OrtCustomOp as of API_VERSION, with no more than what is set here spelled out */
typedef struct operator operator;
struct operator {
    uint32_t version;
    void *(*create_kernel)(const operator *, const void *api, const void *info);
    const char *(*get_name)(const operator *);
    const char *(*get_provider)(const operator *);
    int (*get_input_type)(const operator *, size_t);
    size_t (*get_input_count)(const operator *);
    int (*get_output_type)(const operator *, size_t);
    size_t (*get_output_count)(const operator *);
    void (*compute)(void *kernel, void *context);
    void (*destroy)(void *kernel);
    int (*get_input_characteristic)(const operator *, size_t);
    int (*get_output_characteristic)(const operator *, size_t);
    int (*get_input_memory)(const operator *, size_t);
    int (*get_variadic_input_min)(const operator *);
    int (*get_variadic_input_homogeneity)(const operator *);
    int (*get_variadic_output_min)(const operator *);
    int (*get_variadic_output_homogeneity)(const operator *);
    status (*create_kernel_v2)(const operator *, const void *api, const void *info, void **kernel);
    status (*compute_v2)(void *kernel, void *context);
    status (*infer_shape)(const operator *, void *context);
    int (*get_start_version)(const operator *);
    int (*get_end_version)(const operator *);

    /* ours from here on. Inputs are `tensors` of one shape first, then vectors of values that all rows share. */
    char *name;
    int32_t inputs, tensors, element, registers, length, works;
    int32_t value_count, constants; /* values: parts of the vectors, then constants */
    int32_t *code;
    int32_t *parts; /* for each part of a vector: the input, which part, of how many */
    double *numbers;
};

typedef struct {
    const operator *op;
    const char *const *tensors;
    const place *values; /* step 0: one number in a tile; else `at` is a row, repeated along the last axis */
    ptrdiff_t entries, row, shift, size; /* size: entries in a block; shift: those by which the first one is shorter */
    ptrdiff_t blocks, tasks;
    char *output;
    int streamed, rows;
    volatile int failed;
} call;

static const void *const *api;
static const loops *used;
static void *pending;

#define EXPORTED __attribute__((visibility("default")))
#define CALL(place, result, ...) ((result(*)(__VA_ARGS__))api[place])
#define TRY(expression)                                                                                                \
    do {                                                                                                               \
        status failed_ = (expression);                                                                                 \
        if (failed_) return failed_;                                                                                   \
    } while (0)

static size_t item_of(int32_t element) { return element == HALF ? 2 : element == DOUBLE ? 8 : 4; }
static size_t computed_of(int32_t element) { return element == DOUBLE ? 8 : 4; }

/* what begins so is for the body to compute, or to refuse: Python then goes back to ONNX Runtime's operators */
#define REFUSAL "fused kernel: "

static status refuse(int code, const char *text) {
    return CALL(CREATE_STATUS, status, int, const char *)(code, text);
}

static double number_at(const char *data, int32_t element, size_t at) {
    float value;
    if (element == DOUBLE) return ((const double *)data)[at];
    if (element == FLOAT) return ((const float *)data)[at];
    used->widen(&value, (const uint16_t *)data + at, 1);
    return value;
}

static void put(char *to, int32_t element, double number, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (element == DOUBLE) ((double *)to)[i] = number;
        else ((float *)to)[i] = (float)number;
    }
}

/* Write `count` entries of a row that repeats itself, from its entry `at` on. */
static void unroll(char *to, const char *row, int32_t element, ptrdiff_t length, ptrdiff_t at, ptrdiff_t count) {
    size_t item = item_of(element), size = computed_of(element);
    while (count > 0) {
        ptrdiff_t n = length - at < count ? length - at : count;
        if (element == HALF) used->widen((float *)to, (const uint16_t *)(row + at * item), (size_t)n);
        else memcpy(to, row + at * item, (size_t)n * item);
        to += n * size, count -= n, at = 0;
    }
}

/* Say where each operand of the code is: the inputs and the output from the entry `first` on. */
static void place_operands(const call *c, ptrdiff_t first, place *places, char *registers, const place *rows, char *output) {
    const operator *op = c->op;
    ptrdiff_t item = item_of(op->element), size = computed_of(op->element), tile = TILE / size;
    place outside = {NULL, item * tile, item * c->size};
    for (int32_t at = 0, head; at < op->length;) {
        int32_t what = op->code[at], operands;
        head = what == FOLD ? 4 : what == MERGE || what == EIGHT ? 2 : 1;
        operands = what == FOLD ? 1 + op->code[at + 1] / ONWARD + op->code[at + 3] * (op->code[at + 2] >= PRODUCT ? 2 : 1)
                 : what == EIGHT ? 16 : what == MERGE ? 8 : what == EXCHANGE ? 4
                 : what == SUBTRACT || what == DIVIDE ? 3 : 2;
        for (int32_t j = 0; j < head; j++) places[at++] = (place){0};
        for (int32_t j = 0; j < operands; j++, at++) {
            int32_t index = op->code[at] & (INPUT - 1);
            switch (op->code[at] & OPERAND_KIND) {
            case INPUT:
                places[at] = outside;
                places[at].at = (char *)c->tensors[index] + first * item;
                break;
            case OUTPUT:
                places[at] = outside;
                places[at].at = output ? output : c->output + first * item;
                if (output) places[at].advance = 0;
                break;
            case VALUE: places[at] = rows[index]; break;
            case NOWHERE: places[at] = (place){0}; break;
            default: places[at] = (place){registers + index * c->size * size, TILE, 0};
            }
        }
    }
}

/* Compute the entries `first` to `last`. */
static void run_range(const call *c, ptrdiff_t first, ptrdiff_t last, char *memory) {
    const operator *op = c->op;
    ptrdiff_t item = item_of(op->element), size = computed_of(op->element), tile = TILE / size, bytes = c->size * size;
    runner *run = op->element == DOUBLE ? used->run_double : used->run_float;
    char *registers = memory, *staged = registers + op->registers * bytes, *unrolled = staged + bytes;
    char *rest = unrolled + c->rows * bytes;
    place *places = (place *)(rest + (op->tensors + 1) * TILE), *values = places + op->length;
    int32_t row = 0;
    for (int32_t j = 0; j < op->value_count; j++) {
        values[j] = c->values[j];
        if (values[j].step) values[j].at = unrolled + row++ * bytes;
    }
    place_operands(c, first, places, registers, values, c->streamed ? staged : NULL);
    for (ptrdiff_t done = first; done < last; done += c->size) {
        ptrdiff_t count = last - done < c->size ? last - done : c->size, tiles = count / tile, left = count % tile;
        for (int32_t j = 0; j < op->value_count; j++)
            if (values[j].step) unroll(values[j].at, c->values[j].at, op->element, c->row, done % c->row, count);
        if (tiles) run(op->code, op->length, places, tiles);
        if (c->streamed) used->stream(c->output + done * item, staged, (size_t)(tiles * tile * item));
        if (left) { /* less than a tile is computed in a tile of its own: nothing beyond a tensor's end is touched */
            ptrdiff_t whole = tiles * tile;
            for (int32_t at = 0; at < op->length; at++) {
                place *p = places + at;
                int32_t index = op->code[at] & (INPUT - 1);
                if (!p->at) continue;
                switch (op->code[at] & OPERAND_KIND) {
                case INPUT:
                    p->at = memcpy(rest + index * TILE, c->tensors[index] + (done + whole) * item, (size_t)(left * item));
                    break;
                case OUTPUT: p->at = rest + op->tensors * TILE; break;
                case VALUE: p->at += p->step ? whole * size : 0; break;
                }
            }
            run(op->code, op->length, places, 1);
            memcpy(c->output + (done + whole) * item, rest + op->tensors * TILE, (size_t)(left * item));
        }
        for (int32_t at = 0; at < op->length; at++) places[at].at += places[at].advance;
    }
}

static void run_task(void *given, size_t task) {
    call *c = given;
    const operator *op = c->op;
    size_t bytes = (size_t)c->size * computed_of(op->element);
    size_t needed = (op->registers + 1 + c->rows) * bytes + (op->tensors + 1) * TILE;
    needed += (op->length + op->value_count) * sizeof(place);
    char small[1 << 15] __attribute__((aligned(64))), *memory = small;
    if (needed > sizeof small && posix_memalign((void **)&memory, 64, needed)) {
        c->failed = 1;
        return;
    }
    ptrdiff_t from = c->blocks * (ptrdiff_t)task / c->tasks, to = c->blocks * (ptrdiff_t)(task + 1) / c->tasks;
    ptrdiff_t first = from * c->size - c->shift, last = to * c->size - c->shift;
    run_range(c, first < 0 ? 0 : first, last > c->entries ? c->entries : last, memory);
    if (memory != small) free(memory);
}

enum { AXES = 16 };

static status shape_of(const void *value, int64_t *sizes, size_t *rank) {
    void *info;
    status failed;
    TRY(CALL(GET_TENSOR_TYPE_AND_SHAPE, status, const void *, void **)(value, &info));
    failed = CALL(GET_DIMENSIONS_COUNT, status, const void *, size_t *)(info, rank);
    if (!failed && *rank > AXES) failed = refuse(INVALID_ARGUMENT, REFUSAL "at most 16 axes");
    if (!failed) failed = CALL(GET_DIMENSIONS, status, const void *, int64_t *, size_t)(info, sizes, *rank);
    CALL(RELEASE_TENSOR_TYPE_AND_SHAPE_INFO, void, void *)(info);
    return failed;
}

/* Place the parts of the vectors, and the constants; `numbers` has a tile for each value. */
static status place_values(call *c, char *const *data, const int64_t *lengths, char *numbers, place *values) {
    const operator *op = c->op;
    size_t item = item_of(op->element), tile = TILE / computed_of(op->element);
    for (int32_t j = 0; j < op->value_count; j++) {
        char *number = numbers + j * TILE;
        int32_t part = j - (op->value_count - op->constants);
        values[j] = (place){number, 0, 0};
        if (part >= 0) {
            put(number, op->element, op->numbers[part], tile);
            continue;
        }
        const int32_t *which = op->parts + 3 * j;
        int64_t length = lengths[which[0] - op->tensors] / which[2];
        if (lengths[which[0] - op->tensors] % which[2] || (length != 1 && length != c->row))
            return refuse(INVALID_ARGUMENT, REFUSAL "a part of a vector is one number, or as long as the last axis");
        char *begin = data[which[0]] + which[1] * length * item;
        if (length == 1) put(number, op->element, number_at(begin, op->element, 0), tile);
        else values[j] = (place){begin, TILE, 0}, c->rows++;
    }
    return NULL;
}

/* Compute; `memory` has a tile and a place for each value, and one of each to spare. */
static status compute_in(const operator *op, void *context, char *memory) {
    int64_t sizes[AXES], others[AXES], lengths[op->inputs - op->tensors + 1];
    size_t rank = 0, other;
    char *data[op->inputs];
    void *value;
    for (int32_t i = 0; i < op->inputs; i++) {
        TRY(CALL(KERNEL_CONTEXT_GET_INPUT, status, void *, size_t, void **)(context, i, &value));
        if (!value) return refuse(INVALID_ARGUMENT, REFUSAL "an input is left out");
        TRY(shape_of(value, i ? others : sizes, i ? &other : &rank));
        if (i >= op->tensors) {
            if (other != 1) return refuse(INVALID_ARGUMENT, REFUSAL "what all rows share is a vector");
            lengths[i - op->tensors] = others[0];
        } else if (i && (other != rank || memcmp(sizes, others, rank * sizeof *sizes)))
            return refuse(INVALID_ARGUMENT, REFUSAL "the inputs have more than one shape");
        TRY(CALL(GET_TENSOR_MUTABLE_DATA, status, void *, void **)(value, (void **)&data[i]));
    }
    if (!rank && op->value_count) return refuse(INVALID_ARGUMENT, REFUSAL "a scalar would become a vector");
    call c = {.op = op, .tensors = (const char *const *)data, .entries = 1, .row = rank ? sizes[rank - 1] : 1};
    for (size_t i = 0; i < rank; i++) c.entries *= sizes[i];
    place *values = (place *)(memory + (op->value_count + 1) * TILE);
    TRY(place_values(&c, data, lengths, memory, values));
    c.values = values;
    TRY(CALL(KERNEL_CONTEXT_GET_OUTPUT, status, void *, size_t, const int64_t *, size_t, void **)(context, 0, sizes, rank, &value));
    TRY(CALL(GET_TENSOR_MUTABLE_DATA, status, void *, void **)(value, (void **)&c.output));
    if (c.entries == 0) return NULL;

    size_t item = item_of(op->element);
    ptrdiff_t tile = TILE / (ptrdiff_t)computed_of(op->element);
    /* registers of a block stay in the first cache; a longer one needs fewer turns */
    ptrdiff_t fit = (24 << 10) / TILE / (op->registers + 1 + c.rows);
    c.size = tile * (fit < 8 ? 8 : fit > 64 ? 64 : fit);
    ptrdiff_t all = (c.entries + tile - 1) / tile * tile;
    if (all < c.size) c.size = all;
    /* beyond the last cache's size, what is written would only push out what is still to be read */
    c.streamed = (size_t)c.entries * item * (op->tensors + 1) > (32u << 20);
    c.shift = c.streamed ? (ptrdiff_t)((uintptr_t)c.output % 64 / item) : 0;
    c.blocks = (c.entries + c.shift + c.size - 1) / c.size;
    ptrdiff_t work = c.entries * op->works >> 16;
    c.tasks = work < 4 ? 1 : work > 64 ? 64 : work;
    if (c.tasks > c.blocks) c.tasks = c.blocks;
    if (c.tasks == 1) run_task(&c, 0);
    else TRY(CALL(KERNEL_CONTEXT_PARALLEL_FOR, status, void *, void (*)(void *, size_t), size_t, size_t, void *)(context, run_task, (size_t)c.tasks, (size_t)c.tasks, &c));
    return c.failed ? refuse(OUT_OF_MEMORY, "no memory for the registers of a fused operator") : NULL;
}

enum { ON_STACK = 1 << 12 };

static status compute(void *kernel, void *context) {
    const operator *op = kernel;
    size_t needed = (size_t)(op->value_count + 1) * (TILE + sizeof(place));
    char small[ON_STACK] __attribute__((aligned(64))), *memory = small;
    if (needed > sizeof small && posix_memalign((void **)&memory, 64, needed))
        return refuse(OUT_OF_MEMORY, "no memory for the values of a fused operator");
    status failed = compute_in(op, context, memory);
    if (memory != small) free(memory);
    return failed;
}

static status create_kernel(const operator *op, const void *unused, const void *info, void **kernel) {
    (void)unused, (void)info;
    *kernel = (void *)op; /* it holds nothing but the program */
    return NULL;
}
static void destroy(void *kernel) { (void)kernel; }
static const char *get_name(const operator *op) { return op->name; }
static const char *get_provider(const operator *op) { (void)op; return "CPUExecutionProvider"; }
static int get_type(const operator *op, size_t i) { (void)i; return op->element; }
static size_t get_input_count(const operator *op) { return (size_t)op->inputs; }
static size_t get_one(const operator *op) { (void)op; return 1; }
static int get_zero_at(const operator *op, size_t i) { (void)op, (void)i; return 0; }
static int get_1(const operator *op) { (void)op; return 1; }
static int get_latest(const operator *op) { (void)op; return INT32_MAX; }

static void *copied(const void *from, size_t count) {
    void *to = malloc(count ? count : 1);
    if (to && count) memcpy(to, from, count);
    return to;
}

/* Make an operator; NULL where there is no memory. */
EXPORTED void *fusion_onnx_operator(const char *name, const int32_t *facts, const int32_t *code, const int32_t *parts, const double *numbers) {
    operator *op = calloc(1, sizeof *op);
    if (!op) return NULL;
    op->version = API_VERSION;
    op->create_kernel_v2 = create_kernel, op->compute_v2 = compute, op->destroy = destroy;
    op->get_name = get_name, op->get_provider = get_provider;
    op->get_input_type = get_type, op->get_input_count = get_input_count;
    op->get_output_type = get_type, op->get_output_count = get_one;
    op->get_input_characteristic = get_zero_at, op->get_output_characteristic = get_zero_at;
    op->get_input_memory = get_zero_at;
    op->get_variadic_input_min = op->get_variadic_input_homogeneity = get_1;
    op->get_variadic_output_min = op->get_variadic_output_homogeneity = get_1;
    /* no infer_shape: this API cannot tell a scalar from a tensor of unknown rank, nor an axis without a name from -1 */
    op->get_start_version = get_1, op->get_end_version = get_latest;
    op->inputs = facts[0], op->tensors = facts[1], op->element = facts[2], op->registers = facts[3];
    op->length = facts[4], op->works = facts[5], op->value_count = facts[6], op->constants = facts[7];
    op->name = copied(name, strlen(name) + 1);
    op->code = copied(code, sizeof *code * (size_t)op->length);
    op->parts = copied(parts, sizeof *parts * 3 * (size_t)(op->value_count - op->constants));
    op->numbers = copied(numbers, sizeof *numbers * (size_t)op->constants);
    return op->name && op->code && op->parts && op->numbers ? op : NULL;
}

/* Say which operators the next session gets. `domain` begins as NULL, and is made when they are entered first. */
EXPORTED void fusion_onnx_enter(void *entered) { pending = entered; }

/* The instruction set in use: 0 what every machine of this kind has, 1 the best that this one has; -1 asks. */
EXPORTED int fusion_onnx_instructions(int wanted) {
#if defined(__x86_64__)
    if (wanted != 0 && (wanted > 0 || !used) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"))
        used = &fusion_onnx_loops_avx2;
    else if (wanted >= 0 || !used)
        used = &fusion_onnx_loops_base;
    return used == &fusion_onnx_loops_avx2;
#else
    (void)wanted;
    used = &fusion_onnx_loops_base;
    return 0;
#endif
}

typedef struct {
    void *domain;
    const char *name;
    size_t count;
    void *const *operators;
} entry;

/* Called by ONNX Runtime when Python hands it this library. */
EXPORTED status RegisterCustomOps(void *options, const api_base *base) {
    entry *entered = pending;
    api = base->get_api(API_VERSION);
    if (!api) return NULL; /* an older ONNX Runtime: Python does not ask it */
    fusion_onnx_instructions(-1);
    if (!entered) return refuse(INVALID_ARGUMENT, "nothing was declared");
    if (!entered->domain) {
        TRY(CALL(CREATE_CUSTOM_OP_DOMAIN, status, const char *, void **)(entered->name, &entered->domain));
        for (size_t i = 0; i < entered->count; i++)
            TRY(CALL(CUSTOM_OP_DOMAIN_ADD, status, void *, const void *)(entered->domain, entered->operators[i]));
    }
    return CALL(ADD_CUSTOM_OP_DOMAIN, status, void *, void *)(options, entered->domain);
}
