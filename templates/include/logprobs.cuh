// ln(weight / 2^32), 1 <= weight < 2^53, by sums, products and quotients that are rounded one by one, as in NumPy.
__device__ double log_of(u64 weight) {
    int exponent = 64 - __clzll(weight);
    double part = __ull2double_rn(weight) / double(1ull << exponent);  // exact: a power of two
    if (part < 0.7071067811865476) {
        part *= 2.0;
        exponent--;
    }
    const double ratio = __ddiv_rn(part - 1.0, part + 1.0), square = __dmul_rn(ratio, ratio);
    double series = 0.0;
    for (int odd = 21; odd > 0; odd -= 2) series = __dadd_rn(__dmul_rn(series, square), __ddiv_rn(1.0, odd));
    return __dadd_rn(__dmul_rn(double(exponent - 32), 0.6931471805599453), __dmul_rn(2.0 * ratio, series));
}

// A token and its key as one number, larger where the logit is, and for equal logits where the token is smaller.
__device__ __forceinline__ u64 ranked(float logit, int token) {
    return u64(isnan(logit) ? 0xfffffffeu : key_of(logit)) << 32 | ~unsigned(token);
}

__device__ __forceinline__ int token_of(u64 rank) { return int(~unsigned(rank)); }

// The first rank below `limit` among CHUNK tokens, by a warp; 0: there is none.
template <int CHUNK>
__device__ __forceinline__ u64 best_below(const float* logits, int first, int vocab, u64 limit) {
    u64 best = 0;
#pragma unroll
    for (int i = 0; i < CHUNK / 32; i++) {
        const int token = first + i * 32 + threadIdx.x % 32;
        const u64 rank = token < vocab ? ranked(logits[token], token) : 0;
        if (rank < limit) best = max(best, rank);
    }
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) best = max(best, __shfl_xor_sync(0xffffffffu, best, lane));
    return best;
}
