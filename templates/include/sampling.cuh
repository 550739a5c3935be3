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

constexpr int BINS = 2048;

// How likely a token is, as one of BINS levels: 0 for the most likely one, 51.2 to every halving. Computed from the
// logit by float operations that keep order, so that no token of a higher level is more likely.
__device__ __forceinline__ int level_of(float x, float largest) {
    const float below = x == largest ? 0.0f : __fsub_rn(x, largest);
    return int(fminf(__fmul_rn(-below, 73.865595f), BINS - 1.0f));
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

// 64-bit sums in two halves, since shared memory adds 32 bits at a time.
struct Histogram {
    unsigned low[BINS], high[BINS];

    __device__ __forceinline__ void clear(int bin) { low[bin] = high[bin] = 0; }
    __device__ __forceinline__ u64 sum(int bin) const { return u64(high[bin]) << 32 | low[bin]; }
    __device__ __forceinline__ void add(int bin, u64 x) {
        const unsigned lower = unsigned(x), upper = unsigned(x >> 32);
        const unsigned carry = atomicAdd(&low[bin], lower) + lower < lower;
        if (upper + carry) atomicAdd(&high[bin], upper + carry);
    }
};

struct SamplingScratch {
    Histogram histogram;
    u64 of_warp[32];
    unsigned found;
    u64 above;
};

// Where a running sum over two bins a thread reaches `wanted`: which bin it is, in their order, to scratch.found, and the
// sum before it to scratch.above. Each thread knows the sum before its first.
__device__ __forceinline__ void find_bin(SamplingScratch& scratch, u64 before, u64 first, u64 second, u64 wanted) {
    if (before < wanted && wanted <= before + first + second) {
        const bool in_first = wanted <= before + first;
        scratch.found = 2 * threadIdx.x + !in_first;
        scratch.above = in_first ? before : before + first;
    }
    __syncthreads();
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
        scratch.histogram.clear(upper);
        scratch.histogram.clear(lower);
        __syncthreads();
        for_each_key<THREADS>(keys, threadIdx.x, VOCAB, [&](int, unsigned key) {
            if (key < smallest || u64(key) >> settled_shift != settled) return;
            scratch.histogram.add(key >> shift & mask, WEIGHTS ? weight_of(logit_of(key), largest) : 1);
        });
        __syncthreads();
        const u64 in_upper = scratch.histogram.sum(upper), in_lower = scratch.histogram.sum(lower);
        u64 total;
        const u64 before = block_sum_before<THREADS>(in_upper + in_lower, scratch.of_warp, total);
        find_bin(scratch, before, in_upper, in_lower, wanted);
        prefix = round == 0 ? 0 : prefix << (round == 2 ? 10 : 11);
        prefix |= BINS - 1 - scratch.found;
        wanted -= scratch.above;
        __syncthreads();
    }
    return prefix;
}

// What the tokens that top-p keeps weigh at least, of a total.
__device__ __forceinline__ u64 share_of(u64 total, float p) {
    return max(1ull, __double2ull_ru(__dmul_rn(p, __ull2double_rn(total))));
}

// What a token weighs at least that min-p keeps: the most likely one weighs 2^32.
__device__ __forceinline__ u64 least_weight(float min_p) {
    return __double2ull_ru(__dmul_rn(fminf(min_p, 1.0f), 4294967296.0));
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

// The token in whose share of a run of tokens the target falls, in the order of the vocabulary, found by a warp.
template <typename Weight>
__device__ __forceinline__ int draw_from_run(const unsigned* keys, int first, int end, u64 target, Weight weight_of_key) {
    const int lane = threadIdx.x % 32;
    for (int base = first; base < end; base += 32) {
        u64 through = base + lane < end ? weight_of_key(keys[base + lane]) : 0;
#pragma unroll
        for (int distance = 1; distance < 32; distance <<= 1) {
            const u64 other = __shfl_up_sync(0xffffffffu, through, distance);
            if (lane >= distance) through += other;
        }
        const unsigned beyond = __ballot_sync(0xffffffffu, target < through);
        if (beyond) return base + __ffs(beyond) - 1;
        target -= __shfl_sync(0xffffffffu, through, 31);
    }
    return end - 1;  // not reached: the target is less than the sum
}

// The few tokens that may be drawn, in no order, one to a thread; a thread looks at all others for each decision.
template <int MOST> struct Candidates {
    unsigned key[MOST];
    int token[MOST];
    u64 weight[MOST];
    int chunk[MOST], chunks, count;  // chunks that have one; a count above MOST: not all are here

    // The chunks whose largest key is_one; each thread knows that of one chunk.
    template <typename IsOne> __device__ __forceinline__ void find_chunks(unsigned of_chunk, IsOne is_one) {
        if (of_chunk > 0 && is_one(of_chunk)) chunk[atomicAdd(&chunks, 1)] = threadIdx.x;
        __syncthreads();
    }

    // All tokens of those chunks whose key is_one, unless there are too many.
    template <int WARPS, int CHUNK, typename IsOne>
    __device__ __forceinline__ void collect(const unsigned* keys, int vocab, IsOne is_one) {
        const int lane = threadIdx.x % 32;
        int before = 0;
        for (int c = threadIdx.x / 32; c < chunks && before <= MOST; c += WARPS) {
            const int first = chunk[c] * CHUNK + lane;
            unsigned found[CHUNK / 32];
#pragma unroll
            for (int i = 0; i < CHUNK / 32; i++) found[i] = first + i * 32 < vocab ? keys[first + i * 32] : 0;
#pragma unroll
            for (int i = 0; i < CHUNK / 32; i++) {
                const bool one = found[i] > 0 && is_one(found[i]);
                const unsigned ones = __ballot_sync(0xffffffffu, one);
                if (ones == 0) continue;
                if (lane == 0) before = atomicAdd(&count, __popc(ones));
                before = __shfl_sync(0xffffffffu, before, 0);
                const int place = before + __popc(ones & ((1u << lane) - 1));
                if (!one || place >= MOST) continue;
                key[place] = found[i];
                token[place] = first + i * 32;
            }
        }
        __syncthreads();
    }

    // Top-k: a token stays while fewer than k are more likely.
    __device__ __forceinline__ void weigh(float largest, int k) {
        const int me = threadIdx.x;
        if (me < count) {
            int more_likely = 0;
            if (k < count) {
                for (int other = 0; other < count; other++) more_likely += key[other] > key[me];
            }
            weight[me] = more_likely < k ? weight_of(logit_of(key[me]), largest) : 0;
        }
        __syncthreads();
    }

    __device__ __forceinline__ u64 total() const {
        u64 sum = 0;
        for (int other = 0; other < count; other++) sum += weight[other];
        return sum;
    }

    // What the tokens that are more likely than this thread's weigh.
    __device__ __forceinline__ u64 above() const {
        u64 sum = 0;
        for (int other = 0; other < count; other++) sum += key[other] > key[threadIdx.x] ? weight[other] : 0;
        return sum;
    }

    // Top-p: the smallest key that stays, by the same condition as below.
    __device__ __forceinline__ unsigned smallest_key(u64 most, unsigned* shared) const {
        if (threadIdx.x == 0) *shared = ~0u;
        __syncthreads();
        if (threadIdx.x < count && above() < most) atomicMin(shared, key[threadIdx.x]);
        __syncthreads();
        return *shared;
    }

    // Top-p and min-p: a token stays while those that are more likely weigh less than `most`, if it is not too light.
    __device__ __forceinline__ void keep(u64 most, u64 lightest) {
        const int me = threadIdx.x;
        const u64 kept = me >= count || above() >= most || weight[me] < lightest ? 0 : weight[me];
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
