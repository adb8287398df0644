"""Gradients of keys and values: a Triton kernel with a program for each tile of keys and key head, see `backward`."""

import triton
import triton.language as tl

from models.DPI.attention.kernels.key_tiles import load_entry, load_run
from models.DPI.attention.kernels.noise import LOG2E
from models.DPI.attention.kernels.rotate import load_halves, turn_back
from models.DPI.attention.kernels.softmax import before_cap, capped

_LOG2E = tl.constexpr(LOG2E)


@triton.jit
def _add_queries(
    low,
    high,
    dv,
    k_low,
    k_high,
    v,
    queries,
    d_outs,
    q_plane,
    batch,
    head,
    entry_low,
    entry_high,
    first_whole,
    end_whole,
    cap,
    lse,
    delta,
    starts,
    stops,
    num_queries,
    key,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Add to the gradients of rotated keys, (BN, BLOCK_HALF) for each half, and of values, (BN, BLOCK_D), what comes
    from tiles of queries entry_low ... entry_high - 1 of one head.

    first_whole ... end_whole: the tiles of which every query sees every key. lse, delta: of the head.
    """
    skipped = end_whole - first_whole
    if MASKED:
        begin, end = entry_low // BM, (entry_high + BM - 1) // BM - skipped
    else:
        begin, end = first_whole, end_whole
    for number in tl.range(begin, end, num_stages=STAGES):
        tile = number
        if MASKED:
            tile = tl.where(number >= first_whole, number + skipped, number)
        first = tile * BM
        row = first + tl.arange(0, BM)
        if MASKED:
            inside = (row >= entry_low) & (row < entry_high)
            row = tl.minimum(row, num_queries - 1)
            start, stop = tl.load(starts + row), tl.load(stops + row)
        # What is subtracted from products stands in their sums from the start: beside them it would take registers.
        shift = tl.broadcast_to(tl.load(lse + row)[None, :] * -_LOG2E, [BN, BM])
        q_low, q_high = load_halves(queries, q_plane, first, BM, BLOCK_HALF)
        if cap is None:
            x = tl.dot(k_high, q_high.T, tl.dot(k_low, q_low.T, shift))  # (BN, BM)
            p = tl.exp2(x)
        else:
            x = capped(tl.dot(k_high, q_high.T, tl.dot(k_low, q_low.T)), cap)
            p = tl.exp2(x + shift)
        if MASKED:
            seen = inside[None, :] & (key[:, None] >= start[None, :]) & (key[:, None] < stop[None, :])
            p = tl.where(seen, p, 0.0)
        d_out = d_outs.load([batch, head, first, 0]).reshape(BM, BLOCK_D)
        dv = tl.dot(p.to(d_out.dtype), d_out, dv)
        dp = tl.dot(v, d_out.T, tl.broadcast_to(-tl.load(delta + row)[None, :], [BN, BM]))
        dx = before_cap(p * dp, x, cap).to(q_low.dtype)
        low = tl.dot(dx, q_low, low)
        high = tl.dot(dx, q_high, high)
    return low, high, dv


@triton.jit
def _finish(total, part, target, before, after, inside):
    """Add what has been kept, if parts came before; keep the sum if more come after, else write it to its target."""
    if before > 0:
        part += tl.load(total, mask=inside, other=0.0)
    if after > 0:
        tl.store(total, part, mask=inside)
    else:
        tl.store(target, part.to(target.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_tiles", "num_queries", "num_keys", "batch_size", "earlier", "later"])
def key_kernel(
    queries,
    keys,
    values,
    d_outs,
    dk,
    dv,
    sum_of_keys,
    sum_of_values,
    lse,
    delta,
    bounds,
    addresses,
    first_runs,
    runs,
    entries,
    dk_batch,
    dk_head,
    dk_token,
    num_tiles,
    num_keys,
    earlier,
    later,
    factor,
    num_queries,
    num_heads,
    num_kv_heads,
    batch_size,
    cap,
    GROUP: tl.constexpr,
    BANDS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradients of keys and values. A program takes a tile of keys of one key head, and all that sees it.

    queries, keys: by halves. sum_of_keys, sum_of_values: see `backward._sums`. addresses: of the tables of keys, see
    `backward._addresses`. first_runs, runs, entries: see `KeyTiles`.
    earlier, later: whether other launches come before this one, and after. factor: what makes a gradient of logits in
    base 2, as queries are scaled for, one of the products of queries and keys.
    """
    # Early keys, which most queries see, go first, those of all heads: a long program that began late would end alone.
    pid, num_planes = tl.program_id(0), batch_size * num_kv_heads
    plane, tile = pid % num_planes, pid // num_planes
    batch, kv_head = plane // num_kv_heads, plane % num_kv_heads
    first_key = tile * BN
    key = first_key + tl.arange(0, BN)
    v = values.load([batch, kv_head, first_key, 0]).reshape(BN, BLOCK_D)
    dv_sum = tl.zeros([BN, BLOCK_D], tl.float32)
    d = tl.arange(0, BLOCK_HALF)
    inside = (key < num_keys)[:, None] & (d < HALF)[None, :]
    wide_key = key.to(tl.int64)[:, None]
    to_head = batch.to(tl.int64) * dk_batch + kv_head.to(tl.int64) * dk_head
    to_plane = plane.to(tl.int64) * num_keys * (2 * HALF)
    place = to_head + wide_key * dk_token + d[None, :]
    place_of_sum = to_plane + wide_key * (2 * HALF) + d[None, :]
    first_run, end_run = tl.load(first_runs + tile), tl.load(first_runs + tile + 1)

    for number in range(first_run, end_run):
        run = load_run(runs, number)
        key_plane = (run.slot * batch_size + batch) * num_kv_heads + kv_head
        k_low, k_high = load_halves(keys, key_plane, first_key, BN, BLOCK_HALF)
        low = tl.zeros([BN, BLOCK_HALF], tl.float32)
        high = tl.zeros([BN, BLOCK_HALF], tl.float32)
        for member in range(run.first * GROUP, run.end * GROUP):
            entry = load_entry(entries, member // GROUP)
            head = kv_head * GROUP + member % GROUP
            to_rows = (batch * num_heads + head).to(tl.int64) * num_queries
            first_whole = tl.minimum((entry.low_whole + BM - 1) // BM, (entry.high + BM - 1) // BM)
            end_whole = tl.maximum(entry.high_whole // BM, first_whole)
            for masked in tl.static_range(2):
                low, high, dv_sum = _add_queries(
                    low,
                    high,
                    dv_sum,
                    k_low,
                    k_high,
                    v,
                    queries,
                    d_outs,
                    (entry.band * batch_size + batch) * num_heads + head,
                    batch,
                    head,
                    entry.low,
                    entry.high,
                    first_whole,
                    end_whole,
                    cap,
                    lse + to_rows,
                    delta + to_rows,
                    bounds + entry.band * num_queries,
                    bounds + (BANDS + entry.band) * num_queries,
                    num_queries,
                    key,
                    BM,
                    BN,
                    BLOCK_HALF,
                    BLOCK_D,
                    masked,
                    STAGES,
                )
        cos = tl.load(addresses + 2 * run.slot).to(tl.pointer_type(tl.float32))
        sin = tl.load(addresses + 2 * run.slot + 1).to(tl.pointer_type(tl.float32))
        # Keys of a tile that no query sees may lie behind the end of the table, and their gradients are 0.
        seen = load_entry(entries, run.first)
        rotated = inside & (key < tl.where(seen.low < seen.high, num_keys, 0))[:, None]
        c = tl.load(cos + wide_key * HALF + d[None, :], mask=rotated, other=0.0)
        s = tl.load(sin + wide_key * HALF + d[None, :], mask=rotated, other=0.0)
        low, high = turn_back(low * factor, high * factor, c, s)
        before, after = number - first_run + earlier, end_run - 1 - number + later
        tl.debug_barrier()  # other threads may have written the sum
        _finish(sum_of_keys + place_of_sum, low, dk + place, before, after, inside)
        _finish(sum_of_keys + place_of_sum + HALF, high, dk + place + HALF, before, after, inside)

    d = tl.arange(0, BLOCK_D)
    inside = (key < num_keys)[:, None] & (d < 2 * HALF)[None, :]
    place = to_head + wide_key * dk_token + d[None, :]
    place_of_sum = to_plane + wide_key * (2 * HALF) + d[None, :]
    _finish(sum_of_values + place_of_sum, dv_sum, dv + place, earlier, later, inside)
