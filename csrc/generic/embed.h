// Rows of a table by id, and back: every element of dw is a sum in order of position, whatever the split.

static void embedding(const float* w, const int32_t* ids, float* y, index_t n, index_t c) {
    parallel_ranges(n, std::max<index_t>(1, GRAIN / std::max<index_t>(c, 1)), [&](index_t begin, index_t end) {
        for (index_t i = begin; i < end; ++i) std::memcpy(y + i * c, w + ids[i] * c, c * sizeof(float));
    });
}

// Tasks are ranges of ids x slices of channels; positions are sorted by range first, so that a task meets its own alone.
static void embedding_vjp(const float* dy, const int32_t* ids, float* dw, index_t n, index_t c, index_t rows, bool accumulate) {
    if (rows == 0) return;
    const bool small = (rows + n) * c <= GRAIN;
    const index_t per_range = small ? rows : (rows + 63) / 64, ranges = (rows + per_range - 1) / per_range;
    const index_t slice = small ? c : 192, slices = (c + slice - 1) / std::max<index_t>(slice, 1);
    int32_t* start = static_cast<int32_t*>(scratch(3, sizeof(int32_t) * (ranges + 1 + n)));
    int32_t* order = start + ranges + 1;
    std::fill_n(start, ranges + 1, 0);
    for (index_t i = 0; i < n; ++i) ++start[ids[i] / per_range + 1];
    for (index_t r = 0; r < ranges; ++r) start[r + 1] += start[r];
    for (index_t i = 0; i < n; ++i) order[start[ids[i] / per_range]++] = int32_t(i);  // now start[r] is the end of range r
    parallel_for(ranges * slices, [&](index_t task) {
        const index_t range = task / slices, from = task % slices * slice, width = std::min(slice, c - from);
        const index_t last = std::min(rows, (range + 1) * per_range);
        for (index_t row = accumulate ? last : range * per_range; row < last; ++row) std::fill_n(dw + row * c + from, width, 0.0f);
        for (index_t p = range ? start[range - 1] : 0; p < start[range]; ++p) {
            const float* d = dy + order[p] * c + from;
            float* to = dw + ids[order[p]] * c + from;
            each_vector(width, [=](index_t j, index_t lanes) { store_n(to + j, load_n(to + j, lanes) + load_n(d + j, lanes), lanes); });
        }
    });
}
