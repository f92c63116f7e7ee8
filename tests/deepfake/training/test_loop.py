import math
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn

from deepfake.config import ImageSize, TrainConfig
from deepfake.errors import ConfigError
from deepfake.metrics.classification import cross_entropy
from deepfake.models.build import build_model
from deepfake.reproducibility import derive_seed, set_precision
from deepfake.training.checkpoint import CheckpointError, Checkpoints
from deepfake.training.loop import EpochStats, evaluate, fit, train_one_epoch

CPU = torch.device("cpu")
INIT = 2**31  # what fit takes in the place of an epoch for the seed of the initial weights
pytestmark = pytest.mark.usefixtures("one_thread")


class Feed:
    """Faces in memory, shuffled as the store shuffles them."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def batches(self, batch_size, device, generator=None):
        n = len(self)
        order = torch.arange(n) if generator is None else torch.randperm(n, generator=generator)
        for rows in order.split(batch_size):
            yield self.images[rows], self.labels[rows]


def faces(n, seed, side=8):
    """Noise with a square that is brighter on fakes, and three real faces in five."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(n) % 5 > 2).long()
    images = torch.randn(n, 3, side, side, generator=generator)
    images[:, :, 2:5, 2:5] += labels.view(n, 1, 1, 1) * 0.8
    return Feed(images.to(memory_format=torch.channels_last), labels)


def config_of(variant="cnn", **settings):
    defaults = {"lr": 1e-2, "weight_decay": 1e-3, "dropout": 0.3, "batch_size": 4, "max_epochs": 4}
    side = ImageSize.model_construct(cnn=32, mobilenet_v2=32)
    return TrainConfig(**{"variant": variant, "image_size": side, **defaults, **settings})


def tiny():
    """A model with all that makes a curve: convolution, BatchNorm, dropout, Linear."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(16, 2),
    ).to(memory_format=torch.channels_last)


def run(config=None, build=tiny, *, seed=3, on_epoch=None, side=8, **kwargs):
    config = config or config_of()
    feeds = faces(14, seed=1, side=side), faces(9, seed=2, side=side)
    verdict = on_epoch or (lambda stats: True)
    return fit(build, *feeds, config, seed=seed, device=CPU, on_epoch=verdict, **kwargs)


def curve(history):
    """Everything in a history but the clock."""
    return [replace(stats, seconds=0, images_per_s=0) for stats in history]


def assert_same(result, expected):
    """Bit for bit: the curve, the best weights and their logits, the end."""
    assert curve(result.history) == curve(expected.history)
    assert result.best == result.history[result.best.epoch]
    assert result.best_state.keys() == expected.best_state.keys()
    for name, value in expected.best_state.items():
        assert torch.equal(result.best_state[name], value), name
    assert torch.equal(result.best_logits, expected.best_logits)
    assert result.ended == expected.ended


class Stop(Exception):
    """What a signal raises out of on_batch or on_epoch."""


def stop_after(epoch):
    """An on_epoch that raises Stop at the end of that epoch."""

    def on_epoch(stats):
        if stats.epoch == epoch:
            raise Stop
        return True

    return on_epoch


def from_checkpoint(folder):
    """What makes a run continue from the checkpoints in a folder, and write them."""
    files = Checkpoints(folder)
    return {"resume": files.load(), "save": files.save}


def epochs_in(folder):
    """How many epochs the newest checkpoint holds."""
    state = Checkpoints(folder).load()
    return 0 if state is None else len(state["history"])


# the same seed, the same curve


@pytest.mark.parametrize("variant", ["cnn", "mobilenet_v2_finetuned"])
def test_the_same_seed_gives_the_same_curve_bit_for_bit_and_another_seed_another(variant):
    config = config_of(variant, max_epochs=2, batch_size=8)
    first, same, other = (
        run(config, lambda: build_model(config, None), seed=seed, side=32) for seed in (1, 1, 2)
    )
    assert_same(same, first)
    assert len(first.history) == 2
    for one, another in zip(first.history, other.history, strict=True):
        assert one.train_loss != another.train_loss
        assert one.val_loss != another.val_loss


def test_a_curve_does_not_depend_on_the_random_numbers_drawn_before_or_between():
    torch.manual_seed(123)
    first = run()
    torch.manual_seed(456)
    drawing = run(on_epoch=lambda stats: bool(torch.rand(7).sum() >= 0))
    assert_same(drawing, first)


def test_each_epoch_has_an_order_of_its_own_that_the_seed_and_epoch_alone_decide():
    class Recording(Feed):
        def batches(self, batch_size, device, generator=None):
            for images, labels in super().batches(batch_size, device, generator):
                seen[-1] += images[:, 0, 0, 0].tolist()
                yield images, labels
            seen.append([])

    def orders():
        seen[:] = [[]]
        feeds, config = (train, faces(9, seed=2)), config_of(max_epochs=3)
        fit(tiny, *feeds, config, seed=3, device=CPU, on_epoch=lambda stats: True)
        return seen[:3]

    base, seen = faces(14, seed=1), []
    numbered = base.images.clone()
    numbered[:, 0, 0, 0] = torch.arange(14.0)
    train = Recording(numbered, base.labels)
    first = orders()
    assert orders() == first
    assert all(sorted(order) == list(range(14)) for order in first)  # each face once
    assert len({tuple(order) for order in first}) == 3
    by_hand = torch.randperm(14, generator=torch.Generator().manual_seed(derive_seed(3, 1)))
    assert first[1] == by_hand.tolist()


# an independent loop


class NaiveAdam:
    """Kingma and Ba's Adam as the paper has it, with the L2 term in the gradient."""

    def __init__(self, parameters, weight_decay):
        self.parameters, self.weight_decay, self.steps = parameters, weight_decay, 0
        self.m = [torch.zeros_like(p) for p in parameters]
        self.v = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def step(self, gradients, lr):
        self.steps += 1
        for i, p in enumerate(self.parameters):
            g = gradients[i] + self.weight_decay * p
            self.m[i] = 0.9 * self.m[i] + 0.1 * g
            self.v[i] = 0.999 * self.v[i] + 0.001 * g * g
            m_hat = self.m[i] / (1 - 0.9**self.steps)
            v_hat = self.v[i] / (1 - 0.999**self.steps)
            p.sub_(lr * m_hat / (v_hat.sqrt() + 1e-8))


def losses_and_hits(logits, labels):
    """Per face: the cross-entropy, and whether the larger logit is the label's."""
    losses = [-torch.log_softmax(row, 0)[y] for row, y in zip(logits, labels, strict=True)]
    hits = [int(row[1] >= row[0]) == y for row, y in zip(logits, labels.tolist(), strict=True)]
    return losses, hits


def naive_fit(config, train, val, seed):
    """The rows (train loss, accuracy, val loss, accuracy, lr), the best epoch, its weights."""
    torch.manual_seed(derive_seed(seed, INIT))
    model = tiny()
    parameters = list(model.parameters())
    adam = NaiveAdam(parameters, config.weight_decay)
    lr, plateau, bad = config.lr, math.inf, 0
    rows, best, best_epoch, best_weights = [], math.inf, None, None
    for epoch in range(config.max_epochs):
        torch.manual_seed(derive_seed(seed, epoch))
        generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
        order = torch.randperm(len(train), generator=generator).tolist()
        model.train()
        train_losses, train_hits = [], []
        for start in range(0, len(train), config.batch_size):
            batch = order[start : start + config.batch_size]
            losses, hits = losses_and_hits(model(train.images[batch]), train.labels[batch])
            adam.step(torch.autograd.grad(sum(losses) / len(losses), parameters), lr)
            train_losses += [loss.item() for loss in losses]
            train_hits += hits
        model.eval()
        with torch.no_grad():
            losses, hits = losses_and_hits(model(val.images), val.labels)
        val_loss = sum(losses).item() / len(val)
        train_loss, train_accuracy = sum(train_losses) / len(train), sum(train_hits) / len(train)
        rows.append((train_loss, train_accuracy, val_loss, sum(hits) / len(val), lr))
        if val_loss < best:
            best, best_epoch = val_loss, epoch
            best_weights = {name: value.clone() for name, value in model.state_dict().items()}
        bad = 0 if val_loss < plateau * (1 - 1e-4) else bad + 1
        plateau = val_loss if bad == 0 else plateau
        if bad > config.lr_patience:
            lr, bad = lr * config.lr_factor, 0
    return rows, best_epoch, best_weights


def test_the_curve_and_the_best_weights_equal_a_naive_loop_with_adam_written_out():
    config = config_of(
        lr=0.03, weight_decay=0.05, lr_factor=0.5, lr_patience=1, stop_patience=6, max_epochs=6
    )
    train, val = faces(14, seed=1), faces(9, seed=2)
    rows, best_epoch, best_weights = naive_fit(config, train, val, seed=3)
    result = run(config)
    assert len(result.history) == len(rows) == 6
    for stats, row in zip(result.history, rows, strict=True):
        ours = stats.train_loss, stats.train_accuracy, stats.val_loss, stats.val_accuracy, stats.lr
        assert ours == pytest.approx(row, abs=1e-6)
    assert len({row[4] for row in rows}) > 1  # the LR fell on the way
    assert result.best.epoch == best_epoch
    for name, value in best_weights.items():
        assert torch.allclose(result.best_state[name], value, atol=1e-5), name


def test_losses_are_means_over_faces_where_the_last_batch_is_smaller():
    # a model that can't learn and whose loss on a face depends on that face alone
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.nothing = nn.Parameter(torch.zeros(1))

        def forward(self, images):
            score = images[:, 0, 0, 0] + 0 * self.nothing
            return torch.stack([torch.zeros_like(score), score], 1)

    scores, labels = [0.5, -1.0, 2.0, 0.25, -3.0], [0, 1, 1, 0, 1]
    # -log softmax: log(1 + e^s) for a real face, log(1 + e^-s) for a fake one
    each = [math.log1p(math.exp(s if y == 0 else -s)) for s, y in zip(scores, labels, strict=True)]
    feed = Feed(torch.tensor(scores).view(5, 1, 1, 1), torch.tensor(labels))
    mean_of_batch_means = (sum(each[:4]) / 4 + each[4]) / 2
    config = config_of(max_epochs=1, batch_size=4)
    result = fit(Fixed, feed, feed, config, seed=0, device=CPU, on_epoch=lambda stats: True)
    stats = result.history[0]
    assert stats.train_loss == pytest.approx(sum(each) / 5, abs=1e-6)
    assert stats.val_loss == pytest.approx(sum(each) / 5, abs=1e-6)
    assert abs(stats.train_loss - mean_of_batch_means) > 0.1
    # said: fake, real, fake, fake, real; true: real, fake, fake, real, fake
    assert stats.train_accuracy == stats.val_accuracy == 1 / 5


def test_a_tie_of_the_two_logits_counts_as_fake_in_training_as_in_validation():
    class Undecided(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, images):
            return torch.zeros(len(images), 2) + 0 * self.weight

    # faces(14): fakes are 3, 4, 8, 9, 13; faces(9): 3, 4, 8
    stats = run(config_of(max_epochs=1), Undecided).history[0]
    assert stats.train_accuracy == 5 / 14
    assert stats.val_accuracy == 3 / 9


def test_evaluate_gives_the_same_logits_whatever_the_batch():
    torch.manual_seed(0)
    model = tiny()
    feed = faces(23, seed=4)
    whole = model.eval()(feed.images).detach()
    model.train()
    for batch_size in (1, 3, 23, 100):
        logits = evaluate(model, feed, config_of(batch_size=batch_size), CPU)
        assert logits.dtype == torch.float32
        assert torch.allclose(logits, whole, atol=1e-6)
    assert not model.training


# 14 faces to train, 9 to validate, in batches four times as large:
# 4 + 4 + 4 + 2 and 9; seven of 2, 8 and 1; one of 14 and one of 9
@pytest.mark.parametrize(("batch_size", "total"), [(4, 5), (2, 9), (100, 2)])
def test_on_batch_counts_every_training_and_validation_batch_of_an_epoch(batch_size, total):
    seen = []
    config = config_of(max_epochs=2, batch_size=batch_size)
    run(config, on_batch=lambda done, total: seen.append((done, total)))
    assert seen == [(done, total) for done in range(1, total + 1)] * 2


def test_the_speed_is_training_faces_over_seconds():
    for stats in run().history:
        assert stats.seconds > 0
        assert stats.images_per_s == pytest.approx(14 / stats.seconds)


def test_the_best_weights_give_the_best_loss_again_bit_for_bit():
    result = run(config_of(max_epochs=6, lr=0.1))
    assert 0 < result.best.epoch < 5  # neither the first nor simply the last
    model = tiny()
    model.load_state_dict(result.best_state)
    val = faces(9, seed=2)
    logits = evaluate(model, val, config_of(), CPU)
    assert torch.equal(logits, result.best_logits)
    assert cross_entropy(logits, val.labels) == result.best.val_loss
    assert result.best.val_loss == min(stats.val_loss for stats in result.history)


# scripted validation losses


class Scripted(nn.Module):
    """Says at its n-th evaluation what gives the n-th validation loss; trains nothing.

    bad_training: from this evaluation on, the training loss is what train_loss says.
    """

    def __init__(self, losses, train_loss=None):
        super().__init__()
        self.losses, self.train_loss = losses, train_loss
        self.weight = nn.Parameter(torch.ones(1))
        self.register_buffer("evaluations", torch.tensor(0))  # in the checkpoint too

    def forward(self, images):
        epoch = self.evaluations.item()
        if self.training:
            logits = self.weight * images.mean((1, 2, 3)).view(-1, 1).repeat(1, 2)
            if self.train_loss and epoch == len(self.losses) - 1:
                logits = logits * self.train_loss
            return logits
        self.evaluations += 1
        loss = self.losses[epoch]
        # all validation faces are real: the loss is log(1 + e^s), so s = log(e^loss - 1)
        score = math.log(math.expm1(loss)) if math.isfinite(loss) else loss
        return torch.tensor([[0.0, score]]).repeat(len(images), 1)


def script(losses, *, on_epoch=lambda stats: True, train_loss=None, checkpoints=None, **settings):
    """fit with these validation losses."""
    val = Feed(torch.zeros(6, 3, 4, 4), torch.zeros(6, dtype=torch.int64))
    return fit(
        lambda: Scripted(losses, train_loss),
        faces(8, seed=1),
        val,
        config_of(lr=1e-3, **{"max_epochs": len(losses), **settings}),
        seed=0,
        device=CPU,
        on_epoch=on_epoch,
        **(from_checkpoint(checkpoints) if checkpoints else {}),
    )


def lrs(result):
    return [round(stats.lr, 12) for stats in result.history]


def test_a_script_gives_its_losses():
    result = script([0.9, 0.8, 1.1])
    assert [s.val_loss for s in result.history] == pytest.approx([0.9, 0.8, 1.1], abs=1e-6)


def test_lr_drops_on_the_first_bad_epoch_past_patience_and_training_stops_after_the_fifth():
    # best at epoch 0; with patience 3 epochs 1, 2, 3 are borne and the fourth bad one, 4, is past
    # it: epoch 5 runs at a tenth. It is the fifth bad one: stop
    result = script([0.5] + [0.6] * 9)
    assert lrs(result) == [1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-4]
    assert [stats.bad_epochs for stats in result.history] == [0, 1, 2, 3, 4, 5]
    assert result.ended == "early_stop"
    assert result.best.epoch == 0


def test_an_improvement_begins_both_patiences_again():
    result = script([0.5, 0.6, 0.6, 0.6, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6])
    assert lrs(result) == [1e-3] * 9 + [1e-4]  # bad: 5, 6, 7, 8, dropped for 9
    assert [stats.best_epoch for stats in result.history] == [0] * 4 + [4] * 6
    assert result.ended == "max_epochs"
    assert result.history[-1].bad_epochs == 5  # an early stop too, but all epochs were run


@pytest.mark.parametrize(("lr_patience", "drops_at"), [(0, 2), (1, 3), (2, 4)])
def test_lr_patience_sets_when_the_lr_drops(lr_patience, drops_at):
    result = script([0.5] + [0.6] * 5, lr_patience=lr_patience)
    assert lrs(result).index(1e-4) == drops_at


@pytest.mark.parametrize(("stop_patience", "epochs"), [(1, 2), (2, 3), (7, 8)])
def test_stop_patience_sets_after_how_many_bad_epochs_training_ends(stop_patience, epochs):
    result = script([0.5] + [0.6] * 9, stop_patience=stop_patience)
    assert len(result.history) == epochs
    assert result.ended == "early_stop"


def test_lr_factor_sets_how_far_the_lr_drops():
    assert lrs(script([0.5] + [0.6] * 5, lr_factor=0.5))[-1] == 5e-4


def test_an_improvement_below_one_in_ten_thousand_moves_the_best_but_not_the_plateau():
    # each loss is lower by 2e-5 of it: strictly better, and bad for torch's relative threshold
    losses = [0.5 * (1 - 2e-5) ** epoch for epoch in range(6)]
    result = script(losses)
    assert result.best.epoch == 5
    assert result.ended == "max_epochs"
    assert lrs(result) == [1e-3] * 5 + [1e-4]


def test_a_tie_keeps_the_first_best_epoch():
    result = script([0.7, 0.5, 0.5, 0.6, 0.5])
    assert result.best.epoch == 1
    assert result.best_state["evaluations"] == 2  # the weights of that epoch, not of a later one
    assert [stats.best_epoch for stats in result.history] == [0, 1, 1, 1, 1]
    assert len({stats.best_val_loss for stats in result.history[1:]}) == 1


def test_the_best_weights_are_of_the_best_epoch_not_of_the_last():
    result = script([0.7, 0.4, 0.9, 0.8])
    assert result.best.epoch == 1
    assert result.best_state["evaluations"] == 2
    assert result.best.best_val_loss == result.best.val_loss


def test_plateaued_counts_epochs_since_the_best():
    stats = script([0.7, 0.4, 0.9, 0.8]).history[-1]
    assert stats.bad_epochs == 2
    assert [stats.plateaued(patience) for patience in (1, 2, 3)] == [True, True, False]


def test_max_epochs_ends_a_training_that_still_improves():
    result = script([0.9, 0.8, 0.7, 0.6], max_epochs=3)
    assert len(result.history) == 3
    assert result.ended == "max_epochs"


def test_a_false_from_on_epoch_ends_it_and_keeps_the_best_weights():
    result = script([0.7, 0.5, 0.6, 0.4], on_epoch=lambda stats: stats.epoch < 2)
    assert result.ended == "on_epoch"
    assert len(result.history) == 3
    assert result.best.epoch == 1
    assert result.best_state["evaluations"] == 2


def test_max_epochs_wins_over_a_false_at_the_last_epoch():
    result = script([0.7, 0.5, 0.6], on_epoch=lambda stats: stats.epoch < 2)
    assert result.ended == "max_epochs"


def test_the_early_stop_wins_over_a_false_at_the_same_epoch():
    result = script([0.5] + [0.6] * 9, on_epoch=lambda stats: stats.epoch < 5)
    assert result.ended == "early_stop"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["train", "val"])
def test_a_loss_that_is_not_finite_ends_as_diverged_with_the_best_before(bad, where):
    seen = []
    result = script(
        [0.7, 0.5, 0.6, bad if where == "val" else 0.1],
        train_loss=bad if where == "train" else None,
        max_epochs=9,
        on_epoch=lambda stats: seen.append(stats.epoch) or True,
    )
    assert result.ended == "diverged"
    assert seen == [0, 1, 2]
    assert [stats.epoch for stats in result.history] == [0, 1, 2]
    assert result.best.epoch == 1
    assert result.best_state["evaluations"] == 2
    assert cross_entropy(result.best_logits, torch.zeros(6, dtype=torch.int64)) == (
        result.best.val_loss
    )


def test_a_first_epoch_that_diverges_leaves_no_best():
    result = script([math.nan], max_epochs=3)
    assert (result.ended, result.history) == ("diverged", [])
    assert (result.best, result.best_state, result.best_logits) == (None, None, None)


# resuming


@pytest.mark.parametrize("where", ["on_epoch", "on_batch"])
@pytest.mark.parametrize("epoch", range(4))
def test_a_run_resumed_after_any_epoch_gives_the_same_curve_bit_for_bit(tmp_path, epoch, where):
    whole = run()
    batches = []

    def stop_in_batch(done, total):
        batches.append(done)
        if where == "on_batch" and len(batches) == epoch * 5 + 2:
            raise Stop

    on_epoch = stop_after(epoch) if where == "on_epoch" else None
    with pytest.raises(Stop):
        run(on_epoch=on_epoch, on_batch=stop_in_batch, **from_checkpoint(tmp_path))
    kept = epoch + (where == "on_epoch")  # the partial epoch alone is lost
    assert epochs_in(tmp_path) == kept

    seen, trained = [], []
    torch.manual_seed(99)
    resumed = run(
        on_epoch=lambda stats: seen.append(stats) or True,
        on_batch=lambda done, total: trained.append(done),
        **from_checkpoint(tmp_path),
    )
    assert_same(resumed, whole)
    assert curve(seen) == curve(whole.history)  # the replayed epochs first, each once
    assert trained == [1, 2, 3, 4, 5] * (4 - kept)


def test_an_epoch_is_reported_once_it_is_saved_and_what_was_begun_of_the_next_is_dropped():
    order, saved = [], threading.Event()

    def save(epoch, state):
        if epoch == 1:
            saved.wait(timeout=60)
        order.append(("saved", epoch))

    def on_batch(done, total):
        order.append(("batch", done))
        if order.count(("batch", 1)) == 3:  # the third epoch has begun, beside the save
            saved.set()

    def on_epoch(stats):
        order.append(("told", stats.epoch))
        return stats.epoch < 1

    result = run(config_of(max_epochs=9), save=save, on_batch=on_batch, on_epoch=on_epoch)
    assert result.ended == "on_epoch"
    assert [stats.epoch for stats in result.history] == [0, 1]
    told = [entry for entry in order if entry[0] != "batch"]
    assert told == [("saved", 0), ("told", 0), ("saved", 1), ("told", 1)]
    assert order[: order.index(("saved", 1))].count(("batch", 1)) == 3


def test_a_state_that_is_saved_beside_the_next_epoch_is_not_changed_by_it(tmp_path):
    files, config = Checkpoints(tmp_path), config_of(max_epochs=4)
    go_on = threading.Event()

    def slowly(epoch, state):
        if epoch == 1:
            go_on.wait(timeout=60)
        files.save(epoch, state)

    def stop_in_the_third(done, total):
        begun.append(done)
        if begun.count(1) == 3 and done == total:  # all of it is trained
            go_on.set()
            raise Stop

    whole, begun = run(config), []
    with pytest.raises(Stop):
        run(config, save=slowly, on_batch=stop_in_the_third)
    assert epochs_in(tmp_path) == 2
    assert_same(run(config, **from_checkpoint(tmp_path)), whole)


def test_a_checkpoint_that_cant_be_written_ends_the_training_with_its_reason(tmp_path):
    def fails(epoch, state):
        raise CheckpointError("no room")

    with pytest.raises(CheckpointError, match="no room"):
        run(config_of(max_epochs=1), save=fails)


# 14 faces in batches of 2: seven; 9 in batches of 8: the eighth and the ninth
@pytest.mark.parametrize("batch", [8, 9])
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_stop_in_a_validation_batch_drops_the_epoch(tmp_path, epoch, batch):
    config = config_of(batch_size=2)
    whole = run(config)
    told, begun, files = [], [], Checkpoints(tmp_path)

    def stop_in_validation(done, total):
        if done == 1:
            begun.append(len(begun))
        if (begun[-1], done) == (epoch, batch):
            raise Stop

    with pytest.raises(Stop):
        run(
            config,
            on_epoch=lambda stats: told.append(stats.epoch) or True,
            on_batch=stop_in_validation,
            save=files.save,
        )
    # the epoch before is saved, and reported now or by whoever goes on
    assert list(range(epoch))[: len(told)] == told
    assert len(told) >= epoch - 1
    assert epochs_in(tmp_path) == epoch
    assert_same(run(config, **from_checkpoint(tmp_path)), whole)


def test_a_run_stopped_after_each_of_its_epochs_in_turn_gives_the_same_curve(tmp_path):
    config = config_of(max_epochs=6, lr=0.1, lr_patience=0)
    whole = run(config)
    assert len({stats.lr for stats in whole.history}) > 1  # the plateau's count is restored too
    for epoch in range(6):
        with pytest.raises(Stop):
            run(config, on_epoch=stop_after(epoch), **from_checkpoint(tmp_path))
    assert_same(run(config, **from_checkpoint(tmp_path)), whole)


@pytest.mark.parametrize(
    "variant",
    [
        "cnn",
        pytest.param("mobilenet_v2_finetuned", marks=pytest.mark.slow),
        pytest.param("mobilenet_v2_frozen", marks=pytest.mark.slow),
    ],
)
def test_each_variant_resumes_bit_for_bit(tmp_path, variant):
    config = config_of(variant, max_epochs=2, batch_size=8)

    def build():
        return build_model(config, None)

    whole = run(config, build, side=32)
    with pytest.raises(Stop):
        run(config, build, on_epoch=stop_after(0), side=32, **from_checkpoint(tmp_path))
    assert epochs_in(tmp_path) == 1
    assert_same(run(config, build, side=32, **from_checkpoint(tmp_path)), whole)


def test_a_finished_run_started_again_trains_nothing_and_says_the_same(tmp_path):
    whole = run(**from_checkpoint(tmp_path))
    seen, trained, saved = [], [], []
    again = run(
        on_epoch=lambda stats: seen.append(stats.epoch) or True,
        on_batch=lambda done, total: trained.append(done),
        resume=Checkpoints(tmp_path).load(),
        save=lambda epoch, state: saved.append(epoch),
    )
    assert_same(again, whole)
    assert seen == [0, 1, 2, 3]
    assert trained == saved == []


def test_a_damaged_checkpoint_costs_one_epoch_and_changes_nothing(tmp_path):
    with pytest.raises(Stop):
        run(on_epoch=stop_after(2), **from_checkpoint(tmp_path))
    newest = tmp_path / "e0002.a0.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    trained = []
    resumed = run(on_batch=lambda done, total: trained.append(done), **from_checkpoint(tmp_path))
    assert_same(resumed, run())
    assert trained == [1, 2, 3, 4, 5] * 2


def test_on_resume_only_the_answer_to_the_last_replayed_epoch_counts(tmp_path):
    losses = [0.7, 0.6, 0.5, 0.4, 0.3]
    script(losses, max_epochs=3, checkpoints=tmp_path)
    ended = script(losses, on_epoch=lambda stats: stats.epoch != 2, checkpoints=tmp_path)
    assert (ended.ended, len(ended.history)) == ("on_epoch", 3)
    not_the_first = lambda stats: stats.epoch not in (0, 1)  # noqa: E731
    went_on = script(losses, on_epoch=not_the_first, checkpoints=tmp_path)
    assert (went_on.ended, len(went_on.history)) == ("max_epochs", 5)


def test_each_epoch_is_saved_once_and_before_on_epoch_is_told(tmp_path):
    told, files = [], Checkpoints(tmp_path)

    def save(epoch, state):
        told.append(("saved", epoch))
        files.save(epoch, state)

    def on_epoch(stats):
        told.append(("told", epochs_in(tmp_path) - 1))
        return True

    run(on_epoch=on_epoch, save=save)
    assert told == [(what, epoch) for epoch in range(4) for what in ("saved", "told")]


def test_a_diverged_run_diverges_again_from_its_checkpoint(tmp_path):
    for _ in range(2):
        result = script([0.7, 0.5, math.nan], max_epochs=9, checkpoints=tmp_path)
        assert (result.ended, len(result.history), result.best.epoch) == ("diverged", 2, 1)
    assert epochs_in(tmp_path) == 2  # what diverged is in no checkpoint


# precision


@pytest.fixture
def _flags():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    yield
    matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.usefixtures("_flags")
def test_fp32_means_no_tf32():
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True  # torch's own default
    run(config_of(max_epochs=1))
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.usefixtures("_flags")
def test_bf16_takes_tf32_and_the_next_fp32_trial_of_the_worker_does_not():
    cuda = torch.device("cuda")
    set_precision(config_of(precision="bf16"), cuda)
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32
    set_precision(config_of(), cuda)
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32


def test_bf16_on_a_cpu_is_refused_before_anything_is_built():
    def build():
        raise AssertionError("built")

    with pytest.raises(ConfigError, match=r"^train\.precision: bf16 needs CUDA") as caught:
        run(config_of(precision="bf16"), build)
    assert "\n" not in str(caught.value)


# learning


def test_training_learns_what_tells_fake_from_real():
    result = run(config_of(max_epochs=20, stop_patience=20, lr_patience=20))
    assert result.history[-1].train_loss < 0.6 * result.history[0].train_loss


def test_parameters_without_gradient_are_not_trained():
    def half_frozen():
        model = tiny()
        model[0].requires_grad_(False)
        return model

    torch.manual_seed(derive_seed(3, INIT))
    initial = half_frozen()
    result = run(config_of(weight_decay=0.1), half_frozen)
    assert torch.equal(result.best_state["0.weight"], initial[0].weight)
    assert not torch.equal(result.best_state["6.weight"], initial[6].weight)


def test_one_epoch_reports_its_loss_in_training_mode_before_each_step():
    # lr 0: nothing moves, so the epoch's loss is that of the initial weights with dropout off
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    feed = faces(14, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    loss, accuracy = train_one_epoch(model, feed, optimizer, config_of(), 5, CPU)
    logits = model(feed.images).detach()
    assert loss == pytest.approx(nn.functional.cross_entropy(logits, feed.labels).item(), abs=1e-6)
    assert accuracy == pytest.approx((logits.argmax(1) == feed.labels).double().mean().item())


def test_stats_survive_the_way_through_a_checkpoint(tmp_path):
    result = run(**from_checkpoint(tmp_path))
    saved = [EpochStats(**stats) for stats in Checkpoints(tmp_path).load()["history"]]
    assert saved == result.history  # the clock too
