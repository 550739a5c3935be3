// tiny: block decoder, 2 to 8 token(s), bfloat16, sm_90a. Emitted by Infernum 0.1.0.
//
// graph decoder {
//   stream %x : bf16[tokens, 64]
//   weight %input_layernorm : bf16[64] = "model.layers.{layer}.input_layernorm.weight"
//   weight %q_k_v_proj : bf16[128, 64] = "model.layers.{layer}.self_attn.q_proj.weight" [64, 64], "model.layers.{layer}.self_attn.k_proj.weight" [32, 64], "model.layers.{layer}.self_attn.v_proj.weight" [32, 64]
//   batch %positions : i32[tokens]
//   state %kv : bf16[pages, 2, 2, 64, 16]
//   batch %sequence : i32[tokens]
//   batch %page_table : i32[seqs, max_pages]
//   batch %query_start : i32[seqs + 1]
//   weight %o_proj : bf16[64, 64] = "model.layers.{layer}.self_attn.o_proj.weight"
//   weight %post_attention_layernorm : bf16[64] = "model.layers.{layer}.post_attention_layernorm.weight"
//   weight %gate_up_proj : bf16[192, 64] = "model.layers.{layer}.mlp.gate_proj.weight" [96, 64], "model.layers.{layer}.mlp.up_proj.weight" [96, 64]
//   weight %down_proj : bf16[64, 96] = "model.layers.{layer}.mlp.down_proj.weight"
//
//   %linear_8 = fused into_prologue(%x = %x, %input_layernorm = %input_layernorm, %q_k_v_proj = %q_k_v_proj) by merge_products, into_prologue : bf16[tokens, 128] {  # models/llama.py:126, models/llama.py:137, models/llama.py:138, models/llama.py:139
//     %rms_norm_1 = rms_norm(%x, %input_layernorm) {eps = 1e-05} : bf16[tokens, 64]  # models/llama.py:126
//     %linear_8 = linear(%rms_norm_1, %q_k_v_proj) : bf16[tokens, 128]  # models/llama.py:137, models/llama.py:138, models/llama.py:139
//     return %linear_8
//   }
//   %columns_1 = columns(%linear_8) {start = 0, stop = 64} : bf16[tokens, 64]  # models/llama.py:137, models/llama.py:138, models/llama.py:139
//   %columns_2 = columns(%linear_8) {start = 64, stop = 96} : bf16[tokens, 32]  # models/llama.py:137, models/llama.py:138, models/llama.py:139
//   %columns_3 = columns(%linear_8) {start = 96, stop = 128} : bf16[tokens, 32]  # models/llama.py:137, models/llama.py:138, models/llama.py:139
//   %heads_1 = heads(%columns_1) {dim = 16} : bf16[tokens, 4, 16]  # models/llama.py:140
//   %heads_2 = heads(%columns_2) {dim = 16} : bf16[tokens, 2, 16]  # models/llama.py:140
//   %heads_3 = heads(%columns_3) {dim = 16} : bf16[tokens, 2, 16]  # models/llama.py:140
//   %attention_1, %attention_1.1 = fused attend(%q = %heads_1, %k = %heads_2, %v = %heads_3, %kv = %kv, %positions = %positions, %sequence = %sequence, %query_start = %query_start, %page_table = %page_table) {scale = 0.25, window = 0, softcap = 0.0} by attend, into_prologue : bf16[tokens, 4, 16], bf16[pages, 2, 2, 64, 16] {  # models/llama.py:146, models/llama.py:145, models/llama.py:154, models/llama.py:156
//     %rope_2 = rope(%k, %positions) {rope = Rope()} : bf16[tokens, 2, 16]  # models/llama.py:146
//     %rope_1 = rope(%q, %positions) {rope = Rope()} : bf16[tokens, 4, 16]  # models/llama.py:145
//     %append_1 = append(%kv, %rope_2, %v, %positions, %sequence, %page_table) : bf16[pages, 2, 2, 64, 16]  # models/llama.py:154
//     %attention_1 = attention(%rope_1, %append_1, %positions, %sequence, %query_start, %page_table) {scale = 0.25} : bf16[tokens, 4, 16]  # models/llama.py:156
//     return %attention_1, %append_1
//   }
//   %flatten_1 = flatten(%attention_1) : bf16[tokens, 64]  # models/llama.py:156
//   %add_1 = fused into_epilogue(%flatten_1 = %flatten_1, %o_proj = %o_proj, %x = %x) by into_epilogue : bf16[tokens, 64] {  # models/llama.py:148, models/llama.py:128
//     %linear_4 = linear(%flatten_1, %o_proj) : bf16[tokens, 64]  # models/llama.py:148
//     %add_1 = add(%x, %linear_4) : bf16[tokens, 64]  # models/llama.py:128
//     return %add_1
//   }
//   %mul_1 = fused into_prologue(%add_1 = %add_1, %post_attention_layernorm = %post_attention_layernorm, %gate_up_proj = %gate_up_proj) by merge_products, into_epilogue, into_prologue : bf16[tokens, 96] {  # models/llama.py:129, models/llama.py:161, models/llama.py:162, models/llama.py:163
//     %rms_norm_2 = rms_norm(%add_1, %post_attention_layernorm) {eps = 1e-05} : bf16[tokens, 64]  # models/llama.py:129
//     %linear_1 = linear(%rms_norm_2, %gate_up_proj) : bf16[tokens, 192]  # models/llama.py:161, models/llama.py:162
//     %columns_4 = columns(%linear_1) {start = 0, stop = 96} : bf16[tokens, 96]  # models/llama.py:161, models/llama.py:162
//     %columns_5 = columns(%linear_1) {start = 96, stop = 192} : bf16[tokens, 96]  # models/llama.py:161, models/llama.py:162
//     %silu_1 = silu(%columns_4) : bf16[tokens, 96]  # models/llama.py:163
//     %mul_1 = mul(%silu_1, %columns_5) : bf16[tokens, 96]  # models/llama.py:163
//     return %mul_1
//   }
//   %add_2 = fused into_epilogue(%mul_1 = %mul_1, %down_proj = %down_proj, %add_1 = %add_1) by into_epilogue : bf16[tokens, 64] {  # models/llama.py:163, models/llama.py:130
//     %linear_7 = linear(%mul_1, %down_proj) : bf16[tokens, 64]  # models/llama.py:163
//     %add_2 = add(%add_1, %linear_7) : bf16[tokens, 64]  # models/llama.py:130
//     return %add_2
//   }
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

// ---- heads.cuh
// Heads of queries and keys that neighbouring threads of a warp hold between them, LANES threads to a head.

// The sum over a head's threads; each of them gets it.
template <int LANES> __device__ __forceinline__ float head_sum(float x) {
    static_assert(32 % LANES == 0, "a head is held within one warp");
    const unsigned own = LANES == 32 ? 0xffffffffu : ((1u << (LANES % 32)) - 1) << threadIdx.x % 32 / LANES * LANES;
#pragma unroll
    for (int lane = LANES / 2; lane > 0; lane >>= 1) x += __shfl_xor_sync(own, x, lane);
    return x;
}

// A head becomes its norm, rounded as stored in T. A thread has N pairs of its elements, and their gains.
template <typename T, int HEAD_DIM, int LANES, typename Norm, int N>
__device__ __forceinline__ void normalise_head(float (&first)[N], float (&second)[N], const float (&first_gain)[N],
                                               const float (&second_gain)[N], const Norm norm) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) sum += norm.summand(first[i]) + norm.summand(second[i]);
    const float scale = norm.scale(head_sum<LANES>(sum), HEAD_DIM);
#pragma unroll
    for (int i = 0; i < N; i++) {
        first[i] = round_to<T>(norm.apply(first[i], scale, first_gain[i]));
        second[i] = round_to<T>(norm.apply(second[i], scale, second_gain[i]));
    }
}

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

// ---- mbarrier.cuh
// Barriers in shared memory that also count what copies and other blocks bring (PTX ISA 9.7.13.15, mbarrier).

// An mbarrier: a phase ends when it has been arrived at `count` times. Phases alternate in parity from 0;
// the one before the first counts as ended.
__device__ __forceinline__ void init_barrier(unsigned barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void wait_for_phase(unsigned barrier, unsigned parity) {
    unsigned ended;
    do {
        asm volatile(
            "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
            : "=r"(ended)
            : "r"(barrier), "r"(parity)
            : "memory");
    } while (!ended);
}

// ---- cluster.cuh
// Clusters: blocks that run at the same time and reach each other's shared memory (PTX ISA 3.3.2, from sm_90 on).

__device__ __forceinline__ int blocks_in_cluster() {
    int count;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(count));
    return count;
}

__device__ __forceinline__ int rank_in_cluster() {
    int rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// Every thread of the cluster arrives, and may do other work before it waits until all have. Nothing is promised of
// memory but that the barriers that this thread has prepared are known (PTX ISA 9.7.13.4, barrier.cluster).
__device__ __forceinline__ void arrive_at_cluster() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void wait_for_cluster() { asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); }

// Arrive at an mbarrier whose phase then ends when so many bytes have come, be it before or after.
__device__ __forceinline__ void arrive_expecting(unsigned barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// What block `rank` of the cluster has where this block has `address` in its shared memory (PTX ISA 9.7.9.22, mapa).
__device__ __forceinline__ unsigned address_in_block(unsigned address, int rank) {
    unsigned there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}

// Send values to another block, which has started; its mbarrier counts their bytes when they have come
// (PTX ISA 9.7.9.12, st.async). Unlike a store and a barrier of the cluster, it waits for nothing else.
__device__ __forceinline__ void send(unsigned to, float4 values, unsigned barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
                 "f"(values.x), "f"(values.y), "f"(values.z), "f"(values.w), "r"(barrier)
                 : "memory");
}
__device__ __forceinline__ void send(unsigned to, float2 values, unsigned barrier) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(to),
                 "f"(values.x), "f"(values.y), "r"(barrier)
                 : "memory");
}

// Wait for every thread of the cluster, and see what all have written to their shared memory.
__device__ __forceinline__ void sync_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// What block `rank` of the cluster has in its shared memory where this block has `own`.
template <typename T> __device__ __forceinline__ const T* in_block(const T* own, int rank) {
    const T* there;
    asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(own), "r"(rank));
    return there;
}

// ---- attend_cluster.cuh
// Attention of single tokens on tensor cores: positions are the 16 rows of an mma, query heads its 8 columns.

// A unit is 16 positions of one key head: 16 rows of keys, then 16 of values. In shared memory a row is 16 bytes longer
// than a head, an odd number of 16-byte pieces: eight rows at one column lie in different banks.
constexpr int UNIT = 16;
template <int HEAD_DIM> constexpr int UNIT_ROW = HEAD_DIM + 8;  // elements

// What a warp reads of the cache, up to position `end`: every step-th unit from `unit` on, through a ring of its own of
// DEPTH units, so that no barrier is needed between loading and using them. Pages are looked up two units ahead.
template <typename T, typename Cache, int DEPTH> struct UnitStream {
    static constexpr int ROW = UNIT_ROW<Cache::DIM>, SLOT = 2 * UNIT * ROW * sizeof(T);  // elements; bytes
    static constexpr int PIECES = Cache::DIM / 8, ROWS = 32 / PIECES;  // 16-byte pieces in a row; rows of one access
    static_assert(PIECES <= 32 && ROWS <= UNIT, "a warp copies whole rows");
    const T* head;  // the keys of the head in page 0
    const int* pages;
    unsigned ring;
    int unit, step, end, page, next_page, slot = 0;

    __device__ __forceinline__ UnitStream(
        const T* head, const int* pages, unsigned ring, int unit, int step, int end)
        : head(head), pages(pages), ring(ring), unit(unit), step(step), end(end) {
        page = page_of(unit);
        next_page = page_of(unit + step);
    }

    // Start copying the next unit, if there is one; every call is one group of copies.
    __device__ __forceinline__ void load() {
        if (unit * UNIT < end) {
            const int row = threadIdx.x % 32 / PIECES, column = threadIdx.x % 32 % PIECES * 8;
            const T* from = head + page * Cache::STRIDE + (unit * UNIT % PAGE + row) * Cache::DIM + column;
            const unsigned to = ring + slot * SLOT + (row * ROW + column) * sizeof(T);
            const int left = end - unit * UNIT - row;  // rows beyond it become zeros
            constexpr bool WHOLE = ROWS * PIECES == 32 && UNIT % ROWS == 0;  // else some lanes copy less than others
#pragma unroll
            for (int r = 0; r < UNIT; r += ROWS) {
                if (!WHOLE && (row >= ROWS || r + row >= UNIT)) break;
                copy_async(to + r * ROW * sizeof(T), from + r * Cache::DIM, r < left);
                copy_async(to + (UNIT + r) * ROW * sizeof(T), from + Cache::VALUES + r * Cache::DIM, r < left);
            }
            slot = slot + 1 == DEPTH ? 0 : slot + 1;
            unit += step;
            page = next_page;
            next_page = page_of(unit + step);
        }
        commit_copies();
    }

    // The position behind the next unit.
    __device__ __forceinline__ int next_end() const { return (unit + 1) * UNIT; }

    __device__ __forceinline__ int page_of(int unit) const {
        return unit * UNIT < end ? max(pages[unit * UNIT / PAGE], 0) : 0;
    }
};

// An 8 x 8 matrix of 16-bit elements, a fragment before and after (PTX ISA 9.7.14.5.17, movmatrix).
__device__ __forceinline__ unsigned transposed(unsigned pair) {
    unsigned out;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
    return out;
}

// What a warp knows of HEADS query heads after some units, spread over its lanes as the results of an mma are: columns
// 2 * (lane % 4) and the next, and of the sums the elements lane / 4 and 8 further on of every 16.
template <typename T, int HEAD_DIM, int HEADS> struct WarpAttention {
    static constexpr int ROW = UNIT_ROW<HEAD_DIM>, STEPS = HEAD_DIM / 16;
    static_assert(HEAD_DIM % 16 == 0 && HEADS <= 8, "whole operands of an mma");
    unsigned query[STEPS][2];
    float sum[STEPS][4] = {}, highest[2] = {no_score(), no_score()}, total[2] = {};

    // Rows of queries, ROW elements apart; columns without a head repeat the last.
    __device__ __forceinline__ explicit WarpAttention(const T* queries) {
        const int lane = threadIdx.x % 32;
        const T* row = queries + min(lane / 4, HEADS - 1) * ROW + lane % 4 * 2;
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            query[k][0] = *reinterpret_cast<const unsigned*>(row + k * 16);
            query[k][1] = *reinterpret_cast<const unsigned*>(row + k * 16 + 8);
        }
    }

    // Attend to positions more, the rows `begin` to `end` - 1 of keys and values at these addresses of shared memory.
    // There are ROWS rows of both; the values in the others must be finite.
    template <int ROWS>
    __device__ __forceinline__ void attend(
        unsigned keys, unsigned values, int begin, int end, float scale, float cap) {
        const int lane = threadIdx.x % 32;
        const unsigned key = keys + (lane % ROWS * ROW + lane / 16 * 8) * sizeof(T);
        float score[2][4] = {};
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            unsigned a[4];
            load_matrices(a, key + k * 16 * sizeof(T));
            mma_16x8x16<T>(score[k % 2], a, query[k][0], query[k][1]);
        }
        float weight[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4 + i / 2 * 8;
            const bool present = row >= begin && row < end;
            weight[i] = present ? capped((score[0][i] + score[1][i]) * scale, cap) : minus_infinity();
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float raised = fmaxf(highest[h], fmaxf(weight[h], weight[2 + h]));
#pragma unroll
            for (int other = 4; other < 32; other *= 2)
                raised = fmaxf(raised, __shfl_xor_sync(0xffffffffu, raised, other));
            const float rescale = exp2_approximate(highest[h] - raised);
            highest[h] = raised;
            weight[h] = exp2_approximate(weight[h] - raised);
            weight[2 + h] = exp2_approximate(weight[2 + h] - raised);
            total[h] = fmaf(total[h], rescale, weight[h] + weight[2 + h]);
#pragma unroll
            for (int n = 0; n < STEPS; n++) {
                sum[n][h] *= rescale;
                sum[n][2 + h] *= rescale;
            }
        }
        const unsigned upper = transposed(pack<T>(weight[0], weight[1]));
        const unsigned lower = transposed(pack<T>(weight[2], weight[3]));
        const unsigned value = values + ((lane % 8 + lane / 16 * 8) % ROWS * ROW + lane / 8 % 2 * 8) * sizeof(T);
#pragma unroll
        for (int n = 0; n < STEPS; n++) {
            unsigned a[4];
            load_matrices_transposed(a, value + n * 16 * sizeof(T));
            mma_16x8x16<T>(sum[n], a, upper, lower);
        }
    }

    // The warp's part: sums to rows of `sums`, PART_ROW floats apart, so that no two lanes meet in a bank.
    static constexpr int PART_ROW = HEAD_DIM + 4;
    __device__ __forceinline__ void store(float* sums, float2* stats) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int head = lane % 4 * 2 + h;
#pragma unroll
            for (int other = 4; other < 32; other *= 2) total[h] += __shfl_xor_sync(0xffffffffu, total[h], other);
            if (head >= HEADS) continue;
            float* row = sums + head * PART_ROW + lane / 4;
#pragma unroll
            for (int n = 0; n < STEPS; n++) {
                row[n * 16] = sum[n][h];
                row[n * 16 + 8] = sum[n][2 + h];
            }
            if (lane < 4) stats[head] = make_float2(highest[h], total[h]);
        }
    }
};

// How much each of N parts of a softmax-weighted sum weighs in the whole; of a part is known its highest score, and its
// total relative to that.
template <int N> struct Shares {
    float factor[N], highest = no_score(), total = 0.0f;

    __device__ __forceinline__ explicit Shares(const float2 (&stats)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) highest = fmaxf(highest, stats[i].x);
#pragma unroll
        for (int i = 0; i < N; i++) {
            factor[i] = exp2_approximate(stats[i].x - highest);
            total = fmaf(factor[i], stats[i].y, total);
        }
    }
};

// ---- splits.cuh
// What clusters have found in their splits of a context, told by way of global memory.

// Words of global memory by which a block tells another something, while both run; 0 where nothing has been left.
// A scalar of 64 bits is read or written as a whole (PTX ISA 8.2.4), so that a word brings its own news.
__device__ __forceinline__ unsigned long long look_at(const unsigned long long* word) {
    unsigned long long found;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(found) : "l"(word) : "memory");
    return found;
}
__device__ __forceinline__ void leave(unsigned long long* word, unsigned long long value) {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
}

// A softmax-weighted average over some positions, and the logarithm to base two of its total of weights.
struct Average {
    float value, log_total;

    __device__ __forceinline__ Average(float sum, float highest, float total) {
        total = fmaxf(total, 1e-30f);  // of no positions
        value = sum / total;
        log_total = highest + __log2f(total);
    }

    // Both numbers in a word, inverted, as then no number makes it 0.
    __device__ __forceinline__ explicit Average(unsigned long long word)
        : value(__uint_as_float(~static_cast<unsigned>(word))),
          log_total(__uint_as_float(~static_cast<unsigned>(word >> 32))) {}
    __device__ __forceinline__ unsigned long long word() const {
        const unsigned high = ~__float_as_uint(log_total), low = ~__float_as_uint(value);
        return static_cast<unsigned long long>(high) << 32 | low;
    }

    // Join the averages over other positions that blocks leave at `count` words, `stride` apart. They are waited for,
    // and the words are 0 afterwards.
    __device__ __forceinline__ void join(unsigned long long* words, size_t stride, int count) {
        constexpr int AT_ONCE = 4;
        float total = 1.0f;  // in units of 2 to the log_total
        for (int first = 0; first < count; first += AT_ONCE) {
            unsigned long long found[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
                found[i] = first + i < count ? look_at(words + (first + i) * stride) : 0;
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                if (first + i >= count) break;
                unsigned long long* word = words + (first + i) * stride;
                while (found[i] == 0) found[i] = look_at(word);
                leave(word, 0);
                const Average other(found[i]);
                const float highest = fmaxf(log_total, other.log_total);
                const float mine = exp2_approximate(log_total - highest);
                const float others = exp2_approximate(other.log_total - highest);
                value = fmaf(others, other.value, mine * value);
                total = fmaf(mine, total, others);
                log_total = highest;
            }
        }
        value /= total;
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

// ---- gemv_mma_q_k_v_proj
// rms_norm -> linear, by merge_products, into_prologue
// from models/llama.py:126, models/llama.py:137, models/llama.py:138, models/llama.py:139
// 8 token(s): 19.6 kB, 133 kFLOP; at least 0.00 us on one H200
// On tensor cores, weights as the 16 rows of an mma and tokens as its 8 columns. Each block computes a range of output
// columns, a tile after another; its warps share the width of a tile and stream their weights through rings of
// 6 panels. 4 of them are filled ahead of the wait, the others behind the activations: what is in flight delays what
// comes after it.
extern "C" __global__ void __launch_bounds__(256, 1) gemv_mma_q_k_v_proj(
    const bf16_t* __restrict__ q_k_v_proj,
    const bf16_t* __restrict__ input_layernorm,
    const bf16_t* x,
    bf16_t* out,
    int tokens) {
    using T = bf16_t;
    // out[tokens, COLUMNS], summed over WIDTH
    constexpr int WIDTH = 64, COLUMNS = 128, TOKENS = 8;
    constexpr int THREADS = 256, WARPS = THREADS / 32, DEPTH = 6, PREFILL = 4;
    constexpr int PARTS = 1;  // weight rows, COLUMNS apart, that one output column combines
    using Stream = WeightStream<T, WIDTH, COLUMNS, PARTS, WARPS, DEPTH, 0, 8>;
    extern __shared__ __align__(128) unsigned char gemv_mma_q_k_v_proj_shared[];
    __shared__ float partial[2][WARPS][TOKENS][16];  // of two tiles, by turns
    const unsigned rings = shared_address(gemv_mma_q_k_v_proj_shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int begin = COLUMNS * size_t(blockIdx.x) / gridDim.x;  // of the block's columns
    const int end = COLUMNS * size_t(blockIdx.x + 1) / gridDim.x;

    let_next_kernel_start();
    Stream stream(q_k_v_proj, rings, begin, end);
#pragma unroll
    for (int i = 0; i < PREFILL; i++) stream.load();  // weights depend on no kernel: ahead of the wait
    StagedRows<T, WIDTH, TOKENS, THREADS, 8> rows(rings + WARPS * DEPTH * Stream::SLOT);
    rows.load_gain(input_layernorm);  // models/llama.py:126
    wait_for_previous_kernel();
    rows.load(x, 64, tokens);
#pragma unroll
    for (int i = PREFILL; i < DEPTH; i++) stream.load();
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
        out[token * 128 + column] = from_float<bf16_t>(part_0);
    }
}

// ---- attend_cluster
// rope -> rope -> append -> attention, by attend, into_prologue
// from models/llama.py:146, models/llama.py:145, models/llama.py:154, models/llama.py:156
// 8 token(s) at context 1024: 1.05 MB, 2.1 MFLOP; at least 0.22 us on one H200
// Clusters of blocks, one or several splits per token and HEAD_TILE query heads of one key head. Their warps share out
// the context in units of 16 positions; the blocks of a cluster then send each other what they found, and each finishes
// a slice of the result. Those of the last split wait for what the others have left for them in global memory.
// What is in the cache already, no kernel of this step writes: the first units of each warp are on their way
// before q, k and v are known. The last block attends to the keys and values of the step itself, and stores them.
__device__ const __align__(16) float attend_cluster_inv_freq[8] = {
    1.0f, 0.3162277638912201f, 0.10000000149011612f, 0.03162277862429619f,
    0.009999999776482582f, 0.003162277862429619f, 0.0010000000474974513f, 0.0003162277862429619f,
};

// What splits but the last have found, for each element of the result.
__device__ unsigned long long attend_cluster_left[44][32];

extern "C" __global__ void __launch_bounds__(256, 2) attend_cluster(
    const bf16_t* q,
    const bf16_t* k,
    const bf16_t* v,
    bf16_t* kv,
    const int* positions,
    const int* sequence,
    const int* query_start,
    const int* page_table,
    bf16_t* out,
    int max_pages) {
    using T = bf16_t;
    constexpr int KV_HEADS = 2, GROUP = 2, HEAD_DIM = 16, HALF = HEAD_DIM / 2;
    constexpr int ROTARY = 16, PAIRS = 2;  // elements that are turned; neighbouring pairs of a thread
    constexpr int HEAD_TILE = 2, HEAD_TILES = 1;
    constexpr int WARPS = 8, THREADS = 32 * WARPS, DEPTH = 8;  // units in a warp's ring
    constexpr int MOST_BLOCKS = 8, MOST_NEW = 8;  // of a cluster; tokens in a step
    constexpr int WINDOW = 0;  // positions that a token attends to, itself among them; 0: all
    constexpr float SCALE = base_two(0.25f), CAP = 0.0f;
    constexpr size_t Q_STRIDE = 128, K_STRIDE = 128, V_STRIDE = 128;
    constexpr size_t OUT_STRIDE = 64;
    using Cache = KvCache<KV_HEADS, HEAD_DIM>;
    using Stream = UnitStream<T, Cache, DEPTH>;
    using Warp = WarpAttention<T, HEAD_DIM, HEAD_TILE>;
    using Pairs = HeadPairs<HEAD_DIM, ROTARY, false>;
    constexpr int ROW = UNIT_ROW<HEAD_DIM>, ELEMENTS = HEAD_TILE * HEAD_DIM;
    static_assert(HEAD_TILE * Warp::PART_ROW * sizeof(float) <= DEPTH * Stream::SLOT, "a part fits into a warp's ring");
    extern __shared__ __align__(16) unsigned char attend_cluster_shared[];  // the rings of the warps, later their parts
    __shared__ __align__(16) T queries[HEAD_TILE][ROW], new_keys[MOST_NEW][ROW], new_values[MOST_NEW][ROW];
    __shared__ float2 warp_stats[WARPS][HEAD_TILE];
    __shared__ __align__(16) float sums[ELEMENTS + 4 * MOST_BLOCKS];  // of each block, the elements of this block's slice
    __shared__ float2 stats[MOST_BLOCKS][HEAD_TILE];  // of each block: highest score and total
    __shared__ __align__(8) unsigned long long parts_have_come;

    let_next_kernel_start();
    const int blocks = blocks_in_cluster(), rank = rank_in_cluster(), warp = threadIdx.x / 32;
    const unsigned come = shared_address(&parts_have_come);
    if (threadIdx.x == 0) init_barrier(come, 1);
    arrive_at_cluster();
    const int token = blockIdx.x, kv_head = blockIdx.y / HEAD_TILES;
    const int position = positions[token], sequence_of = sequence[token];
    const int* pages = page_table + sequence_of * max_pages;
    const int first_token = query_start[sequence_of];  // of the sequence in this step
    const int count_new = token - first_token + 1;  // keys of the step that this token attends to
    const int first_new = position + 1 - count_new;  // their first position; the cache holds those before
    const T* head_keys = kv + Cache::key(0, kv_head, 0);
    const unsigned ring = shared_address(attend_cluster_shared) + warp * DEPTH * Stream::SLOT;
    const int since = first_attended<WINDOW>(position), workers = WARPS * gridDim.z;  // that share out the units
    const int first_unit = since / UNIT + warp * gridDim.z + blockIdx.z;               // of this warp
    Stream stream(head_keys, pages, ring, first_unit, workers, first_new);
#pragma unroll
    for (int i = 0; i < DEPTH; i++) stream.load();

    const bool last = blockIdx.z == gridDim.z - 1;
    const int page = pages[position / PAGE];
    const int first_head = kv_head * GROUP + blockIdx.y % HEAD_TILES * HEAD_TILE;
    const int last_head = kv_head * GROUP + GROUP - 1;  // the last tile of a group may have fewer heads
    constexpr int PAIR_LANES = HALF / PAIRS, AT_ONCE = THREADS / PAIR_LANES;  // heads that are turned at once
    constexpr bool ALL_TURN = AT_ONCE * PAIR_LANES == THREADS;  // else the last threads hold no pairs
    constexpr int TURNS = (HEAD_TILE + MOST_NEW + AT_ONCE - 1) / AT_ONCE;
    const int pair = threadIdx.x % PAIR_LANES * PAIRS, rows = HEAD_TILE + (last ? count_new : 0);
    float frequency[PAIRS];
    load_vector(frequency, attend_cluster_inv_freq + pair);
    const Rotation<PAIRS> rotation(position, frequency);
    constexpr int PIECES = HEAD_DIM / 8, NEW_PIECES = (MOST_NEW * PIECES + THREADS - 1) / THREADS;

    wait_for_previous_kernel();
    float first[TURNS][PAIRS], second[TURNS][PAIRS];
#pragma unroll
    for (int t = 0; t < TURNS; t++) {
        const int row = threadIdx.x / PAIR_LANES + t * AT_ONCE, n = row - HEAD_TILE;
        if (row >= rows || (!ALL_TURN && threadIdx.x >= AT_ONCE * PAIR_LANES)) break;
        const T* from = n < 0 ? q + token * Q_STRIDE + min(first_head + row, last_head) * HEAD_DIM
                              : k + (first_token + n) * K_STRIDE + kv_head * HEAD_DIM;
        Pairs::load(first[t], second[t], from, pair);
    }
    if (last) {
#pragma unroll
        for (int p = 0; p < NEW_PIECES; p++) {
            const int piece = threadIdx.x + p * THREADS, n = piece / PIECES, column = piece % PIECES * 8;
            if (n >= MOST_NEW) break;
            uint4 value = {0, 0, 0, 0};  // no value is multiplied with no weight
            const T* from = v + (first_token + n) * V_STRIDE + kv_head * HEAD_DIM + column;
            if (n < count_new) value = *reinterpret_cast<const uint4*>(from);
            *reinterpret_cast<uint4*>(&new_values[n][column]) = value;
        }
    }
#pragma unroll
    for (int t = 0; t < TURNS; t++) {
        const int row = threadIdx.x / PAIR_LANES + t * AT_ONCE, n = row - HEAD_TILE;
        if (row >= rows || (!ALL_TURN && threadIdx.x >= AT_ONCE * PAIR_LANES)) break;
        if (n < 0 || n == count_new - 1) {
            rotation.turn(first[t], second[t]);
        } else {
            Rotation<PAIRS>(first_new + n, frequency).turn(first[t], second[t]);
        }
        Pairs::store(n < 0 ? queries[row] : new_keys[n], first[t], second[t], pair);
    }
    __syncthreads();
    if (last && blockIdx.y % HEAD_TILES == 0 && page >= 0 && threadIdx.x < 2 * PIECES) {
        const int of = threadIdx.x / PIECES, column = threadIdx.x % PIECES * 8;
        const T* from = of == 0 ? new_keys[count_new - 1] : new_values[count_new - 1];
        T* to = kv + Cache::key(page, kv_head, position % PAGE) + of * Cache::VALUES;
        *reinterpret_cast<uint4*>(to + column) = *reinterpret_cast<const uint4*>(from + column);
    }

    Warp attention(queries[0]);
    const auto from = [&](int row) { return WINDOW == 0 ? 0 : since - row; };  // the first attended, from `row` on
    if (last && warp == WARPS - 1) {
        const unsigned keys = shared_address(new_keys), values = shared_address(new_values);
        attention.template attend<MOST_NEW>(keys, values, from(first_new), count_new, SCALE, CAP);
    }
    int slot = 0;
    for (int unit = first_unit; unit * UNIT < first_new; unit += workers) {
        wait_for_older_copies<DEPTH - 1>();
        __syncwarp();
        const unsigned keys = ring + slot * Stream::SLOT, values = keys + UNIT * ROW * sizeof(T);
        attention.template attend<UNIT>(keys, values, from(unit * UNIT), first_new - unit * UNIT, SCALE, CAP);
        __syncwarp();
        stream.load();
        slot = slot + 1 == DEPTH ? 0 : slot + 1;
    }
    constexpr int RING_FLOATS = DEPTH * Stream::SLOT / sizeof(float);
    float* parts = reinterpret_cast<float*>(attend_cluster_shared);
    attention.store(parts + warp * RING_FLOATS, warp_stats[warp]);
    __syncthreads();

    const int slice = (ELEMENTS / 4 + blocks - 1) / blocks * 4;  // elements of the result that a block finishes
    const int mine = min(slice, max(0, ELEMENTS - rank * slice));  // the last blocks may have fewer, or none
    if (threadIdx.x == 0) arrive_expecting(come, blocks * (mine * sizeof(float) + HEAD_TILE * sizeof(float2)));
    wait_for_cluster();  // all blocks have started, and may be sent to
    for (int e = threadIdx.x * 4; e < ELEMENTS; e += THREADS * 4) {
        const int h = e / HEAD_DIM, column = e % HEAD_DIM, owner = e / slice;
        float2 of_warp[WARPS];
#pragma unroll
        for (int w = 0; w < WARPS; w++) of_warp[w] = warp_stats[w][h];
        const Shares<WARPS> shares(of_warp);
        float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float* part = parts + w * RING_FLOATS + h * Warp::PART_ROW + column;
            const float4 of = *reinterpret_cast<const float4*>(part);
            sum.x = fmaf(shares.factor[w], of.x, sum.x);
            sum.y = fmaf(shares.factor[w], of.y, sum.y);
            sum.z = fmaf(shares.factor[w], of.z, sum.z);
            sum.w = fmaf(shares.factor[w], of.w, sum.w);
        }
        const unsigned to = shared_address(&sums[(rank - owner) * slice + e]);
        send(address_in_block(to, owner), sum, address_in_block(come, owner));
        if (column / 4 >= blocks) continue;  // as many threads of each head send its statistics to a block each
        const unsigned stats_to = shared_address(&stats[rank][h]);
        const float2 found = {shares.highest, shares.total};
        send(address_in_block(stats_to, column / 4), found, address_in_block(come, column / 4));
    }
    wait_for_phase(come, 0);
    const int splits = gridDim.z / blocks, split = blockIdx.z / blocks, cluster = blockIdx.y * gridDim.x + token;
    const size_t to_next_split = gridDim.x * gridDim.y * ELEMENTS;
    for (int i = threadIdx.x; i < mine; i += THREADS) {
        const int e = rank * slice + i, h = e / HEAD_DIM;
        if (first_head + h > last_head) break;
        float2 of_block[MOST_BLOCKS];
#pragma unroll
        for (int b = 0; b < MOST_BLOCKS; b++) of_block[b] = b < blocks ? stats[b][h] : make_float2(no_score(), 0.0f);
        const Shares<MOST_BLOCKS> shares(of_block);
        float sum = 0.0f;
#pragma unroll
        for (int b = 0; b < MOST_BLOCKS; b++) {
            if (b < blocks) sum = fmaf(shares.factor[b], sums[b * slice + i], sum);
        }
        Average average(sum, shares.highest, shares.total);
        unsigned long long* left = &attend_cluster_left[cluster][e];  // by the first split
        if (split < splits - 1) {
            leave(left + split * to_next_split, average.word());
            continue;
        }
        if (splits > 1) average.join(left, to_next_split, splits - 1);
        out[token * OUT_STRIDE + first_head * HEAD_DIM + e] = from_float<T>(average.value);
    }
}

// ---- gemv_mma_o_proj
// linear -> add, by into_epilogue
// from models/llama.py:148, models/llama.py:128
// 8 token(s): 11.3 kB, 66 kFLOP; at least 0.00 us on one H200
// On tensor cores, weights as the 16 rows of an mma and tokens as its 8 columns. Each block computes a range of output
// columns, a tile after another; its warps share the width of a tile and stream their weights through rings of
// 6 panels. 4 of them are filled ahead of the wait, the others behind the activations: what is in flight delays what
// comes after it.
extern "C" __global__ void __launch_bounds__(256, 1) gemv_mma_o_proj(
    const bf16_t* __restrict__ o_proj,
    const bf16_t* flatten_1,
    const bf16_t* x,
    bf16_t* out,
    int tokens) {
    using T = bf16_t;
    // out[tokens, COLUMNS], summed over WIDTH
    constexpr int WIDTH = 64, COLUMNS = 64, TOKENS = 8;
    constexpr int THREADS = 256, WARPS = THREADS / 32, DEPTH = 6, PREFILL = 4;
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
#pragma unroll
    for (int i = PREFILL; i < DEPTH; i++) stream.load();
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
        float x_value = 0.0f;
        if (finishes) {  // long before they are needed
            x_value = to_float(x[token * 64 + column]);
        }
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
        const float part_0 = round_to<bf16_t>(whole_0);
        const float add_1 = x_value + part_0;  // models/llama.py:128
        out[token * 64 + column] = from_float<bf16_t>(add_1);
    }
}

// ---- gemv_mma_gate_up_proj
// rms_norm -> linear -> columns -> columns -> silu -> mul, by merge_products, into_epilogue, into_prologue
// from models/llama.py:129, models/llama.py:161, models/llama.py:162, models/llama.py:163
// 8 token(s): 27.3 kB, 202 kFLOP; at least 0.01 us on one H200
// On tensor cores, weights as the 16 rows of an mma and tokens as its 8 columns. Each block computes a range of output
// columns, a tile after another; its warps share the width of a tile and stream their weights through rings of
// 6 panels. 4 of them are filled ahead of the wait, the others behind the activations: what is in flight delays what
// comes after it.
extern "C" __global__ void __launch_bounds__(256, 1) gemv_mma_gate_up_proj(
    const bf16_t* __restrict__ gate_up_proj,
    const bf16_t* __restrict__ post_attention_layernorm,
    const bf16_t* add_1,
    bf16_t* out,
    int tokens) {
    using T = bf16_t;
    // out[tokens, COLUMNS], summed over WIDTH
    constexpr int WIDTH = 64, COLUMNS = 96, TOKENS = 8;
    constexpr int THREADS = 256, WARPS = THREADS / 32, DEPTH = 6, PREFILL = 4;
    constexpr int PARTS = 2;  // weight rows, COLUMNS apart, that one output column combines
    using Stream = WeightStream<T, WIDTH, COLUMNS, PARTS, WARPS, DEPTH, 0, 8>;
    extern __shared__ __align__(128) unsigned char gemv_mma_gate_up_proj_shared[];
    __shared__ float partial[2][WARPS][TOKENS][16];  // of two tiles, by turns
    const unsigned rings = shared_address(gemv_mma_gate_up_proj_shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int begin = COLUMNS * size_t(blockIdx.x) / gridDim.x;  // of the block's columns
    const int end = COLUMNS * size_t(blockIdx.x + 1) / gridDim.x;

    let_next_kernel_start();
    Stream stream(gate_up_proj, rings, begin, end);
#pragma unroll
    for (int i = 0; i < PREFILL; i++) stream.load();  // weights depend on no kernel: ahead of the wait
    StagedRows<T, WIDTH, TOKENS, THREADS, 8> rows(rings + WARPS * DEPTH * Stream::SLOT);
    rows.load_gain(post_attention_layernorm);  // models/llama.py:129
    wait_for_previous_kernel();
    rows.load(add_1, 64, tokens);
#pragma unroll
    for (int i = PREFILL; i < DEPTH; i++) stream.load();
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
        float whole_1 = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            whole_0 += partial[turn][w][token][in_tile];
            whole_1 += partial[turn][w][token][in_tile + 8];
        }
        const float part_0 = round_to<bf16_t>(whole_0);
        const float part_1 = round_to<bf16_t>(whole_1);
        const float silu_1 = round_to<bf16_t>(__fdividef(part_0, 1.0f + expf(-part_0)));  // models/llama.py:163
        const float mul_1 = silu_1 * part_1;  // models/llama.py:163
        out[token * 96 + column] = from_float<bf16_t>(mul_1);
    }
}

// ---- gemv_down_proj
// linear -> add, by into_epilogue
// from models/llama.py:163, models/llama.py:130
// 8 token(s): 15.9 kB, 98.8 kFLOP; at least 0.00 us on one H200
// Each warp computes whole output columns, for all tokens at once, and strides over the columns with the grid. Its
// lanes share a row of weights in chunks of 8; two tiles of them are on their way ahead of the sum.
extern "C" __global__ void __launch_bounds__(256, 2) gemv_down_proj(
    const bf16_t* __restrict__ down_proj,
    const bf16_t* mul_1,
    const bf16_t* add_1,
    bf16_t* out,
    int tokens) {
    using T = bf16_t;
    // out[tokens, COLUMNS], summed over WIDTH
    constexpr int WIDTH = 96, COLUMNS = 64, TOKENS = 8;
    constexpr int VECTOR = 8, UNROLL = 4, THREADS = 256, WARPS = THREADS / 32;
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
    float add_1_value;
    const auto load_operands = [&] {  // of the column begun, long before they are needed
        if (token >= tokens) return;
        add_1_value = to_float(add_1[token * 64 + column]);
    };
    if (column < COLUMNS) load_operands();
    float sum[PARTS][TOKENS] = {};
    int step = 0;
    const auto finish_column = [&] {
#pragma unroll
        for (int part = 0; part < PARTS; part++)
#pragma unroll
            for (int t = 0; t < TOKENS; t++) sum[part][t] = warp_sum(sum[part][t]);

        if (token >= tokens) return;
#pragma unroll
        for (int t = 1; t < TOKENS; t++) {
            if (token != t) continue;
            sum[0][0] = sum[0][t];
        }
        const float part_0 = round_to<bf16_t>(sum[0][0]);
        const float add_2 = add_1_value + part_0;  // models/llama.py:130
        out[token * 64 + column] = from_float<bf16_t>(add_2);
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
            if (column < COLUMNS) load_operands();
#pragma unroll
            for (int part = 0; part < PARTS; part++)
#pragma unroll
                for (int t = 0; t < TOKENS; t++) sum[part][t] = 0.0f;
        }
    }
}
