// tiny: block decoder, 1 to 1 token(s), bfloat16, sm_90a. Emitted by Infernum 0.1.0.
//
// graph decoder {
//   stream %x : bf16[tokens, 64]
//   weight %input_layernorm : bf16[64] = "model.layers.{layer}.input_layernorm.weight"
//   weight %q_proj : bf16[64, 64] = "model.layers.{layer}.self_attn.q_proj.weight"
//   weight %k_proj : bf16[32, 64] = "model.layers.{layer}.self_attn.k_proj.weight"
//   weight %v_proj : bf16[32, 64] = "model.layers.{layer}.self_attn.v_proj.weight"
//   batch %positions : i32[tokens]
//   state %kv : bf16[pages, 2, 2, 64, 16]
//   batch %sequence : i32[tokens]
//   batch %page_table : i32[seqs, max_pages]
//   batch %query_start : i32[seqs + 1]
//   weight %o_proj : bf16[64, 64] = "model.layers.{layer}.self_attn.o_proj.weight"
//   weight %post_attention_layernorm : bf16[64] = "model.layers.{layer}.post_attention_layernorm.weight"
//   weight %gate_proj : bf16[96, 64] = "model.layers.{layer}.mlp.gate_proj.weight"
//   weight %up_proj : bf16[96, 64] = "model.layers.{layer}.mlp.up_proj.weight"
//   weight %down_proj : bf16[64, 96] = "model.layers.{layer}.mlp.down_proj.weight"
//
//   %rms_norm_1 = rms_norm(%x, %input_layernorm) {eps = 1e-05} : bf16[tokens, 64]  # models/llama.py:126
//   %linear_1 = linear(%rms_norm_1, %q_proj) : bf16[tokens, 64]  # models/llama.py:137
//   %linear_2 = linear(%rms_norm_1, %k_proj) : bf16[tokens, 32]  # models/llama.py:138
//   %linear_3 = linear(%rms_norm_1, %v_proj) : bf16[tokens, 32]  # models/llama.py:139
//   %heads_1 = heads(%linear_1) {dim = 16} : bf16[tokens, 4, 16]  # models/llama.py:140
//   %heads_2 = heads(%linear_2) {dim = 16} : bf16[tokens, 2, 16]  # models/llama.py:140
//   %heads_3 = heads(%linear_3) {dim = 16} : bf16[tokens, 2, 16]  # models/llama.py:140
//   %rope_1 = rope(%heads_1, %positions) {rope = Rope()} : bf16[tokens, 4, 16]  # models/llama.py:145
//   %rope_2 = rope(%heads_2, %positions) {rope = Rope()} : bf16[tokens, 2, 16]  # models/llama.py:146
//   %append_1 = append(%kv, %rope_2, %heads_3, %positions, %sequence, %page_table) : bf16[pages, 2, 2, 64, 16]  # models/llama.py:154
//   %attention_1 = attention(%rope_1, %append_1, %positions, %sequence, %query_start, %page_table) {scale = 0.25} : bf16[tokens, 4, 16]  # models/llama.py:156
//   %flatten_1 = flatten(%attention_1) : bf16[tokens, 64]  # models/llama.py:156
//   %linear_4 = linear(%flatten_1, %o_proj) : bf16[tokens, 64]  # models/llama.py:148
//   %add_1 = add(%x, %linear_4) : bf16[tokens, 64]  # models/llama.py:128
//   %rms_norm_2 = rms_norm(%add_1, %post_attention_layernorm) {eps = 1e-05} : bf16[tokens, 64]  # models/llama.py:129
//   %linear_5 = linear(%rms_norm_2, %gate_proj) : bf16[tokens, 96]  # models/llama.py:161
//   %linear_6 = linear(%rms_norm_2, %up_proj) : bf16[tokens, 96]  # models/llama.py:162
//   %silu_1 = silu(%linear_5) : bf16[tokens, 96]  # models/llama.py:163
//   %mul_1 = mul(%silu_1, %linear_6) : bf16[tokens, 96]  # models/llama.py:163
//   %linear_7 = linear(%mul_1, %down_proj) : bf16[tokens, 64]  # models/llama.py:163
//   %add_2 = add(%add_1, %linear_7) : bf16[tokens, 64]  # models/llama.py:130
//   return %add_2
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

// ---- rope.cuh
// Rotary position embedding (Su et al. 2021, arXiv:2104.09864) of heads of HEAD_DIM elements, the first ROTARY of which
// are turned. A head has HEAD_DIM / 2 pairs: the pairs that are turned, by halves of ROTARY or neighbour by neighbour,
// and then pairs of the other elements, which a kernel turns by the frequency 0.
template <int HEAD_DIM, int ROTARY, bool INTERLEAVED> struct HeadPairs {
    // N pairs from `pair` on, of one of the heads that lie one behind the other from `heads` on. `pair`, ROTARY / 2 and
    // HEAD_DIM / 2 are multiples of N, so that all of the pairs are turned, or none.
    template <int N, typename T>
    static __device__ __forceinline__ void load(
        float (&first)[N], float (&second)[N], const T* heads, int pair, int head = 0) {
        static_assert(ROTARY / 2 % N == 0 && HEAD_DIM / 2 % N == 0, "a thread's pairs are turned, or stay as they are");
        if constexpr (INTERLEAVED) {
            float both[2 * N];
            load_vector(both, heads + head * HEAD_DIM + 2 * pair);
#pragma unroll
            for (int i = 0; i < N; i++) {
                first[i] = both[2 * i];
                second[i] = both[2 * i + 1];
            }
        } else {
            load_vector(first, heads + head * HEAD_DIM + start(pair));
            load_vector(second, heads + head * HEAD_DIM + start(pair) + distance(pair));
        }
    }

    template <int N, typename T>
    static __device__ __forceinline__ void store(T* head, const float (&first)[N], const float (&second)[N], int pair) {
        if constexpr (INTERLEAVED) {
            float both[2 * N];
#pragma unroll
            for (int i = 0; i < N; i++) {
                both[2 * i] = first[i];
                both[2 * i + 1] = second[i];
            }
            store_vector(head + 2 * pair, both);
        } else {
            store_vector(head + start(pair), first);
            store_vector(head + start(pair) + distance(pair), second);
        }
    }

    // By halves: the first element of a pair, and how far the second is from it.
    static __device__ __forceinline__ int start(int pair) {
        return ROTARY == HEAD_DIM || pair < ROTARY / 2 ? pair : pair + ROTARY / 2;
    }
    static __device__ __forceinline__ int distance(int pair) {
        return ROTARY == HEAD_DIM || pair < ROTARY / 2 ? ROTARY / 2 : (HEAD_DIM - ROTARY) / 2;
    }
};

// Sine and cosine of an angle in radians of up to a few hundred thousand, to about 2e-7.
//
// sincosf reduces such angles by its slow path (Payne and Hanek), in local memory. sincospif has none, as a whole
// number of half turns is subtracted exactly; so the angle is divided by pi first, in two floats (Dekker 1971):
// 1/pi = INV_PI_HIGH + INV_PI_LOW to 2^-50, and the product's rounding error is recovered by one fused multiply-add.
__device__ __forceinline__ void sine_cosine(float angle, float& sine, float& cosine) {
    constexpr float INV_PI_HIGH = 0.318309873342514038f, INV_PI_LOW = 1.28412765e-8f;
    const float high = __fmul_rn(angle, INV_PI_HIGH);  // never contracted: `low` is the error of this very product
    const float low = fmaf(angle, INV_PI_LOW, fmaf(angle, INV_PI_HIGH, -high));
    const float whole_turns = 2.0f * rintf(0.5f * high);
    sincospif((high - whole_turns) + low, &sine, &cosine);
}

// The sines and cosines of N neighbouring pairs at one position, times a factor. The product is rounded to float, as the
// reference's is, so that both turn by the same angle.
template <int N> struct Rotation {
    float sine[N], cosine[N];

    __device__ __forceinline__ Rotation(int position, const float (&inv_freq)[N], float factor = 1.0f) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            sine_cosine(float(position) * inv_freq[i], sine[i], cosine[i]);
            sine[i] *= factor;
            cosine[i] *= factor;
        }
    }

    __device__ __forceinline__ void turn(float (&first)[N], float (&second)[N]) const {
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float turned = first[i] * cosine[i] - second[i] * sine[i];
            second[i] = second[i] * cosine[i] + first[i] * sine[i];
            first[i] = turned;
        }
    }
};

// What queries at a position are multiplied by, which grows with every `period` positions.
__device__ __forceinline__ float head_factor(int position, float beta, int period) {
    return 1.0f + beta * logf(float(1 + position / period));
}

template <int N> __device__ __forceinline__ void scale_pairs(float (&first)[N], float (&second)[N], float factor) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        first[i] *= factor;
        second[i] *= factor;
    }
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

// ---- kv_cache.cuh
// The paged cache kv [pages, 2, KV_HEADS, PAGE, HEAD_DIM]: in a page, all keys and then all values, head by head.

constexpr int PAGE = 64;

template <int KV_HEADS, int HEAD_DIM> struct KvCache {
    static constexpr int DIM = HEAD_DIM;
    static constexpr size_t HEAD = size_t(PAGE) * HEAD_DIM;  // elements of one head's keys in one page
    static constexpr size_t VALUES = KV_HEADS * HEAD;        // from a key to its value
    static constexpr size_t STRIDE = 2 * VALUES;             // from a page to the next

    // Where the key of `head` at row `row` of `page` begins, in elements.
    static __device__ __forceinline__ size_t key(int page, int head, int row) {
        return page * STRIDE + head * HEAD + size_t(row) * HEAD_DIM;
    }
};

// ---- softmax.cuh
// What every online softmax (Milakov & Gimelshein 2018, arXiv:1805.02867) needs.

// The factor of scores whose softmax is taken in powers of two.
__device__ constexpr float base_two(float scale) { return scale * 1.4426950408889634f; }

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

// The highest score of no positions: below any score, yet finite, so that the difference of two such is 0 and not NaN.
__device__ constexpr float no_score() { return -1e30f; }

// 2^x to two units in the last place, with 2^-inf = 0 (PTX ISA 9.7.3.20, ex2).
__device__ __forceinline__ float exp2_approximate(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}

// ---- scores.cuh
// Which positions a token attends to, and what becomes of their scores.

// The first position that the token at `position` attends to: of a WINDOW, itself is the last. 0: there is no window.
template <int WINDOW> __device__ __forceinline__ int first_attended(int position) {
    return WINDOW == 0 ? 0 : max(0, position + 1 - WINDOW);
}

// A score as an exponent of two, cap * tanh(x) or, where `cap` is 0, x itself. The hyperbolic tangent is computed from
// an exponential, to about 1e-7 absolutely.
__device__ __forceinline__ float capped(float x, float cap) {
    if (cap == 0.0f) return x;
    return cap - __fdividef(2.0f * cap, 1.0f + exp2_approximate(base_two(2.0f) * x));
}
template <int N> __device__ __forceinline__ void cap_scores(float (&score)[N], float scale, float cap) {
#pragma unroll
    for (int i = 0; i < N; i++) score[i] = capped(score[i] * scale, cap);
}

// ---- attention_split.cuh
// Attention of single tokens with the context split among blocks ("flash-decoding", Dao et al. 2023).

// Positions of the context in one of so many splits: at least LEAST, so that a short context keeps few blocks busy.
template <int LEAST> __device__ __forceinline__ int split_length(int context, int splits) {
    return max(LEAST, (context + splits - 1) / splits);
}

// N elements as they lie in memory, kept so until they are needed: half the registers of floats.
template <typename T, int N> struct Packed {
    union { Chunk<N * sizeof(T)> raw; T items[N]; };

    __device__ __forceinline__ Packed() {}
    __device__ __forceinline__ void load(const T* p) { raw = *reinterpret_cast<const Chunk<N * sizeof(T)>*>(p); }
    __device__ __forceinline__ void clear() { raw = {}; }
    __device__ __forceinline__ float operator[](int i) const { return to_float(items[i]); }
};

// The keys and values of UNROLL positions of one head, a lane's share of each, on their way from the cache.
template <typename T, typename Cache, typename Lane, int UNROLL, int CHUNKS, int VECTOR> struct CachedRows {
    Packed<T, VECTOR> key[UNROLL][CHUNKS], value[UNROLL][CHUNKS];
    bool present[UNROLL];

    // Positions `first`, first + step, …, up to `end`; zeros where there is none.
    __device__ __forceinline__ void load(const T* kv, const int* pages, int kv_head, int first, int step, int end) {
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int position = first + u * step;
            const int page = position < end ? pages[position / PAGE] : -1;
            const T* cached = kv + Cache::key(page, kv_head, position % PAGE);
            present[u] = page >= 0;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                key[u][c].clear();
                value[u][c].clear();
                if (present[u] && Lane::column(c) < Cache::DIM) {
                    key[u][c].load(cached + Lane::column(c));
                    value[u][c].load(cached + Cache::VALUES + Lane::column(c));
                }
            }
        }
    }
};

// One element of a softmax-weighted sum over some positions: its numerator and denominator, both relative to the
// highest score among them.
struct Part {
    float sum, highest, total;
};

// The sum over the positions of all parts.
template <int N> __device__ __forceinline__ Part merge(const Part (&parts)[N]) {
    Part whole = {0.0f, no_score(), 0.0f};
#pragma unroll
    for (int i = 0; i < N; i++) whole.highest = fmaxf(whole.highest, parts[i].highest);
#pragma unroll
    for (int i = 0; i < N; i++) {
        const float rescale = exp2_approximate(parts[i].highest - whole.highest);
        whole.sum = fmaf(rescale, parts[i].sum, whole.sum);
        whole.total = fmaf(rescale, parts[i].total, whole.total);
    }
    return whole;
}

// The parts of a block's warps in shared memory, for HEADS query heads.
template <int WARPS, int HEADS, int HEAD_DIM> struct WarpParts {
    float sum[WARPS][HEADS][HEAD_DIM], highest[WARPS][HEADS], total[WARPS][HEADS];

    __device__ __forceinline__ Part merged(int head, int column) const {
        Part parts[WARPS];
#pragma unroll
        for (int w = 0; w < WARPS; w++) parts[w] = {sum[w][head][column], highest[w][head], total[w][head]};
        return merge(parts);
    }
};

// What a lane knows of HEADS query heads: LANES lanes share a position and hold CHUNKS times VECTOR elements each of
// its key and value; the other lanes and warps are at other positions.
template <int HEADS, int HEAD_DIM, int LANES, int CHUNKS, int VECTOR> struct LaneAttention {
    float query[HEADS][CHUNKS][VECTOR];
    float sum[HEADS][CHUNKS][VECTOR] = {}, highest[HEADS], total[HEADS] = {};

    __device__ __forceinline__ LaneAttention() {
#pragma unroll
        for (int h = 0; h < HEADS; h++) highest[h] = no_score();
    }

    // The first of the elements in chunk c; those from HEAD_DIM on do not exist.
    static __device__ __forceinline__ int column(int c) { return (c * LANES + threadIdx.x % LANES) * VECTOR; }

    template <typename T> __device__ __forceinline__ void load_query(int head, const T* row, float scale) {
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            Packed<T, VECTOR> packed;
            packed.clear();
            if (column(c) < HEAD_DIM) packed.load(row + column(c));
#pragma unroll
            for (int e = 0; e < VECTOR; e++) query[head][c][e] = packed[e] * scale;
        }
    }

    // Attend to N positions more, with scores capped where `cap` is not 0. Keys and values are zero where a position is
    // not present.
    template <int N, typename T>
    __device__ __forceinline__ void attend(const Packed<T, VECTOR> (&key)[N][CHUNKS],
                                           const Packed<T, VECTOR> (&value)[N][CHUNKS], const bool (&present)[N],
                                           float cap) {
        float score[HEADS][N];
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                float dot = 0.0f;
#pragma unroll
                for (int c = 0; c < CHUNKS; c++) {
#pragma unroll
                    for (int e = 0; e < VECTOR; e++) dot = fmaf(query[h][c][e], key[n][c][e], dot);
                }
#pragma unroll
                for (int lane = LANES / 2; lane > 0; lane /= 2) dot += __shfl_xor_sync(0xffffffffu, dot, lane);
                score[h][n] = present[n] ? capped(dot, cap) : minus_infinity();
            }
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float raised = highest[h];
#pragma unroll
            for (int n = 0; n < N; n++) raised = fmaxf(raised, score[h][n]);
            const float rescale = exp2_approximate(highest[h] - raised);
            highest[h] = raised;
            total[h] *= rescale;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
#pragma unroll
                for (int e = 0; e < VECTOR; e++) sum[h][c][e] *= rescale;
            }
#pragma unroll
            for (int n = 0; n < N; n++) {
                score[h][n] = exp2_approximate(score[h][n] - raised);
                total[h] += score[h][n];
            }
        }
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
#pragma unroll
                for (int e = 0; e < VECTOR; e++) {
                    const float element = value[n][c][e];
#pragma unroll
                    for (int h = 0; h < HEADS; h++) sum[h][c][e] = fmaf(score[h][n], element, sum[h][c][e]);
                }
            }
        }
    }

    // The lanes of a warp that hold the same columns of different positions agree, and store what they found.
    template <int WARPS> __device__ __forceinline__ void store(WarpParts<WARPS, HEADS, HEAD_DIM>& parts) {
        const int warp = threadIdx.x / 32, lane_of_warp = threadIdx.x % 32;
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float raised = highest[h];
#pragma unroll
            for (int lane = LANES; lane < 32; lane *= 2)
                raised = fmaxf(raised, __shfl_xor_sync(0xffffffffu, raised, lane));
            const float rescale = exp2_approximate(highest[h] - raised);
            total[h] *= rescale;
#pragma unroll
            for (int lane = LANES; lane < 32; lane *= 2) total[h] += __shfl_xor_sync(0xffffffffu, total[h], lane);
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
#pragma unroll
                for (int e = 0; e < VECTOR; e++) {
                    float whole = sum[h][c][e] * rescale;
#pragma unroll
                    for (int lane = LANES; lane < 32; lane *= 2) whole += __shfl_xor_sync(0xffffffffu, whole, lane);
                    if (lane_of_warp < LANES && column(c) < HEAD_DIM) parts.sum[warp][h][column(c) + e] = whole;
                }
            }
            if (lane_of_warp == 0) {
                parts.highest[warp][h] = raised;
                parts.total[warp][h] = total[h];
            }
        }
    }
};

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

    // Copies rows to shared memory, each normalised and rounded as stored.
    template <typename Norm>
    __device__ __forceinline__ void stage_normalised(
        T* shared, const T* x, int x_stride, int tokens, const Norm norm) const {
        for (int token = 0; token < tokens; token++) {
            float kept[VECTORS][VECTOR];
            float sum = 0.0f;
#pragma unroll
            for (int v = 0; v < VECTORS; v++) {
                if (column(v) >= WIDTH) break;
                load_vector(kept[v], x + size_t(token) * x_stride + column(v));
#pragma unroll
                for (int i = 0; i < VECTOR; i++) sum += norm.summand(kept[v][i]);
            }
            const float scale = norm.scale(block_sum<THREADS>(sum), WIDTH);
#pragma unroll
            for (int v = 0; v < VECTORS; v++) {
                if (column(v) >= WIDTH) break;
                float gain[VECTOR];
                unpack<VECTOR, T>(gain, gains[v]);
#pragma unroll
                for (int i = 0; i < VECTOR; i++) gain[i] = norm.apply(kept[v][i], scale, gain[i]);
                store_vector(shared + token * WIDTH + column(v), gain);
            }
        }
    }
};

// ---- rms_norm_input_layernorm
// rms_norm
// from models/llama.py:126
// 1 token(s): 384 B, 256 FLOP; at least 0.00 us on one H200
// One block per row; each thread keeps its elements in registers between the sum of squares and the scaling.
extern "C" __global__ void __launch_bounds__(32) rms_norm_input_layernorm(
    const bf16_t* __restrict__ input_layernorm,
    const bf16_t* x,
    bf16_t* out,
    int tokens) {
    constexpr int WIDTH = 64, VECTOR = 8, THREADS = 32;
    constexpr int VECTORS = (WIDTH + VECTOR * THREADS - 1) / (VECTOR * THREADS);  // of each thread
    let_next_kernel_start();
    wait_for_previous_kernel();
    const size_t token = blockIdx.x;
    constexpr RmsNorm norm{1e-05f, 0.0f};

    float kept[VECTORS][VECTOR];
    float sum = 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const int column = (v * THREADS + threadIdx.x) * VECTOR;
        if (column >= WIDTH) break;
        load_vector(kept[v], x + token * 64 + column);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) sum += norm.summand(kept[v][i]);
    }
    const float scale = norm.scale(block_sum<THREADS>(sum), WIDTH);

#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const int column = (v * THREADS + threadIdx.x) * VECTOR;
        if (column >= WIDTH) break;
        float gain[VECTOR];
        load_vector(gain, input_layernorm + column);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) gain[i] = norm.apply(kept[v][i], scale, gain[i]);
        store_vector(out + token * 64 + column, gain);
    }
}

// ---- gemv_mma_q_proj
// linear
// from models/llama.py:137
// 1 token(s): 8.45 kB, 8.19 kFLOP; at least 0.00 us on one H200
// On tensor cores, weights as the 16 rows of an mma and tokens as its 8 columns. Each block computes a range of output
// columns, a tile after another; its warps share the width of a tile and stream their weights through rings of
// 2 panels. All of them are filled ahead of the wait.
extern "C" __global__ void __launch_bounds__(256, 1) gemv_mma_q_proj(
    const bf16_t* __restrict__ q_proj,
    const bf16_t* rms_norm_1,
    bf16_t* out,
    int tokens) {
    using T = bf16_t;
    // out[tokens, COLUMNS], summed over WIDTH
    constexpr int WIDTH = 64, COLUMNS = 64, TOKENS = 1;
    constexpr int THREADS = 256, WARPS = THREADS / 32, DEPTH = 2, PREFILL = 2;
    constexpr int PARTS = 1;  // weight rows, COLUMNS apart, that one output column combines
    using Stream = WeightStream<T, WIDTH, COLUMNS, PARTS, WARPS, DEPTH, 0, 8>;
    extern __shared__ __align__(128) unsigned char gemv_mma_q_proj_shared[];
    __shared__ float partial[2][WARPS][TOKENS][16];  // of two tiles, by turns
    const unsigned rings = shared_address(gemv_mma_q_proj_shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int begin = COLUMNS * size_t(blockIdx.x) / gridDim.x;  // of the block's columns
    const int end = COLUMNS * size_t(blockIdx.x + 1) / gridDim.x;

    let_next_kernel_start();
    Stream stream(q_proj, rings, begin, end);
#pragma unroll
    for (int i = 0; i < PREFILL; i++) stream.load();  // weights depend on no kernel: ahead of the wait
    StagedRows<T, WIDTH, TOKENS, THREADS, 8> rows(rings + WARPS * DEPTH * Stream::SLOT);
    wait_for_previous_kernel();
    rows.load(rms_norm_1, 64, tokens);
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
        out[token * 64 + column] = from_float<bf16_t>(part_0);
    }
}

// ---- gemv_mma_k_proj
// linear
// from models/llama.py:138
// 1 token(s): 4.29 kB, 4.1 kFLOP; at least 0.00 us on one H200
// On tensor cores, weights as the 16 rows of an mma and tokens as its 8 columns. Each block computes a range of output
// columns, a tile after another; its warps share the width of a tile and stream their weights through rings of
// 2 panels. All of them are filled ahead of the wait.
extern "C" __global__ void __launch_bounds__(256, 1) gemv_mma_k_proj(
    const bf16_t* __restrict__ k_proj,
    const bf16_t* rms_norm_1,
    bf16_t* out,
    int tokens) {
    using T = bf16_t;
    // out[tokens, COLUMNS], summed over WIDTH
    constexpr int WIDTH = 64, COLUMNS = 32, TOKENS = 1;
    constexpr int THREADS = 256, WARPS = THREADS / 32, DEPTH = 2, PREFILL = 2;
    constexpr int PARTS = 1;  // weight rows, COLUMNS apart, that one output column combines
    using Stream = WeightStream<T, WIDTH, COLUMNS, PARTS, WARPS, DEPTH, 0, 8>;
    extern __shared__ __align__(128) unsigned char gemv_mma_k_proj_shared[];
    __shared__ float partial[2][WARPS][TOKENS][16];  // of two tiles, by turns
    const unsigned rings = shared_address(gemv_mma_k_proj_shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int begin = COLUMNS * size_t(blockIdx.x) / gridDim.x;  // of the block's columns
    const int end = COLUMNS * size_t(blockIdx.x + 1) / gridDim.x;

    let_next_kernel_start();
    Stream stream(k_proj, rings, begin, end);
#pragma unroll
    for (int i = 0; i < PREFILL; i++) stream.load();  // weights depend on no kernel: ahead of the wait
    StagedRows<T, WIDTH, TOKENS, THREADS, 8> rows(rings + WARPS * DEPTH * Stream::SLOT);
    wait_for_previous_kernel();
    rows.load(rms_norm_1, 64, tokens);
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
        out[token * 32 + column] = from_float<bf16_t>(part_0);
    }
}

// ---- gemv_mma_v_proj
// linear
// from models/llama.py:139
// 1 token(s): 4.29 kB, 4.1 kFLOP; at least 0.00 us on one H200
// On tensor cores, weights as the 16 rows of an mma and tokens as its 8 columns. Each block computes a range of output
// columns, a tile after another; its warps share the width of a tile and stream their weights through rings of
// 2 panels. All of them are filled ahead of the wait.
extern "C" __global__ void __launch_bounds__(256, 1) gemv_mma_v_proj(
    const bf16_t* __restrict__ v_proj,
    const bf16_t* rms_norm_1,
    bf16_t* out,
    int tokens) {
    using T = bf16_t;
    // out[tokens, COLUMNS], summed over WIDTH
    constexpr int WIDTH = 64, COLUMNS = 32, TOKENS = 1;
    constexpr int THREADS = 256, WARPS = THREADS / 32, DEPTH = 2, PREFILL = 2;
    constexpr int PARTS = 1;  // weight rows, COLUMNS apart, that one output column combines
    using Stream = WeightStream<T, WIDTH, COLUMNS, PARTS, WARPS, DEPTH, 0, 8>;
    extern __shared__ __align__(128) unsigned char gemv_mma_v_proj_shared[];
    __shared__ float partial[2][WARPS][TOKENS][16];  // of two tiles, by turns
    const unsigned rings = shared_address(gemv_mma_v_proj_shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int begin = COLUMNS * size_t(blockIdx.x) / gridDim.x;  // of the block's columns
    const int end = COLUMNS * size_t(blockIdx.x + 1) / gridDim.x;

    let_next_kernel_start();
    Stream stream(v_proj, rings, begin, end);
#pragma unroll
    for (int i = 0; i < PREFILL; i++) stream.load();  // weights depend on no kernel: ahead of the wait
    StagedRows<T, WIDTH, TOKENS, THREADS, 8> rows(rings + WARPS * DEPTH * Stream::SLOT);
    wait_for_previous_kernel();
    rows.load(rms_norm_1, 64, tokens);
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
        out[token * 32 + column] = from_float<bf16_t>(part_0);
    }
}

// ---- rope
// rope
// from models/llama.py:145
// 1 token(s): 260 B, 192 FLOP; at least 0.00 us on one H200
// One block per token: PAIR_LANES threads, PAIRS pairs each, turn one head; HEAD_LANES heads go side by side.
__device__ const __align__(16) float rope_inv_freq[8] = {
    1.0f, 0.3162277638912201f, 0.10000000149011612f, 0.03162277862429619f,
    0.009999999776482582f, 0.003162277862429619f, 0.0010000000474974513f, 0.0003162277862429619f,
};

extern "C" __global__ void __launch_bounds__(8) rope(
    const bf16_t* x,
    const int* positions,
    bf16_t* out) {
    using T = bf16_t;
    constexpr int HEADS = 4, HEAD_DIM = 16, ROTARY = 16;
    constexpr int VECTOR = 4, PAIRS = 4, PAIR_LANES = 2, HEAD_LANES = 4;
    constexpr size_t X_STRIDE = 64, OUT_STRIDE = 64;
    static_assert(X_STRIDE % VECTOR == 0 && OUT_STRIDE % VECTOR == 0, "every row starts at a whole access");
    using Pairs = HeadPairs<HEAD_DIM, ROTARY, false>;

    let_next_kernel_start();
    const int token = blockIdx.x;
    const int pair = threadIdx.x % PAIR_LANES * PAIRS;
    float inv_freq[PAIRS];
    load_vector(inv_freq, rope_inv_freq + pair);

    wait_for_previous_kernel();
    const Rotation<PAIRS> rotation(positions[token], inv_freq);
    const T* x_row = x + token * X_STRIDE;
    T* out_row = out + token * OUT_STRIDE;
#pragma unroll 4
    for (int head = threadIdx.x / PAIR_LANES; head < HEADS; head += HEAD_LANES) {
        float first[PAIRS], second[PAIRS];
        Pairs::load(first, second, x_row, pair, head);
        rotation.turn(first, second);
        Pairs::store(out_row + head * HEAD_DIM, first, second, pair);
    }
}

// ---- rope_2
// rope
// from models/llama.py:146
// 1 token(s): 132 B, 96 FLOP; at least 0.00 us on one H200
// One block per token: PAIR_LANES threads, PAIRS pairs each, turn one head; HEAD_LANES heads go side by side.
__device__ const __align__(16) float rope_2_inv_freq[8] = {
    1.0f, 0.3162277638912201f, 0.10000000149011612f, 0.03162277862429619f,
    0.009999999776482582f, 0.003162277862429619f, 0.0010000000474974513f, 0.0003162277862429619f,
};

extern "C" __global__ void __launch_bounds__(4) rope_2(
    const bf16_t* x,
    const int* positions,
    bf16_t* out) {
    using T = bf16_t;
    constexpr int HEADS = 2, HEAD_DIM = 16, ROTARY = 16;
    constexpr int VECTOR = 4, PAIRS = 4, PAIR_LANES = 2, HEAD_LANES = 2;
    constexpr size_t X_STRIDE = 32, OUT_STRIDE = 32;
    static_assert(X_STRIDE % VECTOR == 0 && OUT_STRIDE % VECTOR == 0, "every row starts at a whole access");
    using Pairs = HeadPairs<HEAD_DIM, ROTARY, false>;

    let_next_kernel_start();
    const int token = blockIdx.x;
    const int pair = threadIdx.x % PAIR_LANES * PAIRS;
    float inv_freq[PAIRS];
    load_vector(inv_freq, rope_2_inv_freq + pair);

    wait_for_previous_kernel();
    const Rotation<PAIRS> rotation(positions[token], inv_freq);
    const T* x_row = x + token * X_STRIDE;
    T* out_row = out + token * OUT_STRIDE;
#pragma unroll 4
    for (int head = threadIdx.x / PAIR_LANES; head < HEADS; head += HEAD_LANES) {
        float first[PAIRS], second[PAIRS];
        Pairs::load(first, second, x_row, pair, head);
        rotation.turn(first, second);
        Pairs::store(out_row + head * HEAD_DIM, first, second, pair);
    }
}

// ---- append
// append
// from models/llama.py:154
// 1 token(s): 328 B, 0 FLOP; at least 0.00 us on one H200
// One block per token: it copies the token's keys and values to its row of the cache, VECTOR elements an access.
extern "C" __global__ void __launch_bounds__(32) append(
    bf16_t* kv,
    const bf16_t* k,
    const bf16_t* v,
    const int* positions,
    const int* sequence,
    const int* page_table,
    int max_pages) {
    constexpr int KV_HEADS = 2, HEAD_DIM = 16;
    constexpr int THREADS = 32, VECTOR = 8;
    constexpr size_t K_STRIDE = 32, V_STRIDE = 32;
    static_assert(K_STRIDE % VECTOR == 0 && V_STRIDE % VECTOR == 0, "every row starts at a whole access");
    using Cache = KvCache<KV_HEADS, HEAD_DIM>;

    let_next_kernel_start();
    wait_for_previous_kernel();
    const int token = blockIdx.x;
    const int position = positions[token];
    const int page = page_table[sequence[token] * max_pages + position / PAGE];
    if (page < 0) return;  // a token that fills up a batch has no place in the cache

#pragma unroll
    for (int i = threadIdx.x * VECTOR; i < KV_HEADS * HEAD_DIM; i += THREADS * VECTOR) {
        const size_t key = Cache::key(page, i / HEAD_DIM, position % PAGE) + i % HEAD_DIM;
        copy_vector<VECTOR>(kv + key, k + token * K_STRIDE + i);
        copy_vector<VECTOR>(kv + key + Cache::VALUES, v + token * V_STRIDE + i);
    }
}

// ---- attention_split
// attention
// from models/llama.py:156
// 1 token(s) at context 1024: 131 kB, 262 kFLOP; at least 0.03 us on one H200
// One block per token, HEAD_TILE query heads of one key head, and split of the context: LANES lanes read a position.
extern "C" __global__ void __launch_bounds__(128) attention_split(
    const bf16_t* q,
    const bf16_t* kv,
    const int* positions,
    const int* sequence,
    const int* page_table,
    float* partial_out,
    float* partial_stats,
    int max_pages) {
    using T = bf16_t;
    constexpr int HEADS = 4, KV_HEADS = 2, GROUP = 2, HEAD_DIM = 16;
    constexpr int HEAD_TILE = 2, HEAD_TILES = 1;
    constexpr int SPLITS = 64, SPLIT_MIN = 32;
    constexpr int WARPS = 4, LANES = 2, VECTOR = 8, CHUNKS = 1;
    constexpr int ROWS = 32 / LANES;                 // positions that a warp reads in one access
    constexpr int UNROLL = 4;                        // such accesses in flight
    constexpr int STEP = UNROLL * WARPS * ROWS;      // positions that the block reads in one iteration
    constexpr int WINDOW = 0;  // positions that a token attends to, itself among them; 0: all
    constexpr float SCALE = base_two(0.25f), CAP = 0.0f;
    constexpr size_t Q_STRIDE = 64;
    static_assert(Q_STRIDE % VECTOR == 0, "every row starts at a whole access");
    using Cache = KvCache<KV_HEADS, HEAD_DIM>;
    using Lane = LaneAttention<HEAD_TILE, HEAD_DIM, LANES, CHUNKS, VECTOR>;
    __shared__ WarpParts<WARPS, HEAD_TILE, HEAD_DIM> parts;

    let_next_kernel_start();
    wait_for_previous_kernel();
    const int token = blockIdx.x, kv_head = blockIdx.y / HEAD_TILES, split = blockIdx.z;
    const int position = positions[token], since = first_attended<WINDOW>(position);
    const int* pages = page_table + sequence[token] * max_pages;
    const int length = split_length<SPLIT_MIN>(position + 1 - since, SPLITS);
    const int begin = since + split * length, end = min(begin + length, position + 1);
    if (begin >= end) return;  // a short context has fewer splits, as the combining kernel knows

    const int warp = threadIdx.x / 32, row = threadIdx.x % 32 / LANES;
    const int first_head = kv_head * GROUP + blockIdx.y % HEAD_TILES * HEAD_TILE;
    const int last_head = kv_head * GROUP + GROUP - 1;  // the last tile of a group may have fewer heads
    Lane lane;
#pragma unroll
    for (int h = 0; h < HEAD_TILE; h++) {
        lane.load_query(h, q + token * Q_STRIDE + min(first_head + h, last_head) * HEAD_DIM, SCALE);
    }

    for (int start = begin; start < end; start += STEP) {
        CachedRows<T, Cache, Lane, UNROLL, CHUNKS, VECTOR> rows;
        rows.load(kv, pages, kv_head, start + warp * ROWS + row, WARPS * ROWS, end);
        lane.attend(rows.key, rows.value, rows.present, CAP);
    }
    lane.store(parts);
    __syncthreads();

    for (int i = threadIdx.x; i < HEAD_TILE * HEAD_DIM; i += 32 * WARPS) {
        const int h = i / HEAD_DIM, head = first_head + h;
        if (head > last_head) break;
        const Part whole = parts.merged(h, i % HEAD_DIM);
        const size_t part = (size_t(token) * HEADS + head) * SPLITS + split;
        partial_out[part * HEAD_DIM + i % HEAD_DIM] = whole.sum;
        if (i % HEAD_DIM == 0) {
            partial_stats[part * 2] = whole.highest;
            partial_stats[part * 2 + 1] = whole.total;
        }
    }
}

// ---- attention_combine
// attention
// from models/llama.py:156
// 1 token(s): 128 B, 0 FLOP; at least 0.00 us on one H200
// One block per token and query head, GROUPS threads per element: they sum the splits of the context, rescaled.
extern "C" __global__ void __launch_bounds__(128) attention_combine(
    const int* positions,
    bf16_t* out,
    float* partial_out,
    float* partial_stats) {
    using T = bf16_t;
    constexpr int HEADS = 4, HEAD_DIM = 16, SPLITS = 64, SPLIT_MIN = 32;
    constexpr int GROUPS = 4, COLUMNS = 32, AT_ONCE = 4;
    constexpr size_t OUT_STRIDE = 64;
    __shared__ Part shares[GROUPS][COLUMNS];

    let_next_kernel_start();
    const int head = blockIdx.y, column = threadIdx.x % COLUMNS, group = threadIdx.x / COLUMNS;
    const int token = blockIdx.x;
    const int position = positions[token];
    const int attended = position + 1 - first_attended<0>(position);
    const int length = split_length<SPLIT_MIN>(attended, SPLITS);
    const int splits = (attended + length - 1) / length;  // the others were never written
    const size_t part = (size_t(blockIdx.x) * HEADS + head) * SPLITS;

    wait_for_previous_kernel();
    const float2* stats = reinterpret_cast<const float2*>(partial_stats) + part;
    const float* sums = partial_out + part * HEAD_DIM + column;
    Part share = {0.0f, no_score(), 0.0f};
    for (int first = group; first < splits; first += GROUPS * AT_ONCE) {
        Part parts[AT_ONCE + 1];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int s = first + i * GROUPS;
            const bool present = s < splits && column < HEAD_DIM;
            const float2 stat = present ? stats[s] : make_float2(no_score(), 0.0f);
            parts[i] = {present ? sums[s * HEAD_DIM] : 0.0f, stat.x, stat.y};
        }
        parts[AT_ONCE] = share;
        share = merge(parts);
    }
    shares[group][column] = share;
    __syncthreads();
    if (group > 0 || column >= HEAD_DIM) return;
    Part found[GROUPS];
#pragma unroll
    for (int g = 0; g < GROUPS; g++) found[g] = shares[g][column];
    const Part whole = merge(found);
    const size_t place = token * OUT_STRIDE + head * HEAD_DIM + column;
    out[place] = from_float<T>(whole.total > 0.0f ? whole.sum / whole.total : 0.0f);
}

// ---- gemv_mma_o_proj
// linear
// from models/llama.py:148
// 1 token(s): 8.45 kB, 8.19 kFLOP; at least 0.00 us on one H200
// On tensor cores, weights as the 16 rows of an mma and tokens as its 8 columns. Each block computes a range of output
// columns, a tile after another; its warps share the width of a tile and stream their weights through rings of
// 2 panels. All of them are filled ahead of the wait.
extern "C" __global__ void __launch_bounds__(256, 1) gemv_mma_o_proj(
    const bf16_t* __restrict__ o_proj,
    const bf16_t* flatten_1,
    bf16_t* out,
    int tokens) {
    using T = bf16_t;
    // out[tokens, COLUMNS], summed over WIDTH
    constexpr int WIDTH = 64, COLUMNS = 64, TOKENS = 1;
    constexpr int THREADS = 256, WARPS = THREADS / 32, DEPTH = 2, PREFILL = 2;
    constexpr int PARTS = 1;  // weight rows, COLUMNS apart, that one output column combines
    using Stream = WeightStream<T, WIDTH, COLUMNS, PARTS, WARPS, DEPTH, 0, 8>;
    extern __shared__ __align__(128) unsigned char gemv_mma_o_proj_shared[];
    __shared__ float partial[2][WARPS][TOKENS][16];  // of two tiles, by turns
    const unsigned rings = shared_address(gemv_mma_o_proj_shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int begin = COLUMNS * size_t(blockIdx.x) / gridDim.x;  // of the block's columns
    const int end = COLUMNS * size_t(blockIdx.x + 1) / gridDim.x;

    let_next_kernel_start();
    Stream stream(o_proj, rings, begin, end);
#pragma unroll
    for (int i = 0; i < PREFILL; i++) stream.load();  // weights depend on no kernel: ahead of the wait
    StagedRows<T, WIDTH, TOKENS, THREADS, 8> rows(rings + WARPS * DEPTH * Stream::SLOT);
    wait_for_previous_kernel();
    rows.load(flatten_1, 64, tokens);
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
        out[token * 64 + column] = from_float<bf16_t>(part_0);
    }
}

// ---- add
// add
// from models/llama.py:128
// 1 token(s): 384 B, 64 FLOP; at least 0.00 us on one H200
// Each thread computes 8 consecutive elements of a row.
extern "C" __global__ void __launch_bounds__(256) add(
    const bf16_t* x,
    const bf16_t* linear_4,
    bf16_t* out,
    int tokens) {
    constexpr int THREADS = 256, VECTOR = 8;
    constexpr int CHUNKS = 8;  // of VECTOR elements in a row
    let_next_kernel_start();
    wait_for_previous_kernel();
    const int chunk = blockIdx.x * THREADS + threadIdx.x;
    const size_t token = chunk / CHUNKS;
    const int column = chunk % CHUNKS * VECTOR;
    if (token >= tokens) return;

    float x_values[VECTOR];
    load_vector(x_values, x + token * 64 + column);
    float linear_4_values[VECTOR];
    load_vector(linear_4_values, linear_4 + token * 64 + column);
    float out_values[VECTOR];
#pragma unroll
    for (int i = 0; i < VECTOR; i++) {
        const float x_value = x_values[i];
        const float linear_4_value = linear_4_values[i];
        const float add_1 = x_value + linear_4_value;  // models/llama.py:128
        out_values[i] = add_1;
    }
    store_vector(out + token * 64 + column, out_values);
}

// ---- rms_norm_post_attention_layernorm
// rms_norm
// from models/llama.py:129
// 1 token(s): 384 B, 256 FLOP; at least 0.00 us on one H200
// One block per row; each thread keeps its elements in registers between the sum of squares and the scaling.
extern "C" __global__ void __launch_bounds__(32) rms_norm_post_attention_layernorm(
    const bf16_t* __restrict__ post_attention_layernorm,
    const bf16_t* add_1,
    bf16_t* out,
    int tokens) {
    constexpr int WIDTH = 64, VECTOR = 8, THREADS = 32;
    constexpr int VECTORS = (WIDTH + VECTOR * THREADS - 1) / (VECTOR * THREADS);  // of each thread
    let_next_kernel_start();
    wait_for_previous_kernel();
    const size_t token = blockIdx.x;
    constexpr RmsNorm norm{1e-05f, 0.0f};

    float kept[VECTORS][VECTOR];
    float sum = 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const int column = (v * THREADS + threadIdx.x) * VECTOR;
        if (column >= WIDTH) break;
        load_vector(kept[v], add_1 + token * 64 + column);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) sum += norm.summand(kept[v][i]);
    }
    const float scale = norm.scale(block_sum<THREADS>(sum), WIDTH);

#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        const int column = (v * THREADS + threadIdx.x) * VECTOR;
        if (column >= WIDTH) break;
        float gain[VECTOR];
        load_vector(gain, post_attention_layernorm + column);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) gain[i] = norm.apply(kept[v][i], scale, gain[i]);
        store_vector(out + token * 64 + column, gain);
    }
}

// ---- gemv_mma_gate_proj
// linear
// from models/llama.py:161
// 1 token(s): 12.6 kB, 12.3 kFLOP; at least 0.00 us on one H200
// On tensor cores, weights as the 16 rows of an mma and tokens as its 8 columns. Each block computes a range of output
// columns, a tile after another; its warps share the width of a tile and stream their weights through rings of
// 2 panels. All of them are filled ahead of the wait.
extern "C" __global__ void __launch_bounds__(256, 1) gemv_mma_gate_proj(
    const bf16_t* __restrict__ gate_proj,
    const bf16_t* rms_norm_2,
    bf16_t* out,
    int tokens) {
    using T = bf16_t;
    // out[tokens, COLUMNS], summed over WIDTH
    constexpr int WIDTH = 64, COLUMNS = 96, TOKENS = 1;
    constexpr int THREADS = 256, WARPS = THREADS / 32, DEPTH = 2, PREFILL = 2;
    constexpr int PARTS = 1;  // weight rows, COLUMNS apart, that one output column combines
    using Stream = WeightStream<T, WIDTH, COLUMNS, PARTS, WARPS, DEPTH, 0, 8>;
    extern __shared__ __align__(128) unsigned char gemv_mma_gate_proj_shared[];
    __shared__ float partial[2][WARPS][TOKENS][16];  // of two tiles, by turns
    const unsigned rings = shared_address(gemv_mma_gate_proj_shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int begin = COLUMNS * size_t(blockIdx.x) / gridDim.x;  // of the block's columns
    const int end = COLUMNS * size_t(blockIdx.x + 1) / gridDim.x;

    let_next_kernel_start();
    Stream stream(gate_proj, rings, begin, end);
#pragma unroll
    for (int i = 0; i < PREFILL; i++) stream.load();  // weights depend on no kernel: ahead of the wait
    StagedRows<T, WIDTH, TOKENS, THREADS, 8> rows(rings + WARPS * DEPTH * Stream::SLOT);
    wait_for_previous_kernel();
    rows.load(rms_norm_2, 64, tokens);
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
        out[token * 96 + column] = from_float<bf16_t>(part_0);
    }
}

// ---- gemv_mma_up_proj
// linear
// from models/llama.py:162
// 1 token(s): 12.6 kB, 12.3 kFLOP; at least 0.00 us on one H200
// On tensor cores, weights as the 16 rows of an mma and tokens as its 8 columns. Each block computes a range of output
// columns, a tile after another; its warps share the width of a tile and stream their weights through rings of
// 2 panels. All of them are filled ahead of the wait.
extern "C" __global__ void __launch_bounds__(256, 1) gemv_mma_up_proj(
    const bf16_t* __restrict__ up_proj,
    const bf16_t* rms_norm_2,
    bf16_t* out,
    int tokens) {
    using T = bf16_t;
    // out[tokens, COLUMNS], summed over WIDTH
    constexpr int WIDTH = 64, COLUMNS = 96, TOKENS = 1;
    constexpr int THREADS = 256, WARPS = THREADS / 32, DEPTH = 2, PREFILL = 2;
    constexpr int PARTS = 1;  // weight rows, COLUMNS apart, that one output column combines
    using Stream = WeightStream<T, WIDTH, COLUMNS, PARTS, WARPS, DEPTH, 0, 8>;
    extern __shared__ __align__(128) unsigned char gemv_mma_up_proj_shared[];
    __shared__ float partial[2][WARPS][TOKENS][16];  // of two tiles, by turns
    const unsigned rings = shared_address(gemv_mma_up_proj_shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int begin = COLUMNS * size_t(blockIdx.x) / gridDim.x;  // of the block's columns
    const int end = COLUMNS * size_t(blockIdx.x + 1) / gridDim.x;

    let_next_kernel_start();
    Stream stream(up_proj, rings, begin, end);
#pragma unroll
    for (int i = 0; i < PREFILL; i++) stream.load();  // weights depend on no kernel: ahead of the wait
    StagedRows<T, WIDTH, TOKENS, THREADS, 8> rows(rings + WARPS * DEPTH * Stream::SLOT);
    wait_for_previous_kernel();
    rows.load(rms_norm_2, 64, tokens);
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
        out[token * 96 + column] = from_float<bf16_t>(part_0);
    }
}

// ---- silu
// silu
// from models/llama.py:163
// 1 token(s): 384 B, 384 FLOP; at least 0.00 us on one H200
// Each thread computes 8 consecutive elements of a row.
extern "C" __global__ void __launch_bounds__(256) silu(
    const bf16_t* linear_5,
    bf16_t* out,
    int tokens) {
    constexpr int THREADS = 256, VECTOR = 8;
    constexpr int CHUNKS = 12;  // of VECTOR elements in a row
    let_next_kernel_start();
    wait_for_previous_kernel();
    const int chunk = blockIdx.x * THREADS + threadIdx.x;
    const size_t token = chunk / CHUNKS;
    const int column = chunk % CHUNKS * VECTOR;
    if (token >= tokens) return;

    float linear_5_values[VECTOR];
    load_vector(linear_5_values, linear_5 + token * 96 + column);
    float out_values[VECTOR];
#pragma unroll
    for (int i = 0; i < VECTOR; i++) {
        const float linear_5_value = linear_5_values[i];
        const float silu_1 = __fdividef(linear_5_value, 1.0f + expf(-linear_5_value));  // models/llama.py:163
        out_values[i] = silu_1;
    }
    store_vector(out + token * 96 + column, out_values);
}

// ---- mul
// mul
// from models/llama.py:163
// 1 token(s): 576 B, 96 FLOP; at least 0.00 us on one H200
// Each thread computes 8 consecutive elements of a row.
extern "C" __global__ void __launch_bounds__(256) mul(
    const bf16_t* silu_1,
    const bf16_t* linear_6,
    bf16_t* out,
    int tokens) {
    constexpr int THREADS = 256, VECTOR = 8;
    constexpr int CHUNKS = 12;  // of VECTOR elements in a row
    let_next_kernel_start();
    wait_for_previous_kernel();
    const int chunk = blockIdx.x * THREADS + threadIdx.x;
    const size_t token = chunk / CHUNKS;
    const int column = chunk % CHUNKS * VECTOR;
    if (token >= tokens) return;

    float silu_1_values[VECTOR];
    load_vector(silu_1_values, silu_1 + token * 96 + column);
    float linear_6_values[VECTOR];
    load_vector(linear_6_values, linear_6 + token * 96 + column);
    float out_values[VECTOR];
#pragma unroll
    for (int i = 0; i < VECTOR; i++) {
        const float silu_1_value = silu_1_values[i];
        const float linear_6_value = linear_6_values[i];
        const float mul_1 = silu_1_value * linear_6_value;  // models/llama.py:163
        out_values[i] = mul_1;
    }
    store_vector(out + token * 96 + column, out_values);
}

// ---- gemv_down_proj
// linear
// from models/llama.py:163
// 1 token(s): 12.6 kB, 12.3 kFLOP; at least 0.00 us on one H200
// Each warp computes whole output columns, for all tokens at once, and strides over the columns with the grid. Its
// lanes share a row of weights in chunks of 8; two tiles of them are on their way ahead of the sum.
extern "C" __global__ void __launch_bounds__(512, 1) gemv_down_proj(
    const bf16_t* __restrict__ down_proj,
    const bf16_t* mul_1,
    bf16_t* out,
    int tokens) {
    using T = bf16_t;
    // out[tokens, COLUMNS], summed over WIDTH
    constexpr int WIDTH = 96, COLUMNS = 64, TOKENS = 1;
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
        tile.load(down_proj, next_column, next_step);
        if (++next_step < Tile::STEPS) return;
        next_step = 0;
        next_column += stride;
    };
    load_next(tiles[0]);  // weights depend on no kernel: ahead of the wait
    load_next(tiles[1]);
    wait_for_previous_kernel();
    extern __shared__ __align__(16) unsigned char dynamic_shared[];
    T* rows = reinterpret_cast<T*>(dynamic_shared);
    constexpr int ROW_STRIDE = WIDTH;
    stage_rows<WIDTH, VECTOR, THREADS>(rows, mul_1, 96, tokens);
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
        out[token * 64 + column] = from_float<bf16_t>(part_0);
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

// ---- add_2
// add
// from models/llama.py:130
// 1 token(s): 384 B, 64 FLOP; at least 0.00 us on one H200
// Each thread computes 8 consecutive elements of a row.
extern "C" __global__ void __launch_bounds__(256) add_2(
    const bf16_t* add_1,
    const bf16_t* linear_7,
    bf16_t* out,
    int tokens) {
    constexpr int THREADS = 256, VECTOR = 8;
    constexpr int CHUNKS = 8;  // of VECTOR elements in a row
    let_next_kernel_start();
    wait_for_previous_kernel();
    const int chunk = blockIdx.x * THREADS + threadIdx.x;
    const size_t token = chunk / CHUNKS;
    const int column = chunk % CHUNKS * VECTOR;
    if (token >= tokens) return;

    float add_1_values[VECTOR];
    load_vector(add_1_values, add_1 + token * 64 + column);
    float linear_7_values[VECTOR];
    load_vector(linear_7_values, linear_7 + token * 64 + column);
    float out_values[VECTOR];
#pragma unroll
    for (int i = 0; i < VECTOR; i++) {
        const float add_1_value = add_1_values[i];
        const float linear_7_value = linear_7_values[i];
        const float add_2 = add_1_value + linear_7_value;  // models/llama.py:130
        out_values[i] = add_2;
    }
    store_vector(out + token * 64 + column, out_values);
}
