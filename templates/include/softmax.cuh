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
