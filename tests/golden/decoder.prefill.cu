// tiny: block decoder, 65 to 512 token(s), bfloat16, sm_90a. Emitted by Infernum 0.1.0.
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
//   %rms_norm_1 = rms_norm(%x, %input_layernorm) {eps = 1e-05} : bf16[tokens, 64]  # models/llama.py:126
//   %linear_8 = linear(%rms_norm_1, %q_k_v_proj) : bf16[tokens, 128]  # models/llama.py:137, models/llama.py:138, models/llama.py:139
//   %columns_1 = columns(%linear_8) {start = 0, stop = 64} : bf16[tokens, 64]  # models/llama.py:137, models/llama.py:138, models/llama.py:139
//   %columns_2 = columns(%linear_8) {start = 64, stop = 96} : bf16[tokens, 32]  # models/llama.py:137, models/llama.py:138, models/llama.py:139
//   %columns_3 = columns(%linear_8) {start = 96, stop = 128} : bf16[tokens, 32]  # models/llama.py:137, models/llama.py:138, models/llama.py:139
//   %heads_1 = heads(%columns_1) {dim = 16} : bf16[tokens, 4, 16]  # models/llama.py:140
//   %heads_2 = heads(%columns_2) {dim = 16} : bf16[tokens, 2, 16]  # models/llama.py:140
//   %heads_3 = heads(%columns_3) {dim = 16} : bf16[tokens, 2, 16]  # models/llama.py:140
//   %rope_1, %rope_1.1 = fused rope_append(%q = %heads_1, %k = %heads_2, %v = %heads_3, %kv = %kv, %positions = %positions, %sequence = %sequence, %page_table = %page_table) {rope = Rope(), key_rope = Rope()} by rope_append : bf16[tokens, 4, 16], bf16[pages, 2, 2, 64, 16] {  # models/llama.py:145, models/llama.py:146, models/llama.py:154
//     %rope_1 = rope(%q, %positions) {rope = Rope()} : bf16[tokens, 4, 16]  # models/llama.py:145
//     %rope_2 = rope(%k, %positions) {rope = Rope()} : bf16[tokens, 2, 16]  # models/llama.py:146
//     %append_1 = append(%kv, %rope_2, %v, %positions, %sequence, %page_table) : bf16[pages, 2, 2, 64, 16]  # models/llama.py:154
//     return %rope_1, %append_1
//   }
//   %attention_1 = attention(%rope_1, %rope_1.1, %positions, %sequence, %query_start, %page_table) {scale = 0.25} : bf16[tokens, 4, 16]  # models/llama.py:156
//   %flatten_1 = flatten(%attention_1) : bf16[tokens, 64]  # models/llama.py:156
//   %linear_4 = linear(%flatten_1, %o_proj) : bf16[tokens, 64]  # models/llama.py:148
//   %add_1, %add_1.1 = fused into_norm(%x = %x, %linear_4 = %linear_4, %post_attention_layernorm = %post_attention_layernorm) by into_norm : bf16[tokens, 64], bf16[tokens, 64] {  # models/llama.py:128, models/llama.py:129
//     %add_1 = add(%x, %linear_4) : bf16[tokens, 64]  # models/llama.py:128
//     %rms_norm_2 = rms_norm(%add_1, %post_attention_layernorm) {eps = 1e-05} : bf16[tokens, 64]  # models/llama.py:129
//     return %add_1, %rms_norm_2
//   }
//   %linear_1 = linear(%add_1.1, %gate_up_proj) : bf16[tokens, 192]  # models/llama.py:161, models/llama.py:162
//   %columns_4 = columns(%linear_1) {start = 0, stop = 96} : bf16[tokens, 96]  # models/llama.py:161, models/llama.py:162
//   %columns_5 = columns(%linear_1) {start = 96, stop = 192} : bf16[tokens, 96]  # models/llama.py:161, models/llama.py:162
//   %mul_1 = fused merge_pointwise(%columns_4 = %columns_4, %columns_5 = %columns_5) by merge_pointwise : bf16[tokens, 96] {  # models/llama.py:163
//     %silu_1 = silu(%columns_4) : bf16[tokens, 96]  # models/llama.py:163
//     %mul_1 = mul(%silu_1, %columns_5) : bf16[tokens, 96]  # models/llama.py:163
//     return %mul_1
//   }
//   %add_2 = fused into_library(%mul_1 = %mul_1, %down_proj = %down_proj, %add_1 = %add_1) by into_library : bf16[tokens, 64] {  # models/llama.py:163, models/llama.py:130
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

// ---- query_tiles.cuh
// How a ragged batch of prompts is cut into tiles of queries.

// Up to QUERIES neighbouring tokens of one sequence; `count` is not positive where there is nothing to do.
struct QueryTile {
    int sequence, first, count;
    bool is_single;  // the sequence has no other token in the step
};

// The tile of queries in a slot. Sequence s owns the slots from query_start[s] / QUERIES + s on: as rounding down
// loses less than one tile and every sequence adds a slot, they hold all its tiles, and no other's.
template <int QUERIES>
__device__ __forceinline__ QueryTile find_queries(const int* query_start, int seqs, int slot) {
    int sequence = 0;
    for (int beyond = seqs; beyond - sequence > 1;) {
        const int middle = (sequence + beyond) / 2;
        if (query_start[middle] / QUERIES + middle <= slot) {
            sequence = middle;
        } else {
            beyond = middle;
        }
    }
    const int start = query_start[sequence];
    const int first = start + (slot - start / QUERIES - sequence) * QUERIES;
    const int end = query_start[sequence + 1];
    return {sequence, first, min(QUERIES, end - first), end - start == 1};
}

// ---- attention_prefill.cuh
// The parts of attention over whole tiles of queries (Dao 2023, FlashAttention-2, arXiv:2307.08691), for four warps.

// Rows of a tile in shared memory are 16 bytes longer than a head, an odd number of 16-byte units: eight rows at
// one column lie in different banks.
template <int HEAD_DIM> constexpr int PADDED = HEAD_DIM + 8;

// Start copying one head's keys or values of a page; rows from `rows` on become zeros. LANES neighbouring threads
// share a row, so that all addresses of a thread are a constant apart.
template <int HEAD_DIM, typename T> __device__ __forceinline__ void copy_page(T* tile, const T* page, int rows) {
    constexpr int LANES = HEAD_DIM % 64 == 0 ? 8 : HEAD_DIM % 32 == 0 ? 4 : 2, PASS = 128 / LANES;
    const int row = threadIdx.x / LANES, column = threadIdx.x % LANES * 8;
    const unsigned to = shared_address(tile + row * PADDED<HEAD_DIM> + column);
    const T* from = page + row * HEAD_DIM + column;
#pragma unroll
    for (int r = 0; r < PAGE; r += PASS) {
#pragma unroll
        for (int c = 0; c < HEAD_DIM; c += LANES * 8) {
            copy_async(to + (r * PADDED<HEAD_DIM> + c) * sizeof(T), from + r * HEAD_DIM + c, row + r < rows);
        }
    }
}

// A warp's scores: TILES times 16 queries against the 64 keys of a page.
template <typename T, int HEAD_DIM, int TILES>
__device__ __forceinline__ void score_page(float (&score)[TILES][PAGE / 8][4], const T* queries, const T* keys) {
    const int lane = threadIdx.x % 32;
    const unsigned query = shared_address(queries + lane % 16 * PADDED<HEAD_DIM> + lane / 16 * 8);
    const unsigned key = shared_address(keys + lane % 16 * PADDED<HEAD_DIM> + lane / 16 * 8);
#pragma unroll
    for (int k = 0; k < HEAD_DIM; k += 16) {
        unsigned a[TILES][4];
#pragma unroll
        for (int m = 0; m < TILES; m++) load_matrices(a[m], query + (m * 16 * PADDED<HEAD_DIM> + k) * sizeof(T));
#pragma unroll
        for (int n = 0; n < PAGE / 16; n++) {
            unsigned b[4];
            load_matrices(b, key + (n * 16 * PADDED<HEAD_DIM> + k) * sizeof(T));
#pragma unroll
            for (int m = 0; m < TILES; m++) {
                mma_16x8x16<T>(score[m][2 * n], a[m], b[0], b[2]);
                mma_16x8x16<T>(score[m][2 * n + 1], a[m], b[1], b[3]);
            }
        }
    }
}

// Keep every row from keys past its position. `row` is the warp's first, counted from the start of the page in rows,
// of which GROUP share a position: a key is past when its own first row is past, which spares a division.
template <int GROUP, int TILES>
__device__ __forceinline__ void hide_future(float (&score)[TILES][PAGE / 8][4], int row) {
    const int lane_row = row + int(threadIdx.x % 32 / 4) - int(threadIdx.x % 4) * 2 * GROUP;
#pragma unroll
    for (int m = 0; m < TILES; m++) {
#pragma unroll
        for (int i = 0; i < PAGE / 8 * 4; i++) {
            const int key = i / 4 * 8 + i % 2, below = m * 16 + i % 4 / 2 * 8;
            if (key * GROUP > lane_row + below) score[m][i / 4][i % 4] = minus_infinity();
        }
    }
}

// Keep every row from keys before its window. `row` is the warp's first, counted as above from WINDOW positions on: a key
// is before the window of the rows from its own on.
template <int GROUP, int TILES>
__device__ __forceinline__ void hide_past(float (&score)[TILES][PAGE / 8][4], int row) {
    const int lane_row = row + int(threadIdx.x % 32 / 4) - int(threadIdx.x % 4) * 2 * GROUP;
#pragma unroll
    for (int m = 0; m < TILES; m++) {
#pragma unroll
        for (int i = 0; i < PAGE / 8 * 4; i++) {
            const int key = i / 4 * 8 + i % 2, below = m * 16 + i % 4 / 2 * 8;
            if (key * GROUP <= lane_row + below) score[m][i / 4][i % 4] = minus_infinity();
        }
    }
}

template <int TILES>
__device__ __forceinline__ void cap_tiles(float (&score)[TILES][PAGE / 8][4], float scale, float cap) {
#pragma unroll
    for (int m = 0; m < TILES; m++) {
#pragma unroll
        for (int n = 0; n < PAGE / 8; n++) cap_scores(score[m][n], scale, cap);
    }
}

// Turn the scores of 16 queries into weights, and rescale what has been summed under the old maxima.
// Of each query's row, `total` is this lane's part of the sum. Two neighbouring 8-column results of the first product
// are, once packed, the 16-column operand of the second: nothing moves between lanes.
template <typename T, int COLUMNS>
__device__ __forceinline__ void weigh(unsigned (&weight)[PAGE / 16][4], float (&score)[PAGE / 8][4],
                                      float (&sum)[COLUMNS][4], float (&highest)[2], float (&total)[2], float scale) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float raised = highest[half];
#pragma unroll
        for (int n = 0; n < PAGE / 8; n++) raised = fmaxf(raised, fmaxf(score[n][2 * half], score[n][2 * half + 1]));
        raised = fmaxf(raised, __shfl_xor_sync(0xffffffffu, raised, 1));
        raised = fmaxf(raised, __shfl_xor_sync(0xffffffffu, raised, 2));
        const float rescale = exp2_approximate((highest[half] - raised) * scale), offset = raised * scale;
        highest[half] = raised;
        total[half] *= rescale;
#pragma unroll
        for (int n = 0; n < COLUMNS; n++) {
            sum[n][2 * half] *= rescale;
            sum[n][2 * half + 1] *= rescale;
        }
#pragma unroll
        for (int n = 0; n < PAGE / 8; n++) {
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; e++) {
                score[n][e] = exp2_approximate(fmaf(score[n][e], scale, -offset));
                total[half] += score[n][e];
            }
        }
    }
#pragma unroll
    for (int n = 0; n < PAGE / 8; n++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            weight[n / 2][n % 2 * 2 + half] = pack<T>(score[n][2 * half], score[n][2 * half + 1]);
        }
    }
}

// Add the values of a page, by weight.
template <typename T, int HEAD_DIM, int TILES>
__device__ __forceinline__ void add_values(float (&sum)[TILES][HEAD_DIM / 8][4],
                                           const unsigned (&weight)[TILES][PAGE / 16][4], const T* values) {
    const int lane = threadIdx.x % 32;
    const unsigned value = shared_address(values + lane % 16 * PADDED<HEAD_DIM> + lane / 16 * 8);
#pragma unroll
    for (int k = 0; k < PAGE / 16; k++) {
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 16; n++) {
            unsigned b[4];
            load_matrices_transposed(b, value + (k * 16 * PADDED<HEAD_DIM> + n * 16) * sizeof(T));
#pragma unroll
            for (int m = 0; m < TILES; m++) {
                mma_16x8x16<T>(sum[m][2 * n], weight[m][k], b[0], b[1]);
                mma_16x8x16<T>(sum[m][2 * n + 1], weight[m][k], b[2], b[3]);
            }
        }
    }
}

// ---- rms_norm_input_layernorm
// rms_norm
// from models/llama.py:126
// 512 token(s): 131 kB, 131 kFLOP; at least 0.03 us on one H200
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

// ---- rope_append
// rope -> rope -> append, by rope_append
// from models/llama.py:145, models/llama.py:146, models/llama.py:154
// 512 token(s): 266 kB, 147 kFLOP; at least 0.06 us on one H200
// One block per token: PAIR_LANES threads, PAIRS pairs each, serve one head of q, k or v; HEAD_LANES heads go
// side by side.
__device__ const __align__(16) float rope_append_inv_freq[8] = {
    1.0f, 0.3162277638912201f, 0.10000000149011612f, 0.03162277862429619f,
    0.009999999776482582f, 0.003162277862429619f, 0.0010000000474974513f, 0.0003162277862429619f,
};

extern "C" __global__ void __launch_bounds__(16) rope_append(
    const bf16_t* q,
    const bf16_t* k,
    const bf16_t* v,
    bf16_t* kv,
    const int* positions,
    const int* sequence,
    const int* page_table,
    bf16_t* q_out,
    int max_pages) {
    using T = bf16_t;
    constexpr int HEADS = 4, KV_HEADS = 2, HEAD_DIM = 16;
    constexpr int VECTOR = 4, ROTARY = 16, PAIRS = 4, PAIR_LANES = 2, HEAD_LANES = 8;
    constexpr size_t Q_STRIDE = 128, K_STRIDE = 128, V_STRIDE = 128;
    constexpr size_t Q_OUT_STRIDE = 64;
    static_assert(Q_STRIDE % VECTOR == 0 && K_STRIDE % VECTOR == 0 && V_STRIDE % VECTOR == 0 &&
                  Q_OUT_STRIDE % VECTOR == 0, "every row starts at a whole access");
    using Cache = KvCache<KV_HEADS, HEAD_DIM>;
    using Pairs = HeadPairs<HEAD_DIM, ROTARY, false>;

    let_next_kernel_start();
    const int token = blockIdx.x;
    const int pair = threadIdx.x % PAIR_LANES * PAIRS;
    float inv_freq[PAIRS];
    load_vector(inv_freq, rope_append_inv_freq + pair);

    wait_for_previous_kernel();
    const int position = positions[token];
    const int page = page_table[sequence[token] * max_pages + position / PAGE];
    const Rotation<PAIRS> rotation(position, inv_freq);
#pragma unroll 2
    for (int i = threadIdx.x / PAIR_LANES; i < HEADS + 2 * KV_HEADS; i += HEAD_LANES) {
        const bool is_query = i < HEADS, is_value = i >= HEADS + KV_HEADS;
        const int head = is_query ? i : (i - HEADS) % KV_HEADS;
        const T* from = is_query   ? q + token * Q_STRIDE
                        : is_value ? v + token * V_STRIDE
                                   : k + token * K_STRIDE;
        float first[PAIRS], second[PAIRS];
        Pairs::load(first, second, from, pair, head);
        if (!is_value) rotation.turn(first, second);

        if (!is_query && page < 0) continue;  // a token that fills up a batch has no place in the cache
        T* to = is_query ? q_out + token * Q_OUT_STRIDE + head * HEAD_DIM
                         : kv + Cache::key(page, head, position % PAGE) + (is_value ? Cache::VALUES : 0);
        Pairs::store(to, first, second, pair);
    }
}

// ---- attention_prefill
// attention
// from models/llama.py:156
// 512 token(s) at context 1024: 266 kB, 101 MFLOP; at least 0.13 us on one H200
// One block per key head and tile of QUERIES tokens: its ROWS rows are the tokens' GROUP query heads, shared by four
// warps.
extern "C" __global__ void __launch_bounds__(128, 2) attention_prefill(
    const bf16_t* q,
    const bf16_t* kv,
    const int* positions,
    const int* sequence,
    const int* query_start,
    const int* page_table,
    bf16_t* out,
    int seqs,
    int max_pages) {
    using T = bf16_t;
    constexpr int KV_HEADS = 2, GROUP = 2, HEAD_DIM = 16;
    constexpr int ROWS = 128, QUERIES = 64;
    constexpr int WARP_ROWS = ROWS / 4, TILES = WARP_ROWS / 16;  // a warp's rows, in tiles of one mma
    constexpr int UNITS = HEAD_DIM / 8;                          // 16-byte units of a head
    constexpr int WINDOW = 0;  // positions that a token attends to, itself among them; 0: all
    constexpr float SCALE = base_two(0.25f), CAP = 0.0f;
    constexpr float FACTOR = CAP == 0.0f ? SCALE : 1.0f;  // from scores, after the cap, to exponents
    constexpr size_t Q_STRIDE = 64, OUT_STRIDE = 64;
    static_assert(Q_STRIDE % 8 == 0 && OUT_STRIDE % 8 == 0, "every row starts at a whole access");
    using Cache = KvCache<KV_HEADS, HEAD_DIM>;
    extern __shared__ __align__(16) unsigned char attention_prefill_shared[];
    T* queries = reinterpret_cast<T*>(attention_prefill_shared);  // [ROWS][PADDED], later the output
    T* keys = queries + ROWS * PADDED<HEAD_DIM>;           // [PAGE][PADDED]
    T* values = keys + PAGE * PADDED<HEAD_DIM>;            // [PAGE][PADDED]

    let_next_kernel_start();
    wait_for_previous_kernel();
    const int kv_head = blockIdx.x;
    const int slot = gridDim.y - 1 - blockIdx.y;  // the last queries of a sequence have most to do, so they go first
    const QueryTile tile = find_queries<QUERIES>(query_start, seqs, slot);
    if (tile.count <= 0) return;
    const int first_position = positions[tile.first];
    const T* cached = kv + Cache::key(0, kv_head, 0);
    const int first_page = first_attended<WINDOW>(first_position) / PAGE;
    const int* pages = page_table + tile.sequence * max_pages + first_page;

#pragma unroll
    for (int i = 0; i < ROWS * UNITS / 128; i++) {
        const int unit = i * 128 + threadIdx.x, row = unit / UNITS, column = unit % UNITS * 8;
        const bool present = row / GROUP < tile.count;
        const int token = tile.first + (present ? row / GROUP : 0), head = kv_head * GROUP + row % GROUP;
        const T* from = q + token * Q_STRIDE + head * HEAD_DIM + column;
        copy_async(shared_address(queries + row * PADDED<HEAD_DIM> + column), from, present);
    }
    // Of the context, from the start of the current page.
    int positions_left = first_position + tile.count - first_page * PAGE;
    int page = max(*pages, 0);
    copy_page<HEAD_DIM>(keys, cached + page * Cache::STRIDE, positions_left);

    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * WARP_ROWS;
    const int used_rows = min(WARP_ROWS, tile.count * GROUP - warp_row);  // of the warp's rows; none if not positive
    // The warp's first, from the start of the current page.
    int row_in_page = (first_position - first_page * PAGE) * GROUP + warp_row;

    float sum[TILES][HEAD_DIM / 8][4] = {}, total[TILES][2] = {}, highest[TILES][2];
#pragma unroll
    for (int m = 0; m < TILES; m++) highest[m][0] = highest[m][1] = minus_infinity();

    for (; positions_left > 0; positions_left -= PAGE, row_in_page -= PAGE * GROUP) {
        wait_for_copies();
        __syncthreads();  // the keys have come, and the last values are used up
        copy_page<HEAD_DIM>(values, cached + page * Cache::STRIDE + Cache::VALUES, positions_left);
        if (positions_left > PAGE) page = max(*++pages, 0);

        float score[TILES][PAGE / 8][4] = {};
        bool active = used_rows > 0 && row_in_page + used_rows > 0;  // else it attends to nothing here
        if (active) score_page<T, HEAD_DIM>(score, queries + warp_row * PADDED<HEAD_DIM>, keys);

        wait_for_copies();
        __syncthreads();  // the values have come, and the keys are used up
        if (positions_left > PAGE) copy_page<HEAD_DIM>(keys, cached + page * Cache::STRIDE, positions_left - PAGE);
        if (!active) continue;

        if (row_in_page < (PAGE - 1) * GROUP) hide_future<GROUP>(score, row_in_page);
        unsigned weight[TILES][PAGE / 16][4];
#pragma unroll
        for (int m = 0; m < TILES; m++) weigh<T>(weight[m], score[m], sum[m], highest[m], total[m], FACTOR);
        add_values<T, HEAD_DIM>(sum, weight, values);
    }

    // Through the warp's own rows of `queries`, so that whole 16-byte units are written.
#pragma unroll
    for (int m = 0; m < TILES; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float divisor = total[m][half];
            divisor += __shfl_xor_sync(0xffffffffu, divisor, 1);
            divisor += __shfl_xor_sync(0xffffffffu, divisor, 2);
            const float share = 1.0f / divisor;
            T* row = queries + (warp_row + m * 16 + half * 8 + lane / 4) * PADDED<HEAD_DIM> + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 8; n++) {
                const float(&element)[4] = sum[m][n];
                const unsigned pair = pack<T>(element[2 * half] * share, element[2 * half + 1] * share);
                *reinterpret_cast<unsigned*>(row + n * 8) = pair;
            }
        }
    }
    __syncwarp();
    for (int unit = lane; unit < WARP_ROWS * UNITS; unit += 32) {
        if (unit / UNITS >= used_rows) break;
        const int row = warp_row + unit / UNITS, column = unit % UNITS * 8;
        const int head = kv_head * GROUP + row % GROUP;
        T* to = out + (tile.first + row / GROUP) * OUT_STRIDE + head * HEAD_DIM + column;
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(queries + row * PADDED<HEAD_DIM> + column);
    }
}

// ---- add_rms_norm_post_attention_layernorm
// add -> rms_norm, by into_norm
// from models/llama.py:128, models/llama.py:129
// 512 token(s): 262 kB, 164 kFLOP; at least 0.06 us on one H200
// One block per row; each thread keeps its elements in registers between the sum of squares and the scaling.
extern "C" __global__ void __launch_bounds__(32) add_rms_norm_post_attention_layernorm(
    const bf16_t* __restrict__ post_attention_layernorm,
    const bf16_t* x,
    const bf16_t* linear_4,
    bf16_t* out_add_1,
    bf16_t* out_rms_norm_2,
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
        float x_values[VECTOR];
        load_vector(x_values, x + token * 64 + column);
        float linear_4_values[VECTOR];
        load_vector(linear_4_values, linear_4 + token * 64 + column);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
            const float x_value = x_values[i];
            const float linear_4_value = linear_4_values[i];
            const float add_1 = round_to<bf16_t>(x_value + linear_4_value);  // models/llama.py:128
            kept[v][i] = add_1;
        }
        store_vector(out_add_1 + token * 64 + column, kept[v]);
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
        store_vector(out_rms_norm_2 + token * 64 + column, gain);
    }
}

// ---- silu_mul
// silu -> mul, by merge_pointwise
// from models/llama.py:163
// 512 token(s): 295 kB, 246 kFLOP; at least 0.06 us on one H200
// Each thread computes 8 consecutive elements of a row.
extern "C" __global__ void __launch_bounds__(256) silu_mul(
    const bf16_t* columns_4,
    const bf16_t* columns_5,
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

    float columns_4_values[VECTOR];
    load_vector(columns_4_values, columns_4 + token * 192 + column);
    float columns_5_values[VECTOR];
    load_vector(columns_5_values, columns_5 + token * 192 + column);
    float out_values[VECTOR];
#pragma unroll
    for (int i = 0; i < VECTOR; i++) {
        const float columns_4_value = columns_4_values[i];
        const float columns_5_value = columns_5_values[i];
        // models/llama.py:163
        const float silu_1 = round_to<bf16_t>(__fdividef(columns_4_value, 1.0f + expf(-columns_4_value)));
        const float mul_1 = silu_1 * columns_5_value;  // models/llama.py:163
        out_values[i] = mul_1;
    }
    store_vector(out + token * 96 + column, out_values);
}
