"""Beam search: the likeliest continuations, or ones drawn from many. Its rules are those of transformers, so that its results are."""
import numpy as np


def beam_search(decoder, beams, limit):
    """decoder: with beams.num_beams copies of each prompt -> [(score, ids)], beams.num_return_sequences for each, the best first.

    1. Each running text of a prompt gets each token: log p, after the steps of Sampling.adjust, is added to the text's sum.
    2. The best (1 + end tokens, at least 2) * num_beams of these are looked at. Those that end, by an end token, at `limit` tokens or at
       the context, are finished if they are among the first num_beams; the best num_beams of the others run on.
    3. A finished text's score is its sum over its tokens ** length_penalty; the num_beams best are kept.
    4. A prompt is done when it has num_beams finished texts and the best running one cannot better the worst of them: judged by its score
       as it stands (early_stopping False), by what it could reach at `limit` ("never"), or at once (True).

    With a temperature above 0 log p goes through Sampling.cut too, and the texts of step 2 are drawn by their sums, without replacement,
    with the key of the prompt's first row: the largest sums with Gumbel's noise (Kool et al. 2019), ordered by the sums alone.
    """
    k = beams.num_beams
    running = np.full((len(decoder.rows) // k, k), -1e9, np.float32)  # sums of log p
    running[:, 0] = 0  # at first all rows of a prompt are the same: one of them counts
    prompts = decoder.rows[::k] // k
    finished = {prompt: [] for prompt in prompts.tolist()}
    while limit and len(prompts):
        scores = decoder.scores(logp=True)
        scores = decoder.sampling.cut(scores) if decoder.sampling.temperature else scores
        v, next_running, parents, tokens, left = scores.shape[1], [], [], [], []
        for i, prompt in enumerate(prompts.tolist()):
            sums = (scores[i * k : (i + 1) * k] + running[i][:, None]).ravel()
            length, wanted = decoder.drawn(i * k) + 1, max(2, 1 + len(decoder.ends)) * k
            if decoder.sampling.temperature:
                noise = decoder.keys[prompt * k].fold("beams", length).generator().gumbel(size=len(sums))
                drawn = _largest(np.where(sums > -1e8, sums + noise, -np.inf), wanted)
                best = drawn[np.argsort(-sums[drawn], kind="stable")]
            else:
                best = _largest(sums, wanted)
            best = best[np.isfinite(sums[best])]
            full = decoder.cache.lengths[i * k] >= decoder.context
            over = [length == limit or full or decoder.ends_with(i * k + place // v, place % v) for place in best.tolist()]
            found, texts = finished[prompt], decoder.history[i * k : (i + 1) * k]
            for place, end in zip(best[:k].tolist(), over):
                if end:
                    ids = [*texts[place // v][decoder.prompts[i * k] :], place % v]
                    found.append((float(sums[place] / np.float32(length**beams.length_penalty)), ids))
            found.sort(key=lambda one: -one[0])
            del found[k:]
            open_ = [place for place, end in zip(best.tolist(), over) if not end][:k]
            if not open_ or _done(beams, found, float(sums[open_[0]]), length, limit):
                continue
            open_ += [open_[0]] * (k - len(open_))  # only where nothing else can be said
            left.append(prompt)
            next_running.append([sums[place] if n == open_.index(place) else -1e9 for n, place in enumerate(open_)])
            parents += [i * k + place // v for place in open_]
            tokens += [place % v for place in open_]
        prompts, running = np.array(left), np.array(next_running, np.float32)
        if left:
            decoder.branch(parents, np.array(tokens, np.int32))
    return [one for prompt in sorted(finished) for one in (finished[prompt] + [(-np.inf, [])] * k)[: beams.num_return_sequences]]


def _done(beams, found, best, length, limit):
    """best: the largest running sum, of `length` tokens -> whether a prompt's search is over."""
    if len(found) < beams.num_beams or beams.early_stopping is True:
        return len(found) == beams.num_beams
    reach = limit if beams.early_stopping == "never" and beams.length_penalty > 0 else length
    return best / reach**beams.length_penalty <= found[-1][0]


def _largest(x, n):
    """-> the indices of the n largest, the largest first, of equal ones the first."""
    at = np.sort(np.argpartition(-x, min(n, len(x)) - 1)[:n])
    return at[np.argsort(-x[at], kind="stable")]
