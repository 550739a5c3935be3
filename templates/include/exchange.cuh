// What kernels of several GPUs send each other: floats, each with the number of the exchange in one word of 8 bytes.
// A word is written and read as a whole, so that it announces itself: nothing is cleared, and no flag is waited for.

// Of one rank, in its own memory. The host sets it to zeros and the inboxes, and again where a step was cut short.
struct Exchange {
    unsigned number;   // exchanges that this rank has begun
    unsigned arrived;  // blocks that know the number of the one that is beginning
    unsigned rank, capacity;  // words that an inbox holds of one rank in one exchange
    unsigned long long inboxes[8];  // of each rank, as this GPU addresses them
};

// Two words.
struct alignas(16) Words {
    unsigned value, number, next_value, next_number;
};

__device__ __forceinline__ void send(Words* to, Words words) {
#if __CUDA_ARCH__
    asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(words.value),
                 "r"(words.number), "r"(words.next_value), "r"(words.next_number)
                 : "memory");
#else  // compiled for the host, in tests
    auto* halves = reinterpret_cast<volatile unsigned long long*>(to);
    halves[0] = words.value | static_cast<unsigned long long>(words.number) << 32;
    halves[1] = words.next_value | static_cast<unsigned long long>(words.next_number) << 32;
#endif
}

__device__ __forceinline__ Words look_at(const Words* from) {
    Words words;
#if __CUDA_ARCH__
    asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words.value), "=r"(words.number), "=r"(words.next_value), "=r"(words.next_number)
                 : "l"(from)
                 : "memory");
#else
    auto* halves = reinterpret_cast<const volatile unsigned long long*>(from);
    const unsigned long long first = halves[0], second = halves[1];
    words = {unsigned(first), unsigned(first >> 32), unsigned(second), unsigned(second >> 32)};
#endif
    return words;
}

// One exchange, which every rank begins as its n-th. A rank has two inboxes, by turns: it begins number n + 2 only when
// all others have begun n + 1, and so have read what it sent them in n. All blocks of a kernel must be resident at once,
// and send all their words before they wait for any.
template <int RANKS> struct Round {
    static constexpr long long PATIENCE = 3000000000;  // cycles, about one and a half seconds: then the kernel traps

    const Exchange& exchange;
    unsigned number, rank;

    __device__ __forceinline__ explicit Round(Exchange* exchange) : exchange(*exchange), rank(exchange->rank) {
        __shared__ unsigned begun;
        if (threadIdx.x == 0) {
            begun = *static_cast<volatile unsigned*>(&exchange->number) + 1;
            __threadfence();  // the number is read before this block arrives
            if (atomicAdd(&exchange->arrived, 1u) == gridDim.x - 1) {
                exchange->arrived = 0;
                exchange->number = begun;
            }
        }
        __syncthreads();
        number = begun;
    }

    // Where words `index` and `index + 1` of rank `from` lie in the inbox of rank `of`.
    __device__ __forceinline__ Words* place(int of, unsigned from, size_t index) const {
        auto* inbox = reinterpret_cast<unsigned long long*>(exchange.inboxes[of]);
        return reinterpret_cast<Words*>(inbox + (size_t(number % 2) * RANKS + from) * exchange.capacity + index);
    }

    // Send two floats of this rank to all others. `index` is even.
    __device__ __forceinline__ void put(size_t index, const float (&values)[2]) const {
        const Words words = {__float_as_uint(values[0]), number, __float_as_uint(values[1]), number};
#pragma unroll
        for (int other = 0; other < RANKS; other++)
            if (other != rank) send(place(other, rank, index), words);
    }

    // Wait for two floats that another rank has sent.
    __device__ __forceinline__ void take(float (&values)[2], int from, size_t index) const {
        const Words* place = this->place(rank, from, index);
        Words words = look_at(place);
        if (words.number != number || words.next_number != number) {
            const long long begin = clock64();
            do {
                words = look_at(place);
                if (clock64() - begin > PATIENCE) __trap();
            } while (words.number != number || words.next_number != number);
        }
        values[0] = __uint_as_float(words.value);
        values[1] = __uint_as_float(words.next_value);
    }
};
