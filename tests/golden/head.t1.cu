// tiny: block head, 1 to 1 token(s), bfloat16, sm_90a. Emitted by Infernum 0.1.0.
//
// graph head {
//   stream %x : bf16[tokens, 64]
//   batch %output_rows : i32[rows]
//   weight %model_norm : bf16[64] = "model.norm.weight"
//   weight %lm_head : bf16[96, 64] = "lm_head.weight"
//
//   %select_rows_1 = select_rows(%x, %output_rows) : bf16[rows, 64]  # models/llama.py:66
//   %linear_1 = fused norm_into_gemv(%select_rows_1 = %select_rows_1, %model_norm = %model_norm, %lm_head = %lm_head) by norm_into_gemv : f32[rows, 96] {  # models/llama.py:67, models/llama.py:69
//     %rms_norm_1 = rms_norm(%select_rows_1, %model_norm) {eps = 1e-05} : bf16[rows, 64]  # models/llama.py:67
//     %linear_1 = linear(%rms_norm_1, %lm_head) {out = 'f32'} : f32[rows, 96]  # models/llama.py:69
//     return %linear_1
//   }
//   return %linear_1
// }

// ---- numeric.cuh
// Storage types and their conversions. Arithmetic is in float; bf16_t and half_t are only stored.
// Our own, because cuda_bf16.h costs NVRTC more time than all the kernels of a block.

struct bf16_t { unsigned short bits; };
struct half_t { unsigned short bits; };

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16_t x) { return __uint_as_float(unsigned(x.bits) << 16); }
__device__ __forceinline__ float to_float(half_t x) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));
    return out;
}

template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16_t from_float<bf16_t>(float x) {
    bf16_t out;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
    return out;
}
template <> __device__ __forceinline__ half_t from_float<half_t>(float x) {
    half_t out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
    return out;
}

// x as it would read after being stored as T: fused kernels round where the separate kernels would.
template <typename T> __device__ __forceinline__ float round_to(float x) { return to_float(from_float<T>(x)); }

// N consecutive elements in one access of N * sizeof(T) bytes (4, 8 or 16), or several of 16; p aligned to match.
template <int BYTES> struct Chunk;
template <> struct Chunk<2> { unsigned short v; };
template <> struct Chunk<4> { unsigned v; };
template <> struct Chunk<8> { uint2 v; };
template <> struct Chunk<16> { uint4 v; };

// The chunk's N elements of type T, as floats.
template <int N, typename T>
__device__ __forceinline__ void unpack(float (&out)[N], const Chunk<N * sizeof(T)>& chunk) {
    union Pack { Chunk<N * sizeof(T)> raw; T items[N]; __device__ Pack() {} } pack;
    pack.raw = chunk;
#pragma unroll
    for (int i = 0; i < N; i++) out[i] = to_float(pack.items[i]);
}

template <int N, typename T> __device__ __forceinline__ void load_vector(float (&out)[N], const T* p) {
    constexpr int PER = N * sizeof(T) <= 16 ? N : 16 / sizeof(T);
    union Pack { Chunk<PER * sizeof(T)> raw; T items[PER]; __device__ Pack() {} };
#pragma unroll
    for (int i = 0; i < N; i += PER) {
        Pack pack;
        pack.raw = *reinterpret_cast<const Chunk<PER * sizeof(T)>*>(p + i);
#pragma unroll
        for (int j = 0; j < PER; j++) out[i + j] = to_float(pack.items[j]);
    }
}

template <int N, typename T> __device__ __forceinline__ void store_vector(T* p, const float (&in)[N]) {
    constexpr int PER = N * sizeof(T) <= 16 ? N : 16 / sizeof(T);
    union Pack { Chunk<PER * sizeof(T)> raw; T items[PER]; __device__ Pack() {} };
#pragma unroll
    for (int i = 0; i < N; i += PER) {
        Pack pack;
#pragma unroll
        for (int j = 0; j < PER; j++) pack.items[j] = from_float<T>(in[i + j]);
        *reinterpret_cast<Chunk<PER * sizeof(T)>*>(p + i) = pack.raw;
    }
}

// ---- programmatic.cuh
// Programmatic dependent launch (PTX ISA 9.7.13.15, griddepcontrol): from sm_90 on a kernel may start before the one
// before it in the stream has ended. Every kernel waits before any write, and before it reads what another kernel of
// the step writes; weights, and what earlier steps left, it may read at once. On older GPUs both calls are nothing.

__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- copy.cuh
// Copies that do not look at what they copy.

// VECTOR elements in one access of at most 16 bytes; both pointers aligned to its size.
template <int VECTOR, typename T> __device__ __forceinline__ void copy_vector(T* to, const T* from) {
    using Access = Chunk<VECTOR * sizeof(T)>;
    *reinterpret_cast<Access*>(to) = *reinterpret_cast<const Access*>(from);
}

// One row of WIDTH elements, by a whole block.
template <int WIDTH, int VECTOR, int THREADS, typename T>
__device__ __forceinline__ void copy_row(T* to, const T* from) {
#pragma unroll
    for (int column = threadIdx.x * VECTOR; column < WIDTH; column += THREADS * VECTOR) {
        copy_vector<VECTOR>(to + column, from + column);
    }
}

// ---- reduce.cuh
// Sums and maxima over a warp and over a block of up to 1024 threads; every thread gets the result.

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

template <int THREADS> __device__ __forceinline__ float block_sum(float x) {
    __shared__ float partial[THREADS / 32];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < THREADS / 32; warp++) total += partial[warp];
    __syncthreads();
    return total;
}

// ---- dot.cuh
// What a GEMV is made of: chunks of weights on their way from memory, and rows of activations in shared memory.

// Weights are read once a step: they pass by the L1 cache (ld.global.nc, PTX ISA 9.7.9.8).
__device__ __forceinline__ Chunk<16> load_stream(const Chunk<16>* p) {
    Chunk<16> out;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out.v.x), "=r"(out.v.y), "=r"(out.v.z), "=r"(out.v.w)
                 : "l"(p));
    return out;
}
__device__ __forceinline__ Chunk<8> load_stream(const Chunk<8>* p) { return *p; }
__device__ __forceinline__ Chunk<4> load_stream(const Chunk<4>* p) { return *p; }
__device__ __forceinline__ Chunk<2> load_stream(const Chunk<2>* p) { return *p; }

// A warp's share of UNROLL consecutive warp-wide chunks of PARTS weight rows, PART_ROWS rows apart.
template <typename T, int WIDTH, int VECTOR, int UNROLL, int PARTS, int PART_ROWS> struct WeightTile {
    using Piece = Chunk<VECTOR * sizeof(T)>;
    static constexpr int CHUNKS = WIDTH / VECTOR;
    static constexpr int STEPS = (CHUNKS + 32 * UNROLL - 1) / (32 * UNROLL);  // tiles in a row
    Piece pieces[PARTS][UNROLL];

    __device__ __forceinline__ void load(const T* weight, int row, int step) {
        const int first = step * 32 * UNROLL + threadIdx.x % 32;
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            const Piece* chunks = reinterpret_cast<const Piece*>(weight + size_t(row + part * PART_ROWS) * WIDTH);
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                const int chunk = first + 32 * u;
                if (CHUNKS % (32 * UNROLL) == 0 || chunk < CHUNKS) pieces[part][u] = load_stream(chunks + chunk);
            }
        }
    }

    // Adds this tile's products with TOKENS rows of activations, x_stride elements apart.
    template <int TOKENS>
    __device__ __forceinline__ void dot(float (&sum)[PARTS][TOKENS], const T* x, int x_stride, int step) const {
        const int first = step * 32 * UNROLL + threadIdx.x % 32;
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int chunk = first + 32 * u;
            if (CHUNKS % (32 * UNROLL) != 0 && chunk >= CHUNKS) break;
            float w[PARTS][VECTOR];
#pragma unroll
            for (int part = 0; part < PARTS; part++) unpack<VECTOR, T>(w[part], pieces[part][u]);
#pragma unroll
            for (int token = 0; token < TOKENS; token++) {
                float a[VECTOR];
                load_vector(a, x + token * x_stride + chunk * VECTOR);
#pragma unroll
                for (int part = 0; part < PARTS; part++)
#pragma unroll
                    for (int i = 0; i < VECTOR; i++) sum[part][token] = fmaf(w[part][i], a[i], sum[part][token]);
            }
        }
    }
};

// Copies rows of activations to shared memory, as they are.
template <int WIDTH, int VECTOR, int THREADS, typename T>
__device__ __forceinline__ void stage_rows(T* shared, const T* x, int x_stride, int tokens) {
    using Piece = Chunk<VECTOR * sizeof(T)>;
    constexpr int CHUNKS = WIDTH / VECTOR;
    for (int i = threadIdx.x; i < tokens * CHUNKS; i += THREADS) {
        const int token = i / CHUNKS, chunk = i % CHUNKS;
        const T* from = x + size_t(token) * x_stride + chunk * VECTOR;
        reinterpret_cast<Piece*>(shared)[i] = *reinterpret_cast<const Piece*>(from);
    }
}

// The weight of a normalisation, spread over the threads of a block, for rows of WIDTH.
template <typename T, int WIDTH, int VECTOR, int THREADS> struct RowGain {
    static constexpr int VECTORS = (WIDTH + VECTOR * THREADS - 1) / (VECTOR * THREADS);  // of each thread
    using Piece = Chunk<VECTOR * sizeof(T)>;
    Piece gains[VECTORS];

    __device__ __forceinline__ static int column(int v) { return (v * THREADS + threadIdx.x) * VECTOR; }

    __device__ __forceinline__ void load(const T* weight) {
#pragma unroll
        for (int v = 0; v < VECTORS; v++)
            if (column(v) < WIDTH) gains[v] = load_stream(reinterpret_cast<const Piece*>(weight + column(v)));
    }

    // Copies rows to shared memory, each scaled to unit root-mean-square and by the weight, rounded as stored.
    __device__ __forceinline__ void stage_normalised(
        T* shared, const T* x, int x_stride, int tokens, float eps) const {
        for (int token = 0; token < tokens; token++) {
            float kept[VECTORS][VECTOR];
            float squares = 0.0f;
#pragma unroll
            for (int v = 0; v < VECTORS; v++) {
                if (column(v) >= WIDTH) break;
                load_vector(kept[v], x + size_t(token) * x_stride + column(v));
#pragma unroll
                for (int i = 0; i < VECTOR; i++) squares += kept[v][i] * kept[v][i];
            }
            const float scale = 1.0f / sqrtf(block_sum<THREADS>(squares) / WIDTH + eps);
#pragma unroll
            for (int v = 0; v < VECTORS; v++) {
                if (column(v) >= WIDTH) break;
                float gain[VECTOR];
                unpack<VECTOR, T>(gain, gains[v]);
#pragma unroll
                for (int i = 0; i < VECTOR; i++) gain[i] *= kept[v][i] * scale;
                store_vector(shared + token * WIDTH + column(v), gain);
            }
        }
    }
};

// ---- select_rows
// select_rows
// from models/llama.py:66
// 1 token(s): 260 B, 0 FLOP; at least 0.00 us on one H200
// One block per wanted row: it copies the row, VECTOR elements to a thread and access.
extern "C" __global__ void __launch_bounds__(32) select_rows(
    const bf16_t* x,
    const int* rows,
    bf16_t* out) {
    constexpr int THREADS = 32, WIDTH = 64, VECTOR = 8;
    constexpr size_t X_STRIDE = 64, OUT_STRIDE = 64;
    static_assert(X_STRIDE % VECTOR == 0 && OUT_STRIDE % VECTOR == 0, "every row starts at a whole access");

    let_next_kernel_start();
    wait_for_previous_kernel();
    const size_t row = rows[blockIdx.x];
    copy_row<WIDTH, VECTOR, THREADS>(out + blockIdx.x * OUT_STRIDE, x + row * X_STRIDE);
}

// ---- gemv_lm_head
// rms_norm -> linear, by norm_into_gemv
// from models/llama.py:67, models/llama.py:69
// 1 token(s): 12.9 kB, 12.5 kFLOP; at least 0.00 us on one H200
// Each warp computes whole output columns, for all tokens at once, and strides over the columns with the grid. Its
// lanes share a row of weights in chunks of 8; two tiles of them are on their way ahead of the sum.
extern "C" __global__ void __launch_bounds__(512, 1) gemv_lm_head(
    const bf16_t* __restrict__ lm_head,
    const bf16_t* __restrict__ model_norm,
    const bf16_t* select_rows_1,
    float* out,
    int tokens) {
    using T = bf16_t;
    // out[tokens, COLUMNS], summed over WIDTH
    constexpr int WIDTH = 64, COLUMNS = 96, TOKENS = 1;
    constexpr int VECTOR = 8, UNROLL = 4, THREADS = 512, WARPS = THREADS / 32;
    constexpr int PARTS = 1;  // weight rows, COLUMNS apart, that one output column combines
    using Tile = WeightTile<T, WIDTH, VECTOR, UNROLL, PARTS, COLUMNS>;
    const int lane = threadIdx.x % 32, stride = gridDim.x * WARPS;
    int column = blockIdx.x * WARPS + threadIdx.x / 32;

    Tile tiles[2];
    int next_column = column, next_step = 0;
    const auto load_next = [&](Tile& tile) {
        if (next_column >= COLUMNS) {
            let_next_kernel_start();  // this warp has nothing left to load
            return;
        }
        tile.load(lm_head, next_column, next_step);
        if (++next_step < Tile::STEPS) return;
        next_step = 0;
        next_column += stride;
    };
    load_next(tiles[0]);  // weights depend on no kernel: ahead of the wait
    load_next(tiles[1]);
    RowGain<T, WIDTH, VECTOR, THREADS> gain;
    gain.load(model_norm);  // models/llama.py:67
    wait_for_previous_kernel();
    extern __shared__ __align__(16) unsigned char dynamic_shared[];
    T* rows = reinterpret_cast<T*>(dynamic_shared);
    constexpr int ROW_STRIDE = WIDTH;
    gain.stage_normalised(rows, select_rows_1, 64, tokens, 1e-05f);
    __syncthreads();

    const int token = lane;  // one lane finishes each token
    float sum[PARTS][TOKENS] = {};
    int step = 0;
    const auto finish_column = [&] {
#pragma unroll
        for (int part = 0; part < PARTS; part++)
#pragma unroll
            for (int t = 0; t < TOKENS; t++) sum[part][t] = warp_sum(sum[part][t]);

        if (token >= tokens) return;
        const float part_0 = sum[0][0];
        out[token * 96 + column] = from_float<float>(part_0);
    };
    while (column < COLUMNS) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (column >= COLUMNS) break;
            tiles[i].dot(sum, rows, ROW_STRIDE, step);
            load_next(tiles[i]);
            if (++step < Tile::STEPS) continue;
            finish_column();
            step = 0;
            column += stride;
#pragma unroll
            for (int part = 0; part < PARTS; part++)
#pragma unroll
                for (int t = 0; t < TOKENS; t++) sum[part][t] = 0.0f;
        }
    }
}
