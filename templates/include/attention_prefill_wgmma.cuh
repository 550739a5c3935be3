// The parts of attention over whole tiles of queries on Hopper (Shah et al. 2024, FlashAttention-3, arXiv:2407.08608):
// one warpgroup loads keys and values in blocks of KEYS, the others have 64 rows of queries each.

// The pages of a block of keys; past the context, where there are none, any page will do. Where attention is WINDOWED, a
// block may begin with pages behind the window, which are -1.
template <int KEYS, bool WINDOWED> struct Pages {
    int page[KEYS / PAGE];

    __device__ __forceinline__ void load(const int* table, int block, int context) {
#pragma unroll
        for (int i = 0; i < KEYS / PAGE; i++) {
            const int index = block * (KEYS / PAGE) + i;
            page[i] = index >= 0 && index * PAGE < context ? max(table[index], WINDOWED ? -1 : 0) : 0;
        }
    }
    __device__ __forceinline__ bool has(int i) const { return !WINDOWED || page[i] >= 0; }
    __device__ __forceinline__ int of(int i) const { return WINDOWED ? max(page[i], 0) : page[i]; }
};

// Start copying a block of keys or values, from `cached` on, to HEAD_DIM / 64 tiles of KEYS rows; rows from `rows` on
// become zeros, as rows behind the window do. Of each tile eight threads share a row; `thread` is one of 128.
template <int KEYS, int HEAD_DIM, bool WINDOWED, typename T>
__device__ __forceinline__ void copy_block(unsigned to, const T* cached, size_t page_stride,
                                           const Pages<KEYS, WINDOWED>& pages, int rows, int thread) {
    const int row = thread / 8, unit = thread % 8;
    to += in_tile(row, unit);
#pragma unroll
    for (int p = 0; p < KEYS / PAGE; p++) {
        const T* from = cached + pages.of(p) * page_stride + row * HEAD_DIM + unit * 8;
#pragma unroll
        for (int r = 0; r < PAGE; r += 16) {
#pragma unroll
            for (int column = 0; column < HEAD_DIM; column += TILE_COLUMNS) {
                const int offset = column / TILE_COLUMNS * KEYS + p * PAGE + r;
                copy_async(to + offset * TILE_ROW_BYTES, from + r * HEAD_DIM + column,
                           pages.has(p) && p * PAGE + r + row < rows);
            }
        }
    }
}

// score = queries * keys^T of a warpgroup, begun: 64 rows of queries against KEYS keys, all in tiles of 64 columns.
template <typename T, int KEYS, int HEAD_DIM>
__device__ __forceinline__ void begin_scores(float (&score)[KEYS / 2], unsigned queries, unsigned keys) {
#pragma unroll
    for (int k = 0; k < HEAD_DIM; k += 16) {
        const int tile = k / TILE_COLUMNS, byte = k % TILE_COLUMNS * 2;
        const auto a = describe(queries + tile * 64 * TILE_ROW_BYTES + byte, 16);
        const auto b = describe(keys + tile * KEYS * TILE_ROW_BYTES + byte, 16);
        Wgmma<T, KEYS>::rows(score, a, b, k > 0);
    }
    commit_products();
}

// sum += weight * values, begun, by products of at most 128 columns.
template <typename T, int KEYS, int HEAD_DIM>
__device__ __forceinline__ void begin_values(float (&sum)[HEAD_DIM / 2], const unsigned (&weight)[KEYS / 16][4],
                                             unsigned values) {
    constexpr int COLUMNS = HEAD_DIM < 128 ? HEAD_DIM : 128;
    static_assert(HEAD_DIM % COLUMNS == 0, "products of equal widths");
#pragma unroll
    for (int k = 0; k < KEYS; k += 16) {
#pragma unroll
        for (int column = 0; column < HEAD_DIM; column += COLUMNS) {
            const int row = column / TILE_COLUMNS * KEYS + k;  // of the tiles, one below the other
            const auto b = describe(values + row * TILE_ROW_BYTES, KEYS * TILE_ROW_BYTES);
            auto& of_columns = reinterpret_cast<float(&)[COLUMNS / 2]>(sum[column / 2]);
            Wgmma<T, COLUMNS>::columns(of_columns, weight[k / 16], b);
        }
    }
    commit_products();
}

// Keep each of a lane's two rows from keys past `last`, its last, counted from the start of the block.
template <int N> __device__ __forceinline__ void hide_keys_past(const int (&last)[2], float (&score)[N]) {
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (i / 4 * 8 + i % 2 + column > last[i % 4 / 2]) score[i] = minus_infinity();
    }
}

// Keep them from keys `window` and more before their last, which are outside their windows.
template <int N> __device__ __forceinline__ void hide_keys_up_to(const int (&last)[2], float (&score)[N], int window) {
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (i / 4 * 8 + i % 2 + column <= last[i % 4 / 2] - window) score[i] = minus_infinity();
    }
}

// The softmax so far of the two rows that a lane shares with three others: of `total`, this lane's part.
struct Softmax {
    float highest[2] = {minus_infinity(), minus_infinity()}, total[2] = {0.0f, 0.0f};

    // Turn scores into weights; `rescale` is what to multiply the sums under the old maxima by. Until a row has seen a
    // key its maximum is -inf and all its weights are 0.
    template <int N>
    __device__ __forceinline__ void weigh(float (&score)[N], float (&rescale)[2], float scale) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float raised = highest[half];
#pragma unroll
            for (int i = 2 * half; i < N; i += 4) raised = fmaxf(raised, fmaxf(score[i], score[i + 1]));
            raised = fmaxf(raised, __shfl_xor_sync(0xffffffffu, raised, 1));
            raised = fmaxf(raised, __shfl_xor_sync(0xffffffffu, raised, 2));
            const float base = raised == minus_infinity() ? 0.0f : raised, offset = base * scale;
            rescale[half] = exp2_approximate((highest[half] - base) * scale);
            highest[half] = raised;
            total[half] *= rescale[half];
#pragma unroll
            for (int i = 2 * half; i < N; i += 4) {
#pragma unroll
                for (int e = i; e < i + 2; e++) {
                    score[e] = exp2_approximate(fmaf(score[e], scale, -offset));
                    total[half] += score[e];
                }
            }
        }
    }

    // What to multiply the sum of a row by in the end.
    __device__ __forceinline__ float share(int half) const {
        float divisor = total[half];
        divisor += __shfl_xor_sync(0xffffffffu, divisor, 1);
        divisor += __shfl_xor_sync(0xffffffffu, divisor, 2);
        return 1.0f / divisor;
    }
};

// Weights as the operand of the second product: nothing moves between lanes.
template <typename T, int N>
__device__ __forceinline__ void pack_weights(unsigned (&weight)[N / 8][4], const float (&score)[N]) {
#pragma unroll
    for (int i = 0; i < N; i += 2) weight[i / 8][i / 2 % 4] = pack<T>(score[i], score[i + 1]);
}

template <int N> __device__ __forceinline__ void multiply_rows(float (&sum)[N], const float (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < N; i++) sum[i] *= factor[i % 4 / 2];
}
