def slow_top_k(logits, k):
    """bool[V]: not below the k-th of the sorted logits."""
    k = len(logits) if k == 0 else min(k, len(logits))
    return logits >= np.sort(logits)[::-1][k - 1]


def slow_top_p(probs, p):
    """bool[V]: whole groups of equally likely tokens, likeliest first, until their mass is p."""
    kept = np.zeros(len(probs), bool)
    for value in sorted(set(probs.tolist()), reverse=True):
        kept |= probs == value
        if p < 1 and probs[kept].sum() >= p:
            break
    return kept


@PROPERTY
@given(
    # Few values, so that ties are the rule; infinities and the largest floats among them. Adding 0.0 drops -0.0's sign.
    st.lists(st.sampled_from([-np.inf, -3.4e38, -2.0, -1e-30, 0.0, 1e-30, 1.5, 2.0, 3.4e38]), min_size=9, max_size=9),
    st.integers(0, 2**31 - 1) | st.integers(0, 10),
)
def test_top_k_keeps_what_sorting_keeps(logits, k):
    logits = np.array(logits, np.float32)
    expected = np.where(slow_top_k(logits, k), logits, -np.inf)
    np.testing.assert_array_equal(top_k(logits[None], jnp.array([k]))[0], expected)


@PROPERTY
@given(st.lists(st.integers(0, 63), min_size=63, max_size=63), st.integers(1, 64))
def test_top_p_keeps_what_sorting_keeps(throws, p64):
    # 63 throws of 1/64 and one sure one: sums of dyadic numbers are exact, so a set that just reaches p counts.
    # Throws at t land on cell t % 9 and t % 4: tied cells and empty cells both occur.
    probs = np.bincount([t % 9 if t % 2 else t % 4 for t in [*throws, 0]], minlength=9).astype(np.float32) / 64
    p = np.float32(p64 / 64)
    expected = np.where(slow_top_p(probs, p), probs, 0)
    np.testing.assert_array_equal(top_p(probs[None], p[None])[0], expected)


def test_top_p_just_above_and_below_a_sum():
    probs = np.array([[0.125, 0.5, 0.25, 0.125]] * 5, np.float32)
    p = np.array([0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0.75, 0.7500001, 1e-30], np.float32)
    kept = np.asarray(top_p(probs, p)) > 0
    assert kept.sum(-1).tolist() == [1, 2, 2, 4, 1]  # the two of 0.125 are tied: both or none
    assert kept[:, 1].all()


def test_top_p_of_one_keeps_tokens_too_rare_to_change_a_float32_sum():
    probs = np.array([[1.0, 1e-12, 1e-20, 0.0]], np.float32)
    np.testing.assert_array_equal(top_p(probs, jnp.ones(1)), probs)
    np.testing.assert_array_equal(top_p(probs, jnp.array([0.9999])) > 0, [[True, False, False, False]])


def test_zeros_of_both_signs_are_a_tie():
    np.testing.assert_array_equal(keep_top_k(np.float32([[0.0, -0.0, -1.0]]), np.int32([1])), [[0.0, -0.0, -np.inf]])
