"""Plans fit into their time, and follow a machine that becomes slower or faster."""

from hypothesis import given
from hypothesis import strategies as st
from train_models import recipe

from lipcert.train.plan import Plan, plan


@given(
    st.floats(1, 1e5), st.floats(1e-4, 10), st.floats(1e-7, 1e-2),
    st.integers(1, 5000), st.integers(1, 10_000),
)  # fmt: skip
def test_a_plan_ends_in_time(seconds, step, image, steps, validation):
    found = plan(seconds, step, image, steps, validation)
    assert 1 <= found.steps <= steps
    assert 1 <= found.validation <= validation
    takes = found.epochs * (found.steps * step + found.validation * image)
    # One epoch of one step is the least.
    assert takes + found.validation * image <= seconds * (1 + 1e-9) or found.epochs == 1
    if found.epochs > 8:
        assert found.steps == steps


@given(st.integers(1, 500), st.integers(1, 500), st.floats(0.01, 1e4), st.floats(0.01, 1e4))
def test_the_pace_so_far_says_how_many_epochs_fit_and_never_fewer_than_are_done(
    epochs, done, spent, seconds
):
    done = min(done, epochs)
    found = Plan(epochs, 10, 100).adjusted(done, spent, seconds, 10**9)
    assert done <= found.epochs
    assert found.epochs == done or spent / done * found.epochs <= seconds * (1 + 1e-9)
    # A machine that becomes faster gets more.
    assert spent / done * (found.epochs + 1) > seconds * (1 - 1e-9)


def test_warm_up_and_ramp_keep_their_shares():
    asked = recipe(epochs=20, warmup=2.0, ramp=10.0)
    found = Plan(50, 10, 100).of(asked)
    assert (found.epochs, found.warmup, found.ramp) == (50, 5.0, 25.0)


def test_small_sets_of_images_are_not_seen_without_end():
    asked, chosen = recipe(epochs=3), Plan(100, 10, 100)
    # An epoch of the plan is a fifth of all images.
    assert chosen.most(asked, 50) == 15
    assert chosen.adjusted(2, 1.0, 1e6, 15).epochs == 15
