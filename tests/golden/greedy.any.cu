// tiny: block greedy, 1 to 512 token(s), bfloat16, sm_90a. Emitted by Infernum 0.1.0.
//
// graph greedy {
//   stream %logits : f32[rows, 96]
//   batch %token_ids : i32[tokens]
//   batch %positions : i32[tokens]
//
//   %argmax_1 = argmax(%logits) : i32[rows]  # models/sampler.py:19
//   %advance_1, %advance_1.1 = advance(%argmax_1, %token_ids, %positions) : i32[tokens], i32[tokens]  # models/sampler.py:20
//   return %argmax_1, %advance_1, %advance_1.1
// }

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

// ---- argmax.cuh
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

// ---- argmax
// argmax
// from models/sampler.py:19
// 512 token(s): 384 B, 96 FLOP; at least 0.00 us on one H200
// Each block finds the best token of one tile of one row: grid (tiles, rows), a few 16-byte loads a thread.
extern "C" __global__ void __launch_bounds__(256) argmax(
    const float* logits,
    float* best_logit,
    int* best_token) {
    constexpr int VOCAB = 96, TILE = 2048, SPLITS = 1, THREADS = 256;
    constexpr int ROW_STRIDE = 96;
    let_next_kernel_start();
    wait_for_previous_kernel();

    const float* row = logits + size_t(blockIdx.y) * ROW_STRIDE;
    const int first = blockIdx.x * TILE;
    Candidate best{__int_as_float(0xff800000), 0};  // -infinity
#pragma unroll
    for (int i = 0; i < TILE; i += 4 * THREADS) {
        const int token = first + i + 4 * threadIdx.x;
        if (token >= VOCAB) break;
        const float4 four = *reinterpret_cast<const float4*>(row + token);
        best = better_of(best, four.x, token);
        best = better_of(best, four.y, token + 1);
        best = better_of(best, four.z, token + 2);
        best = better_of(best, four.w, token + 3);
    }

    __shared__ Candidate of_warp[THREADS / 32];
    best = warp_best(best);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = best;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int warp = 1; warp < THREADS / 32; warp++) best = better(best, of_warp[warp]);
        best_logit[blockIdx.y * SPLITS + blockIdx.x] = best.logit;
        best_token[blockIdx.y * SPLITS + blockIdx.x] = best.token;
    }
}

// ---- argmax_finish
// argmax
// from models/sampler.py:19
// 512 token(s): 4 B, 0 FLOP; at least 0.00 us on one H200
// One warp a row: the best of the candidates that the tiles of the row have left. Where its logit is not finite, the row
// holds NaN or infinity, or nothing above -infinity, and has no token.
extern "C" __global__ void __launch_bounds__(32) argmax_finish(
    int* next_tokens,
    float* best_logit,
    int* best_token) {
    constexpr int SPLITS = 1;
    let_next_kernel_start();
    wait_for_previous_kernel();

    const int row = blockIdx.x;
    Candidate best{__int_as_float(0xff800000), 0};
    for (int split = threadIdx.x; split < SPLITS; split += 32) {
        const int at = row * SPLITS + split;
        const Candidate other{best_logit[at], best_token[at]};
        best = better(best, other);
    }
    best = warp_best(best);
    if (threadIdx.x == 0) next_tokens[row] = isfinite(best.logit) ? best.token : -2;
}

// ---- advance
// advance
// from models/sampler.py:20
// 512 token(s): 4.1 kB, 0 FLOP; at least 0.00 us on one H200
// One thread a row: its sampled token, or 0 where there is none, becomes the input of the next step, at the next position.
// No kernel starts before it has ended, so that those of the next step may read tokens, positions and pages, and what was
// cached, without waiting.
extern "C" __global__ void __launch_bounds__(128) advance(
    const int* next_tokens,
    int* token_ids,
    int* positions,
    int rows) {
    wait_for_previous_kernel();

    const int row = blockIdx.x * 128 + threadIdx.x;
    if (row >= rows) return;
    token_ids[row] = max(0, next_tokens[row]);
    positions[row] += 1;
}
