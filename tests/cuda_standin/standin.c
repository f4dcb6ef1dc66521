/* The CUDA libraries without a card: what ONNX Runtime's CUDA provider calls, on the host's memory.

   Memory of the device is memory of the host. Copies are real, and as late as CUDA allows: one that is queued on a
   stream happens when something waits for that stream. Kernels and products compute nothing. All is counted.

   The declarations are those of NVIDIA's documentation of CUDA 13, without arguments at the end that nothing reads
   here. What the provider wants beside them, the build adds: functions that do nothing and answer 0, success in all of
   these libraries. */

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    OUT_OF_MEMORY = 2,
    INVALID_CONFIGURATION = 9,
    INVALID_DEVICE = 101,
    NOT_WHILE_CAPTURING = 900,
    CAPTURE_INVALIDATED = 901,
};

/* ---- What is counted. The names are read by counts() in __init__.py, in this order. */

struct counts {
    long launches;         /* of kernels */
    long empty_launches;   /* of 0 blocks or 0 threads, which CUDA refuses */
    long to_device, to_host, on_device; /* copies */
    long products;         /* matrix products that cuBLAS would compute, and its other work on matrices */
    long synchronisations; /* the host waits for a stream, an event or the device */
    long allocations;      /* of memory, of the device or pinned */
    long captures;         /* graphs recorded */
    long graph_launches;
};

static struct counts counts;

void standin_counts(struct counts *now) { *now = counts; }

/* What is done while a graph is recorded counts as well. */
#define COUNT(what) __atomic_fetch_add(&counts.what, 1, __ATOMIC_RELAXED)

/* ---- Queues: a stream is a list of copies and fills that are still to happen, a graph is one that is kept. */

struct operation {
    void *to;
    const void *from; /* NULL: fill with `value` */
    void *staged;     /* what `from` held when it was queued, where that is memory of the host */
    size_t bytes;
    int value;
    struct operation *next;
};

struct queue {
    struct operation *first;
    struct queue *recording; /* of a stream: the graph that its operations go into meanwhile */
    struct queue *next;      /* of all streams */
};

static struct queue default_stream;
static struct queue *streams = &default_stream;
static int captures_in_progress; /* by any thread, of the kind that forbids all threads what a graph would not hold */
static bool captures_are_spoilt;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Tell whether a call that no stream sees may be made now; if not, the graph that is recorded is spoilt by it. */
static bool allowed(void) {
    pthread_mutex_lock(&lock);
    bool free_to_go = !captures_in_progress;
    captures_are_spoilt |= !free_to_go;
    pthread_mutex_unlock(&lock);
    return free_to_go;
}

static void append(struct queue *queue, struct operation operation) {
    struct operation **end = &queue->first;
    while (*end) end = &(*end)->next;
    operation.next = NULL;
    *end = malloc(sizeof operation);
    **end = operation;
}

static void carry_out(struct queue *stream) {
    while (stream->first) {
        struct operation *operation = stream->first;
        const void *from = operation->staged ? operation->staged : operation->from;
        if (from) memmove(operation->to, from, operation->bytes);
        else memset(operation->to, operation->value, operation->bytes);
        stream->first = operation->next;
        free(operation->staged);
        free(operation);
    }
}

static struct queue *stream_of(struct queue *handle) {
    return (uintptr_t)handle <= 2 ? &default_stream : handle; /* 0, 1 and 2 name the default stream */
}

static void enqueue(struct queue *handle, struct operation operation) {
    struct queue *stream = stream_of(handle);
    pthread_mutex_lock(&lock);
    append(stream->recording ? stream->recording : stream, operation);
    pthread_mutex_unlock(&lock);
}

static void wait_for(struct queue *handle) {
    pthread_mutex_lock(&lock);
    carry_out(stream_of(handle));
    pthread_mutex_unlock(&lock);
}

static void wait_for_all(void) {
    pthread_mutex_lock(&lock);
    for (struct queue *stream = streams; stream; stream = stream->next) carry_out(stream);
    pthread_mutex_unlock(&lock);
}

/* ---- Handles: of libraries, descriptors, pools, kernels; nobody looks into them. */

#define HANDLE(name) int name(void **handle) { static char there; *handle = &there; return SUCCESS; }

/* ---- The devices: two cards, of the size of an H100. */

struct device_properties { /* the first fields of cudaDeviceProp */
    char name[256], uuid[16], luid[8];
    unsigned luid_mask;
    size_t memory, shared_memory_per_block;
    int registers_per_block, warp_size;
    size_t pitch;
    int threads_per_block, threads[3], blocks[3];
    size_t constant_memory;
    int major, minor;
    size_t texture_alignment, texture_pitch_alignment;
    int multiprocessors;
    char others[300];
};

#define MEMORY ((size_t)80 << 30)
#define VERSION 13000
enum { THREADS_PER_BLOCK = 1024, WARP_SIZE = 32, SHARED_MEMORY = 49152, MULTIPROCESSORS = 132, DEVICES = 2 };

static __thread int current_device;

int cuInit(unsigned flags) { return SUCCESS; }
int cuDeviceGetCount(int *count) { *count = DEVICES; return SUCCESS; }
int cudaGetDeviceCount(int *count) { *count = DEVICES; return SUCCESS; }
int cudaGetDevice(int *device) { *device = current_device; return SUCCESS; }

int cudaSetDevice(int device) {
    if (device < 0 || device >= DEVICES) return INVALID_DEVICE;
    current_device = device;
    return SUCCESS;
}

int cudaDriverGetVersion(int *version) { *version = VERSION; return SUCCESS; }
int cudaRuntimeGetVersion(int *version) { *version = VERSION; return SUCCESS; }
int cudaMemGetInfo(size_t *free, size_t *total) { *free = *total = MEMORY; return SUCCESS; }

int cudaGetDeviceProperties(struct device_properties *properties, int device) {
    if (device < 0 || device >= DEVICES) return INVALID_DEVICE;
    *properties = (struct device_properties){
        .name = "no card", .memory = MEMORY, .shared_memory_per_block = SHARED_MEMORY, .registers_per_block = 65536,
        .warp_size = WARP_SIZE, .pitch = 1u << 31, .threads_per_block = THREADS_PER_BLOCK, .threads = {1024, 1024, 64},
        .blocks = {2147483647, 65535, 65535}, .constant_memory = 65536, .major = 9, .texture_alignment = 512,
        .texture_pitch_alignment = 32, .multiprocessors = MULTIPROCESSORS};
    return SUCCESS;
}

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) { /* of enum cudaDeviceAttr */
    case 1: *value = THREADS_PER_BLOCK; break;
    case 8: *value = SHARED_MEMORY; break;
    case 10: *value = WARP_SIZE; break;
    case 16: *value = MULTIPROCESSORS; break;
    case 39: *value = 2048; break;   /* threads of a multiprocessor */
    case 75: *value = 9; break;      /* compute capability, major */
    case 76: *value = 0; break;      /* and minor */
    case 97: *value = 232448; break; /* shared memory of a block, on request */
    default: *value = 1;
    }
    return SUCCESS;
}

/* functions of the driver: it has none */
int cudaGetDriverEntryPointByVersion(const char *name, void **function) { *function = NULL; return SUCCESS; }

const char *cudaGetErrorName(int error) {
    return error == INVALID_CONFIGURATION ? "cudaErrorInvalidConfiguration" : "an error";
}
const char *cudaGetErrorString(int error) {
    return error == INVALID_CONFIGURATION ? "invalid configuration argument" : "an error";
}
const char *cublasGetStatusName(int status) { return "a status"; }
const char *cublasGetStatusString(int status) { return "a status"; }

/* ---- Memory: aligned as cudaMalloc aligns. To free it is to wait for the device first. */

int cudaMalloc(void **address, size_t bytes) {
    COUNT(allocations);
    if (!allowed()) return NOT_WHILE_CAPTURING;
    return posix_memalign(address, 512, bytes ? bytes : 1) ? OUT_OF_MEMORY : SUCCESS;
}
int cudaMallocAsync(void **address, size_t bytes) { return cudaMalloc(address, bytes); }
int cudaMallocFromPoolAsync(void **address, size_t bytes) { return cudaMalloc(address, bytes); }
int cudaMallocHost(void **address, size_t bytes) { return cudaMalloc(address, bytes); }
int cudaHostAlloc(void **address, size_t bytes, unsigned flags) { return cudaMalloc(address, bytes); }
int cudaFree(void *address) { wait_for_all(); free(address); return SUCCESS; }
int cudaFreeAsync(void *address, void *stream) { return cudaFree(address); }
int cudaFreeHost(void *address) { return cudaFree(address); }
HANDLE(cudaMemPoolCreate)
int cudaMemPoolGetAttribute(void *pool, int attribute, uint64_t *value) { *value = 0; return SUCCESS; }

struct pointer_attributes { int type, device; void *on_device, *on_host; long reserved[8]; };

int cudaPointerGetAttributes(struct pointer_attributes *attributes, void *address) {
    *attributes = (struct pointer_attributes){.type = 2 /* memory of the device */, .on_device = address};
    return SUCCESS;
}

/* ---- Copies. Memory of the host is pageable: it is read before the call returns, and written before it returns. */

enum { HOST_TO_HOST, HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE };

int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, struct queue *stream) {
    struct operation operation = {.to = to, .from = from, .bytes = bytes};
    if (kind == HOST_TO_DEVICE) {
        COUNT(to_device);
        operation.staged = malloc(bytes ? bytes : 1);
        memcpy(operation.staged, from, bytes);
    } else if (kind == DEVICE_TO_HOST) COUNT(to_host);
    else COUNT(on_device);
    enqueue(stream, operation);
    if (kind == DEVICE_TO_HOST || kind == HOST_TO_HOST) wait_for(stream);
    return SUCCESS;
}

/* To the device it returns as soon as the host's memory is read, on the device at once: it waits for what it writes to
   the host alone. */
int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) {
    wait_for(NULL);
    return cudaMemcpyAsync(to, from, bytes, kind, NULL);
}

int cudaMemcpy2DAsync(
    char *to, size_t to_pitch, const char *from, size_t from_pitch, size_t width, size_t height, int kind,
    struct queue *stream
) {
    for (size_t row = 0; row < height; row++)
        cudaMemcpyAsync(to + row * to_pitch, from + row * from_pitch, width, kind, stream);
    return SUCCESS;
}

int cudaMemcpyFromSymbol(void *to, const void *symbol, size_t bytes, size_t offset, int kind) {
    memset(to, 0, bytes); /* variables of kernels hold nothing */
    return SUCCESS;
}

int cudaMemsetAsync(void *to, int value, size_t bytes, struct queue *stream) {
    enqueue(stream, (struct operation){.to = to, .bytes = bytes, .value = value});
    return SUCCESS;
}

int cudaMemset(void *to, int value, size_t bytes) {
    cudaMemsetAsync(to, value, bytes, NULL);
    wait_for(NULL);
    return SUCCESS;
}

/* ---- Streams and events. An event is the stream it was recorded on: who waits for it waits for all of that. */

int cudaStreamCreateWithFlags(struct queue **stream, unsigned flags) {
    *stream = calloc(1, sizeof **stream);
    pthread_mutex_lock(&lock);
    (*stream)->next = streams->next;
    streams->next = *stream;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int cudaStreamCreate(struct queue **stream) { return cudaStreamCreateWithFlags(stream, 0); }
int cudaStreamDestroy(struct queue *stream) { wait_for(stream); return SUCCESS; } /* it stays in the list */
int cudaStreamSynchronize(struct queue *stream) { COUNT(synchronisations); wait_for(stream); return SUCCESS; }
int cudaDeviceSynchronize(void) { COUNT(synchronisations); wait_for_all(); return SUCCESS; }

int cudaEventCreateWithFlags(struct queue ***event, unsigned flags) {
    *event = calloc(1, sizeof **event);
    return SUCCESS;
}
int cudaEventCreate(struct queue ***event) { return cudaEventCreateWithFlags(event, 0); }
int cudaEventDestroy(struct queue **event) { free(event); return SUCCESS; }
int cudaEventRecord(struct queue **event, struct queue *stream) { *event = stream; return SUCCESS; }
int cudaEventRecordWithFlags(struct queue **event, struct queue *stream) { return cudaEventRecord(event, stream); }
int cudaEventSynchronize(struct queue **event) { return cudaStreamSynchronize(*event); }
int cudaEventElapsedTime(float *milliseconds, void *start, void *end) { *milliseconds = 1; return SUCCESS; }
int cudaStreamWaitEvent(struct queue *stream, struct queue **event) { wait_for(*event); return SUCCESS; }

/* ---- Launches of kernels. `kernel<<<grid, block>>>(...)` pushes the sizes, then a stub pops them and launches. */

struct size3 { unsigned x, y, z; };

static __thread int last_error;
static __thread struct { struct size3 grid, block; size_t shared; void *stream; } pushed;

int cudaGetLastError(void) { int error = last_error; last_error = SUCCESS; return error; }
int cudaPeekAtLastError(void) { return last_error; }

int cudaLaunchKernel(const void *kernel, struct size3 grid, struct size3 block) {
    COUNT(launches);
    if (grid.x && grid.y && grid.z && block.x && block.y && block.z) return SUCCESS;
    COUNT(empty_launches);
    return last_error = INVALID_CONFIGURATION;
}

struct launch { struct size3 grid, block; size_t shared; void *stream, *attributes; unsigned count; };

int __cudaLaunchKernel(const void *kernel, struct size3 grid, struct size3 block) {
    return cudaLaunchKernel(kernel, grid, block);
}
int cudaLaunchCooperativeKernel(const void *kernel, struct size3 grid, struct size3 block) {
    return cudaLaunchKernel(kernel, grid, block);
}
int cudaLaunchKernelExC(const struct launch *launch, const void *kernel) {
    return cudaLaunchKernel(kernel, launch->grid, launch->block);
}
int cudaLaunchHostFunc(struct queue *stream, void (*function)(void *), void *argument) {
    wait_for(stream);
    function(argument);
    return SUCCESS;
}

unsigned __cudaPushCallConfiguration(struct size3 grid, struct size3 block, size_t shared, void *stream) {
    pushed.grid = grid, pushed.block = block, pushed.shared = shared, pushed.stream = stream;
    return SUCCESS;
}

int __cudaPopCallConfiguration(struct size3 *grid, struct size3 *block, size_t *shared, void **stream) {
    *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared, *stream = pushed.stream;
    return SUCCESS;
}

void **__cudaRegisterFatBinary(void *binary) { static void *there[1]; return there; }
int __cudaGetKernel(const void **kernel, const void *function) { *kernel = function; return SUCCESS; }
int cudaFuncGetAttributes(void *attributes, const void *kernel) { memset(attributes, 0, 64); return SUCCESS; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks) {
    *blocks = 1;
    return SUCCESS;
}
HANDLE(cudaLibraryLoadData)
HANDLE(cudaLibraryGetKernel)

/* ---- Graphs: what is queued on a stream from the start of a capture to its end, and happens at each launch. */

int standin_capture_microseconds; /* how much longer a capture takes; a test sets it */

int cudaStreamBeginCapture(struct queue *stream, int mode) {
    COUNT(captures);
    pthread_mutex_lock(&lock);
    if (mode == 0 /* cudaStreamCaptureModeGlobal */ && !captures_in_progress++) captures_are_spoilt = false;
    stream->recording = calloc(1, sizeof *stream);
    pthread_mutex_unlock(&lock);
    usleep(standin_capture_microseconds);
    return SUCCESS;
}

int cudaStreamEndCapture(struct queue *stream, struct queue **graph) {
    pthread_mutex_lock(&lock);
    if (captures_in_progress) captures_in_progress--;
    bool spoilt = captures_are_spoilt;
    *graph = spoilt ? NULL : stream->recording;
    stream->recording = NULL;
    pthread_mutex_unlock(&lock);
    return spoilt ? CAPTURE_INVALIDATED : SUCCESS;
}

int cudaStreamIsCapturing(struct queue *stream, int *status) {
    *status = stream_of(stream)->recording != NULL;
    return SUCCESS;
}

int cudaGraphInstantiate(struct queue **executable, struct queue *graph) { *executable = graph; return SUCCESS; }

int cudaGraphLaunch(struct queue *graph, struct queue *stream) {
    COUNT(graph_launches);
    for (struct operation *operation = graph->first; operation; operation = operation->next) {
        struct operation again = *operation;
        if (operation->staged) again.staged = memcpy(malloc(again.bytes), operation->staged, again.bytes);
        enqueue(stream, again);
    }
    return SUCCESS;
}

/* ---- cuBLAS: products, sums and transpositions of matrices, factorisations. */

#define PRODUCT(name) int name(void) { COUNT(products); return SUCCESS; }

PRODUCT(cublasSgemm_v2) PRODUCT(cublasDgemm_v2) PRODUCT(cublasGemmEx) PRODUCT(cublasLtMatmul)
PRODUCT(cublasSgemmBatched) PRODUCT(cublasDgemmBatched) PRODUCT(cublasGemmBatchedEx)
PRODUCT(cublasSgemmStridedBatched) PRODUCT(cublasDgemmStridedBatched) PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasSgeam) PRODUCT(cublasDgeam) PRODUCT(cublasLtMatrixTransform)
HANDLE(cublasCreate_v2)
HANDLE(cublasLtCreate)
HANDLE(cublasLtMatmulDescCreate)
HANDLE(cublasLtMatmulPreferenceCreate)
HANDLE(cublasLtMatrixLayoutCreate)
HANDLE(cublasLtMatrixTransformDescCreate)

int cublasGetMathMode(void *handle, int *mode) { *mode = 0; return SUCCESS; }
int cublasLtMatmulAlgoGetHeuristic(
    void *handle, void *product, void *a, void *b, void *c, void *d, void *preference, int wanted, void *results,
    int *count
) {
    *count = 1;
    return SUCCESS;
}

/* ---- cuDNN, which the provider opens by itself: the version that it asks for, and a handle. */

size_t cudnnGetVersion(void) { return 91000; }
size_t cudnnGetCudartVersion(void) { return VERSION; }
const char *cudnnGetErrorString(int status) { return "a status"; }
HANDLE(cudnnCreate)
int cudnnDestroy(void *handle) { return SUCCESS; }
int cudnnSetStream(void *handle, void *stream) { return SUCCESS; }
