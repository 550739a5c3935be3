// The parts of a product on the tensor cores of warpgroups. Both operands come in panels of TILE_COLUMNS columns, each a
// tile that wgmma reads.

// Start copying a panel of up to ROWS rows, `stride` elements apart, to a tile, and those past `rows` not at all. WARPS
// warps share the rows; this is the one of number `warp`. Each access copies VECTOR elements.
template <int ROWS, int WARPS, int VECTOR, typename T>
__device__ __forceinline__ void copy_panel(unsigned tile, const T* from, size_t stride, int rows, int warp) {
    const int unit = threadIdx.x % 8, first = warp * 4 + threadIdx.x % 32 / 8;
#pragma unroll
    for (int i = 0; i < ROWS; i += 4 * WARPS) {
        const int row = first + i;
        if (row >= rows) break;
        const T* piece = from + row * stride + unit * 8;
        if constexpr (VECTOR == 8) {
            copy_async(tile + in_tile(row, unit), piece, true);
        } else {
#pragma unroll
            for (int e = 0; e < 8; e += 2) {
                const unsigned pair = pack<T>(to_float(piece[e]), to_float(piece[e + 1]));
                store_shared(tile + in_tile(row, unit) + e * sizeof(T), pair);
            }
        }
    }
}

// sum += activations * weights^T over the columns of a panel, begun: 64 rows of activations against ROWS of weights.
template <typename T, int ROWS>
__device__ __forceinline__ void begin_panel(float (&sum)[ROWS / 2], unsigned activations, unsigned weights) {
#pragma unroll
    for (int byte = 0; byte < TILE_ROW_BYTES; byte += 16 * sizeof(T)) {
        Wgmma<T, ROWS>::rows(sum, describe(activations + byte, 16), describe(weights + byte, 16), 1);
    }
    commit_products();
}

// The sums of a block in shared memory, where all blocks of its cluster read them: rows of ROWS numbers, so far apart
// that eight of them lie in different banks.
template <int ROWS> struct Sums {
    static constexpr int STRIDE = ROWS + (40 - ROWS % 32) % 32;
    float* at;

    // A lane's share of the 16 rows of its warp, from `row` on.
    __device__ __forceinline__ void store(int row, const float (&sum)[ROWS / 2]) const {
        const int lane = threadIdx.x % 32;
        float* to = at + (row + lane / 4) * STRIDE + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < ROWS / 2; i += 2) {
            *reinterpret_cast<float2*>(to + i / 2 % 2 * 8 * STRIDE + i / 4 * 8) = {sum[i], sum[i + 1]};
        }
    }

    // What SPLIT blocks have summed of neighbouring columns, added in the order of their ranks.
    template <int SPLIT, int N> __device__ __forceinline__ void add_up(float (&whole)[N], int row, int column) const {
        const float* own = at + row * STRIDE + column;
        if constexpr (SPLIT == 1) {
            load_vector(whole, own);
        } else {
            float sums[SPLIT][N];
#pragma unroll
            for (int rank = 0; rank < SPLIT; rank++) load_vector(sums[rank], in_block(own, rank));
#pragma unroll
            for (int i = 0; i < N; i++) {
                whole[i] = sums[0][i];
#pragma unroll
                for (int rank = 1; rank < SPLIT; rank++) whole[i] += sums[rank][i];
            }
        }
    }
};
