// Attention of single tokens with the context split among blocks ("flash-decoding", Dao et al. 2023).

// Positions of the context in one of so many splits: at least LEAST, so that a short context keeps few blocks busy.
template <int LEAST> __device__ __forceinline__ int split_length(int context, int splits) {
    return max(LEAST, (context + splits - 1) / splits);
}

// N elements as they lie in memory, kept so until they are needed: half the registers of floats.
template <typename T, int N> struct Packed {
    union { Chunk<N * sizeof(T)> raw; T items[N]; };

    __device__ __forceinline__ Packed() {}
    __device__ __forceinline__ void load(const T* p) { raw = *reinterpret_cast<const Chunk<N * sizeof(T)>*>(p); }
    __device__ __forceinline__ void clear() { raw = {}; }
    __device__ __forceinline__ float operator[](int i) const { return to_float(items[i]); }
};

// The keys and values of UNROLL positions of one head, a lane's share of each, on their way from the cache.
template <typename T, typename Cache, typename Lane, int UNROLL, int CHUNKS, int VECTOR> struct CachedRows {
    Packed<T, VECTOR> key[UNROLL][CHUNKS], value[UNROLL][CHUNKS];
    bool present[UNROLL];

    // Positions `first`, first + step, …, up to `end`; zeros where there is none.
    __device__ __forceinline__ void load(const T* kv, const int* pages, int kv_head, int first, int step, int end) {
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int position = first + u * step;
            const int page = position < end ? pages[position / PAGE] : -1;
            const T* cached = kv + Cache::key(page, kv_head, position % PAGE);
            present[u] = page >= 0;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                key[u][c].clear();
                value[u][c].clear();
                if (present[u] && Lane::column(c) < Cache::DIM) {
                    key[u][c].load(cached + Lane::column(c));
                    value[u][c].load(cached + Cache::VALUES + Lane::column(c));
                }
            }
        }
    }
};

// One element of a softmax-weighted sum over some positions: its numerator and denominator, both relative to the
// highest score among them.
struct Part {
    float sum, highest, total;
};

// The sum over the positions of all parts.
template <int N> __device__ __forceinline__ Part merge(const Part (&parts)[N]) {
    Part whole = {0.0f, no_score(), 0.0f};
#pragma unroll
    for (int i = 0; i < N; i++) whole.highest = fmaxf(whole.highest, parts[i].highest);
#pragma unroll
    for (int i = 0; i < N; i++) {
        const float rescale = exp2_approximate(parts[i].highest - whole.highest);
        whole.sum = fmaf(rescale, parts[i].sum, whole.sum);
        whole.total = fmaf(rescale, parts[i].total, whole.total);
    }
    return whole;
}

// The parts of a block's warps in shared memory, for HEADS query heads.
template <int WARPS, int HEADS, int HEAD_DIM> struct WarpParts {
    float sum[WARPS][HEADS][HEAD_DIM], highest[WARPS][HEADS], total[WARPS][HEADS];

    __device__ __forceinline__ Part merged(int head, int column) const {
        Part parts[WARPS];
#pragma unroll
        for (int w = 0; w < WARPS; w++) parts[w] = {sum[w][head][column], highest[w][head], total[w][head]};
        return merge(parts);
    }
};

// What a lane knows of HEADS query heads: LANES lanes share a position and hold CHUNKS times VECTOR elements each of
// its key and value; the other lanes and warps are at other positions.
template <int HEADS, int HEAD_DIM, int LANES, int CHUNKS, int VECTOR> struct LaneAttention {
    float query[HEADS][CHUNKS][VECTOR];
    float sum[HEADS][CHUNKS][VECTOR] = {}, highest[HEADS], total[HEADS] = {};

    __device__ __forceinline__ LaneAttention() {
#pragma unroll
        for (int h = 0; h < HEADS; h++) highest[h] = no_score();
    }

    // The first of the elements in chunk c; those from HEAD_DIM on do not exist.
    static __device__ __forceinline__ int column(int c) { return (c * LANES + threadIdx.x % LANES) * VECTOR; }

    template <typename T> __device__ __forceinline__ void load_query(int head, const T* row, float scale) {
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            Packed<T, VECTOR> packed;
            packed.clear();
            if (column(c) < HEAD_DIM) packed.load(row + column(c));
#pragma unroll
            for (int e = 0; e < VECTOR; e++) query[head][c][e] = packed[e] * scale;
        }
    }

    // Attend to N positions more, with scores capped where `cap` is not 0. Keys and values are zero where a position is
    // not present.
    template <int N, typename T>
    __device__ __forceinline__ void attend(const Packed<T, VECTOR> (&key)[N][CHUNKS],
                                           const Packed<T, VECTOR> (&value)[N][CHUNKS], const bool (&present)[N],
                                           float cap) {
        float score[HEADS][N];
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                float dot = 0.0f;
#pragma unroll
                for (int c = 0; c < CHUNKS; c++) {
#pragma unroll
                    for (int e = 0; e < VECTOR; e++) dot = fmaf(query[h][c][e], key[n][c][e], dot);
                }
#pragma unroll
                for (int lane = LANES / 2; lane > 0; lane /= 2) dot += __shfl_xor_sync(0xffffffffu, dot, lane);
                score[h][n] = present[n] ? capped(dot, cap) : minus_infinity();
            }
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float raised = highest[h];
#pragma unroll
            for (int n = 0; n < N; n++) raised = fmaxf(raised, score[h][n]);
            const float rescale = exp2_approximate(highest[h] - raised);
            highest[h] = raised;
            total[h] *= rescale;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
#pragma unroll
                for (int e = 0; e < VECTOR; e++) sum[h][c][e] *= rescale;
            }
#pragma unroll
            for (int n = 0; n < N; n++) {
                score[h][n] = exp2_approximate(score[h][n] - raised);
                total[h] += score[h][n];
            }
        }
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
#pragma unroll
                for (int e = 0; e < VECTOR; e++) {
                    const float element = value[n][c][e];
#pragma unroll
                    for (int h = 0; h < HEADS; h++) sum[h][c][e] = fmaf(score[h][n], element, sum[h][c][e]);
                }
            }
        }
    }

    // The lanes of a warp that hold the same columns of different positions agree, and store what they found.
    template <int WARPS> __device__ __forceinline__ void store(WarpParts<WARPS, HEADS, HEAD_DIM>& parts) {
        const int warp = threadIdx.x / 32, lane_of_warp = threadIdx.x % 32;
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float raised = highest[h];
#pragma unroll
            for (int lane = LANES; lane < 32; lane *= 2)
                raised = fmaxf(raised, __shfl_xor_sync(0xffffffffu, raised, lane));
            const float rescale = exp2_approximate(highest[h] - raised);
            total[h] *= rescale;
#pragma unroll
            for (int lane = LANES; lane < 32; lane *= 2) total[h] += __shfl_xor_sync(0xffffffffu, total[h], lane);
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
#pragma unroll
                for (int e = 0; e < VECTOR; e++) {
                    float whole = sum[h][c][e] * rescale;
#pragma unroll
                    for (int lane = LANES; lane < 32; lane *= 2) whole += __shfl_xor_sync(0xffffffffu, whole, lane);
                    if (lane_of_warp < LANES && column(c) < HEAD_DIM) parts.sum[warp][h][column(c) + e] = whole;
                }
            }
            if (lane_of_warp == 0) {
                parts.highest[warp][h] = raised;
                parts.total[warp][h] = total[h];
            }
        }
    }
};
