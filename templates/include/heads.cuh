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
