// What a GEMV is made of: chunks of weights on their way from memory, and rows of activations in shared memory.

// Weights are read once a step: they pass by the L1 cache (ld.global.nc, PTX ISA 9.7.9.8).
__device__ __forceinline__ Chunk<16> load_stream(const Chunk<16>* p) {
    Chunk<16> out;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out.v.x), "=r"(out.v.y), "=r"(out.v.z), "=r"(out.v.w)
                 : "l"(p));
    return out;
}
__device__ __forceinline__ Chunk<8> load_stream(const Chunk<8>* p) { return *p; }
__device__ __forceinline__ Chunk<4> load_stream(const Chunk<4>* p) { return *p; }
__device__ __forceinline__ Chunk<2> load_stream(const Chunk<2>* p) { return *p; }

// A warp's share of UNROLL consecutive warp-wide chunks of PARTS weight rows, PART_ROWS rows apart.
template <typename T, int WIDTH, int VECTOR, int UNROLL, int PARTS, int PART_ROWS> struct WeightTile {
    using Piece = Chunk<VECTOR * sizeof(T)>;
    static constexpr int CHUNKS = WIDTH / VECTOR;
    static constexpr int STEPS = (CHUNKS + 32 * UNROLL - 1) / (32 * UNROLL);  // tiles in a row
    Piece pieces[PARTS][UNROLL];

    __device__ __forceinline__ void load(const T* weight, int row, int step) {
        const int first = step * 32 * UNROLL + threadIdx.x % 32;
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            const Piece* chunks = reinterpret_cast<const Piece*>(weight + size_t(row + part * PART_ROWS) * WIDTH);
#pragma unroll
            for (int u = 0; u < UNROLL; u++) {
                const int chunk = first + 32 * u;
                if (CHUNKS % (32 * UNROLL) == 0 || chunk < CHUNKS) pieces[part][u] = load_stream(chunks + chunk);
            }
        }
    }

    // Adds this tile's products with TOKENS rows of activations, x_stride elements apart.
    template <int TOKENS>
    __device__ __forceinline__ void dot(float (&sum)[PARTS][TOKENS], const T* x, int x_stride, int step) const {
        const int first = step * 32 * UNROLL + threadIdx.x % 32;
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            const int chunk = first + 32 * u;
            if (CHUNKS % (32 * UNROLL) != 0 && chunk >= CHUNKS) break;
            float w[PARTS][VECTOR];
#pragma unroll
            for (int part = 0; part < PARTS; part++) unpack<VECTOR, T>(w[part], pieces[part][u]);
#pragma unroll
            for (int token = 0; token < TOKENS; token++) {
                float a[VECTOR];
                load_vector(a, x + token * x_stride + chunk * VECTOR);
#pragma unroll
                for (int part = 0; part < PARTS; part++)
#pragma unroll
                    for (int i = 0; i < VECTOR; i++) sum[part][token] = fmaf(w[part][i], a[i], sum[part][token]);
            }
        }
    }
};

// Copies rows of activations to shared memory, as they are.
template <int WIDTH, int VECTOR, int THREADS, typename T>
__device__ __forceinline__ void stage_rows(T* shared, const T* x, int x_stride, int tokens) {
    using Piece = Chunk<VECTOR * sizeof(T)>;
    constexpr int CHUNKS = WIDTH / VECTOR;
    for (int i = threadIdx.x; i < tokens * CHUNKS; i += THREADS) {
        const int token = i / CHUNKS, chunk = i % CHUNKS;
        const T* from = x + size_t(token) * x_stride + chunk * VECTOR;
        reinterpret_cast<Piece*>(shared)[i] = *reinterpret_cast<const Piece*>(from);
    }
}

// The weight of a normalisation, spread over the threads of a block, for rows of WIDTH.
template <typename T, int WIDTH, int VECTOR, int THREADS> struct RowGain {
    static constexpr int VECTORS = (WIDTH + VECTOR * THREADS - 1) / (VECTOR * THREADS);  // of each thread
    using Piece = Chunk<VECTOR * sizeof(T)>;
    Piece gains[VECTORS];

    __device__ __forceinline__ static int column(int v) { return (v * THREADS + threadIdx.x) * VECTOR; }

    __device__ __forceinline__ void load(const T* weight) {
#pragma unroll
        for (int v = 0; v < VECTORS; v++)
            if (column(v) < WIDTH) gains[v] = load_stream(reinterpret_cast<const Piece*>(weight + column(v)));
    }

    // Copies rows to shared memory, each normalised and rounded as stored.
    template <typename Norm>
    __device__ __forceinline__ void stage_normalised(
        T* shared, const T* x, int x_stride, int tokens, const Norm norm) const {
        for (int token = 0; token < tokens; token++) {
            float kept[VECTORS][VECTOR];
            float sum = 0.0f;
#pragma unroll
            for (int v = 0; v < VECTORS; v++) {
                if (column(v) >= WIDTH) break;
                load_vector(kept[v], x + size_t(token) * x_stride + column(v));
#pragma unroll
                for (int i = 0; i < VECTOR; i++) sum += norm.summand(kept[v][i]);
            }
            const float scale = norm.scale(block_sum<THREADS>(sum), WIDTH);
#pragma unroll
            for (int v = 0; v < VECTORS; v++) {
                if (column(v) >= WIDTH) break;
                float gain[VECTOR];
                unpack<VECTOR, T>(gain, gains[v]);
#pragma unroll
                for (int i = 0; i < VECTOR; i++) gain[i] = norm.apply(kept[v][i], scale, gain[i]);
                store_vector(shared + token * WIDTH + column(v), gain);
            }
        }
    }
};
