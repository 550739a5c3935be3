// Rotary position embedding (Su et al. 2021, arXiv:2104.09864) of heads of HEAD_DIM elements, the first ROTARY of which
// are turned. A head has HEAD_DIM / 2 pairs: the pairs that are turned, by halves of ROTARY or neighbour by neighbour,
// and then pairs of the other elements, which a kernel turns by the frequency 0.
template <int HEAD_DIM, int ROTARY, bool INTERLEAVED> struct HeadPairs {
    // N pairs from `pair` on, of one of the heads that lie one behind the other from `heads` on. `pair`, ROTARY / 2 and
    // HEAD_DIM / 2 are multiples of N, so that all of the pairs are turned, or none.
    template <int N, typename T>
    static __device__ __forceinline__ void load(
        float (&first)[N], float (&second)[N], const T* heads, int pair, int head = 0) {
        static_assert(ROTARY / 2 % N == 0 && HEAD_DIM / 2 % N == 0, "a thread's pairs are turned, or stay as they are");
        if constexpr (INTERLEAVED) {
            float both[2 * N];
            load_vector(both, heads + head * HEAD_DIM + 2 * pair);
#pragma unroll
            for (int i = 0; i < N; i++) {
                first[i] = both[2 * i];
                second[i] = both[2 * i + 1];
            }
        } else {
            load_vector(first, heads + head * HEAD_DIM + start(pair));
            load_vector(second, heads + head * HEAD_DIM + start(pair) + distance(pair));
        }
    }

    template <int N, typename T>
    static __device__ __forceinline__ void store(T* head, const float (&first)[N], const float (&second)[N], int pair) {
        if constexpr (INTERLEAVED) {
            float both[2 * N];
#pragma unroll
            for (int i = 0; i < N; i++) {
                both[2 * i] = first[i];
                both[2 * i + 1] = second[i];
            }
            store_vector(head + 2 * pair, both);
        } else {
            store_vector(head + start(pair), first);
            store_vector(head + start(pair) + distance(pair), second);
        }
    }

    // By halves: the first element of a pair, and how far the second is from it.
    static __device__ __forceinline__ int start(int pair) {
        return ROTARY == HEAD_DIM || pair < ROTARY / 2 ? pair : pair + ROTARY / 2;
    }
    static __device__ __forceinline__ int distance(int pair) {
        return ROTARY == HEAD_DIM || pair < ROTARY / 2 ? ROTARY / 2 : (HEAD_DIM - ROTARY) / 2;
    }
};

// Sine and cosine of an angle in radians of up to a few hundred thousand, to about 2e-7.
//
// sincosf reduces such angles by its slow path (Payne and Hanek), in local memory. sincospif has none, as a whole
// number of half turns is subtracted exactly; so the angle is divided by pi first, in two floats (Dekker 1971):
// 1/pi = INV_PI_HIGH + INV_PI_LOW to 2^-50, and the product's rounding error is recovered by one fused multiply-add.
__device__ __forceinline__ void sine_cosine(float angle, float& sine, float& cosine) {
    constexpr float INV_PI_HIGH = 0.318309873342514038f, INV_PI_LOW = 1.28412765e-8f;
    const float high = __fmul_rn(angle, INV_PI_HIGH);  // never contracted: `low` is the error of this very product
    const float low = fmaf(angle, INV_PI_LOW, fmaf(angle, INV_PI_HIGH, -high));
    const float whole_turns = 2.0f * rintf(0.5f * high);
    sincospif((high - whole_turns) + low, &sine, &cosine);
}

// The sines and cosines of N neighbouring pairs at one position, times a factor. The product is rounded to float, as the
// reference's is, so that both turn by the same angle.
template <int N> struct Rotation {
    float sine[N], cosine[N];

    __device__ __forceinline__ Rotation(int position, const float (&inv_freq)[N], float factor = 1.0f) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            sine_cosine(float(position) * inv_freq[i], sine[i], cosine[i]);
            sine[i] *= factor;
            cosine[i] *= factor;
        }
    }

    __device__ __forceinline__ void turn(float (&first)[N], float (&second)[N]) const {
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float turned = first[i] * cosine[i] - second[i] * sine[i];
            second[i] = second[i] * cosine[i] + first[i] * sine[i];
            first[i] = turned;
        }
    }
};

// What queries at a position are multiplied by, which grows with every `period` positions.
__device__ __forceinline__ float head_factor(int position, float beta, int period) {
    return 1.0f + beta * logf(float(1 + position / period));
}

template <int N> __device__ __forceinline__ void scale_pairs(float (&first)[N], float (&second)[N], float factor) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        first[i] *= factor;
        second[i] *= factor;
    }
}
