/* The CPU backend: device set-up, memory, and the table of operations. */
#include "tensor/cpu/cpu.h"

#include "base/error.h"
#include "base/os.h"

#include <string.h>
#include <sys/mman.h>

static void cpu_free(cs_compute *compute)
{
    cs_cpu *cpu = (cs_cpu *)compute;
    uint32_t n = cs_pool_n_threads(cpu->pool);
    cs_pool_free(cpu->pool);
    for (uint32_t i = 0; i < n; i++)
        g_aligned_free(cpu->thread_memory[i].data);
    g_free(cpu->thread_memory);
    g_free(cpu);
}

cs_compute *cs_cpu_new(const cs_compute_options *options, GError **error)
{
    const cs_kernels *kernels = cs_kernels_choose(options->isa);
    if (!kernels) {
        cs_fail(error, CS_ERROR_UNSUPPORTED,
                "instruction set %s: this CPU lacks it, or there is none of that name; known are "
                "portable, avx2, "
                "avx512, avx512bf16, amx",
                options->isa);
        return NULL;
    }
    uint32_t n_threads = options->n_threads ? options->n_threads : (uint32_t)cs_cpu_count();
    cs_pool *pool = cs_pool_new(n_threads, error);
    if (!pool)
        return NULL;
    cs_cpu *cpu = g_new0(cs_cpu, 1);
    cpu->base.backend = &cs_backend_cpu;
    cpu->kernels = kernels;
    cpu->pool = pool;
    cpu->thread_memory = g_malloc0_n(n_threads, sizeof *cpu->thread_memory);
    return &cpu->base;
}

static const char *cpu_isa(const cs_compute *compute)
{
    return ((const cs_cpu *)compute)->kernels->name;
}

static uint32_t cpu_n_threads(const cs_compute *compute)
{
    return cs_pool_n_threads(((const cs_cpu *)compute)->pool);
}

static cs_dtype cpu_input_dtype(const cs_compute *compute, cs_dtype weight_dtype)
{
    bool multiplies_bf16 = ((const cs_cpu *)compute)->kernels->product_bf16 != NULL;
    return weight_dtype == CS_DTYPE_BF16 && multiplies_bf16 ? CS_DTYPE_BF16 : CS_DTYPE_F32;
}

static void cpu_sync(cs_compute *compute)
{
}

/* Pages come from the system as they are first touched; large buffers ask for huge pages, which
 * halves the time that streaming weights loses to address translation. */
static void *cpu_alloc(size_t size_bytes)
{
    enum { HUGE_PAGE = 2 << 20 };
    size_t size = MAX(size_bytes, (size_t)1);
    void *data = mmap(NULL, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED)
        return NULL;
    if (size >= HUGE_PAGE)
        madvise(data, size, MADV_HUGEPAGE);
    return data;
}

static void cpu_release(void *data, size_t size_bytes)
{
    if (data)
        munmap(data, MAX(size_bytes, (size_t)1));
}

static void cpu_zero(cs_compute *compute, void *data, size_t size_bytes, size_t stride_bytes,
                     int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        memset((char *)data + (size_t)i * stride_bytes, 0, size_bytes);
}

static void cpu_write(cs_compute *compute, const cs_tensor *to, const float *from)
{
    for (int64_t i = 0; i < to->rows; i++)
        memcpy((float *)to->data + i * to->stride, from + i * to->cols,
               (size_t)to->cols * sizeof *from);
}

static void cpu_read(cs_compute *compute, float *to, const cs_tensor *from)
{
    for (int64_t i = 0; i < from->rows; i++)
        memcpy(to + i * from->cols, (const float *)from->data + i * from->stride,
               (size_t)from->cols * sizeof *to);
}

bool cs_cpu_reserve_thread_scratch(cs_cpu *cpu, size_t size_bytes)
{
    for (uint32_t i = 0; i < cs_pool_n_threads(cpu->pool); i++) {
        if (cpu->thread_memory[i].size_bytes >= size_bytes)
            continue;
        void *grown = NULL;
        size_t rounded = (size_bytes + 4095) / 4096 * 4096;
        if (posix_memalign(&grown, 4096, rounded) != 0) {
            cs_compute_fault(&cpu->base, "no memory for %zu bytes of scratch", size_bytes);
            return false;
        }
        g_aligned_free(cpu->thread_memory[i].data);
        cpu->thread_memory[i].data = grown;
        cpu->thread_memory[i].size_bytes = rounded;
    }
    return true;
}

void cs_convert_to_f32(int64_t n, float *to, const void *from, cs_dtype dtype)
{
    const cs_kernels *kernels = &cs_kernels_portable;
    if (dtype == CS_DTYPE_BF16)
        kernels->from_bf16(n, to, from);
    else if (dtype == CS_DTYPE_F16)
        kernels->from_f16(n, to, from);
    else
        memcpy(to, from, (size_t)n * sizeof *to);
}

void cs_kv_store_copy_block(cs_kv_store *store, int32_t to, int32_t from)
{
    memcpy(cs_kv_layer(store, to, 0), cs_kv_layer(store, from, 0), store->block_bytes);
}

void cs_kv_store_read_block(cs_kv_store *store, void *to, int32_t block)
{
    memcpy(to, cs_kv_layer(store, block, 0), store->block_bytes);
}

void cs_kv_store_write_block(cs_kv_store *store, int32_t block, const void *from)
{
    memcpy(cs_kv_layer(store, block, 0), from, store->block_bytes);
}

const cs_backend cs_backend_cpu = {
    .name = "cpu",
    .free = cpu_free,
    .isa = cpu_isa,
    .n_threads = cpu_n_threads,
    .input_dtype = cpu_input_dtype,
    .sync = cpu_sync,
    .alloc = cpu_alloc,
    .release = cpu_release,
    .zero = cpu_zero,
    .write = cpu_write,
    .read = cpu_read,
    .weight_new = cs_cpu_weight_new,
    .weight_free = cs_cpu_weight_free,
    .weight_bytes = cs_cpu_weight_bytes,
    .convolution_new = cs_cpu_convolution_new,
    .convolution_free = cs_cpu_convolution_free,
    .convolution_bytes = cs_cpu_convolution_bytes,
    .host_tables = true,
    .linear = cs_cpu_linear,
    .rms_norm = cs_cpu_rms_norm,
    .layer_norm = cs_cpu_layer_norm,
    .copy = cs_cpu_copy,
    .add = cs_cpu_add,
    .gather = cs_cpu_gather,
    .rope = cs_cpu_rope,
    .im2col = cs_cpu_im2col,
    .blend = cs_cpu_blend,
    .modulated_norm = cs_cpu_modulated_norm,
    .add_gated = cs_cpu_add_gated,
    .convolve = cs_cpu_convolve,
    .snake = cs_cpu_snake,
    .mean_rows = cs_cpu_mean_rows,
    .attention_segments = cs_cpu_attention_segments,
    .kv_write = cs_cpu_kv_write,
    .attention_paged = cs_cpu_attention_paged,
};
