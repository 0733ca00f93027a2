def slow_penalize(logits, prompt, generated, repetition=1.0, presence=0.0, frequency=0.0):
    out = np.array(logits, np.float64)
    for token in set(prompt) | set(generated):
        out[token] = out[token] / repetition if out[token] > 0 else out[token] * repetition
    for token in set(generated):
        out[token] -= presence + frequency * generated.count(token)
    return out


PROMPTS = [[1, 1, 2], [3], [4, 5, 6, 7, 4]]
GENERATED = [[2, 8, 8, 8], [0, 9], [4]]


def after_generation(**fields):
    """The state of three rows behind their prompts and what they generated, told in two uneven steps."""
    state = state_of(PROMPTS, **fields)
    first = np.array([[2, 8, 11], [11, 11, 11], [4, 11, 11]])
    state = count(state, first, jnp.array([2, 0, 1]))
    second = np.array([[8, 8, 11], [0, 9, 11], [11, 11, 11]])
    return count(state, second, jnp.array([2, 2, 0]))


def test_observe_counts_the_first_n_of_each_row():
    counts = np.asarray(after_generation().counts)
    np.testing.assert_array_equal(counts, [np.bincount(tokens, minlength=VOCAB) for tokens in GENERATED])


@pytest.mark.parametrize("penalty", [1.3, 0.5])
def test_repetition_penalty_as_transformers(penalty):
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers").generation.logits_process
    logits = np.random.default_rng(0).normal(0, 4, (3, 1, VOCAB)).astype(np.float32)
    got = punish(after_generation(repetition_penalty=penalty), logits, jnp.array([[g[-1]] for g in GENERATED]))
    reference = processors.RepetitionPenaltyLogitsProcessor(penalty)
    for row in range(3):
        ids = torch.tensor([PROMPTS[row] + GENERATED[row]])
        expected = reference(ids, torch.tensor(logits[row])).numpy()
        np.testing.assert_allclose(got[row], expected, rtol=1e-6)


@pytest.mark.parametrize(
    "fields",
    [
        dict(repetition_penalty=1.5),
        dict(presence_penalty=0.7),
        dict(frequency_penalty=0.4),
        dict(presence_penalty=-0.7, frequency_penalty=-0.2),
        dict(repetition_penalty=[1.0, 2.0, 0.8], presence_penalty=[0.5, 0.0, 1.0], frequency_penalty=[0.3, 0.1, 0.0]),
    ],
)
def test_penalties_count_the_draft_up_to_each_position(fields):
    logits = np.random.default_rng(1).normal(0, 2, (3, 4, VOCAB)).astype(np.float32)
    draft = np.array([[8, 10, 10, 2], [9, 3, 0, 9], [4, 4, 5, 11]])
    got = np.asarray(punish(after_generation(**fields), logits, draft))
    each = {name: np.broadcast_to(value, 3) for name, value in fields.items()}
    for row in range(3):
        penalties = {name.removesuffix("_penalty"): value[row] for name, value in each.items()}
        for t in range(4):
            generated = GENERATED[row] + draft[row, 1 : t + 1].tolist()  # column 0 has been observed
            expected = slow_penalize(logits[row, t], PROMPTS[row], generated, **penalties)
            np.testing.assert_allclose(got[row, t], expected, rtol=1e-5, atol=1e-6, err_msg=f"row {row}, column {t}")


def test_without_penalties_logits_pass_unchanged():
    logits = np.random.default_rng(2).normal(size=(3, 2, VOCAB)).astype(np.float32)
    np.testing.assert_array_equal(punish(after_generation(), logits, np.zeros((3, 2), np.int32)), logits)


