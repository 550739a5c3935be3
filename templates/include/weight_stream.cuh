// How a GEMV on tensor cores is fed: weights, and where they do not fit on an SM also activations, pass through
// a ring of shared memory that belongs to one warp, so that no barrier is needed between loading and using them.

__device__ __forceinline__ void copy_async(unsigned to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ uint4 load_shared(unsigned address) {
    uint4 out;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
                 : "r"(address)
                 : "memory");
    return out;
}

// 8 elements of a row of activations: as one access, or as several where rows begin at less.
template <int VECTOR, typename T> __device__ __forceinline__ Chunk<16> load_piece(const T* from) {
    if constexpr (VECTOR * sizeof(T) == 16) {
        return *reinterpret_cast<const Chunk<16>*>(from);
    } else {
        union Pack { Chunk<16> raw; T items[8]; __device__ Pack() {} } pack;
#pragma unroll
        for (int i = 0; i < 8; i++) pack.items[i] = from[i];
        return pack.raw;
    }
}

__device__ __forceinline__ void store_shared(unsigned address, const Chunk<16>& piece) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(piece.v.x), "r"(piece.v.y),
                 "r"(piece.v.z), "r"(piece.v.w)
                 : "memory");
}

// A panel is 64 columns of 16 rows of weights, 2 KiB: two octets of neighbouring rows, which are 16 output columns, or
// one octet of each of two parts, COLUMNS rows apart, which are 8. Rows are 128 bytes in shared memory, and the 16-byte
// pieces of row r are permuted by r % 8: eight rows at one column lie in different banks.
//
// The block owns the output columns [column, end); its warps share the columns of a panel's rows, WARPS panels side by
// side. STREAMED rows of activations travel with each panel where they have no place of their own.
template <typename T, int WIDTH, int COLUMNS, int PARTS, int WARPS, int DEPTH, int STREAMED, int VECTOR>
struct WeightStream {
    static constexpr int PANELS = WIDTH / 64;                  // side by side in a row
    static constexpr int TILE = 16 / PARTS;                    // output columns of a panel
    static constexpr int WEIGHTS = 16 * 128, SLOT = WEIGHTS + (STREAMED ? 8 * 128 : 0);  // bytes
    static_assert(PARTS <= 2 && WIDTH % 64 == 0, "a panel is two octets of whole pieces");
    const T* weight;
    unsigned ring;  // of this warp
    int column, end, panel, slot = 0;

    __device__ __forceinline__ WeightStream(const T* weight, unsigned rings, int column, int end)
        : weight(weight), ring(rings + threadIdx.x / 32 * DEPTH * SLOT), column(column), end(end),
          panel(threadIdx.x / 32) {
        if (panel >= PANELS) this->column = end;  // more warps than panels: nothing to do
    }

    // Start copying the next panel, if there is one; every call is one group of copies.
    __device__ __forceinline__ void load() { load(nullptr, 0, 0); }

    __device__ __forceinline__ void load(const T* x, int x_stride, int tokens) {
        if (column < end) {
            load_weights();
            if (STREAMED && x) load_activations(slot, panel, x, x_stride, tokens);
            slot = slot + 1 == DEPTH ? 0 : slot + 1;
            panel += WARPS;
            if (panel >= PANELS) {
                panel = threadIdx.x / 32;
                column += TILE;
            }
        }
        commit_copies();
    }

    __device__ __forceinline__ void load_weights() const {
        const int row = threadIdx.x % 32 / 8, piece = threadIdx.x % 8;  // and the rows 4, 8 and 12 further on
        const unsigned to = ring + slot * SLOT;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int octet = i / 2, in_octet = i % 2 * 4 + row;
            const int from = column + in_octet + (PARTS == 1 ? octet * 8 : 0);
            if (from >= end) continue;  // rows of the last tile that are not the block's are computed for nothing
            const size_t weight_row = from + (PARTS == 2 ? octet * COLUMNS : 0);
            copy_async(to + (octet * 8 + in_octet) * 128 + (piece ^ in_octet) * 16,
                       weight + weight_row * WIDTH + panel * 64 + piece * 8);
        }
    }

    // The activations that belong to a panel: 64 columns of 8 rows, of which a lane copies two pieces.
    __device__ __forceinline__ void load_activations(int slot, int panel, const T* x, int x_stride, int tokens) const {
        if constexpr (VECTOR * sizeof(T) == 16) {
#pragma unroll
            for (int i = 0; i < 2; i++)
                if (row(i) < tokens) copy_async(place(slot, i), x + size_t(row(i)) * x_stride + column_in(panel));
        } else {
            Chunk<16> pieces[2];
            fetch_activations(pieces, panel, x, x_stride, tokens);
            store_activations(slot, pieces, tokens);
        }
    }

    // The same by way of registers, for panels that are on their way already: copies end in the order they began.
    __device__ __forceinline__ void fetch_activations(
        Chunk<16> (&pieces)[2], int panel, const T* x, int x_stride, int tokens) const {
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (row(i) < tokens) pieces[i] = load_piece<VECTOR>(x + size_t(row(i)) * x_stride + column_in(panel));
    }
    __device__ __forceinline__ void store_activations(int slot, const Chunk<16> (&pieces)[2], int tokens) const {
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (row(i) < tokens) store_shared(place(slot, i), pieces[i]);
    }

    // A lane's two tokens, its columns of a panel, and where they lie in the ring. Rows of tokens that are not there stay
    // as they are: what is multiplied with them is never stored.
    static __device__ __forceinline__ int row(int i) { return threadIdx.x % 32 / 8 + i * 4; }
    static __device__ __forceinline__ int column_in(int panel) { return panel * 64 + threadIdx.x % 8 * 8; }
    __device__ __forceinline__ unsigned place(int slot, int i) const {
        return ring + slot * SLOT + WEIGHTS + row(i) * 128 + (threadIdx.x % 8 ^ row(i)) * 16;
    }
};

// Adds a panel's products to `sum`: row lane / 4 and the one 8 below, for tokens lane % 4 * 2 and the next.
// The order of columns is the same for weights and activations, and so it may be any: each lane takes whole 16-byte
// pieces, and calls their elements 0, 1 and 2, 3 what one mma calls 0, 1 and 8, 9; the rest goes to a second one.
template <typename T>
__device__ __forceinline__ void add_panel(float (&sum)[2][4], const uint4 (&low)[2], const uint4 (&high)[2],
                                          const uint4 (&x)[2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const unsigned first[4] = {low[half].x, high[half].x, low[half].y, high[half].y};
        const unsigned second[4] = {low[half].z, high[half].z, low[half].w, high[half].w};
        mma_16x8x16<T>(sum[0], first, x[half].x, x[half].y);
        mma_16x8x16<T>(sum[1], second, x[half].z, x[half].w);
    }
}

// Rows of activations that stay in shared memory, a whole number of 128 bytes and 64 more apart, so that two of them
// lie in different banks. THREADS / TOKENS neighbouring threads look after a row. They come by way of registers: copies
// end in the order they began, and would make the first product wait for all weights that are on their way.
template <typename T, int WIDTH, int TOKENS, int THREADS, int VECTOR> struct StagedRows {
    static constexpr int STRIDE = WIDTH * sizeof(T) + 64, LANES = THREADS / TOKENS;  // bytes; threads
    static constexpr int PIECES = (WIDTH + LANES * 8 - 1) / (LANES * 8);  // of 8 elements, a thread
    static_assert(THREADS % TOKENS == 0 && LANES % 32 == 0, "a row is whole warps' to look after");
    unsigned rows;
    Chunk<16> gains[PIECES], pieces[PIECES];

    __device__ __forceinline__ explicit StagedRows(unsigned rows) : rows(rows) {}
    __device__ __forceinline__ static int row() { return threadIdx.x / LANES; }
    __device__ __forceinline__ static int column(int piece) { return (piece * LANES + threadIdx.x % LANES) * 8; }

    // The weight of a normalisation, a thread's share: a constant, so ahead of the wait.
    __device__ __forceinline__ void load_gain(const T* gain) {
#pragma unroll
        for (int i = 0; i < PIECES; i++)
            if (column(i) < WIDTH) gains[i] = *reinterpret_cast<const Chunk<16>*>(gain + column(i));
    }

    __device__ __forceinline__ void load(const T* x, int x_stride, int tokens) {
        if (row() >= tokens) return;  // what is multiplied with nothing is never stored
#pragma unroll
        for (int i = 0; i < PIECES; i++)
            if (column(i) < WIDTH) pieces[i] = load_piece<VECTOR>(x + size_t(row()) * x_stride + column(i));
    }

    __device__ __forceinline__ void store() const {
#pragma unroll
        for (int i = 0; i < PIECES; i++)
            if (column(i) < WIDTH) store_shared(rows + row() * STRIDE + column(i) * sizeof(T), pieces[i]);
    }

    // Each row becomes its norm, rounded as stored.
    template <typename Norm> __device__ __forceinline__ void normalise(const Norm norm) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            if (column(i) >= WIDTH) break;
            float x[8];
            unpack<8, T>(x, pieces[i]);
#pragma unroll
            for (int e = 0; e < 8; e++) sum += norm.summand(x[e]);
        }
        sum = warp_sum(sum);
        if constexpr (LANES > 32) {
            __shared__ float partial[THREADS / 32];
            if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
            __syncthreads();
            sum = 0.0f;
#pragma unroll
            for (int warp = 0; warp < LANES / 32; warp++) sum += partial[row() * (LANES / 32) + warp];
        }
        const float scale = norm.scale(sum, WIDTH);
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            if (column(i) >= WIDTH) break;
            union Pack { Chunk<16> raw; T items[8]; __device__ Pack() {} } pack;
            float x[8], gain[8];
            unpack<8, T>(x, pieces[i]);
            unpack<8, T>(gain, gains[i]);
#pragma unroll
            for (int e = 0; e < 8; e++) pack.items[e] = from_float<T>(norm.apply(x[e], scale, gain[e]));
            pieces[i] = pack.raw;
        }
    }
};
