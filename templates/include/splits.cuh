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
