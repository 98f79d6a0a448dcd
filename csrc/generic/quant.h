// Products with packed weights: bfloat16, or blocks of 32 along k with one scale (q8_0: bytes; q4_0, q4_1: nibbles, the latter with a
// minimum). 32 rows of the weight, a panel, lie interleaved: 32-bit words (pairs of bfloat16, or 4 bytes of quants) of 32 rows side by
// side, so that a lane is a row of the weight, one stream serves few rows of x and many alike, and nothing is packed at run time.
//
// One rule fixes every bit: an output is a chain over the blocks k = 0, 32, ... of dot(block) * (w scale * x scale), and a block's dot is
// exact in integers; for bfloat16 a chain of pairs. Tiles, rows, threads never touch it: a row in decoding has the bits it has in a prompt.
//
// Bound: with few rows the stream of weights; with many the dot instructions (two float operations a block and register beside eight dots).

constexpr index_t WOVEN = 32;  // rows of the weight that lie interleaved
constexpr index_t Q_BLOCK = 32;
constexpr int PACKED_NV = 2;  // registers of a panel at a time
constexpr int PACKED_R = W == 16 ? 6 : 2;
constexpr index_t PACKED_TILES = 96 / PACKED_R;  // row tiles of a task: their x stays in L2 beside a panel
constexpr index_t PACKED_BYTES = 96 * 1024;      // of weights of a task, unless there would be fewer than 8 tasks
constexpr index_t PACKED_FEW_BYTES = 16 * 1024;  // the same for few rows: threads that end together
constexpr index_t PACKED_L1 = 16 * 1024;         // of a panel at a time: they stay in L1 while all row tiles of the task meet them

struct Bf16 { static constexpr int WORDS = 16, OFFSET = 0; static constexpr bool MIN = false; };
struct Q8_0 { static constexpr int WORDS = 8, OFFSET = 128; static constexpr bool MIN = false; };  // bytes are the quants + 128
struct Q4_0 { static constexpr int WORDS = 4, OFFSET = 8; static constexpr bool MIN = false; };
struct Q4_1 { static constexpr int WORDS = 4, OFFSET = 0; static constexpr bool MIN = true; };
template <class F> constexpr bool kFloat = std::is_same_v<F, Bf16>;

template <class Use>
static void with_format(PackedFormat format, const Use& use) {
    if (format == kBf16) use(Bf16{});
    if (format == kQ8_0) use(Q8_0{});
    if (format == kQ4_0) use(Q4_0{});
    if (format == kQ4_1) use(Q4_1{});
}

// ---- x in the weight's precision ----
// 32 of a row of x. The blocks of a tile's rows lie together, (blocks, rows), so that a tile reads one stream of them too.
struct XPairs {
    uint32_t words[16];
};
struct XBytes {
    uint32_t words[8];  // 4 bytes each
    float scale;
    int32_t start;  // - OFFSET * sum of the quants: what the weight's bytes have too much
    float sum;      // scale * sum of the quants: what a weight's minimum is multiplied with
};
template <class F> using XBlock = std::conditional_t<kFloat<F>, XPairs, XBytes>;

// Rows [0, m) as tiles of at most PACKED_R, as even as they come.
struct Tiles {
    index_t m, count;
    explicit Tiles(index_t rows) : m(rows), count((rows + PACKED_R - 1) / PACKED_R) {}
    index_t begin(index_t t) const { return t * m / count; }
};

static void round_block(const float* x, index_t n, XPairs& block) {  // zeros behind n
    for (index_t j = 0; j < Q_BLOCK; j += W) {
        const V v = j < n ? load_n(x + j, std::min<index_t>(W, n - j)) : V{};
        const VH half = __builtin_convertvector(to_bf16(v), VH);
        std::memcpy(reinterpret_cast<char*>(block.words) + 2 * j, &half, sizeof half);
    }
}

// x ~ scale * q, scale = max |x| / 127, q to the nearest whole number. NaN or infinity makes the scale NaN, and so the row's results.
template <int OFFSET>
static void quantise_block(const float* x, XBytes& block) {
    constexpr int N = int(Q_BLOCK) / W;
    V v[N], top{}, poison{};
    for (int i = 0; i < N; ++i) {
        v[i] = load(x + i * W);
        top = vmax(top, vmax(v[i], -v[i]));
        poison += v[i] * 0.0f;
    }
    const float most = max_lane(top), inverse = most > 1e-35f ? 127.0f / most : 0.0f;
    VI total{};
    for (int i = 0; i < N; ++i) {
        const V magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
        const V scaled = vmin(vmax(v[i] * inverse, splat(-127.0f)), splat(127.0f));
        const VI n = as_int(scaled + magic) - as_int(magic);
        total += n;
        const VB bytes = __builtin_convertvector(n, VB);
        std::memcpy(reinterpret_cast<char*>(block.words) + i * W, &bytes, sizeof bytes);
    }
    const int32_t sum_q = int32_t(sum(to_float(total)));  // at most 127 * 32: exact
    block.scale = most / 127.0f + sum(poison);
    block.start = -OFFSET * sum_q;
    block.sum = block.scale * float(sum_q);
}

template <class F>
static const XBlock<F>* prepare(const PackedArgs& g, index_t blocks) {  // of the tiles one after the other
    const Tiles tiles(g.m);
    auto* x = static_cast<XBlock<F>*>(scratch(2, g.m * blocks * sizeof(XBlock<F>)));
    parallel_ranges(tiles.count, std::max<index_t>(1, GRAIN / PACKED_R / std::max<index_t>(g.i, 1)), [&](index_t first, index_t last) {
        for (index_t t = first; t < last; ++t) {
            const index_t begin = tiles.begin(t), rows = tiles.begin(t + 1) - begin;
            for (index_t r = 0; r < rows; ++r)
                for (index_t b = 0; b < blocks; ++b) {
                    const float* from = g.x + (begin + r) * g.i + b * Q_BLOCK;
                    XBlock<F>& to = x[begin * blocks + b * rows + r];
                    if constexpr (kFloat<F>) round_block(from, g.i - b * Q_BLOCK, to);
                    else quantise_block<F::OFFSET>(from, to);
                }
        }
    });
    return x;
}

// ---- the tile: R rows of x, NV registers of a panel, some blocks of k added to acc ----
struct Woven {
    const uint32_t* words;
    const uint16_t *scales, *mins;
};

template <int R>
static void tile(Bf16, const Woven& w, const XPairs* x, index_t blocks, V (&acc)[R][PACKED_NV]) {
    const uint32_t* from = w.words;
    for (index_t b = 0; b < blocks; ++b, x += R)
#pragma GCC unroll 4
        for (int word = 0; word < 16; ++word, from += WOVEN) {
            VU wv[PACKED_NV];
#pragma GCC unroll 4
            for (int v = 0; v < PACKED_NV; ++v) wv[v] = VU(load_int(from + v * W));
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const VU pair = VU(splat_int(int32_t(x[r].words[word])));
#pragma GCC unroll 4
                for (int v = 0; v < PACKED_NV; ++v) acc[r][v] = bf16_dot(acc[r][v], wv[v], pair);
            }
        }
}

template <int R>
INLINE void dots(VI (&dot)[R][PACKED_NV], const VU (&w)[PACKED_NV], const XBytes* x, int word) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
        const VI quad = splat_int(int32_t(x[r].words[word]));
#pragma GCC unroll 4
        for (int v = 0; v < PACKED_NV; ++v) dot[r][v] = byte_dot(dot[r][v], w[v], quad);
    }
}

template <int R, class F>
static void tile(F, const Woven& w, const XBytes* x, index_t blocks, V (&acc)[R][PACKED_NV]) {
    const uint32_t* from = w.words;
    for (index_t b = 0; b < blocks; ++b, x += R) {
        VI dot[R][PACKED_NV];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int v = 0; v < PACKED_NV; ++v) dot[r][v] = splat_int(x[r].start);
#pragma GCC unroll 8
        for (int word = 0; word < F::WORDS; ++word, from += WOVEN) {
            VU wv[PACKED_NV];
#pragma GCC unroll 4
            for (int v = 0; v < PACKED_NV; ++v) wv[v] = VU(load_int(from + v * W));
            if constexpr (F::WORDS == 8) {
                dots<R>(dot, wv, x, word);
            } else {  // low nibbles are the block's first 16 weights, high ones its last
                VU low[PACKED_NV], high[PACKED_NV];
#pragma GCC unroll 4
                for (int v = 0; v < PACKED_NV; ++v) low[v] = wv[v] & 0x0F0F0F0F, high[v] = wv[v] >> 4 & 0x0F0F0F0F;
                dots<R>(dot, low, x, word);
                dots<R>(dot, high, x, word + 4);
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < PACKED_NV; ++v) {
            const V scale = load_half(w.scales + b * WOVEN + v * W), least = F::MIN ? load_half(w.mins + b * WOVEN + v * W) : V{};
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                acc[r][v] = to_float(dot[r][v]) * (scale * x[r].scale) + acc[r][v];
                if constexpr (F::MIN) acc[r][v] = least * x[r].sum + acc[r][v];
            }
        }
    }
}

struct Blocks {  // those of k that a tile takes now: [first, first + count) of `all`
    index_t first, count, all;
};

template <class F, int R>
static void packed_tile(const PackedArgs& g, const XBlock<F>* x, const Blocks& k, index_t row, index_t panel) {
    for (index_t lane = 0; lane < WOVEN && panel * WOVEN + lane < g.o; lane += PACKED_NV * W) {
        const index_t at = panel * k.all + k.first, scales = at * WOVEN + lane, col = panel * WOVEN + lane;
        const Woven w{g.words + at * F::WORDS * WOVEN + lane, g.scales + scales, g.mins + scales};
        V acc[R][PACKED_NV];
        const auto each = [&](const auto& use) {
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
                for (int v = 0; v < PACKED_NV; ++v)
                    use(acc[r][v], g.y + (row + r) * g.o + col + v * W, std::min<index_t>(W, g.o - col - v * W));
        };
        each([&](V& sum, const float* y, index_t lanes) { sum = k.first > 0 && lanes > 0 ? load_n(y, lanes) : V{}; });
        tile<R>(F{}, w, x + row * k.all + k.first * R, k.count, acc);
        each([&](V sum, float* y, index_t lanes) {
            if (lanes > 0) store_n(y, sum, lanes);
        });
    }
}

template <class F, int R = PACKED_R>
static void packed_tile_of_rows(index_t rows, const PackedArgs& g, const XBlock<F>* x, const Blocks& k, index_t row, index_t panel) {
    if (rows == R) return packed_tile<F, R>(g, x, k, row, panel);
    if constexpr (R > 1) packed_tile_of_rows<F, R - 1>(rows, g, x, k, row, panel);
}

INLINE index_t panels_of(const PackedArgs& g) { return (g.o + WOVEN - 1) / WOVEN; }

template <class F>
static void packed_product(const PackedArgs* list, index_t count) {
    const PackedArgs& g = *list;  // x, m and i are those of all
    const index_t blocks = (g.i + Q_BLOCK - 1) / Q_BLOCK;
    const XBlock<F>* x = prepare<F>(g, blocks);
    const Tiles tiles(g.m);
    constexpr index_t block_bytes = F::WORDS * WOVEN * 4, at_once = PACKED_L1 / block_bytes;
    index_t panels = 0;
    for (const PackedArgs* w = list; w < list + count; ++w) panels += panels_of(*w);
    const index_t bytes = tiles.count > 2 ? PACKED_BYTES : PACKED_FEW_BYTES;
    const index_t per_task = std::max<index_t>(1, std::min(bytes / (block_bytes * std::max<index_t>(1, blocks)), panels / 8));
    const index_t row_tasks = (tiles.count + PACKED_TILES - 1) / PACKED_TILES, panel_tasks = (panels + per_task - 1) / per_task;
    parallel_runs(panel_tasks * row_tasks, [&](index_t task) {
        const index_t begin = task % row_tasks * PACKED_TILES, end = std::min(tiles.count, begin + PACKED_TILES);
        const index_t first = task / row_tasks * per_task, last = std::min(panels, first + per_task);
        for (index_t at = first; at < last; ++at) {
            const PackedArgs* w = list;
            index_t panel = at;
            for (; panel >= panels_of(*w); ++w) panel -= panels_of(*w);
            MatmulArgs epilogue{};
            epilogue.c = w->y, epilogue.c_row = w->o;
            epilogue.bias = w->bias, epilogue.residual = w->residual, epilogue.z = w->z, epilogue.act = w->act;
            for (index_t k = 0; k < blocks || k == 0; k += at_once) {
                const Blocks now{k, std::min(at_once, blocks - k), blocks};
                for (index_t t = begin; t < end; ++t) {
                    const index_t row = tiles.begin(t), rows = tiles.begin(t + 1) - row;
                    packed_tile_of_rows<F>(rows, *w, x, now, row, panel);
                    if (k + now.count == blocks && has_epilogue(epilogue))
                        finish(epilogue, row, rows, panel * WOVEN, std::min(WOVEN, w->o - panel * WOVEN));
                }
            }
        }
    });
}

// Products of the same x.
static void packed_linear(const PackedArgs* list, index_t count) {
    const PackedFormat format = list->format;
    index_t weights = 0;
    for (const PackedArgs* w = list; w < list + count; ++w) {
        weights += w->o * w->i;
        if (w->format != format) {  // each takes x in its own precision
            for (w = list; w < list + count; ++w) packed_linear(w, 1);
            return;
        }
    }
    const auto run = [&] { with_format(format, [&](auto f) { packed_product<decltype(f)>(list, count); }); };
    list->m * weights < SMALL ? serially(run) : run();
}

// ---- rows as floats: embeddings, and the vjp's panels ----
template <class F>
static void unpack_row(const PackedArgs& g, index_t row, float* y) {
    const index_t blocks = (g.i + Q_BLOCK - 1) / Q_BLOCK, panel = row / WOVEN, lane = row % WOVEN;
    const uint32_t* words = g.words + panel * blocks * F::WORDS * WOVEN + lane;
    for (index_t b = 0; b < blocks; ++b, words += F::WORDS * WOVEN) {
        float block[Q_BLOCK];
        if constexpr (kFloat<F>) {
            for (int i = 0; i < 16; ++i) {
                const uint32_t pair[2] = {words[i * WOVEN] << 16, words[i * WOVEN] & 0xFFFF0000u};
                std::memcpy(block + 2 * i, pair, sizeof pair);
            }
        } else {
            const index_t at = (panel * blocks + b) * WOVEN + lane;
            const float scale = half_to_float(g.scales[at]), least = F::MIN ? half_to_float(g.mins[at]) : 0.0f;
            for (int i = 0; i < F::WORDS; ++i) {
                const uint32_t word = words[i * WOVEN];
                for (int j = 0; j < 4; ++j) {
                    const int byte = int(word >> 8 * j & 255);
                    if constexpr (F::WORDS == 8) {
                        block[4 * i + j] = scale * float(byte - F::OFFSET);
                    } else {
                        block[4 * i + j] = scale * float((byte & 15) - F::OFFSET) + least;
                        block[4 * i + j + 16] = scale * float((byte >> 4) - F::OFFSET) + least;
                    }
                }
            }
        }
        std::memcpy(y + b * Q_BLOCK, block, sizeof(float) * std::min(Q_BLOCK, g.i - b * Q_BLOCK));
    }
}

static void packed_rows(const PackedArgs& g, const int32_t* ids, index_t n) {  // g.y:(n, I)
    with_format(g.format, [&](auto format) {
        parallel_ranges(n, std::max<index_t>(1, GRAIN / std::max<index_t>(g.i, 1)), [&](index_t begin, index_t end) {
            for (index_t r = begin; r < end; ++r) unpack_row<decltype(format)>(g, ids[r], g.y + r * g.i);
        });
    });
}

// 24 independent dots of bytes a round -> integer operations of a thread: what a perfect tile could do.
static double int8_peak(index_t rounds, float* sink) {
    parallel_for(thread_limit(), [&](index_t thread) {
        VI acc[24], x = splat_int(0x01010101 + int32_t(thread));
        VU w = VU(splat_int(0x01020304));
#pragma GCC unroll 24
        for (int i = 0; i < 24; ++i) acc[i] = splat_int(i);
        for (index_t round = 0; round < rounds; ++round) {
            w += 1;
#pragma GCC unroll 24
            for (int i = 0; i < 24; ++i) acc[i] = byte_dot(acc[i], w, x);
        }
        VI total{};
#pragma GCC unroll 24
        for (int i = 0; i < 24; ++i) total ^= acc[i];
        sink[thread] = sum(to_float(total));
    });
    return 24.0 * 8 * W * double(rounds);
}
