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
