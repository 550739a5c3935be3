// The largest logit and the first token that has it.

struct Candidate { float logit; int token; };

__device__ __forceinline__ Candidate better(Candidate a, Candidate b) {
    return b.logit > a.logit || (b.logit == a.logit && b.token < a.token) ? b : a;
}

// The better of the best so far and the logit of a later token. NaN counts as infinity, so that it is seen in the end.
__device__ __forceinline__ Candidate better_of(Candidate best, float logit, int token) {
    return logit <= best.logit ? best : Candidate{isnan(logit) ? __int_as_float(0x7f800000) : logit, token};
}

__device__ __forceinline__ Candidate warp_best(Candidate best) {
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) {
        best = better(best, Candidate{__shfl_xor_sync(0xffffffffu, best.logit, lane),
                                      __shfl_xor_sync(0xffffffffu, best.token, lane)});
    }
    return best;
}
