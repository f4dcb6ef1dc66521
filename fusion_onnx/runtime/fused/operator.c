/* Entrywise programs as custom operators of ONNX Runtime, on its CPU provider and its threads.

   Python makes an operator of each program (fusion_onnx_operator), selects the operators of the next session
   (fusion_onnx_select), and hands this library to ONNX Runtime, which calls RegisterCustomOps. Sessions hold on to the
   operators, so nothing frees them. */
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

    program program; /* ours from here on */
};

typedef struct {
    const program *program;
    const char *const *tensors;
    const place *values; /* step 0: one number in a tile; else `at` is a row, repeated along the last axis */
    ptrdiff_t entries, row, shift, size; /* size: entries in a block; shift: those by which the first one is shorter */
    ptrdiff_t blocks, tasks;
    char *output;
    int streamed, rows;
    volatile int out_of_memory;
} call;

/* The operators of a model, and ONNX Runtime's domain for them: _OpLibrary of __init__.py. */
typedef struct {
    void *domain;
    const char *name;
    size_t count;
    void *const *operators;
} op_library;

static const void *const *api;
static const loops *active; /* of the instruction set in use */
static op_library *pending; /* of the next session */

#define EXPORTED __attribute__((visibility("default")))
#define CALL(place, result, ...) ((result(*)(__VA_ARGS__))api[place])
#define TRY(expression)                                                                                                \
    do {                                                                                                               \
        status error_ = (expression);                                                                                 \
        if (error_) return error_;                                                                                     \
    } while (0)

static size_t item_of(int32_t element) { return element == HALF ? 2 : element == DOUBLE ? 8 : 4; }
static size_t computed_of(int32_t element) { return element == DOUBLE ? 8 : 4; }

/* How a message begins of a call that the body has to compute, or to refuse: Python goes back to the body then. */
#define REFUSAL "fused kernel: "

static status refuse(int code, const char *text) {
    return CALL(CREATE_STATUS, status, int, const char *)(code, text);
}

static double number_at(const char *data, int32_t element, size_t at) {
    float value;
    if (element == DOUBLE) return ((const double *)data)[at];
    if (element == FLOAT) return ((const float *)data)[at];
    active->widen(&value, (const uint16_t *)data + at, 1);
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
        if (element == HALF) active->widen((float *)to, (const uint16_t *)(row + at * item), (size_t)n);
        else memcpy(to, row + at * item, (size_t)n * item);
        to += n * size, count -= n, at = 0;
    }
}

/* Say where each operand of the code is: the inputs and the output from the entry `first` on. */
static void place_operands(
    const call *c, ptrdiff_t first, place *places, char *registers, const place *values, char *output
) {
    const program *p = c->program;
    ptrdiff_t item = item_of(p->element), size = computed_of(p->element), tile = TILE / size;
    place tensor = {NULL, item * tile, item * c->size};
    for (int32_t at = 0; at < p->length;) {
        int32_t opcode = p->code[at], operands;
        int32_t header = opcode == FOLD ? 4 : opcode == MERGE || opcode == EIGHT ? 2 : 1;
        int32_t width = opcode == FOLD && p->code[at + 2] >= PRODUCT ? 2 : 1; /* operands of a term */
        operands = opcode == FOLD ? 1 + p->code[at + 1] / ONWARD + p->code[at + 3] * width
                 : opcode == EIGHT ? 16 : opcode == MERGE ? 8 : opcode == EXCHANGE ? 4
                 : opcode == SUBTRACT || opcode == DIVIDE ? 3 : 2;
        for (int32_t j = 0; j < header; j++) places[at++] = (place){0};
        for (int32_t j = 0; j < operands; j++, at++) {
            int32_t index = p->code[at] & (INPUT - 1);
            switch (p->code[at] & OPERAND_KIND) {
            case INPUT:
                places[at] = tensor;
                places[at].at = (char *)c->tensors[index] + first * item;
                break;
            case OUTPUT:
                places[at] = tensor;
                places[at].at = output ? output : c->output + first * item;
                if (output) places[at].advance = 0;
                break;
            case VALUE: places[at] = values[index]; break;
            case NOWHERE: places[at] = (place){0}; break;
            default: places[at] = (place){registers + index * c->size * size, TILE, 0};
            }
        }
    }
}

/* Compute the entries `first` to `last`. */
static void run_range(const call *c, ptrdiff_t first, ptrdiff_t last, char *memory) {
    const program *p = c->program;
    ptrdiff_t item = item_of(p->element), size = computed_of(p->element), tile = TILE / size, bytes = c->size * size;
    runner *run = p->element == DOUBLE ? active->run_double : active->run_float;
    char *registers = memory, *staging = registers + p->registers * bytes, *row_blocks = staging + bytes;
    char *tail_tiles = row_blocks + c->rows * bytes;
    place *places = (place *)(tail_tiles + (p->tensors + 1) * TILE), *values = places + p->length;
    int32_t row = 0;
    for (int32_t j = 0; j < p->value_count; j++) {
        values[j] = c->values[j];
        if (values[j].step) values[j].at = row_blocks + row++ * bytes;
    }
    place_operands(c, first, places, registers, values, c->streamed ? staging : NULL);
    for (ptrdiff_t begin = first; begin < last; begin += c->size) {
        ptrdiff_t count = last - begin < c->size ? last - begin : c->size, tiles = count / tile, tail = count % tile;
        for (int32_t j = 0; j < p->value_count; j++)
            if (values[j].step) unroll(values[j].at, c->values[j].at, p->element, c->row, begin % c->row, count);
        if (tiles) run(p->code, p->length, places, tiles);
        if (c->streamed) active->stream(c->output + begin * item, staging, (size_t)(tiles * tile * item));
        if (tail) { /* less than a tile is computed in a tile of its own: nothing beyond a tensor's end is touched */
            ptrdiff_t whole = tiles * tile;
            for (int32_t at = 0; at < p->length; at++) {
                place *operand = places + at;
                int32_t index = p->code[at] & (INPUT - 1);
                const char *from;
                if (!operand->at) continue;
                switch (p->code[at] & OPERAND_KIND) {
                case INPUT:
                    from = c->tensors[index] + (begin + whole) * item;
                    operand->at = memcpy(tail_tiles + index * TILE, from, (size_t)(tail * item));
                    break;
                case OUTPUT: operand->at = tail_tiles + p->tensors * TILE; break;
                case VALUE: operand->at += operand->step ? whole * size : 0; break;
                }
            }
            run(p->code, p->length, places, 1);
            memcpy(c->output + (begin + whole) * item, tail_tiles + p->tensors * TILE, (size_t)(tail * item));
        }
        for (int32_t at = 0; at < p->length; at++) places[at].at += places[at].advance;
    }
}

static void run_task(void *argument, size_t task) {
    call *c = argument;
    const program *p = c->program;
    size_t bytes = (size_t)c->size * computed_of(p->element);
    size_t scratch = (p->registers + 1 + c->rows) * bytes + (p->tensors + 1) * TILE;
    scratch += (p->length + p->value_count) * sizeof(place);
    char stack[1 << 15] __attribute__((aligned(64))), *memory = stack;
    if (scratch > sizeof stack && posix_memalign((void **)&memory, 64, scratch)) {
        c->out_of_memory = 1;
        return;
    }
    ptrdiff_t from = c->blocks * (ptrdiff_t)task / c->tasks, to = c->blocks * (ptrdiff_t)(task + 1) / c->tasks;
    ptrdiff_t first = from * c->size - c->shift, last = to * c->size - c->shift;
    run_range(c, first < 0 ? 0 : first, last > c->entries ? c->entries : last, memory);
    if (memory != stack) free(memory);
}

enum { AXES = 16 };

static status shape_of(const void *value, int64_t *sizes, size_t *rank) {
    void *info;
    status error;
    TRY(CALL(GET_TENSOR_TYPE_AND_SHAPE, status, const void *, void **)(value, &info));
    error = CALL(GET_DIMENSIONS_COUNT, status, const void *, size_t *)(info, rank);
    if (!error && *rank > AXES) error = refuse(INVALID_ARGUMENT, REFUSAL "at most 16 axes");
    if (!error) error = CALL(GET_DIMENSIONS, status, const void *, int64_t *, size_t)(info, sizes, *rank);
    CALL(RELEASE_TENSOR_TYPE_AND_SHAPE_INFO, void, void *)(info);
    return error;
}

/* Place the parts of the vectors, and the constants; `tiles` has a tile for each value. */
static status place_values(call *c, char *const *data, const int64_t *lengths, char *tiles, place *values) {
    const program *p = c->program;
    size_t item = item_of(p->element), tile = TILE / computed_of(p->element);
    for (int32_t j = 0; j < p->value_count; j++) {
        char *number = tiles + j * TILE;
        int32_t constant = j - (p->value_count - p->constant_count);
        values[j] = (place){number, 0, 0};
        if (constant >= 0) {
            put(number, p->element, p->constants[constant], tile);
            continue;
        }
        const int32_t *part = p->parts + 3 * j;
        int64_t length = lengths[part[0] - p->tensors] / part[2];
        if (lengths[part[0] - p->tensors] % part[2] || (length != 1 && length != c->row))
            return refuse(INVALID_ARGUMENT, REFUSAL "a part of a vector is one number, or as long as the last axis");
        char *begin = data[part[0]] + part[1] * length * item;
        if (length == 1) put(number, p->element, number_at(begin, p->element, 0), tile);
        else values[j] = (place){begin, TILE, 0}, c->rows++;
    }
    return NULL;
}

/* Compute; `memory` has a tile and a place for each value, and one of each to spare. */
static status compute_in(const program *p, void *context, char *memory) {
    int64_t shape[AXES], other_shape[AXES], lengths[p->inputs - p->tensors + 1];
    size_t rank = 0, other_rank;
    char *data[p->inputs];
    void *value;
    for (int32_t i = 0; i < p->inputs; i++) {
        TRY(CALL(KERNEL_CONTEXT_GET_INPUT, status, void *, size_t, void **)(context, i, &value));
        if (!value) return refuse(INVALID_ARGUMENT, REFUSAL "an input is left out");
        TRY(shape_of(value, i ? other_shape : shape, i ? &other_rank : &rank));
        if (i >= p->tensors) {
            if (other_rank != 1) return refuse(INVALID_ARGUMENT, REFUSAL "what all rows share is a vector");
            lengths[i - p->tensors] = other_shape[0];
        } else if (i && (other_rank != rank || memcmp(shape, other_shape, rank * sizeof *shape)))
            return refuse(INVALID_ARGUMENT, REFUSAL "the inputs have more than one shape");
        TRY(CALL(GET_TENSOR_MUTABLE_DATA, status, void *, void **)(value, (void **)&data[i]));
    }
    if (!rank && p->value_count) return refuse(INVALID_ARGUMENT, REFUSAL "a scalar would become a vector");
    call c = {.program = p, .tensors = (const char *const *)data, .entries = 1, .row = rank ? shape[rank - 1] : 1};
    for (size_t i = 0; i < rank; i++) c.entries *= shape[i];
    place *values = (place *)(memory + (p->value_count + 1) * TILE);
    TRY(place_values(&c, data, lengths, memory, values));
    c.values = values;
    TRY(CALL(KERNEL_CONTEXT_GET_OUTPUT, status, void *, size_t, const int64_t *, size_t, void **)(
        context, 0, shape, rank, &value
    ));
    TRY(CALL(GET_TENSOR_MUTABLE_DATA, status, void *, void **)(value, (void **)&c.output));
    if (c.entries == 0) return NULL;

    size_t item = item_of(p->element);
    ptrdiff_t tile = TILE / (ptrdiff_t)computed_of(p->element);
    /* registers of a block stay in the first cache; a longer one needs fewer turns */
    ptrdiff_t tiles = (24 << 10) / TILE / (p->registers + 1 + c.rows);
    c.size = tile * (tiles < 8 ? 8 : tiles > 64 ? 64 : tiles);
    ptrdiff_t output_size = (c.entries + tile - 1) / tile * tile;
    if (output_size < c.size) c.size = output_size;
    /* beyond the last cache's size, what is written would only push out what is still to be read */
    c.streamed = (size_t)c.entries * item * (p->tensors + 1) > (32u << 20);
    c.shift = c.streamed ? (ptrdiff_t)((uintptr_t)c.output % 64 / item) : 0;
    c.blocks = (c.entries + c.shift + c.size - 1) / c.size;
    ptrdiff_t work = c.entries * p->works >> 16;
    c.tasks = work < 4 ? 1 : work > 64 ? 64 : work;
    if (c.tasks > c.blocks) c.tasks = c.blocks;
    if (c.tasks == 1) run_task(&c, 0);
    else
        TRY(CALL(KERNEL_CONTEXT_PARALLEL_FOR, status, void *, void (*)(void *, size_t), size_t, size_t, void *)(
            context, run_task, (size_t)c.tasks, (size_t)c.tasks, &c
        ));
    return c.out_of_memory ? refuse(OUT_OF_MEMORY, "no memory for the registers of a fused operator") : NULL;
}

enum { ON_STACK = 1 << 12 };

static status compute(void *kernel, void *context) {
    const program *p = &((const operator *)kernel)->program;
    size_t scratch = (size_t)(p->value_count + 1) * (TILE + sizeof(place));
    char stack[ON_STACK] __attribute__((aligned(64))), *memory = stack;
    if (scratch > sizeof stack && posix_memalign((void **)&memory, 64, scratch))
        return refuse(OUT_OF_MEMORY, "no memory for the values of a fused operator");
    status error = compute_in(p, context, memory);
    if (memory != stack) free(memory);
    return error;
}

static status create_kernel(const operator *op, const void *unused, const void *info, void **kernel) {
    (void)unused, (void)info;
    *kernel = (void *)op; /* a kernel has no state of its own: the program is all */
    return NULL;
}
static void destroy(void *kernel) { (void)kernel; }
static const char *get_name(const operator *op) { return op->program.name; }
static const char *get_provider(const operator *op) { (void)op; return "CPUExecutionProvider"; }
static int get_type(const operator *op, size_t i) { (void)i; return op->program.element; }
static size_t get_input_count(const operator *op) { return (size_t)op->program.inputs; }
static size_t get_one(const operator *op) { (void)op; return 1; }
static int get_zero_at(const operator *op, size_t i) { (void)op, (void)i; return 0; }
static int get_1(const operator *op) { (void)op; return 1; }
static int get_latest(const operator *op) { (void)op; return INT32_MAX; }

static void *copy_of(const void *from, size_t count) {
    void *to = malloc(count ? count : 1);
    if (to && count) memcpy(to, from, count);
    return to;
}

/* Make an operator that runs a program; NULL where there is no memory. */
EXPORTED void *fusion_onnx_operator(const program *from) {
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
    program *p = &op->program;
    *p = *from;
    p->name = copy_of(from->name, strlen(from->name) + 1);
    p->code = copy_of(from->code, sizeof *p->code * (size_t)p->length);
    p->parts = copy_of(from->parts, sizeof *p->parts * 3 * (size_t)(p->value_count - p->constant_count));
    p->constants = copy_of(from->constants, sizeof *p->constants * (size_t)p->constant_count);
    return p->name && p->code && p->parts && p->constants ? op : NULL;
}

/* Say which operators the next session gets. `domain` is NULL at first; the first session for the library makes it. */
EXPORTED void fusion_onnx_select(op_library *library) { pending = library; }

/* Choose the instruction set: 0 is what every machine of this kind has, 1 the best that this one has, -1 leaves it
   as it is. Return which one is in use. */
EXPORTED int fusion_onnx_instructions(int level) {
#if defined(__x86_64__)
    if (level != 0 && (level > 0 || !active) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"))
        active = &fusion_onnx_loops_avx2;
    else if (level >= 0 || !active)
        active = &fusion_onnx_loops_base;
    return active == &fusion_onnx_loops_avx2;
#else
    (void)level;
    active = &fusion_onnx_loops_base;
    return 0;
#endif
}

/* Called by ONNX Runtime when Python hands it this library. */
EXPORTED status RegisterCustomOps(void *options, const api_base *base) {
    op_library *library = pending;
    api = base->get_api(API_VERSION);
    if (!api) return NULL; /* an older ONNX Runtime: Python does not ask it */
    fusion_onnx_instructions(-1);
    if (!library) return refuse(INVALID_ARGUMENT, "nothing was declared");
    if (!library->domain) {
        TRY(CALL(CREATE_CUSTOM_OP_DOMAIN, status, const char *, void **)(library->name, &library->domain));
        for (size_t i = 0; i < library->count; i++)
            TRY(CALL(CUSTOM_OP_DOMAIN_ADD, status, void *, const void *)(library->domain, library->operators[i]));
    }
    return CALL(ADD_CUSTOM_OP_DOMAIN, status, void *, void *)(options, library->domain);
}
