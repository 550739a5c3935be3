// Attention of single tokens on tensor cores: positions are the 16 rows of an mma, query heads its 8 columns.

// A unit is 16 positions of one key head: 16 rows of keys, then 16 of values. In shared memory a row is 16 bytes longer
// than a head, an odd number of 16-byte pieces: eight rows at one column lie in different banks.
constexpr int UNIT = 16;
template <int HEAD_DIM> constexpr int UNIT_ROW = HEAD_DIM + 8;  // elements

// What a warp reads of the cache, up to position `end`: every step-th unit from `unit` on, through a ring of its own of
// DEPTH units, so that no barrier is needed between loading and using them. Pages are looked up two units ahead.
template <typename T, typename Cache, int DEPTH> struct UnitStream {
    static constexpr int ROW = UNIT_ROW<Cache::DIM>, SLOT = 2 * UNIT * ROW * sizeof(T);  // elements; bytes
    static constexpr int PIECES = Cache::DIM / 8, ROWS = 32 / PIECES;  // 16-byte pieces in a row; rows of one access
    static_assert(PIECES <= 32 && ROWS <= UNIT, "a warp copies whole rows");
    const T* head;  // the keys of the head in page 0
    const int* pages;
    unsigned ring;
    int unit, step, end, page, next_page, slot = 0;

    __device__ __forceinline__ UnitStream(
        const T* head, const int* pages, unsigned ring, int unit, int step, int end)
        : head(head), pages(pages), ring(ring), unit(unit), step(step), end(end) {
        page = page_of(unit);
        next_page = page_of(unit + step);
    }

    // Start copying the next unit, if there is one; every call is one group of copies.
    __device__ __forceinline__ void load() {
        if (unit * UNIT < end) {
            const int row = threadIdx.x % 32 / PIECES, column = threadIdx.x % 32 % PIECES * 8;
            const T* from = head + page * Cache::STRIDE + (unit * UNIT % PAGE + row) * Cache::DIM + column;
            const unsigned to = ring + slot * SLOT + (row * ROW + column) * sizeof(T);
            const int left = end - unit * UNIT - row;  // rows beyond it become zeros
            constexpr bool WHOLE = ROWS * PIECES == 32 && UNIT % ROWS == 0;  // else some lanes copy less than others
#pragma unroll
            for (int r = 0; r < UNIT; r += ROWS) {
                if (!WHOLE && (row >= ROWS || r + row >= UNIT)) break;
                copy_async(to + r * ROW * sizeof(T), from + r * Cache::DIM, r < left);
                copy_async(to + (UNIT + r) * ROW * sizeof(T), from + Cache::VALUES + r * Cache::DIM, r < left);
            }
            slot = slot + 1 == DEPTH ? 0 : slot + 1;
            unit += step;
            page = next_page;
            next_page = page_of(unit + step);
        }
        commit_copies();
    }

    // The position behind the next unit.
    __device__ __forceinline__ int next_end() const { return (unit + 1) * UNIT; }

    __device__ __forceinline__ int page_of(int unit) const {
        return unit * UNIT < end ? max(pages[unit * UNIT / PAGE], 0) : 0;
    }
};

// An 8 x 8 matrix of 16-bit elements, a fragment before and after (PTX ISA 9.7.14.5.17, movmatrix).
__device__ __forceinline__ unsigned transposed(unsigned pair) {
    unsigned out;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
    return out;
}

// What a warp knows of HEADS query heads after some units, spread over its lanes as the results of an mma are: columns
// 2 * (lane % 4) and the next, and of the sums the elements lane / 4 and 8 further on of every 16.
template <typename T, int HEAD_DIM, int HEADS> struct WarpAttention {
    static constexpr int ROW = UNIT_ROW<HEAD_DIM>, STEPS = HEAD_DIM / 16;
    static_assert(HEAD_DIM % 16 == 0 && HEADS <= 8, "whole operands of an mma");
    unsigned query[STEPS][2];
    float sum[STEPS][4] = {}, highest[2] = {no_score(), no_score()}, total[2] = {};

    // Rows of queries, ROW elements apart; columns without a head repeat the last.
    __device__ __forceinline__ explicit WarpAttention(const T* queries) {
        const int lane = threadIdx.x % 32;
        const T* row = queries + min(lane / 4, HEADS - 1) * ROW + lane % 4 * 2;
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            query[k][0] = *reinterpret_cast<const unsigned*>(row + k * 16);
            query[k][1] = *reinterpret_cast<const unsigned*>(row + k * 16 + 8);
        }
    }

    // Attend to positions more, the rows `begin` to `end` - 1 of keys and values at these addresses of shared memory.
    // There are ROWS rows of both; the values in the others must be finite.
    template <int ROWS>
    __device__ __forceinline__ void attend(
        unsigned keys, unsigned values, int begin, int end, float scale, float cap) {
        const int lane = threadIdx.x % 32;
        const unsigned key = keys + (lane % ROWS * ROW + lane / 16 * 8) * sizeof(T);
        float score[2][4] = {};
#pragma unroll
        for (int k = 0; k < STEPS; k++) {
            unsigned a[4];
            load_matrices(a, key + k * 16 * sizeof(T));
            mma_16x8x16<T>(score[k % 2], a, query[k][0], query[k][1]);
        }
        float weight[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4 + i / 2 * 8;
            const bool present = row >= begin && row < end;
            weight[i] = present ? capped((score[0][i] + score[1][i]) * scale, cap) : minus_infinity();
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float raised = fmaxf(highest[h], fmaxf(weight[h], weight[2 + h]));
#pragma unroll
            for (int other = 4; other < 32; other *= 2)
                raised = fmaxf(raised, __shfl_xor_sync(0xffffffffu, raised, other));
            const float rescale = exp2_approximate(highest[h] - raised);
            highest[h] = raised;
            weight[h] = exp2_approximate(weight[h] - raised);
            weight[2 + h] = exp2_approximate(weight[2 + h] - raised);
            total[h] = fmaf(total[h], rescale, weight[h] + weight[2 + h]);
#pragma unroll
            for (int n = 0; n < STEPS; n++) {
                sum[n][h] *= rescale;
                sum[n][2 + h] *= rescale;
            }
        }
        const unsigned upper = transposed(pack<T>(weight[0], weight[1]));
        const unsigned lower = transposed(pack<T>(weight[2], weight[3]));
        const unsigned value = values + ((lane % 8 + lane / 16 * 8) % ROWS * ROW + lane / 8 % 2 * 8) * sizeof(T);
#pragma unroll
        for (int n = 0; n < STEPS; n++) {
            unsigned a[4];
            load_matrices_transposed(a, value + n * 16 * sizeof(T));
            mma_16x8x16<T>(sum[n], a, upper, lower);
        }
    }

    // The warp's part: sums to rows of `sums`, PART_ROW floats apart, so that no two lanes meet in a bank.
    static constexpr int PART_ROW = HEAD_DIM + 4;
    __device__ __forceinline__ void store(float* sums, float2* stats) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int head = lane % 4 * 2 + h;
#pragma unroll
            for (int other = 4; other < 32; other *= 2) total[h] += __shfl_xor_sync(0xffffffffu, total[h], other);
            if (head >= HEADS) continue;
            float* row = sums + head * PART_ROW + lane / 4;
#pragma unroll
            for (int n = 0; n < STEPS; n++) {
                row[n * 16] = sum[n][h];
                row[n * 16 + 8] = sum[n][2 + h];
            }
            if (lane < 4) stats[head] = make_float2(highest[h], total[h]);
        }
    }
};

// How much each of N parts of a softmax-weighted sum weighs in the whole; of a part is known its highest score, and its
// total relative to that.
template <int N> struct Shares {
    float factor[N], highest = no_score(), total = 0.0f;

    __device__ __forceinline__ explicit Shares(const float2 (&stats)[N]) {
#pragma unroll
        for (int i = 0; i < N; i++) highest = fmaxf(highest, stats[i].x);
#pragma unroll
        for (int i = 0; i < N; i++) {
            factor[i] = exp2_approximate(stats[i].x - highest);
            total = fmaf(factor[i], stats[i].y, total);
        }
    }
};
