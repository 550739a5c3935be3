// Sampling without sorting and without floating sums. A logit's key is an unsigned that orders as the logit does; a
// token's weight is e^(logit - max) in units of 2^-32. Integer sums do not depend on their order, and every float
// operation is rounded by itself (no fused multiply-add), so NumPy computes the very same bits.

using u64 = unsigned long long;

__device__ __forceinline__ unsigned key_of(float x) {
    const unsigned bits = __float_as_uint(__fadd_rn(x, 0.0f));  // + 0 makes -0 and 0 one key
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float logit_of(unsigned key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// 2^32 * e^(x - largest), to the nearest integer.
__device__ __forceinline__ u64 weight_of(float x, float largest) {
    const float below = x == largest ? 0.0f : __fsub_rn(x, largest);
    const float power = fmaxf(__fmul_rn(below, 1.4426950f), -40.0f);
    const float whole = rintf(power), part = __fsub_rn(power, whole);
    float value = 1.5403530e-4f;
    value = __fadd_rn(__fmul_rn(value, part), 1.3333558e-3f);
    value = __fadd_rn(__fmul_rn(value, part), 9.6181291e-3f);
    value = __fadd_rn(__fmul_rn(value, part), 5.5504109e-2f);
    value = __fadd_rn(__fmul_rn(value, part), 0.24022651f);
    value = __fadd_rn(__fmul_rn(value, part), 0.69314718f);
    value = __fadd_rn(__fmul_rn(value, part), 1.0f);
    const float two_to_whole_plus_32 = __int_as_float((int(whole) + 32 + 127) << 23);
    return __float2ull_rn(__fmul_rn(value, two_to_whole_plus_32));
}

// SplitMix64 (Steele, Lea & Flood 2014) at place (seed, position) of its stream.
__device__ __forceinline__ u64 random_bits(int seed, int position) {
    u64 x = ((u64(unsigned(seed)) << 32 | unsigned(position)) + 1) * 0x9E3779B97F4A7C15ull;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    return x ^ x >> 31;
}

__device__ __forceinline__ u64 warp_sum(u64 x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) x += __shfl_xor_sync(0xffffffffu, x, lane);
    return x;
}

// The sum of x over the threads before this one, and over all of them. `of_warp` holds THREADS / 32 sums.
template <int THREADS> __device__ u64 block_sum_before(u64 x, u64* of_warp, u64& total) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u64 through = x;
#pragma unroll
    for (int distance = 1; distance < 32; distance <<= 1) {
        const u64 other = __shfl_up_sync(0xffffffffu, through, distance);
        if (lane >= distance) through += other;
    }
    if (lane == 31) of_warp[warp] = through;
    __syncthreads();
    u64 before = through - x;
    total = 0;
    for (int other = 0; other < THREADS / 32; other++) {
        if (other < warp) before += of_warp[other];
        total += of_warp[other];
    }
    __syncthreads();
    return before;
}

// The largest of a block; a key and a place packed into one number are compared at once.
template <int THREADS> __device__ u64 block_max(u64 x, u64* of_warp) {
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) x = max(x, __shfl_xor_sync(0xffffffffu, x, lane));
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = x;
    __syncthreads();
    for (int warp = 0; warp < THREADS / 32; warp++) x = max(x, of_warp[warp]);
    __syncthreads();
    return x;
}

// Calls visit(token, key) for tokens first, first + STEP, ... below end, with eight loads in flight.
template <int STEP, typename Visit>
__device__ __forceinline__ void for_each_key(const unsigned* keys, int first, int end, Visit visit) {
    constexpr int AHEAD = 8;
    for (int base = first; base < end; base += AHEAD * STEP) {
        unsigned key[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) key[i] = base + i * STEP < end ? keys[base + i * STEP] : 0u;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (base + i * STEP < end) visit(base + i * STEP, key[i]);
        }
    }
}

constexpr int BINS = 2048;

struct SamplingScratch {
    unsigned low[BINS];   // a histogram of 64-bit sums in two halves, since shared memory adds 32 bits at a time
    unsigned high[BINS];
    u64 of_warp[32];
    unsigned bin;
    u64 above;
};

__device__ __forceinline__ void add_to_bin(SamplingScratch& scratch, unsigned bin, u64 x) {
    const unsigned low = unsigned(x);
    const unsigned old = atomicAdd(&scratch.low[bin], low);
    const unsigned high = unsigned(x >> 32) + (old + low < low);
    if (high) atomicAdd(&scratch.high[bin], high);
}

// The largest key such that the tokens from it upwards count (or, with WEIGHTS, weigh) at least `wanted`, among those
// of at least `smallest`. A radix select: three rounds settle 11, 11 and 10 bits of the key, the highest first.
template <int THREADS, int VOCAB, bool WEIGHTS>
__device__ unsigned select_key(
    SamplingScratch& scratch, const unsigned* keys, unsigned smallest, float largest, u64 wanted) {
    static_assert(BINS == 2 * THREADS, "a thread looks after two bins");
    const int upper = BINS - 1 - 2 * threadIdx.x, lower = upper - 1;
    unsigned prefix = 0;
#pragma unroll 1
    for (int round = 0; round < 3; round++) {
        const int shift = round == 0 ? 21 : round == 1 ? 10 : 0;
        const unsigned mask = round == 2 ? 1023 : 2047;
        const u64 settled = round == 0 ? 0 : prefix;
        const int settled_shift = round == 0 ? 32 : round == 1 ? 21 : 10;
        scratch.low[upper] = scratch.low[lower] = scratch.high[upper] = scratch.high[lower] = 0;
        __syncthreads();
        for_each_key<THREADS>(keys, threadIdx.x, VOCAB, [&](int, unsigned key) {
            if (key < smallest || u64(key) >> settled_shift != settled) return;
            add_to_bin(scratch, key >> shift & mask, WEIGHTS ? weight_of(logit_of(key), largest) : 1);
        });
        __syncthreads();
        const u64 in_upper = u64(scratch.high[upper]) << 32 | scratch.low[upper];
        const u64 in_lower = u64(scratch.high[lower]) << 32 | scratch.low[lower];
        u64 total;
        const u64 before = block_sum_before<THREADS>(in_upper + in_lower, scratch.of_warp, total);
        if (before < wanted && wanted <= before + in_upper + in_lower) {
            const bool is_upper = wanted <= before + in_upper;
            scratch.bin = is_upper ? upper : lower;
            scratch.above = is_upper ? before : before + in_upper;
        }
        __syncthreads();
        prefix = round == 0 ? scratch.bin : prefix << (round == 2 ? 10 : 11) | scratch.bin;
        wanted -= scratch.above;
        __syncthreads();
    }
    return prefix;
}

// What the tokens that top-p keeps weigh at least, of a total.
__device__ __forceinline__ u64 share_of(u64 total, float p) {
    return max(1ull, __double2ull_ru(__dmul_rn(p, __ull2double_rn(total))));
}

// The first token of [first, end) that has this key, found by a warp.
__device__ __forceinline__ int first_token(const unsigned* keys, unsigned key, int first, int end) {
    int found = end;
    for (int token = first + threadIdx.x % 32; token < end; token += 32) {
        if (keys[token] == key) found = min(found, token);
    }
    return __reduce_min_sync(0xffffffffu, found);
}

// The k-th largest of the block's numbers, one a thread, bit by bit from the highest.
__device__ __forceinline__ unsigned kth_largest(unsigned number, int k) {
    unsigned found = 0;
    for (int bit = 31; bit >= 0; bit--) {
        const unsigned tried = found | 1u << bit;
        if (__syncthreads_count(number >= tried) >= k) found = tried;
    }
    return found;
}

// The few tokens that may be drawn, in no order, one to a thread; a thread looks at all others for each decision.
template <int MOST> struct Candidates {
    unsigned key[MOST];
    int token[MOST];
    u64 weight[MOST];
    int chunk[MOST], chunks, count;  // chunks that have one; a count above MOST: not all are here

    // All tokens of keys from `least` on. Each thread knows the largest key of its chunk.
    template <int WARPS, int CHUNK>
    __device__ __forceinline__ void collect(const unsigned* keys, int vocab, unsigned of_chunk, unsigned least) {
        if (of_chunk >= least && of_chunk > 0) chunk[atomicAdd(&chunks, 1)] = threadIdx.x;
        __syncthreads();
        for (int c = threadIdx.x / 32; c < chunks; c += WARPS) {
#pragma unroll
            for (int i = 0; i < CHUNK / 32; i++) {
                const int of = chunk[c] * CHUNK + i * 32 + threadIdx.x % 32;
                if (of >= vocab || keys[of] < least) continue;
                const int place = atomicAdd(&count, 1);
                if (place >= MOST) continue;
                key[place] = keys[of];
                token[place] = of;
            }
        }
        __syncthreads();
    }

    // Top-k, then top-p, then min-p: a token stays while fewer than k, and less than the share p, are more likely.
    __device__ __forceinline__ void weigh(float largest, int k, float p, u64 lightest) {
        const int me = threadIdx.x;
        int more_likely = 0;
        if (me < count) {
            for (int other = 0; other < count; other++) more_likely += key[other] > key[me];
            weight[me] = more_likely < k ? weight_of(logit_of(key[me]), largest) : 0;
        }
        __syncthreads();
        u64 kept = 0;
        if (me < count) {
            u64 total = 0, above = 0;
            for (int other = 0; other < count; other++) {
                total += weight[other];
                if (key[other] > key[me]) above += weight[other];
            }
            kept = p < 1.0f && above >= share_of(total, p) ? 0 : weight[me];
            if (kept < lightest) kept = 0;
        }
        __syncthreads();
        if (me < count) weight[me] = kept;
        __syncthreads();
    }

    // The token in whose share the target falls, in the order of the vocabulary.
    __device__ __forceinline__ void draw(u64 random, int* drawn) const {
        const int me = threadIdx.x;
        if (me >= count) return;
        u64 total = 0, before = 0;
        for (int other = 0; other < count; other++) {
            total += weight[other];
            if (token[other] < token[me]) before += weight[other];
        }
        const u64 target = __umul64hi(random, total);
        if (before <= target && target < before + weight[me]) *drawn = token[me];
    }
};
