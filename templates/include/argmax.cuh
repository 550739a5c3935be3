// The largest logit and the first token that has it. A NaN never compares greater, so it never wins.

struct Candidate { float logit; int token; };

__device__ __forceinline__ Candidate better(Candidate a, Candidate b) {
    return b.logit > a.logit || (b.logit == a.logit && b.token < a.token) ? b : a;
}

__device__ __forceinline__ Candidate warp_best(Candidate best) {
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) {
        best = better(best, Candidate{__shfl_xor_sync(0xffffffffu, best.logit, lane),
                                      __shfl_xor_sync(0xffffffffu, best.token, lane)});
    }
    return best;
}
