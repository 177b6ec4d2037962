/* Kernels in plain C over 16-wide GNU vectors, compiled once for each instruction set.
 *
 * CS_ISA names the set; CS_TILE_ROWS x CS_TILE_PANELS is the block of the product held in
 * registers. CS_PRODUCT_BF16 names the bf16 product of a set that has one. The portable build is
 * the reference that the others are tested against.
 */
#include "tensor/cpu/kernels.h"
#include "tensor/cpu/kernels_finish.h"

#include <math.h>
#include <string.h>

cs_snake CS_JOIN(cs_snake_, CS_ISA);

INLINE float sum(v16 v)
{
    float total[8];
    for (int i = 0; i < 8; i++)
        total[i] = v[i] + v[i + 8];
    return ((total[0] + total[4]) + (total[2] + total[6])) +
           ((total[1] + total[5]) + (total[3] + total[7]));
}

/* ---- Matrix products ---- */

/* One register block: `rows` x `panels` accumulators. Constant arguments unroll it completely. */
INLINE void tile_f32(int rows, int panels, int64_t k, const float *a, int64_t lda, const char *b,
                     size_t panel_bytes, float *c, int64_t ldc, bool accumulate)
{
    v16 acc[CS_TILE_ROWS][CS_TILE_PANELS];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int p = 0; p < panels; p++)
            acc[r][p] = accumulate ? load(c + r * ldc + p * CS_PANEL) : splat(0.0f);
    for (int64_t i = 0; i < k; i++) {
        v16 column[CS_TILE_PANELS];
#pragma GCC unroll 16
        for (int p = 0; p < panels; p++)
            column[p] = load((const float *)(b + p * panel_bytes) + i * CS_PANEL);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            v16 x = splat(a[r * lda + i]);
#pragma GCC unroll 16
            for (int p = 0; p < panels; p++)
                acc[r][p] += x * column[p];
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int p = 0; p < panels; p++)
            store(c + r * ldc + p * CS_PANEL, acc[r][p]);
}

/* The same with B in bf16 pairs: the lower half of each 32-bit lane is the even k, the upper the
 * odd. */
INLINE void tile_f32_bf16(int rows, int panels, int64_t k, const float *a, int64_t lda,
                          const char *b, size_t panel_bytes, float *c, int64_t ldc, bool accumulate)
{
    v16 acc[CS_TILE_ROWS][CS_TILE_PANELS];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int p = 0; p < panels; p++)
            acc[r][p] = accumulate ? load(c + r * ldc + p * CS_PANEL) : splat(0.0f);
    int64_t i = 0;
    for (; i + 2 <= k; i += 2) {
        v16 even[CS_TILE_PANELS], odd[CS_TILE_PANELS];
#pragma GCC unroll 16
        for (int p = 0; p < panels; p++) {
            v16i pair = *(const v16iu *)(b + p * panel_bytes + i * CS_PANEL * 2);
            even[p] = (v16)(pair << 16);
            odd[p] = (v16)(pair & (int32_t)0xffff0000);
        }
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            v16 x0 = splat(a[r * lda + i]), x1 = splat(a[r * lda + i + 1]);
#pragma GCC unroll 16
            for (int p = 0; p < panels; p++) {
                acc[r][p] += x0 * even[p];
                acc[r][p] += x1 * odd[p];
            }
        }
    }
    if (i < k) {
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
            for (int p = 0; p < panels; p++) {
                v16i pair = *(const v16iu *)(b + p * panel_bytes + i * CS_PANEL * 2);
                acc[r][p] += splat(a[r * lda + i]) * (v16)(pair << 16);
            }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
        for (int p = 0; p < panels; p++)
            store(c + r * ldc + p * CS_PANEL, acc[r][p]);
}

typedef void tile_function(int64_t k, const float *a, int64_t lda, const char *b,
                           size_t panel_bytes, float *c, int64_t ldc, bool accumulate);

#define DEFINE_TILES(kind)                                                                         \
    DEFINE_TILE(kind, CS_TILE_ROWS, CS_TILE_PANELS)                                                \
    DEFINE_TILE(kind, CS_TILE_ROWS, 1)                                                             \
    DEFINE_TILE(kind, 1, CS_TILE_PANELS)                                                           \
    DEFINE_TILE(kind, 1, 1)
#define TILE_NAME_(kind, rows, panels) kind##_##rows##x##panels
#define TILE_NAME(kind, rows, panels) TILE_NAME_(kind, rows, panels)
#define DEFINE_TILE(kind, rows, panels)                                                            \
    static void TILE_NAME(kind, rows, panels)(int64_t k, const float *a, int64_t lda,              \
                                              const char *b, size_t panel_bytes, float *c,         \
                                              int64_t ldc, bool accumulate)                        \
    {                                                                                              \
        kind(rows, panels, k, a, lda, b, panel_bytes, c, ldc, accumulate);                         \
    }

DEFINE_TILES(tile_f32)
DEFINE_TILES(tile_f32_bf16)

/* Covers C with full tiles, then single rows and single panels. tiles[wide rows?][wide panels?] */
static void cover(tile_function *const tiles[2][2], int64_t rows, int64_t n_panels, int64_t k,
                  const float *a, int64_t lda, const char *b, size_t panel_bytes, float *c,
                  int64_t ldc, bool accumulate)
{
    for (int64_t p = 0; p < n_panels;) {
        bool wide = n_panels - p >= CS_TILE_PANELS;
        for (int64_t r = 0; r < rows;) {
            bool tall = rows - r >= CS_TILE_ROWS;
            tiles[tall][wide](k, a + r * lda, lda, b + (size_t)p * panel_bytes, panel_bytes,
                              c + r * ldc + p * CS_PANEL, ldc, accumulate);
            r += tall ? CS_TILE_ROWS : 1;
        }
        p += wide ? CS_TILE_PANELS : 1;
    }
}

static void product_f32(int64_t rows, int64_t n_panels, int64_t k, const void *a, int64_t lda,
                        const void *b, size_t panel_bytes, float *c, int64_t ldc, bool accumulate)
{
    static tile_function *const tiles[2][2] = {
        {TILE_NAME(tile_f32, 1, 1), TILE_NAME(tile_f32, 1, CS_TILE_PANELS)},
        {TILE_NAME(tile_f32, CS_TILE_ROWS, 1), TILE_NAME(tile_f32, CS_TILE_ROWS, CS_TILE_PANELS)}};
    cover(tiles, rows, n_panels, k, a, lda, b, panel_bytes, c, ldc, accumulate);
}

static void product_f32_bf16(int64_t rows, int64_t n_panels, int64_t k, const void *a, int64_t lda,
                             const void *b, size_t panel_bytes, float *c, int64_t ldc,
                             bool accumulate)
{
    static tile_function *const tiles[2][2] = {
        {TILE_NAME(tile_f32_bf16, 1, 1), TILE_NAME(tile_f32_bf16, 1, CS_TILE_PANELS)},
        {TILE_NAME(tile_f32_bf16, CS_TILE_ROWS, 1),
         TILE_NAME(tile_f32_bf16, CS_TILE_ROWS, CS_TILE_PANELS)}};
    cover(tiles, rows, n_panels, k, a, lda, b, panel_bytes, c, ldc, accumulate);
}

/* ---- Rows ---- */

#define FOR_EACH_16(n, i, whole, part)                                                             \
    do {                                                                                           \
        int64_t i = 0;                                                                             \
        for (; i + 16 <= (n); i += 16)                                                             \
            whole;                                                                                 \
        if (i < (n))                                                                               \
            part;                                                                                  \
    } while (0)

static float sum_of_squares(int64_t n, const float *x, float shift)
{
    v16 total = splat(0.0f);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16 d = load(x + i) - splat(shift);
        total += d * d;
    }
    float rest = 0.0f;
    for (; i < n; i++)
        rest += (x[i] - shift) * (x[i] - shift);
    return sum(total) + rest;
}

static void rms_norm(int64_t n, float *y, const float *x, const float *weight, float epsilon)
{
    v16 factor = splat(1.0f / sqrtf(sum_of_squares(n, x, 0.0f) / (float)n + epsilon));
    FOR_EACH_16(n, i, store(y + i, load(x + i) * factor * load(weight + i)),
                store_n(y + i, load_n(x + i, n - i) * factor * load_n(weight + i, n - i), n - i));
}

static void layer_norm(int64_t n, float *y, const float *x, const float *weight, const float *bias,
                       float epsilon)
{
    v16 total = splat(0.0f);
    FOR_EACH_16(n, i, total += load(x + i), total += load_n(x + i, n - i));
    float mean = sum(total) / (float)n;
    v16 factor = splat(1.0f / sqrtf(sum_of_squares(n, x, mean) / (float)n + epsilon));
    for (int64_t i = 0; i < n; i += 16) {
        int64_t m = n - i < 16 ? n - i : 16;
        v16 v = (load_n(x + i, m) - splat(mean)) * factor * load_n(weight + i, m);
        store_n(y + i, bias ? v + load_n(bias + i, m) : v, m);
    }
}

static void modulated_norm(int64_t n, float *y, const float *x, const float *scale,
                           const float *shift, float epsilon)
{
    v16 total = splat(0.0f);
    FOR_EACH_16(n, i, total += load(x + i), total += load_n(x + i, n - i));
    float mean = sum(total) / (float)n;
    v16 factor = splat(1.0f / sqrtf(sum_of_squares(n, x, mean) / (float)n + epsilon));
    const v16 one = splat(1.0f), middle = splat(mean);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        store(y + i, (load(x + i) - middle) * factor * (one + load(scale + i)) + load(shift + i));
    int64_t m = n - i;
    if (m > 0) {
        v16 v = (load_n(x + i, m) - middle) * factor;
        store_n(y + i, v * (one + load_n(scale + i, m)) + load_n(shift + i, m), m);
    }
}

static void to_bf16(int64_t n, uint16_t *y, const float *x)
{
    FOR_EACH_16(n, i, *(v16hu *)(y + i) = narrow(load(x + i)), {
        v16h part = narrow(load_n(x + i, n - i));
        memcpy(y + i, &part, (size_t)(n - i) * sizeof *y);
    });
}

static void from_bf16(int64_t n, float *y, const uint16_t *x)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)x[i] << 16;
        memcpy(y + i, &bits, sizeof bits);
    }
}

static void from_f16(int64_t n, float *y, const uint16_t *x)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t sign = (uint32_t)(x[i] & 0x8000) << 16;
        uint32_t magnitude = x[i] & 0x7fff;
        float value;
        if (magnitude < 0x400) { /* zero and subnormals: units of 2^-24 */
            value = (float)magnitude * 0x1p-24f;
            memcpy(&magnitude, &value, sizeof magnitude);
        } else {
            magnitude = (magnitude << 13) + (magnitude >= 0x7c00 ? 0x70000000 : 0x38000000);
        }
        magnitude |= sign;
        memcpy(y + i, &magnitude, sizeof magnitude);
    }
}

static void add(int64_t n, float *y, const float *x)
{
    FOR_EACH_16(n, i, store(y + i, load(y + i) + load(x + i)),
                store_n(y + i, load_n(y + i, n - i) + load_n(x + i, n - i), n - i));
}

static void scale(int64_t n, float *y, float factor)
{
    FOR_EACH_16(n, i, store(y + i, load(y + i) * splat(factor)),
                store_n(y + i, load_n(y + i, n - i) * splat(factor), n - i));
}

static void blend(int64_t n, float *y, float a, const float *x, float b)
{
    if (a == 0.0f) {
        FOR_EACH_16(n, i, store(y + i, splat(b) * load(x + i)),
                    store_n(y + i, splat(b) * load_n(x + i, n - i), n - i));
        return;
    }
    FOR_EACH_16(
        n, i, store(y + i, splat(a) * load(y + i) + splat(b) * load(x + i)),
        store_n(y + i, splat(a) * load_n(y + i, n - i) + splat(b) * load_n(x + i, n - i), n - i));
}

static void add_product(int64_t n, float *y, const float *a, const float *b)
{
    FOR_EACH_16(
        n, i, store(y + i, load(y + i) + load(a + i) * load(b + i)),
        store_n(y + i, load_n(y + i, n - i) + load_n(a + i, n - i) * load_n(b + i, n - i), n - i));
}

static void finish(const cs_finish *f)
{
    for (int64_t r = 0; r < f->rows; r++)
        finish_row(f, r);
}

static void rope(int64_t half, float *x, const float *cosines, const float *sines)
{
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cosines[i] - b * sines[i];
        x[i + half] = b * cosines[i] + a * sines[i];
    }
}

static float max_of(int64_t n, const float *x)
{
    v16 best = splat(-INFINITY);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        v16 v = load(x + i);
        best = choose(v > best, v, best);
    }
    float halves[8], result = -INFINITY;
    for (int j = 0; j < 8; j++)
        halves[j] = best[j] > best[j + 8] ? best[j] : best[j + 8];
    for (int j = 0; j < 4; j++)
        halves[j] = halves[j] > halves[j + 4] ? halves[j] : halves[j + 4];
    for (int j = 0; j < 4; j++)
        result = halves[j] > result ? halves[j] : result;
    for (; i < n; i++)
        result = x[i] > result ? x[i] : result;
    return result;
}

static float exp_sum(int64_t n, float *x, float shift, float factor, uint16_t *half)
{
    v16 total = splat(0.0f);
    for (int64_t i = 0; i < n; i += 16) {
        v16 e = vexp((load(x + i) - splat(shift)) * splat(factor));
        if (half)
            *(v16hu *)(half + i) = narrow(e);
        else
            store(x + i, e);
        total += e;
    }
    return sum(total);
}

/* ---- The table ---- */

#define TABLE_NAME_(isa) cs_kernels_##isa
#define TABLE_NAME(isa) TABLE_NAME_(isa)
#define STRING_(x) #x
#define STRING(x) STRING_(x)

#ifdef CS_PRODUCT_BF16
cs_product CS_PRODUCT_BF16;
#define PRODUCT_BF16 CS_PRODUCT_BF16
#else
#define PRODUCT_BF16 NULL
#endif

#ifdef CS_LEAVE
void CS_LEAVE(void);
#else
#define CS_LEAVE NULL
#endif

#ifdef CS_BLOCKS_BF16
cs_product_blocks CS_BLOCKS_BF16;
#else
#define CS_BLOCKS_BF16 NULL
#endif

#ifdef CS_LINEAR_BF16
cs_linear CS_LINEAR_BF16;
#else
#define CS_LINEAR_BF16 NULL
#endif

#ifdef CS_CONVOLVE_BF16
cs_convolve CS_CONVOLVE_BF16;
#else
#define CS_CONVOLVE_BF16 NULL
#endif

bool CS_AVAILABLE(void);

const cs_kernels TABLE_NAME(CS_ISA) = {
    .name = STRING(CS_ISA),
    .available = CS_AVAILABLE,
    .inner_bytes = CS_INNER_BYTES,
    .product_f32 = product_f32,
    .product_f32_bf16 = product_f32_bf16,
    .product_bf16 = PRODUCT_BF16,
    .blocks_bf16 = CS_BLOCKS_BF16,
    .linear_bf16 = CS_LINEAR_BF16,
    .convolve_bf16 = CS_CONVOLVE_BF16,
    .leave = CS_LEAVE,
    .rms_norm = rms_norm,
    .layer_norm = layer_norm,
    .modulated_norm = modulated_norm,
    .to_bf16 = to_bf16,
    .from_bf16 = from_bf16,
    .from_f16 = from_f16,
    .add = add,
    .scale = scale,
    .blend = blend,
    .add_product = add_product,
    .snake = CS_JOIN(cs_snake_, CS_ISA),
    .finish = finish,
    .rope = rope,
    .max = max_of,
    .exp_sum = exp_sum,
};
