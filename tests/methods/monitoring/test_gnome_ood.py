"""GNOME: equations against brute force and peers, hosts, files, and what must never happen (foreign texts in a fit)."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_ood.detector import KNN, Mahalanobis
from pytorch_ood.metrics import OODMetrics
from sklearn.base import clone
from sklearn.covariance import EmpiricalCovariance, LedoitWolf, ShrunkCovariance
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn
from torch.utils.data import DataLoader

from transfuse.errors import UserError
from transfuse.hosts.encoder_features import Pooling, TextEncoder, extract, extract_pair, pool, text_encoders
from transfuse.hosts.feature_cache import cached, weights_digest
from transfuse.hosts.text_classifier import FineTuning, dropout_logits, find_pretrained, finetune
from transfuse.methods.monitoring import gnome_ood, gnome_text, ood_scores
from transfuse.methods.monitoring.detection_metrics import aupr_out, auroc, auroc_interval, fpr_at_recall
from transfuse.methods.monitoring.distortion import length_bins, linear_cka, probe_hits
from transfuse.methods.monitoring.gnome_ood import GNOME, Config, GnomeScore, aggregate, fit_scale, recall_threshold
from transfuse.methods.monitoring.gnome_sklearn import GnomeEstimator
from transfuse.methods.monitoring.tied_gaussian import fit_gaussian, mahalanobis_score
from transfuse.nets.encoder import tiny_encoder

RNG = np.random.default_rng(0)
CLASSES = 5
SENTENCES = [
    f"{adjective} {noun} {verb} {tail}".strip()
    for adjective in ("old", "new", "green", "quiet")
    for noun in ("river", "engine", "song", "lawyer", "garden")
    for verb in ("moves", "waits")
    for tail in ("", "near the town", "and the people in the town see it every single day of the year")
]


def draw(n: int, d: int = 12, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Features with class structure and a covariance far from the identity."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % CLASSES
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    means = 3 * torch.randn(CLASSES, d, generator=torch.Generator().manual_seed(98), dtype=torch.float64)
    z = means[y] + torch.randn(n, d, generator=g, dtype=torch.float64) @ mix
    return z.to(dtype), y


@pytest.fixture(scope="module")
def tiny() -> tuple[nn.Module, object]:
    return tiny_encoder(SENTENCES, seed=1)


def brute_force(train: Tensor, y: Tensor, z: Tensor, estimator: object) -> np.ndarray:
    X, labels, Z = train.double().numpy(), y.numpy(), z.double().numpy()
    means = np.stack([X[labels == c].mean(axis=0) for c in np.unique(labels)])
    precision = np.linalg.inv(estimator.fit(X - means[labels]).covariance_)  # type: ignore[attr-defined]
    return np.array([max(-(row - m) @ precision @ (row - m) for m in means) for row in Z])


# ---------------------------------------------------------------- equations


@pytest.mark.parametrize(
    ("covariance", "estimator"),
    [
        ("shrunk", ShrunkCovariance(shrinkage=0.1, assume_centered=True)),
        ("ledoit_wolf", LedoitWolf(assume_centered=True)),
        ("empirical", EmpiricalCovariance(assume_centered=True)),
    ],
)
def test_mahalanobis_equals_brute_force_with_scikit_learns_covariance(covariance: str, estimator: object) -> None:
    (train, y), (z, _) = draw(80), draw(30, seed=1)
    ours = fit_gaussian(train, y, covariance)(z)  # type: ignore[arg-type]
    np.testing.assert_allclose(ours.numpy(), brute_force(train, y, z, estimator), rtol=1e-9)


def test_default_covariance_is_shrunk_and_few_texts_do_not_break_it() -> None:
    train, y = draw(10, d=40)
    assert torch.isfinite(fit_gaussian(train, y)(train)).all()
    with pytest.raises(UserError, match="singular"):
        fit_gaussian(train, y, "empirical")


def test_large_common_offset_costs_no_digits_in_float32() -> None:
    (train, y), (z, _) = draw(200), draw(50, seed=1)
    exact = fit_gaussian(train, y)(z)
    shifted = fit_gaussian((train + 1000).float(), y)((z + 1000).float())
    assert (shifted.double() - exact).abs().max() / exact.abs().max() < 1e-3


def test_scores_do_not_change_under_class_renumbering_and_do_under_other_labels() -> None:
    train, y = draw(100)
    score = fit_gaussian(train, y)(train)
    torch.testing.assert_close(fit_gaussian(train, 7 * (CLASSES - y))(train), score)
    assert not torch.allclose(fit_gaussian(train, y[torch.randperm(100)])(train), score)


def test_id_labels_shape_the_pretrained_part_too() -> None:
    (train, y), (validation, _) = draw(100), draw(40, seed=1)
    wrong = y[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    parts = [GnomeScore((train, train), labels, (validation, validation)).gaussians[1] for labels in (y, wrong)]
    assert not torch.allclose(parts[0].means, parts[1].means)


def test_each_part_has_mean_zero_and_unit_deviation_on_validation_texts_only() -> None:
    (train, y), (validation, _) = draw(60, d=40), draw(50, d=40, seed=1)
    score = GnomeScore((train, 5 * train), y, (validation, 5 * validation))
    for part in score.both((validation, 5 * validation)):
        assert abs(float(part.mean())) < 1e-9
        assert float(part.std(correction=0)) == pytest.approx(1)
    memorised = score.both((train, 5 * train))[0]
    assert float(memorised.mean()) > 0.5  # what fitting the scale on training texts would have hidden


def test_min_max_puts_validation_scores_on_zero_to_one() -> None:
    scores = torch.tensor([-5.0, -3.0, -1.0])
    torch.testing.assert_close(fit_scale(scores, "min_max")(scores), torch.tensor([0.0, 0.5, 1.0]))


def test_constant_or_missing_validation_scores_are_refused() -> None:
    with pytest.raises(UserError, match="same score"):
        fit_scale(torch.ones(5))
    with pytest.raises(UserError, match="at least 2"):
        fit_scale(torch.ones(1))


def test_aggregators() -> None:
    a, b = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.0])
    assert aggregate(a, b).tolist() == [2.0, -1.0]
    assert aggregate(a, b, "min").tolist() == [1.0, -2.0]


def test_unnormalised_sum_is_ruled_by_the_encoder_with_the_larger_scores() -> None:
    (train, y), (validation, _) = draw(100), draw(50, seed=1)
    small_train, small_validation = train[:, :3], validation[:, :3]
    none = GnomeScore((train, small_train), y, (validation, small_validation), Config(normalisation="none"))
    ft, pre = (g(v) for g, v in zip(none.gaussians, (validation, small_validation), strict=True))
    torch.testing.assert_close(none((validation, small_validation)), (ft + pre) / 2)


def test_one_class_svm_scores_the_middle_of_the_validation_pairs_higher() -> None:
    (train, y), (validation, _) = draw(100), draw(60, seed=1)
    score = GnomeScore((train, train), y, (validation, validation), Config(aggregation="svm"))
    assert score((validation, validation)).mean() > score((validation + 50, validation + 50)).mean()


def test_degenerate_setting_equals_baseline() -> None:
    """With the same encoder twice (no fine-tuning), GNOME ranks as that encoder's Mahalanobis score does."""
    (train, y), (validation, _), (z, _) = draw(100), draw(50, seed=1), draw(40, seed=2)
    single = fit_gaussian(train, y)(z)
    for aggregation in ("mean", "min"):
        joined = GnomeScore((train, train), y, (validation, validation), Config(aggregation=aggregation))((z, z))  # type: ignore[arg-type]
        assert joined.argsort().tolist() == single.argsort().tolist()


def test_threshold_lets_the_stated_share_of_validation_texts_pass() -> None:
    scores = torch.arange(100.0)
    assert (scores >= recall_threshold(scores, 0.95)).double().mean() >= 0.95
    assert (scores >= recall_threshold(scores, 0.95)).double().mean() < 0.97


def test_bad_input_is_one_clear_line() -> None:
    train, y = draw(20)
    with pytest.raises(UserError, match="one label a text"):
        fit_gaussian(train, y[:5])
    with pytest.raises(UserError, match="finite"):
        fit_gaussian(torch.full((20, 3), float("nan")), y)
    with pytest.raises(UserError, match="floats of shape"):
        fit_gaussian(torch.ones(20, dtype=torch.long), y)
    with pytest.raises(UserError, match="same texts"):
        GnomeScore((train, train), y, (train, train[:5]))
    with pytest.raises(UserError, match="aggregation"):
        Config(aggregation="max")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="shrinkage"):
        Config(shrinkage=2)


# ---------------------------------------------------------------- baselines and metrics


def test_logit_baselines_against_their_definitions() -> None:
    logits = torch.randn(30, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    p = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    torch.testing.assert_close(ood_scores.msp(logits), p.max(dim=1).values)
    torch.testing.assert_close(ood_scores.max_logit(logits), logits.max(dim=1).values)
    torch.testing.assert_close(ood_scores.energy(logits), logits.exp().sum(dim=1).log())
    torch.testing.assert_close(ood_scores.d2u(logits), (1 / 6 * (1 / 6 / p).log()).sum(dim=1))
    hot = (logits / 1000).exp()
    torch.testing.assert_close(ood_scores.odin(logits), (hot / hot.sum(dim=1, keepdim=True)).max(dim=1).values)
    torch.testing.assert_close(ood_scores.mc_dropout(torch.stack([logits, logits])), ood_scores.msp(logits))


def test_energy_does_not_overflow_where_exp_does() -> None:
    assert ood_scores.energy(torch.tensor([[5000.0, 0.0]])).item() == pytest.approx(5000.0)


def test_knn_equals_pytorch_ood_and_treats_equal_distributions_alike() -> None:
    train, one, two = (torch.randn(n, 64, generator=torch.Generator().manual_seed(n)) for n in (600, 400, 401))
    peer = KNN(None, k=10).fit_features(train, torch.zeros(600, dtype=torch.long))
    torch.testing.assert_close(
        -ood_scores.knn(train, one).double(), peer.predict_features(one).double(), atol=1e-5, rtol=0
    )
    assert auroc(ood_scores.knn(train, one), ood_scores.knn(train, two)) == pytest.approx(0.5, abs=0.05)
    unit = [nn.functional.normalize(z, dim=1) for z in (train, one, two)]
    near = [torch.cdist(z, unit[0]).topk(10, largest=False).values for z in unit[1:]]
    assert auroc(-near[0].mean(dim=1), -near[1].amax(dim=1)) > 0.6  # the two definitions of the authors' code
    with pytest.raises(UserError, match="neighbours"):
        ood_scores.knn(train[:5], one)


def test_metrics_against_scikit_learn_and_pytorch_ood_with_ties() -> None:
    inside, outside = RNG.integers(0, 9, 200) + 1.0, RNG.integers(0, 9, 150).astype(float)
    truth = np.r_[np.zeros(200), np.ones(150)]
    scores = -np.r_[inside, outside]
    assert auroc(inside, outside) == pytest.approx(roc_auc_score(truth, scores))
    assert aupr_out(inside, outside) == pytest.approx(average_precision_score(truth, scores))
    peer = OODMetrics()
    peer.update(torch.tensor(scores), torch.tensor(-truth).long())
    assert peer.compute()["AUROC"] == pytest.approx(auroc(inside, outside), abs=1e-6)


def test_fpr_is_taken_where_95_percent_of_id_texts_pass() -> None:
    inside, outside = np.arange(100.0), np.array([4.0, 5.0, 6.0, 1000.0])
    assert fpr_at_recall(inside, outside) == 0.75
    assert fpr_at_recall(inside, inside) == pytest.approx(0.95)
    with pytest.raises(UserError, match="finite"):
        auroc([], [1.0])


def test_interval_of_the_auroc_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    truth = 0.7602  # P(N(1,1) > N(0,1))
    hits = 0
    for _ in range(300):
        low, high = auroc_interval(rng.normal(1, 1, 60), rng.normal(0, 1, 40))
        hits += low <= truth <= high
    assert 0.91 <= hits / 300 <= 0.99
    low, high = auroc_interval(np.ones(30) * 2, np.ones(30))
    assert low < 1 == high


def test_cka_and_probes() -> None:
    X = RNG.normal(size=(80, 6))
    turn = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    assert linear_cka(X, 2 * X @ turn + 3) == pytest.approx(1)
    Y = RNG.normal(size=(80, 4))
    K, L = (Z @ Z.T for Z in (X - X.mean(0), Y - Y.mean(0)))
    assert linear_cka(X, Y) == pytest.approx((K * L).sum() / np.linalg.norm(K) / np.linalg.norm(L))
    y = (X[:, 0] > 0).astype(int)
    assert probe_hits(X, y).mean() > 0.85
    assert probe_hits(X, RNG.permutation(y)).mean() < 0.7
    assert np.bincount(length_bins(np.arange(90))).tolist() == [30, 30, 30]


# ---------------------------------------------------------------- text encoders


def test_pooling_ignores_padding_and_averages_the_named_layers() -> None:
    g = torch.Generator().manual_seed(0)
    states = [torch.randn(2, 4, 3, generator=g) for _ in range(4)]  # embeddings and 3 layers
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    torch.testing.assert_close(pool(states, mask, Pooling())[1], states[3][1, :2].mean(dim=0))
    torch.testing.assert_close(pool(states, mask, Pooling("cls"))[1], states[3][1, 0])
    left = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    torch.testing.assert_close(pool(states, left, Pooling("cls"))[1], states[3][1, 2])
    for layers, chosen in (
        ("avg", [1, 2, 3]),
        ("avg_with_embeddings", [0, 1, 2, 3]),
        ("first_last", [1, 3]),
        ((0, -1), [0, 3]),
    ):
        expected = torch.stack([states[i][0].mean(dim=0) for i in chosen]).mean(dim=0)
        torch.testing.assert_close(pool(states, mask, Pooling("avg", layers))[0], expected)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="layers"):
        pool(states, mask, Pooling("avg", (9,)))
    with pytest.raises(UserError, match="token pooling"):
        Pooling("max")  # type: ignore[arg-type]


def test_extraction_keeps_the_order_of_texts_and_does_not_depend_on_batches(tiny: tuple) -> None:
    poolings = (Pooling(), Pooling("cls"), Pooling("avg", "avg"))
    fast = extract(*tiny, SENTENCES, poolings, batch_size=7)
    slow = extract(*tiny, SENTENCES, poolings, by_length=False)
    for pooling in poolings:
        torch.testing.assert_close(fast.features[pooling], slow.features[pooling], atol=1e-5, rtol=1e-4)
        one = torch.cat([extract(*tiny, [text], (pooling,)).features[pooling] for text in SENTENCES[:6]])
        torch.testing.assert_close(fast.features[pooling][:6], one, atol=1e-5, rtol=1e-4)
    half = extract(*tiny, SENTENCES, autocast=torch.bfloat16).features[Pooling()]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, fast.features[Pooling()], atol=0.1, rtol=0.1)


def test_texts_must_be_a_list_of_strings(tiny: tuple) -> None:
    with pytest.raises(UserError, match="one string"):
        extract(*tiny, "a text")
    with pytest.raises(UserError, match="text 1 is float"):
        extract(*tiny, ["a", float("nan")])
    with pytest.raises(UserError, match="no texts"):
        extract(*tiny, [])


def test_fine_tuning_starts_from_the_encoder_and_leaves_it_alone(tiny: tuple) -> None:
    encoder, tokenizer = tiny
    before = weights_digest(encoder)
    y = [i % 2 for i in range(len(SENTENCES))]
    still = finetune(encoder, tokenizer, (SENTENCES, y), (SENTENCES, y), FineTuning(1, 0.0, 16), seed=0).classifier
    torch.testing.assert_close(
        extract(still, tokenizer, SENTENCES).features[Pooling()],
        extract(encoder, tokenizer, SENTENCES).features[Pooling()],
    )
    state = torch.get_rng_state()
    runs = [finetune(encoder, tokenizer, (SENTENCES, y), (SENTENCES, y), FineTuning(2, 1e-3, 16), seed=3) for _ in "ab"]
    assert weights_digest(runs[0].classifier) == weights_digest(runs[1].classifier) != weights_digest(still)
    assert weights_digest(encoder) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert runs[0].dev_accuracy[runs[0].best_epoch - 1] == max(runs[0].dev_accuracy)


def test_mc_dropout_passes_differ_and_repeat_with_the_seed(tiny: tuple) -> None:
    y = [i % 2 for i in range(len(SENTENCES))]
    model = finetune(*tiny, (SENTENCES, y), (SENTENCES, y), FineTuning(1, 1e-3, 16), seed=0).classifier
    a, b = (dropout_logits(model, tiny[1], SENTENCES[:5], 3, seed=1) for _ in "ab")
    assert a.shape == (3, 5, 2)
    assert torch.equal(a, b)
    assert not torch.equal(a[0], a[1])
    assert not model.training


def test_peft_model_gives_both_encoders_from_one_set_of_weights(tiny: tuple) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import BertForSequenceClassification

    encoder, tokenizer = tiny
    classifier = BertForSequenceClassification(encoder.config).eval()
    classifier.bert.load_state_dict(encoder.state_dict(), strict=False)
    model = get_peft_model(classifier, LoraConfig(target_modules=["value", "dense"], init_lora_weights=False)).eval()
    finetuned, base = text_encoders(model, tokenizer)
    plain = extract(encoder, tokenizer, SENTENCES).features[Pooling()]
    torch.testing.assert_close(base(SENTENCES), plain, atol=1e-5, rtol=1e-4)
    assert (finetuned(SENTENCES) - plain).abs().max() > 1e-3
    first, second = extract_pair(model, None, tokenizer, SENTENCES)
    torch.testing.assert_close(second.features[Pooling()], plain, atol=1e-5, rtol=1e-4)
    assert first.logits is not None
    with pytest.raises(UserError, match="no adapter"):
        extract_pair(encoder, None, tokenizer, SENTENCES)


def test_base_checkpoint_is_found_or_asked_for(tiny: tuple, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    encoder, tokenizer = tiny
    encoder.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    with torch.no_grad():
        classifier.bert.encoder.layer[0].output.dense.weight.add_(0.1)
    assert weights_digest(find_pretrained(classifier).encoder) == weights_digest(encoder.encoder)
    classifier.save_pretrained(tmp_path / "tuned")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned")
    with pytest.raises(UserError, match="classifier itself"):
        find_pretrained(again)
    assert weights_digest(find_pretrained(again, str(tmp_path / "base")).encoder) == weights_digest(encoder.encoder)
    other, _ = tiny_encoder(SENTENCES[:3], width=16)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="hidden_size"):
        find_pretrained(again, str(tmp_path / "other"))
    with pytest.raises(UserError, match="no model could be loaded"):
        find_pretrained(again, str(tmp_path / "nowhere"))


def test_sentence_transformers_model_gives_its_inner_encoder(tiny: tuple, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    encoder, tokenizer = tiny
    encoder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    sentence = SentenceTransformer(str(tmp_path), device="cpu")
    ours, _ = text_encoders(sentence, tokenizer, encoder)
    expected = torch.from_numpy(np.asarray(sentence.encode(SENTENCES[:8])))
    torch.testing.assert_close(ours(SENTENCES[:8]), expected, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- hosts


def test_works_in_host(tiny: tuple) -> None:
    """Texts through pytorch-ood: a DataLoader of strings, the detector, and the host's own metrics."""
    encoder, tokenizer = tiny
    y = [i % CLASSES for i in range(len(SENTENCES))]
    tuned = finetune(encoder, tokenizer, (SENTENCES, y), (SENTENCES, y), FineTuning(1, 1e-3, 16), seed=0).classifier
    detector = GNOME(TextEncoder(tuned, tokenizer), TextEncoder(encoder, tokenizer))
    rows = [(text, label) for text, label in zip(SENTENCES, y, strict=True)]
    train, validation = DataLoader([*rows[::2], ("foreign", -1)], batch_size=16), DataLoader(rows[1::2], batch_size=16)
    detector.fit(train, validation)
    foreign = ["[MASK] [MASK] see see see see see see"] * 20
    metrics = OODMetrics()
    metrics.update(detector.predict(SENTENCES[1::2]), torch.zeros(len(SENTENCES[1::2]), dtype=torch.long))
    metrics.update(detector(foreign), -torch.ones(20, dtype=torch.long))
    assert metrics.compute()["AUROC"] > 0.9  # higher = more foreign, as the host has it
    assert detector.flag(foreign).all()
    assert detector.to("cpu").device.type == "cpu"


def test_single_part_ranks_as_pytorch_oods_mahalanobis() -> None:
    (train, y), (z, _) = draw(300, dtype=torch.float32), draw(60, seed=1, dtype=torch.float32)
    peer = Mahalanobis(None).fit_features(train, y).predict_features(z)
    ours = -mahalanobis_score(fit_gaussian(train, y, "empirical"), z)
    torch.testing.assert_close(ours / len(train) / 2, peer, rtol=1e-2, atol=1e-4)  # the peer's covariance is a sum


def test_detector_takes_pairs_or_one_tensor_and_refuses_to_fit_without_validation() -> None:
    (train, y), (validation, _), (z, _) = draw(100), draw(50, seed=1), draw(20, seed=2)
    pairs = GNOME().fit_features((train, train + 1), y, (validation, validation + 1))
    wide = GNOME().fit_features(torch.cat([train, train + 1], dim=1), y, torch.cat([validation, validation + 1], dim=1))
    torch.testing.assert_close(pairs.predict_features((z, z + 1)), wide.predict_features(torch.cat([z, z + 1], dim=1)))
    with pytest.raises(UserError, match="not trained on"):
        GNOME(lambda x: x, lambda x: x).fit([(train, y)])
    with pytest.raises(UserError, match="side by side"):
        wide.predict_features(z[:, :3])
    with pytest.raises(Exception, match="fit"):
        GNOME().predict_features(z)


def test_device_and_dtype_follow_inputs() -> None:
    for dtype in (torch.float32, torch.float64):
        (train, y), (validation, _) = draw(60, dtype=dtype), draw(40, seed=1, dtype=dtype)
        detector = GNOME().fit_features((train, train), y, (validation, validation))
        assert detector.predict_features((validation, validation)).dtype == dtype
    if torch.cuda.is_available():
        detector.to("cuda")
        assert detector.predict_features(torch.cat([validation, validation], dim=1)).device.type == "cuda"


def test_estimator_follows_scikit_learn_and_agrees_with_the_detector() -> None:
    (train, y), (validation, _), (z, _) = draw(100), draw(60, seed=1), draw(30, seed=2)
    names = np.array(list("abcde"))[y.numpy()]  # labels of any kind
    estimator = clone(GnomeEstimator(shrinkage=0.2)).fit(
        train.numpy(), train[:, :4].numpy(), names, validation=(validation.numpy(), validation[:, :4].numpy())
    )
    assert estimator.get_params()["shrinkage"] == 0.2
    detector = GNOME(config=Config(shrinkage=0.2)).fit_features(
        (train, train[:, :4]), y, (validation, validation[:, :4])
    )
    ours = estimator.score_samples(z.numpy(), z[:, :4].numpy())
    np.testing.assert_allclose(ours, -detector.predict_features((z, z[:, :4])).numpy(), rtol=1e-9)
    passed = estimator.predict(validation.numpy(), validation[:, :4].numpy()) == 1
    assert 0.95 <= passed.mean() < 0.99
    assert (estimator.predict(z.numpy() + 99, z[:, :4].numpy() + 99) == -1).all()


# ---------------------------------------------------------------- the study never looks at foreign texts


def test_foreign_texts_change_nothing_but_their_own_scores(tmp_path: Path) -> None:
    import dataclasses

    from transfuse.config import resolve
    from transfuse.studies.monitoring.gnome_features import Settings, features_of
    from transfuse.studies.monitoring.gnome_ood import STUDY, scores_of
    from transfuse.studies.monitoring.gnome_tasks import Task
    from transfuse.study.streams import Streams

    settings = resolve(Settings, STUDY.scales["quick"])
    y = tuple(i % CLASSES for i in range(len(SENTENCES)))
    part = tuple(SENTENCES[:40]), y[:40]
    task = Task("t", (tuple(SENTENCES), y), part, part, {("background", "custrev"): tuple(SENTENCES[40:60])})
    other = dataclasses.replace(task, foreign={("background", "custrev"): ("something else entirely",) * 20})
    scores = [
        scores_of(
            t, {k: torch.as_tensor(v) for k, v in features_of(t, settings, Streams(0)).items()}, settings, Streams(0)
        )
        for t in (task, other)
    ]
    for arm in scores[0]:
        torch.testing.assert_close(scores[0][arm]["inside"], scores[1][arm]["inside"], msg=arm)


# ---------------------------------------------------------------- files


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Two topics of made-up sentences, and suspects with other words; a tiny encoder in place of the packaged one."""
    topics = {
        "boats": ["boat", "sail", "harbour", "wave", "rope", "anchor"],
        "bread": ["flour", "dough", "oven", "crust", "yeast", "bake"],
    }
    rng = np.random.default_rng(0)

    def sentence(words: list[str]) -> str:
        return " ".join(rng.choice([*words, "the", "and"], size=rng.integers(4, 12)))

    def rows(n: int) -> list[tuple[str, str]]:
        return [(sentence(words), label) for _ in range(n // 2) for label, words in topics.items()]

    paths = {name: tmp_path / f"{name}.csv" for name in ("train", "validation")}
    for name, n in (("train", 120), ("validation", 60)):
        with paths[name].open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows(n)])
    for name, texts in (
        ("test", [t for t, _ in rows(80)]),
        ("foreign", [sentence(["court", "judge", "law", "trial"]) for _ in range(60)]),
        ("same", [t for t, _ in rows(60)]),
    ):
        paths[name] = tmp_path / f"{name}.txt"
        paths[name].write_text("\n".join(texts) + "\n\n")
    words = [*topics["boats"], *topics["bread"], "the", "and", "court", "judge", "law", "trial"]
    monkeypatch.setenv("TRANSFUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gnome_text, "packaged_encoder", lambda: tiny_encoder(words, seed=0))
    return paths


def test_audit_finds_foreign_texts_and_leaves_ones_own_alone(files: dict[str, Path]) -> None:
    base = {name: files[name] for name in ("train", "validation", "test")}
    foreign = gnome_ood.audit(**base, suspects=files["foreign"], epochs=1)
    verdicts = {finding.name: finding.verdict for finding in foreign.findings}
    assert verdicts["AUROC of suspects against held-out texts"] == "finding"
    assert foreign.exit_code == 1
    json.loads(foreign.to_json())
    same = gnome_ood.audit(**base, suspects=files["same"], epochs=1)
    about_suspects = [finding for finding in same.findings if "suspects" in finding.name]
    assert len(about_suspects) == 2
    assert all(finding.verdict == "ok" for finding in about_suspects)
    assert same.false_alarm_rate is not None
    assert same.false_alarm_rate < 0.2


def test_apply_writes_one_row_a_text_and_repeats_from_the_cache(files: dict[str, Path], tmp_path: Path) -> None:
    for name in ("out.csv", "out.jsonl", "out.csv"):
        out = gnome_ood.apply(files["train"], files["validation"], files["foreign"], tmp_path / name, epochs=1)
    rows = list(csv.DictReader(out.open()))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == len(lines) == 60
    assert [float(row["score"]) for row in rows] == pytest.approx([line["score"] for line in lines])
    assert {row["predicted"] for row in rows} <= {"boats", "bread"}
    assert not list(tmp_path.glob("*.partial"))


def test_files_that_cannot_be_used_are_named(files: dict[str, Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("sentence,label\nhello,1\n")
    with pytest.raises(UserError, match=r"row 1 .* has no 'text'"):
        gnome_ood.apply(bad, files["validation"], files["same"], tmp_path / "o.csv")
    with pytest.raises(UserError, match="no such file"):
        gnome_ood.apply(tmp_path / "no.csv", files["validation"], files["same"], tmp_path / "o.csv")
    with pytest.raises(UserError, match="has no labels"):
        gnome_ood.apply(files["same"], files["validation"], files["same"], tmp_path / "o.csv")
    bad.write_text("text,label\n" + "hello,unheard\n" * 30)
    with pytest.raises(UserError, match="'unheard'"):
        gnome_ood.apply(files["train"], bad, files["same"], tmp_path / "o.csv", epochs=1)
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        gnome_ood.apply(files["train"], files["validation"], tmp_path / "latin.txt", tmp_path / "o.csv", epochs=1)


def test_docstring_example_on_text_files_runs(
    files: dict[str, Path], tiny: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import doctest

    from transformers import AutoModelForSequenceClassification

    monkeypatch.chdir(tmp_path)
    tiny[0].save_pretrained("my-base")
    classifier = AutoModelForSequenceClassification.from_pretrained("my-base", num_labels=2)
    classifier.save_pretrained("my-classifier")
    for folder in ("my-base", "my-classifier"):
        tiny[1].save_pretrained(folder)
    words = {"GNOME": GNOME}
    example = doctest.DocTestParser().get_doctest(GNOME.__doc__ or "", words, "GNOME", None, 0)
    assert doctest.DocTestRunner().run(example) == (0, 6)


def test_null_auroc_is_what_equal_halves_reach() -> None:
    limit = gnome_text.null_auroc(np.random.default_rng(0).normal(size=200), 100, seed=0)
    assert 0.55 < limit < 0.62


def test_cache_makes_again_what_a_crash_cut_short(tmp_path: Path) -> None:
    assert cached(("a", 1), lambda: np.arange(3), tmp_path).tolist() == [0, 1, 2]
    assert cached(("a", 1), lambda: np.zeros(3), tmp_path).tolist() == [0, 1, 2]
    (path,) = tmp_path.glob("*.npy")
    path.write_bytes(path.read_bytes()[:20])
    assert cached(("a", 1), lambda: np.ones(3), tmp_path).tolist() == [1, 1, 1]
