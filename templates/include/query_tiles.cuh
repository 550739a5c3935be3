// How a ragged batch of prompts is cut into tiles of queries.

// Up to QUERIES neighbouring tokens of one sequence; `count` is not positive where there is nothing to do.
struct QueryTile {
    int sequence, first, count;
    bool is_single;  // the sequence has no other token in the step
};

// The tile of queries in a slot. Sequence s owns the slots from query_start[s] / QUERIES + s on: as rounding down
// loses less than one tile and every sequence adds a slot, they hold all its tiles, and no other's.
template <int QUERIES>
__device__ __forceinline__ QueryTile find_queries(const int* query_start, int seqs, int slot) {
    int sequence = 0;
    for (int beyond = seqs; beyond - sequence > 1;) {
        const int middle = (sequence + beyond) / 2;
        if (query_start[middle] / QUERIES + middle <= slot) {
            sequence = middle;
        } else {
            beyond = middle;
        }
    }
    const int start = query_start[sequence];
    const int first = start + (slot - start / QUERIES - sequence) * QUERIES;
    const int end = query_start[sequence + 1];
    return {sequence, first, min(QUERIES, end - first), end - start == 1};
}
