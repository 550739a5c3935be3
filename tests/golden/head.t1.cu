// tiny: block head, 1 to 1 token(s), bfloat16, sm_90a. Emitted by Infernum 0.1.0.
//
// graph head {
//   stream %x : bf16[tokens, 64]
//   batch %output_rows : i32[rows]
//   weight %model_norm : bf16[64] = "model.norm.weight"
//   weight %lm_head : bf16[96, 64] = "lm_head.weight"
//
//   %select_rows_1 = select_rows(%x, %output_rows) : bf16[rows, 64]  # models/llama.py:175
//   %linear_1 = fused into_prologue(%select_rows_1 = %select_rows_1, %model_norm = %model_norm, %lm_head = %lm_head) by into_prologue : f32[rows, 96] {  # models/llama.py:176, models/llama.py:178
//     %rms_norm_1 = rms_norm(%select_rows_1, %model_norm) {eps = 1e-05} : bf16[rows, 64]  # models/llama.py:176
//     %linear_1 = linear(%rms_norm_1, %lm_head) {out = 'f32'} : f32[rows, 96]  # models/llama.py:178
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

// ---- mma.cuh
// Tensor cores of one warp, and what feeds them: mma, ldmatrix, cp.async. A fragment is a warp's share of a matrix:
// lane l holds elements 2 * (l % 4) and 2 * (l % 4) + 1 of row l / 4 of each 8 x 8 part, packed in a register.

__device__ __forceinline__ unsigned shared_address(const void* p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// d += a * b with a [16 rows, 16], b [16, 8 columns], d [16, 8] in float (PTX ISA 9.7.14.5.8, mma.m16n8k16).
// a: rows 0-7 then 8-15 of columns 0-7, the same of columns 8-15; b: its rows 0-7, 8-15, transposed;
// d: rows 0-7, 8-15.
template <typename T>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);
template <>
__device__ __forceinline__ void mma_16x8x16<bf16_t>(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ __forceinline__ void mma_16x8x16<half_t>(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two floats rounded to T and packed, the first in the low half (PTX ISA 9.7.9.21, cvt).
template <typename T> __device__ __forceinline__ unsigned pack(float low, float high);
template <> __device__ __forceinline__ unsigned pack<bf16_t>(float low, float high) {
    unsigned out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}
template <> __device__ __forceinline__ unsigned pack<half_t>(float low, float high) {
    unsigned out;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

// Four 8 x 8 matrices of 16-bit elements from shared memory; lane l gives the address of row l % 8 of matrix l / 8
// (PTX ISA 9.7.14.5.15, ldmatrix). The second form transposes each.
__device__ __forceinline__ void load_matrices(unsigned (&out)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(unsigned (&out)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
}

// Start copying 16 bytes to shared memory past the registers; zeros instead, reading nothing, unless `present`
// (PTX ISA 9.7.9.25.3, cp.async).
__device__ __forceinline__ void copy_async(unsigned to, const void* from, bool present) {
    const int wanted = present ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(wanted) : "memory");
}

// Wait for all copies that this thread has started; a barrier must follow before others' are read.
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// ---- copy_groups.cuh
// Copies to shared memory by groups, which end in the order they began: what a ring of several under way waits for.

// Ends the group of copies that this thread has started since the last one (PTX ISA 9.7.9.25.3, cp.async).
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until at most PENDING groups of this thread are under way.
template <int PENDING> __device__ __forceinline__ void wait_for_older_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ---- weight_stream.cuh
// How a GEMV on tensor cores is fed: weights, and where they do not fit on an SM also activations, pass through
// a ring of shared memory that belongs to one warp, so that no barrier is needed between loading and using them.

__device__ __forceinline__ void copy_async(unsigned to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ uint4 load_shared(unsigned address) {
    uint4 out;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
                 : "r"(address)
                 : "memory");
    return out;
}

// 8 elements of a row of activations: as one access, or as several where rows begin at less.
template <int VECTOR, typename T> __device__ __forceinline__ Chunk<16> load_piece(const T* from) {
    if constexpr (VECTOR * sizeof(T) == 16) {
        return *reinterpret_cast<const Chunk<16>*>(from);
    } else {
        union Pack { Chunk<16> raw; T items[8]; __device__ Pack() {} } pack;
#pragma unroll
        for (int i = 0; i < 8; i++) pack.items[i] = from[i];
        return pack.raw;
    }
}

__device__ __forceinline__ void store_shared(unsigned address, const Chunk<16>& piece) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(piece.v.x), "r"(piece.v.y),
                 "r"(piece.v.z), "r"(piece.v.w)
                 : "memory");
}

// A panel is 64 columns of 16 rows of weights, 2 KiB: two octets of neighbouring rows, which are 16 output columns, or
// one octet of each of two parts, COLUMNS rows apart, which are 8. Rows are 128 bytes in shared memory, and the 16-byte
// pieces of row r are permuted by r % 8: eight rows at one column lie in different banks.
//
// The block owns the output columns [column, end); its warps share the columns of a panel's rows, WARPS panels side by
// side. STREAMED rows of activations travel with each panel where they have no place of their own.
template <typename T, int WIDTH, int COLUMNS, int PARTS, int WARPS, int DEPTH, int STREAMED, int VECTOR>
struct WeightStream {
    static constexpr int PANELS = WIDTH / 64;                  // side by side in a row
    static constexpr int TILE = 16 / PARTS;                    // output columns of a panel
    static constexpr int WEIGHTS = 16 * 128, SLOT = WEIGHTS + (STREAMED ? 8 * 128 : 0);  // bytes
    static_assert(PARTS <= 2 && WIDTH % 64 == 0, "a panel is two octets of whole pieces");
    const T* weight;
    unsigned ring;  // of this warp
    int column, end, panel, slot = 0;

    __device__ __forceinline__ WeightStream(const T* weight, unsigned rings, int column, int end)
        : weight(weight), ring(rings + threadIdx.x / 32 * DEPTH * SLOT), column(column), end(end),
          panel(threadIdx.x / 32) {
        if (panel >= PANELS) this->column = end;  // more warps than panels: nothing to do
    }

    // Start copying the next panel, if there is one; every call is one group of copies.
    __device__ __forceinline__ void load() { load(nullptr, 0, 0); }

    __device__ __forceinline__ void load(const T* x, int x_stride, int tokens) {
        if (column < end) {
            load_weights();
            if (STREAMED && x) load_activations(slot, panel, x, x_stride, tokens);
            slot = slot + 1 == DEPTH ? 0 : slot + 1;
            panel += WARPS;
            if (panel >= PANELS) {
                panel = threadIdx.x / 32;
                column += TILE;
            }
        }
        commit_copies();
    }

    __device__ __forceinline__ void load_weights() const {
        const int row = threadIdx.x % 32 / 8, piece = threadIdx.x % 8;  // and the rows 4, 8 and 12 further on
        const unsigned to = ring + slot * SLOT;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int octet = i / 2, in_octet = i % 2 * 4 + row;
            const int from = column + in_octet + (PARTS == 1 ? octet * 8 : 0);
            if (from >= end) continue;  // rows of the last tile that are not the block's are computed for nothing
            const size_t weight_row = from + (PARTS == 2 ? octet * COLUMNS : 0);
            copy_async(to + (octet * 8 + in_octet) * 128 + (piece ^ in_octet) * 16,
                       weight + weight_row * WIDTH + panel * 64 + piece * 8);
        }
    }

    // The activations that belong to a panel: 64 columns of 8 rows, of which a lane copies two pieces.
    __device__ __forceinline__ void load_activations(int slot, int panel, const T* x, int x_stride, int tokens) const {
        if constexpr (VECTOR * sizeof(T) == 16) {
#pragma unroll
            for (int i = 0; i < 2; i++)
                if (row(i) < tokens) copy_async(place(slot, i), x + size_t(row(i)) * x_stride + column_in(panel));
        } else {
            Chunk<16> pieces[2];
            fetch_activations(pieces, panel, x, x_stride, tokens);
            store_activations(slot, pieces, tokens);
        }
    }

    // The same by way of registers, for panels that are on their way already: copies end in the order they began.
    __device__ __forceinline__ void fetch_activations(
        Chunk<16> (&pieces)[2], int panel, const T* x, int x_stride, int tokens) const {
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (row(i) < tokens) pieces[i] = load_piece<VECTOR>(x + size_t(row(i)) * x_stride + column_in(panel));
    }
    __device__ __forceinline__ void store_activations(int slot, const Chunk<16> (&pieces)[2], int tokens) const {
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (row(i) < tokens) store_shared(place(slot, i), pieces[i]);
    }

    // A lane's two tokens, its columns of a panel, and where they lie in the ring. Rows of tokens that are not there stay
    // as they are: what is multiplied with them is never stored.
    static __device__ __forceinline__ int row(int i) { return threadIdx.x % 32 / 8 + i * 4; }
    static __device__ __forceinline__ int column_in(int panel) { return panel * 64 + threadIdx.x % 8 * 8; }
    __device__ __forceinline__ unsigned place(int slot, int i) const {
        return ring + slot * SLOT + WEIGHTS + row(i) * 128 + (threadIdx.x % 8 ^ row(i)) * 16;
    }
};

// Adds a panel's products to `sum`: row lane / 4 and the one 8 below, for tokens lane % 4 * 2 and the next.
// The order of columns is the same for weights and activations, and so it may be any: each lane takes whole 16-byte
// pieces, and calls their elements 0, 1 and 2, 3 what one mma calls 0, 1 and 8, 9; the rest goes to a second one.
template <typename T>
__device__ __forceinline__ void add_panel(float (&sum)[2][4], const uint4 (&low)[2], const uint4 (&high)[2],
                                          const uint4 (&x)[2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const unsigned first[4] = {low[half].x, high[half].x, low[half].y, high[half].y};
        const unsigned second[4] = {low[half].z, high[half].z, low[half].w, high[half].w};
        mma_16x8x16<T>(sum[0], first, x[half].x, x[half].y);
        mma_16x8x16<T>(sum[1], second, x[half].z, x[half].w);
    }
}

// Rows of activations that stay in shared memory, a whole number of 128 bytes and 64 more apart, so that two of them
// lie in different banks. THREADS / TOKENS neighbouring threads look after a row. They come by way of registers: copies
// end in the order they began, and would make the first product wait for all weights that are on their way.
template <typename T, int WIDTH, int TOKENS, int THREADS, int VECTOR> struct StagedRows {
    static constexpr int STRIDE = WIDTH * sizeof(T) + 64, LANES = THREADS / TOKENS;  // bytes; threads
    static constexpr int PIECES = (WIDTH + LANES * 8 - 1) / (LANES * 8);  // of 8 elements, a thread
    static_assert(THREADS % TOKENS == 0 && LANES % 32 == 0, "a row is whole warps' to look after");
    unsigned rows;
    Chunk<16> gains[PIECES], pieces[PIECES];

    __device__ __forceinline__ explicit StagedRows(unsigned rows) : rows(rows) {}
    __device__ __forceinline__ static int row() { return threadIdx.x / LANES; }
    __device__ __forceinline__ static int column(int piece) { return (piece * LANES + threadIdx.x % LANES) * 8; }

    // The weight of a normalisation, a thread's share: a constant, so ahead of the wait.
    __device__ __forceinline__ void load_gain(const T* gain) {
#pragma unroll
        for (int i = 0; i < PIECES; i++)
            if (column(i) < WIDTH) gains[i] = *reinterpret_cast<const Chunk<16>*>(gain + column(i));
    }

    __device__ __forceinline__ void load(const T* x, int x_stride, int tokens) {
        if (row() >= tokens) return;  // what is multiplied with nothing is never stored
#pragma unroll
        for (int i = 0; i < PIECES; i++)
            if (column(i) < WIDTH) pieces[i] = load_piece<VECTOR>(x + size_t(row()) * x_stride + column(i));
    }

    __device__ __forceinline__ void store() const {
#pragma unroll
        for (int i = 0; i < PIECES; i++)
            if (column(i) < WIDTH) store_shared(rows + row() * STRIDE + column(i) * sizeof(T), pieces[i]);
    }

    // Each row becomes its norm, rounded as stored.
    template <typename Norm> __device__ __forceinline__ void normalise(const Norm norm) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            if (column(i) >= WIDTH) break;
            float x[8];
            unpack<8, T>(x, pieces[i]);
#pragma unroll
            for (int e = 0; e < 8; e++) sum += norm.summand(x[e]);
        }
        sum = warp_sum(sum);
        if constexpr (LANES > 32) {
            __shared__ float partial[THREADS / 32];
            if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
            __syncthreads();
            sum = 0.0f;
#pragma unroll
            for (int warp = 0; warp < LANES / 32; warp++) sum += partial[row() * (LANES / 32) + warp];
        }
        const float scale = norm.scale(sum, WIDTH);
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            if (column(i) >= WIDTH) break;
            union Pack { Chunk<16> raw; T items[8]; __device__ Pack() {} } pack;
            float x[8], gain[8];
            unpack<8, T>(x, pieces[i]);
            unpack<8, T>(gain, gains[i]);
#pragma unroll
            for (int e = 0; e < 8; e++) pack.items[e] = from_float<T>(norm.apply(x[e], scale, gain[e]));
            pieces[i] = pack.raw;
        }
    }
};

// ---- rms_norm.cuh
// Root-mean-square normalisation (Zhang & Sennrich 2019, arXiv:1910.07467), for any kernel that has a row at hand.
//
// A norm is a struct of its attributes. The kernel adds up `summand` of every element of a row, asks for the row's
// `scale`, and gets each normalised element from `apply`.
struct RmsNorm {
    float eps, offset;  // the offset is added to all gains

    static __device__ __forceinline__ float summand(float x) { return x * x; }
    __device__ __forceinline__ float scale(float sum, int width) const { return 1.0f / sqrtf(sum / width + eps); }
    __device__ __forceinline__ float apply(float x, float scale, float gain) const {
        return x * (scale * (offset == 0.0f ? gain : offset + gain));
    }
};

// ---- select_rows
// select_rows
// from models/llama.py:175
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

// ---- gemv_mma_lm_head
// rms_norm -> linear, by into_prologue
// from models/llama.py:176, models/llama.py:178
// 1 token(s): 12.9 kB, 12.5 kFLOP; at least 0.00 us on one H200
// On tensor cores, weights as the 16 rows of an mma and tokens as its 8 columns. Each block computes a range of output
// columns, a tile after another; its warps share the width of a tile and stream their weights through rings of
// 2 panels. All of them are filled ahead of the wait.
extern "C" __global__ void __launch_bounds__(256, 1) gemv_mma_lm_head(
    const bf16_t* __restrict__ lm_head,
    const bf16_t* __restrict__ model_norm,
    const bf16_t* select_rows_1,
    float* out,
    int tokens) {
    using T = bf16_t;
    // out[tokens, COLUMNS], summed over WIDTH
    constexpr int WIDTH = 64, COLUMNS = 96, TOKENS = 1;
    constexpr int THREADS = 256, WARPS = THREADS / 32, DEPTH = 2, PREFILL = 2;
    constexpr int PARTS = 1;  // weight rows, COLUMNS apart, that one output column combines
    using Stream = WeightStream<T, WIDTH, COLUMNS, PARTS, WARPS, DEPTH, 0, 8>;
    extern __shared__ __align__(128) unsigned char gemv_mma_lm_head_shared[];
    __shared__ float partial[2][WARPS][TOKENS][16];  // of two tiles, by turns
    const unsigned rings = shared_address(gemv_mma_lm_head_shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int begin = COLUMNS * size_t(blockIdx.x) / gridDim.x;  // of the block's columns
    const int end = COLUMNS * size_t(blockIdx.x + 1) / gridDim.x;

    let_next_kernel_start();
    Stream stream(lm_head, rings, begin, end);
#pragma unroll
    for (int i = 0; i < PREFILL; i++) stream.load();  // weights depend on no kernel: ahead of the wait
    StagedRows<T, WIDTH, TOKENS, THREADS, 8> rows(rings + WARPS * DEPTH * Stream::SLOT);
    rows.load_gain(model_norm);  // models/llama.py:176
    wait_for_previous_kernel();
    rows.load(select_rows_1, 64, tokens);
    rows.normalise(RmsNorm{1e-05f, 0.0f});
    rows.store();
    __syncthreads();
    const unsigned row = rows.rows + (TOKENS == 1 ? 0 : lane / 4 * rows.STRIDE) + lane % 4 * 16;

    // One thread finishes each output.
    const int in_tile = threadIdx.x % Stream::TILE, token = threadIdx.x / Stream::TILE;
    const int octet = lane / 4, pair = lane % 4;
    const unsigned low = octet * 128 + (pair ^ octet) * 16, high = octet * 128 + ((pair + 4) ^ octet) * 16;
    int slot = 0;
    for (int tile = begin, turn = 0; tile < end; tile += Stream::TILE, turn ^= 1) {
        const int column = tile + in_tile;
        const bool finishes = token < tokens && column < end;
        float sum[2][4] = {};
        for (int panel = warp; panel < Stream::PANELS; panel += WARPS) {
            wait_for_older_copies<DEPTH - 1>();
            __syncwarp();
            const unsigned from = stream.ring + slot * Stream::SLOT;
            const uint4 upper[2] = {load_shared(from + low), load_shared(from + high)};
            const uint4 lower[2] = {load_shared(from + 1024 + low), load_shared(from + 1024 + high)};
            const uint4 activations[2] = {load_shared(row + panel * 128), load_shared(row + panel * 128 + 64)};
            __syncwarp();
            stream.load();
            add_panel<T>(sum, upper, lower, activations);
            slot = slot + 1 == DEPTH ? 0 : slot + 1;
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int of = pair * 2 + i % 2;
            if (of < TOKENS) partial[turn][warp][of][octet + i / 2 * 8] = sum[0][i] + sum[1][i];
        }
        __syncthreads();
        if (!finishes) continue;

        float whole_0 = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            whole_0 += partial[turn][w][token][in_tile];
        }
        const float part_0 = whole_0;
        out[token * 96 + column] = from_float<float>(part_0);
    }
}
