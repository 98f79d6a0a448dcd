// Rotary positions (Su et al. 2021): y = x * c + partner(x) * s, the sign of the sine in its table. Bound: memory.

// c, s:(rotary,) of one position, laid out like the channels they multiply.
static void rope_factors(const float* cos, const float* sin, index_t rotary, bool interleaved, float sign, float* c, float* s) {
    const index_t half = rotary / 2;
    for (index_t i = 0; i < half; ++i) {
        const index_t first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : half + i;
        c[first] = c[second] = cos[i];
        s[first] = -sign * sin[i];
        s[second] = sign * sin[i];
    }
}

template <int... I>
INLINE V swap_pairs(V x, std::integer_sequence<int, I...>) { return __builtin_shufflevector(x, x, (I ^ 1)...); }

static void rope(const float* x, float* y, const float* cos, const float* sin, const int32_t* positions, index_t rows, index_t heads,
                 index_t d, index_t rotary, index_t x_row, bool interleaved, bool inverse) {
    const index_t half = rotary / 2, grain = std::max<index_t>(1, 16384 / std::max<index_t>(1, heads * d));
    parallel_ranges(rows, grain, [&](index_t begin, index_t end) {
        float* c = static_cast<float*>(scratch(4, sizeof(float) * 2 * std::max<index_t>(rotary, 1)));
        float* s = c + rotary;
        for (index_t row = begin; row < end; ++row) {
            rope_factors(cos + positions[row] * half, sin + positions[row] * half, rotary, interleaved, inverse ? -1.0f : 1.0f, c, s);
            for (index_t h = 0; h < heads; ++h) {
                const float* from = x + row * x_row + h * d;
                float* to = y + (row * heads + h) * d;
                const index_t span = interleaved ? rotary : half;
                for (index_t j = 0; j < span; j += W) {
                    const index_t n = std::min<index_t>(W, span - j);
                    const V a = load_n(from + j, n);
                    if (interleaved) {
                        store_n(to + j, a * load_n(c + j, n) + swap_pairs(a, std::make_integer_sequence<int, W>()) * load_n(s + j, n), n);
                    } else {
                        const V b = load_n(from + half + j, n), cj = load_n(c + j, n), sj = load_n(s + half + j, n);
                        store_n(to + j, a * cj - b * sj, n);
                        store_n(to + half + j, b * cj + a * sj, n);
                    }
                }
                std::memcpy(to + rotary, from + rotary, (d - rotary) * sizeof(float));
            }
        }
    });
}
