// The parts of attention over whole tiles of queries (Dao 2023, FlashAttention-2, arXiv:2307.08691), for four warps.

// Rows of a tile in shared memory are 16 bytes longer than a head, an odd number of 16-byte units: eight rows at
// one column lie in different banks.
template <int HEAD_DIM> constexpr int PADDED = HEAD_DIM + 8;

// Start copying one head's keys or values of a page; rows from `rows` on become zeros. LANES neighbouring threads
// share a row, so that all addresses of a thread are a constant apart.
template <int HEAD_DIM, typename T> __device__ __forceinline__ void copy_page(T* tile, const T* page, int rows) {
    constexpr int LANES = HEAD_DIM % 64 == 0 ? 8 : HEAD_DIM % 32 == 0 ? 4 : 2, PASS = 128 / LANES;
    const int row = threadIdx.x / LANES, column = threadIdx.x % LANES * 8;
    const unsigned to = shared_address(tile + row * PADDED<HEAD_DIM> + column);
    const T* from = page + row * HEAD_DIM + column;
#pragma unroll
    for (int r = 0; r < PAGE; r += PASS) {
#pragma unroll
        for (int c = 0; c < HEAD_DIM; c += LANES * 8) {
            copy_async(to + (r * PADDED<HEAD_DIM> + c) * sizeof(T), from + r * HEAD_DIM + c, row + r < rows);
        }
    }
}

// A warp's scores: TILES times 16 queries against the 64 keys of a page.
template <typename T, int HEAD_DIM, int TILES>
__device__ __forceinline__ void score_page(float (&score)[TILES][PAGE / 8][4], const T* queries, const T* keys) {
    const int lane = threadIdx.x % 32;
    const unsigned query = shared_address(queries + lane % 16 * PADDED<HEAD_DIM> + lane / 16 * 8);
    const unsigned key = shared_address(keys + lane % 16 * PADDED<HEAD_DIM> + lane / 16 * 8);
#pragma unroll
    for (int k = 0; k < HEAD_DIM; k += 16) {
        unsigned a[TILES][4];
#pragma unroll
        for (int m = 0; m < TILES; m++) load_matrices(a[m], query + (m * 16 * PADDED<HEAD_DIM> + k) * sizeof(T));
#pragma unroll
        for (int n = 0; n < PAGE / 16; n++) {
            unsigned b[4];
            load_matrices(b, key + (n * 16 * PADDED<HEAD_DIM> + k) * sizeof(T));
#pragma unroll
            for (int m = 0; m < TILES; m++) {
                mma_16x8x16<T>(score[m][2 * n], a[m], b[0], b[2]);
                mma_16x8x16<T>(score[m][2 * n + 1], a[m], b[1], b[3]);
            }
        }
    }
}

// Keep every row from keys past its position. `row` is the warp's first, counted from the start of the page in rows,
// of which GROUP share a position: a key is past when its own first row is past, which spares a division.
template <int GROUP, int TILES>
__device__ __forceinline__ void hide_future(float (&score)[TILES][PAGE / 8][4], int row) {
    const int lane_row = row + int(threadIdx.x % 32 / 4) - int(threadIdx.x % 4) * 2 * GROUP;
#pragma unroll
    for (int m = 0; m < TILES; m++) {
#pragma unroll
        for (int i = 0; i < PAGE / 8 * 4; i++) {
            const int key = i / 4 * 8 + i % 2, below = m * 16 + i % 4 / 2 * 8;
            if (key * GROUP > lane_row + below) score[m][i / 4][i % 4] = minus_infinity();
        }
    }
}

// Keep every row from keys before its window. `row` is the warp's first, counted as above from WINDOW positions on: a key
// is before the window of the rows from its own on.
template <int GROUP, int TILES>
__device__ __forceinline__ void hide_past(float (&score)[TILES][PAGE / 8][4], int row) {
    const int lane_row = row + int(threadIdx.x % 32 / 4) - int(threadIdx.x % 4) * 2 * GROUP;
#pragma unroll
    for (int m = 0; m < TILES; m++) {
#pragma unroll
        for (int i = 0; i < PAGE / 8 * 4; i++) {
            const int key = i / 4 * 8 + i % 2, below = m * 16 + i % 4 / 2 * 8;
            if (key * GROUP <= lane_row + below) score[m][i / 4][i % 4] = minus_infinity();
        }
    }
}

template <int TILES>
__device__ __forceinline__ void cap_tiles(float (&score)[TILES][PAGE / 8][4], float scale, float cap) {
#pragma unroll
    for (int m = 0; m < TILES; m++) {
#pragma unroll
        for (int n = 0; n < PAGE / 8; n++) cap_scores(score[m][n], scale, cap);
    }
}

// Turn the scores of 16 queries into weights, and rescale what has been summed under the old maxima.
// Of each query's row, `total` is this lane's part of the sum. Two neighbouring 8-column results of the first product
// are, once packed, the 16-column operand of the second: nothing moves between lanes.
template <typename T, int COLUMNS>
__device__ __forceinline__ void weigh(unsigned (&weight)[PAGE / 16][4], float (&score)[PAGE / 8][4],
                                      float (&sum)[COLUMNS][4], float (&highest)[2], float (&total)[2], float scale) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float raised = highest[half];
#pragma unroll
        for (int n = 0; n < PAGE / 8; n++) raised = fmaxf(raised, fmaxf(score[n][2 * half], score[n][2 * half + 1]));
        raised = fmaxf(raised, __shfl_xor_sync(0xffffffffu, raised, 1));
        raised = fmaxf(raised, __shfl_xor_sync(0xffffffffu, raised, 2));
        const float rescale = exp2_approximate((highest[half] - raised) * scale), offset = raised * scale;
        highest[half] = raised;
        total[half] *= rescale;
#pragma unroll
        for (int n = 0; n < COLUMNS; n++) {
            sum[n][2 * half] *= rescale;
            sum[n][2 * half + 1] *= rescale;
        }
#pragma unroll
        for (int n = 0; n < PAGE / 8; n++) {
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; e++) {
                score[n][e] = exp2_approximate(fmaf(score[n][e], scale, -offset));
                total[half] += score[n][e];
            }
        }
    }
#pragma unroll
    for (int n = 0; n < PAGE / 8; n++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            weight[n / 2][n % 2 * 2 + half] = pack<T>(score[n][2 * half], score[n][2 * half + 1]);
        }
    }
}

// Add the values of a page, by weight.
template <typename T, int HEAD_DIM, int TILES>
__device__ __forceinline__ void add_values(float (&sum)[TILES][HEAD_DIM / 8][4],
                                           const unsigned (&weight)[TILES][PAGE / 16][4], const T* values) {
    const int lane = threadIdx.x % 32;
    const unsigned value = shared_address(values + lane % 16 * PADDED<HEAD_DIM> + lane / 16 * 8);
#pragma unroll
    for (int k = 0; k < PAGE / 16; k++) {
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 16; n++) {
            unsigned b[4];
            load_matrices_transposed(b, value + (k * 16 * PADDED<HEAD_DIM> + n * 16) * sizeof(T));
#pragma unroll
            for (int m = 0; m < TILES; m++) {
                mma_16x8x16<T>(sum[m][2 * n], weight[m][k], b[0], b[1]);
                mma_16x8x16<T>(sum[m][2 * n + 1], weight[m][k], b[2], b[3]);
            }
        }
    }
}
