// Tensor cores of a warpgroup (four warps, sm_90a): wgmma, what describes its operands in shared memory, and what
// warps that load and warps that multiply tell each other (PTX ISA 9.7.15 for wgmma, 9.7.13 for barriers and proxies).

// One arrival at an mbarrier.
__device__ __forceinline__ void arrive(unsigned barrier) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(barrier) : "memory");
}
// Arrive once all copies that this thread has started have landed; one of the `count` arrivals.
__device__ __forceinline__ void arrive_after_copies(unsigned barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Barriers by number (bar) between the THREADS that arrive and those that arrive and wait; 0 is __syncthreads().
template <int THREADS> __device__ __forceinline__ void wait_at(int barrier) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(THREADS) : "memory");
}
template <int THREADS> __device__ __forceinline__ void arrive_at(int barrier) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "n"(THREADS) : "memory");
}

// Registers of each thread of a warpgroup (setmaxnreg): the second waits until others have given up enough.
template <int REGISTERS> __device__ __forceinline__ void keep_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS> __device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// wgmma reads shared memory through another proxy than stores and cp.async write it: this thread has made the writes,
// or a barrier has told it of them, and products that follow see them.
__device__ __forceinline__ void let_products_see_writes() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Between what else a warpgroup does with the registers of a product and the product.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Wait until at most LEFT committed groups are under way; `result` may be used from here on.
template <int LEFT, int N> __device__ __forceinline__ void wait_for_products(float (&result)[N]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(result[i])::"memory");
}

// What `value`, never negative, depends on is computed before what follows. ptxas would rather wait for products
// first and compute then; but not across a branch, even one that is never taken.
__device__ __forceinline__ void compute_now(float value) {
    if (__any_sync(0xffffffffu, value < 0.0f)) asm volatile("nanosleep.u32 1;");
}

// A tile in shared memory that wgmma reads (128-byte swizzle): rows of 64 elements, 1024-byte aligned; the
// 16-byte unit u of row r lies where u ^ r % 8 would.
constexpr int TILE_COLUMNS = 64, TILE_ROW_BYTES = 128;

// Byte of unit `unit` of row `row` in a tile.
__device__ __forceinline__ unsigned in_tile(int row, int unit) {
    return row * TILE_ROW_BYTES + (unit ^ row % 8) * 16;
}

// The operand that begins at a shared address of a tile: eight rows to the next eight take 1024 bytes.
// `across` is the distance in bytes to the tile of the next 64 columns; only an operand whose columns are those of
// the result uses it.
using Operand = unsigned long long;
__device__ __forceinline__ Operand describe(unsigned address, int across) {
    constexpr Operand SWIZZLE_128 = 1ull << 62, EIGHT_ROWS = 8 * TILE_ROW_BYTES / 16;
    return SWIZZLE_128 | EIGHT_ROWS << 32 | Operand(across / 16) << 16 | (address & 0x3ffff) / 16;
}

// By shared address: 4 bytes to it, 16 bytes from it.
__device__ __forceinline__ void store_shared(unsigned address, unsigned value) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
__device__ __forceinline__ uint4 load_shared(unsigned address) {
    uint4 out;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
                 : "r"(address)
                 : "memory");
    return out;
}

// d[64, N] of a warpgroup: element 4 * j + e of a lane is in row warp * 16 + e / 2 * 8 + lane / 4 and column
// 8 * j + lane % 4 * 2 + e % 2. k is 16: an operand in registers is a warp's fragment of 16 x 16, as for mma.
template <typename T, int N> struct Wgmma;

#define FOUR_SUMS(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SIXTEEN_SUMS(d, i) FOUR_SUMS(d, i), FOUR_SUMS(d, i + 4), FOUR_SUMS(d, i + 8), FOUR_SUMS(d, i + 12)
#define SUMS_64(d) \
    SIXTEEN_SUMS(d, 0), SIXTEEN_SUMS(d, 16)
#define NAMES_64 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define SUMS_128(d) \
    SIXTEEN_SUMS(d, 0), SIXTEEN_SUMS(d, 16), SIXTEEN_SUMS(d, 32), SIXTEEN_SUMS(d, 48)
#define NAMES_128 \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"

// rows: d = a * b^T, or d += a * b^T if `more`; both are described, their rows hold k.
// columns: d += a * b; a is in registers, b is described, its columns are those of d.
#define DEFINE_WGMMA_64(T, TYPE) \
    template <> struct Wgmma<T, 64> { \
        static __device__ __forceinline__ void rows(float (&d)[32], Operand a, Operand b, int more) { \
            asm volatile("{ .reg .pred more; setp.ne.b32 more, %34, 0; " \
                         "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " " NAMES_64 \
                         ", %32, %33, more, 1, 1, 0, 0; }" \
                         : SUMS_64(d) \
                         : "l"(a), "l"(b), "r"(more)); \
        } \
        static __device__ __forceinline__ void columns(float (&d)[32], const unsigned (&a)[4], Operand b) { \
            asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " " NAMES_64 \
                         ", {%32, %33, %34, %35}, %36, 1, 1, 1, 1;" \
                         : SUMS_64(d) \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)); \
        } \
    }
#define DEFINE_WGMMA_128(T, TYPE) \
    template <> struct Wgmma<T, 128> { \
        static __device__ __forceinline__ void rows(float (&d)[64], Operand a, Operand b, int more) { \
            asm volatile("{ .reg .pred more; setp.ne.b32 more, %66, 0; " \
                         "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " " NAMES_128 \
                         ", %64, %65, more, 1, 1, 0, 0; }" \
                         : SUMS_128(d) \
                         : "l"(a), "l"(b), "r"(more)); \
        } \
        static __device__ __forceinline__ void columns(float (&d)[64], const unsigned (&a)[4], Operand b) { \
            asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " " NAMES_128 \
                         ", {%64, %65, %66, %67}, %68, 1, 1, 1, 1;" \
                         : SUMS_128(d) \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)); \
        } \
    }
DEFINE_WGMMA_64(bf16_t, "bf16");
DEFINE_WGMMA_64(half_t, "f16");
DEFINE_WGMMA_128(bf16_t, "bf16");
DEFINE_WGMMA_128(half_t, "f16");
