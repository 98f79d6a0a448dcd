// The blocks of a decoder as an object of Python's: descriptions checked once, their arrays held as long as it lives.
// pyllm/nn/step.py makes one and says what its keys mean.
#include <vector>

#include "checks.h"
#include "decode.h"

namespace {

class Blocks;

struct Stores {  // arrays of a cache, checked once
    const Blocks* of;
    index_t b, room;  // rows, tokens of each
    std::vector<Store> stores;
    std::vector<py::object> kept;
};

class Blocks {
  public:
    // descriptions: a dict of each block, its keys the members of Block
    Blocks(const py::list& descriptions, index_t channels) : c(channels) {
        for (const auto& item : descriptions) blocks.push_back(block(py::reinterpret_borrow<py::dict>(item)));
    }

    // layers: an array (2, B, Hkv, capacity, D) of each block
    Stores bind(const py::list& layers) const {
        expect(layers.size() == blocks.size() && !blocks.empty(), "a store of each block");
        Stores s{this, 0, PTRDIFF_MAX, {}, {}};
        for (std::size_t i = 0; i < blocks.size(); ++i) {
            const Block& b = blocks[i];
            const py::array a = checked<float>(layers[i], "blocks: store", true);
            expect(a.ndim() == 5 && a.shape(0) == 2 && a.shape(2) == b.kv_heads && a.shape(4) == b.head_size && a.strides(4) == 4 &&
                       a.strides(3) == 4 * b.head_size && (i == 0 || a.shape(1) == s.b),
                   "stores of (2, B, Hkv, capacity, D)");
            s.b = a.shape(1), s.room = std::min<index_t>(s.room, a.shape(3));
            float* keys = static_cast<float*>(const_cast<void*>(a.data()));
            s.stores.push_back({keys, keys + a.strides(0) / 4, a.strides(1) / 4, a.strides(2) / 4});
            s.kept.push_back(a);
        }
        return s;
    }

    // x, y:(B, T, C) lengths:(B,) stores: of bind; tables: pairs cos, sin:(P, R / 2).
    void run(Object x, Object y, Object lengths, const Stores& stores, const py::list& tables) const {
        const py::array shape = py::reinterpret_borrow<py::array>(x);
        expect(shape.ndim() == 3 && shape.shape(2) == c && size(y) == shape.size(), "x and out of (B, T, C)");
        std::vector<RotaryTable> rotary;
        BlocksArgs g = args(shape.shape(0), shape.shape(1), lengths, stores, tables, rotary);
        g.x = in(x, "blocks: x");
        g.y = out(y, "blocks: out");
        py::gil_scoped_release release;
        run_blocks(*active, g);
    }

    // embedding, positions (or None), head: as of a block's layers; norm: as of a block
    void put_ends(Object embedding, Object positions, Object last, Object head, index_t vocabulary, index_t context) {
        ends.embedding = weight(embedding, vocabulary, c), ends.head = weight(head, vocabulary, c);
        ends.positions = weight(positions, context, c);
        ends.norm = norm(last);
        expect(ends.norm.size == c && ends.embedding.rows && ends.head.rows, "a norm of C channels, an embedding, a head");
    }

    // ids:(B,), a token of each row -> hidden:(B, C), logits:(B, V); the rest as for run
    void token(Object ids, Object hidden, Object logits, Object lengths, const Stores& stores, const py::list& tables) const {
        std::vector<RotaryTable> rotary;
        const BlocksArgs g = args(size(ids), 1, lengths, stores, tables, rotary);
        const int32_t* which = dense<int32_t>(ids, "blocks: ids");
        float *h = out(hidden, "blocks: hidden"), *y = out(logits, "blocks: logits");
        expect(ends.head.rows && size(hidden) == g.b * c && size(logits) == g.b * ends.head.rows, "hidden (B, C) and logits (B, V)");
        for (index_t i = 0; i < g.b; ++i) {
            expect(0 <= which[i] && which[i] < ends.embedding.rows, "ids of the vocabulary");
            expect(!ends.positions.rows || g.lengths[i] < ends.positions.rows, "positions of the context");
        }
        py::gil_scoped_release release;
        run_token(*active, g, ends, which, h, y);
    }

  private:
    static void expect(bool ok, const char* what) {
        if (!ok) throw py::value_error(std::string("blocks: expected ") + what);
    }

    BlocksArgs args(index_t b, index_t t, Object lengths, const Stores& stores, const py::list& tables,
                    std::vector<RotaryTable>& rotary) const {
        BlocksArgs g{};
        g.b = b, g.t = t, g.c = c;
        g.lengths = dense<int64_t>(lengths, "blocks: lengths");
        expect(size(lengths) == b && stores.b == b && stores.of == this, "a length and a store of each row");
        int64_t longest = 0;
        for (index_t i = 0; i < b; ++i) {
            expect(g.lengths[i] >= 0, "lengths of at least 0");
            longest = std::max(longest, g.lengths[i]);
        }
        index_t positions = PTRDIFF_MAX;
        for (const auto& table : tables) {
            const py::tuple pair = py::reinterpret_borrow<py::tuple>(table);
            const py::array cos = checked<float>(pair[0], "blocks: cos", false);
            expect(cos.ndim() == 2 && size(pair[1]) == cos.size(), "cos and sin of (P, R / 2)");
            rotary.push_back({in(pair[0], "blocks: cos"), in(pair[1], "blocks: sin"), 2 * cos.shape(1)});
            positions = std::min(positions, cos.shape(0));
        }
        expect(longest + t <= positions, "rotary tables up to the last position");
        expect(longest + t <= stores.room, "stores with room for the new tokens");
        for (const Block& block : blocks)
            expect(block.table < index_t(rotary.size()) && (block.table < 0 || rotary[block.table].rotary <= block.head_size),
                   "a table of each rotation");
        g.blocks = blocks.data(), g.stores = stores.stores.data(), g.tables = rotary.data(), g.count = index_t(blocks.size());
        return g;
    }

    const float* hold(const py::handle& object, index_t count) {
        if (object.is_none()) return nullptr;
        const float* data = in(object, "blocks: weight");
        const py::array a = py::reinterpret_borrow<py::array>(object);
        expect(size(object) == count && a.data() == data, "weights that fit one another, dense");  // a copy would be gone
        kept.push_back(py::reinterpret_borrow<py::object>(object));
        return data;
    }

    Norm norm(const py::handle& object) {  // None, or (weight, bias, eps, rms)
        if (object.is_none()) return {};
        const py::tuple t = py::reinterpret_borrow<py::tuple>(object);
        const index_t n = size(t[0]);
        return {hold(t[0], n), hold(t[1], n), n, t[2].cast<float>(), t[3].cast<bool>()};
    }

    Weight weight(const py::handle& object, index_t rows, index_t cols) {  // None, or (array or Packed.native, bias)
        if (object.is_none()) return {};
        const py::tuple t = py::reinterpret_borrow<py::tuple>(object);
        Weight w{};
        w.rows = rows, w.cols = cols, w.bias = hold(t[1], rows);
        if (py::isinstance<py::tuple>(t[0])) {
            w.packed = packed_args(py::reinterpret_borrow<py::tuple>(t[0]));
            expect(w.packed.o == rows && w.packed.i == cols, "packed weights that fit one another");
            kept.push_back(py::reinterpret_borrow<py::object>(t[0]));
        } else {
            w.data = hold(t[0], rows * cols);
        }
        return w;
    }

    Block block(const py::dict& d) {
        Block b{};
        b.heads = d["heads"].cast<index_t>(), b.kv_heads = d["kv_heads"].cast<index_t>();
        b.head_size = d["head_size"].cast<index_t>(), b.window = d["window"].cast<index_t>();
        const index_t inner = d["inner"].cast<index_t>();
        expect(b.kv_heads > 0 && b.head_size > 0 && b.heads > 0 && b.heads % b.kv_heads == 0 && b.window >= 0 && inner > 0,
               "sizes above 0, heads a multiple of kv_heads");
        b.attention_norm = norm(d["attention_norm"]), b.mlp_norm = norm(d["mlp_norm"]);
        expect(b.attention_norm.size == c && b.mlp_norm.size == c, "norms of C channels");
        b.q_norm = norm(d["q_norm"]), b.k_norm = norm(d["k_norm"]);
        const index_t wq = b.heads * b.head_size, wk = b.kv_heads * b.head_size;
        expect((!b.q_norm.weight || wq % b.q_norm.size == 0) && (!b.k_norm.weight || wk % b.k_norm.size == 0),
               "norms of q and k over whole parts of them");
        const py::list qkv = d["qkv"];
        b.projections = int(qkv.size());
        expect(b.projections == 1 || b.projections == 3, "one projection of q, k and v, or three");
        for (int i = 0; i < b.projections; ++i) b.qkv[i] = weight(qkv[i], b.projections == 1 ? wq + 2 * wk : i ? wk : wq, c);
        b.out = weight(d["out"], c, wq);
        b.gate = weight(d["gate"], inner, c), b.up = weight(d["up"], inner, c), b.down = weight(d["down"], c, inner);
        expect(b.qkv[0].rows && b.qkv[b.projections - 1].rows && b.out.rows && b.up.rows && b.down.rows, "weights");
        b.act = Activation(d["act"].cast<int>());
        b.scale = d["scale"].cast<float>();
        b.table = d["table"].cast<int>(), b.interleaved = d["interleaved"].cast<bool>();
        return b;
    }

    index_t c;
    Ends ends{};
    std::vector<Block> blocks;
    std::vector<py::object> kept;
};

}  // namespace

void bind_decode(py::module_& m) {
    py::class_<Stores>(m, "Stores").def_readonly("room", &Stores::room);
    py::class_<Blocks>(m, "Blocks")
        .def(py::init<const py::list&, index_t>())
        .def("bind", &Blocks::bind)
        .def("run", &Blocks::run)
        .def("put_ends", &Blocks::put_ends)
        .def("token", &Blocks::token);
}
