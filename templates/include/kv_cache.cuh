// The paged cache kv [pages, 2, KV_HEADS, PAGE, HEAD_DIM]: in a page, all keys and then all values, head by head.

constexpr int PAGE = 64;

template <int KV_HEADS, int HEAD_DIM> struct KvCache {
    static constexpr int DIM = HEAD_DIM;
    static constexpr size_t HEAD = size_t(PAGE) * HEAD_DIM;  // elements of one head's keys in one page
    static constexpr size_t VALUES = KV_HEADS * HEAD;        // from a key to its value
    static constexpr size_t STRIDE = 2 * VALUES;             // from a page to the next

    // Where the key of `head` at row `row` of `page` begins, in elements.
    static __device__ __forceinline__ size_t key(int page, int head, int row) {
        return page * STRIDE + head * HEAD + size_t(row) * HEAD_DIM;
    }
};
