"Nets and the models made of them: what cannot be a lesson. Properties, known optima, permuted labels, other processes, damage, real prices"
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="pip install 'tradenb[nets]'")
pytest.importorskip("safetensors", reason="pip install 'tradenb[nets]'")

from tradenb.core.panel import Dataset  # noqa: E402
from tradenb.data.market import simulate  # noqa: E402
from tradenb.features.price import core14  # noqa: E402
from tradenb.labels.horizon import forward_return  # noqa: E402
from tradenb.models.base import clone, load, out_of_fold, out_of_fold_paths, save  # noqa: E402
from tradenb.models.nets import LSTMNet, MambaNet, PatchTSTNet, patches, seeded, size  # noqa: E402
from tradenb.models.scaled import Scaled, answers, unpacked  # noqa: E402
from tradenb.models.scan import selective_scan  # noqa: E402
from tradenb.models.sequence import LSTM, Mamba, PatchTST  # noqa: E402
from tradenb.models.windows import Windows, moments  # noqa: E402
from tradenb.validation.prediction import ic, ic_summary  # noqa: E402
from tradenb.validation.splits import CPCV, WalkForward  # noqa: E402

HOW = dict(window=6, layers=1, dropout=0., epochs=3, sessions_per_batch=6, learning_rate=.03, target="zscore", device="cpu")
SMALL = {"LSTM": LSTM(hidden=16, **HOW), "PatchTST": PatchTST(patch=4, stride=2, width=8, heads=2, **HOW),
         "Mamba": Mamba(width=8, state=4, heads=2, **HOW)}
every = pytest.mark.parametrize("model", SMALL.values(), ids=SMALL.keys())


def planted(sessions=120, symbols=12, lag=2, noise=.01, takes=1, slope=.02, seed=0):
    "A return that is what the feature was some sessions ago, and noise"
    rng = np.random.default_rng(seed)
    days = pd.bdate_range("2022-01-03", periods=sessions + takes, name="session").as_unit("us")
    rows = pd.MultiIndex.from_product([days[:sessions], [f"S{i:02}" for i in range(symbols)]], names=["session", "symbol"])
    X = pd.DataFrame(rng.normal(size=(len(rows), 2)), rows, ["news", "dice"])
    y = slope*X["news"].groupby("symbol").shift(lag).fillna(0) + rng.normal(0, noise, len(rows))
    return Dataset(X, y, pd.Series(1., rows), pd.Series(np.repeat(days[takes:], symbols), rows))


# networks

@settings(max_examples=15, deadline=None)
@given(steps=st.integers(1, 40), heads=st.integers(1, 3), inner=st.integers(1, 4), places=st.integers(1, 5),
       chunk=st.integers(1, 45), seed=st.integers(0, 99))
def test_the_scan_is_the_recurrence(steps, heads, inner, places, chunk, seed):
    with seeded(seed):
        x, step, decay = torch.randn(2, steps, heads, inner).double(), torch.rand(2, steps, heads).double(), -10*torch.rand(heads).double()
        B, C = torch.randn(2, 2, steps, places).double()
    memory, loop = torch.zeros(2, heads, inner, places).double(), []
    for t in range(steps):
        memory = (step[:, t]*decay).exp()[..., None, None]*memory + (step[:, t, :, None]*x[:, t])[..., None]*B[:, t, None, None]
        loop.append((memory*C[:, t, None, None]).sum(-1))
    torch.testing.assert_close(selective_scan(x, step, decay, B, C, chunk), torch.stack(loop, 1), rtol=1e-9, atol=1e-9)


def test_the_gradient_of_the_scan_is_that_of_finite_differences():
    with seeded(0):
        args = [torch.randn(1, 4, 2, 1), torch.rand(1, 4, 2), -torch.rand(2), torch.randn(1, 4, 2), torch.randn(1, 4, 2)]
    args = [a.double().requires_grad_() for a in args]
    assert torch.autograd.gradcheck(lambda *a: selective_scan(*a, chunk=2), args)


@settings(max_examples=60, deadline=None)
@given(window=st.integers(1, 300), patch=st.integers(1, 40), stride=st.integers(1, 40))
def test_patches_leave_no_step_out_and_end_tonight(window, patch, stride):
    if patch > window or stride > patch:
        with pytest.raises(ValueError, match="patch"): patches(window, patch, stride)
        return
    at = patches(window, patch, stride)
    assert set(range(window)) <= set(at.flatten().tolist()) and at[-1, -1] == window - 1
    assert (at.diff(dim=0) == stride).all() and (at[0] >= 0).any() and at.min() > -stride


@settings(max_examples=12, deadline=None)
@given(features=st.integers(1, 5), hidden=st.integers(1, 9), layers=st.integers(1, 3), both=st.booleans(),
       attention=st.booleans(), norm=st.booleans())
def test_the_size_of_an_lstm_is_its_closed_form(features, hidden, layers, both, attention, norm):
    net = LSTMNet(features, hidden, layers, 0., both, attention, norm)
    ways, wide = 1 + both, hidden*(1 + both)
    expected = ways*4*hidden*(features + hidden + 2) + (layers - 1)*ways*4*hidden*(wide + hidden + 2)
    assert size(net) == expected + attention*(wide*wide + 2*wide) + norm*2*wide + wide + 1
    assert net(torch.zeros(3, 4, features)).shape == (3,)


NETS = {"lstm": lambda: LSTMNet(4, 9), "attention": lambda: LSTMNet(4, 9, attention=True, norm=True),
        "patches": lambda: PatchTSTNet(4, 20, 6, 3, 8, 2), "mamba": lambda: MambaNet(4, 8, 4)}


@pytest.mark.parametrize("name", NETS)
def test_a_score_has_the_same_bits_whoever_is_scored_beside(name):
    with seeded(3): net = NETS[name]().eval()
    rng = np.random.default_rng(0)
    days = pd.bdate_range("2024-01-01", periods=30, name="session").as_unit("us")
    X = pd.DataFrame(rng.normal(size=(150, 4)), pd.MultiIndex.from_product([days, list("ABCDE")], names=["session", "symbol"]), list("wxyz"))
    X = X.mask(rng.random(X.shape) < .1)
    network, windows = Scaled(net, *moments(X)), Windows(X, 20)
    at = windows.rows(X.index)
    alone = answers(network, windows, at)
    order = rng.permutation(150)
    assert (answers(network, windows, at[order]) == alone[order]).all()
    for n in 1, 129: assert (answers(network, windows, at[order[:n]]) == alone[order[:n]]).all()
    laid = Windows(X, 20, *moments(X)) # the same scale, laid out beforehand
    np.testing.assert_allclose(net(laid.take(at)).detach().numpy(), alone, atol=2e-6)


# models

def test_the_loss_falls_to_the_known_optimum():
    "The label is what the feature was two sessions ago, and noise: nobody's mean squared error is below the noise's variance"
    ds = planted(200, 20, noise=.5, slope=1.)
    model = LSTM(**HOW | dict(epochs=10, target="y", loss="mse", metric="loss", valid=.2), hidden=16)
    held = (ds.sessions >= ds.sessions.unique()[160])
    y, past = (v.to_numpy()[held] for v in (ds.y, ds.X["news"].groupby("symbol").shift(2).fillna(0)))
    optimum = ((y - past)**2).mean()
    assert optimum*.97 < model.fit(ds).history_["valid"].min() < optimum*1.08 < y.var()/3


@every
def test_the_past_is_found_and_permuted_labels_are_not(model):
    ds, walk = planted(), WalkForward(train=80, test=40, embargo=1)
    found = ic(out_of_fold(model, ds, walk, trials=None), ds.y).mean()
    assert found > .5
    rng = np.random.default_rng(5)
    shuffled = ds.y.groupby("session").transform(lambda v: rng.permutation(v.to_numpy()))
    nothing = ic(out_of_fold(model, Dataset(ds.X, shuffled, ds.w, ds.known_at), walk, trials=None), shuffled)
    assert abs(nothing.mean()) < 4/np.sqrt(len(nothing)*11) # four standard errors of a mean of rank correlations of 12 names


@every
def test_context_is_read_and_never_learnt_from(model):
    "Out of fold gives what fit and predict give by hand, and labels of context rows change nothing"
    ds = planted(60)
    cut = ds.sessions.unique()[40]
    (train, test), = WalkForward(train=40, test=20, embargo=1).split(ds)
    scores = out_of_fold(model, ds, WalkForward(train=40, test=20, embargo=1), trials=None)
    by_hand = clone(model).fit(ds.take(train)).predict(ds.X.loc[ds.sessions.unique()[40 - 5]:]).loc[cut:]
    assert (scores == by_hand).all()
    early = np.flatnonzero(ds.sessions < ds.sessions.unique()[10])
    only = np.isin(np.arange(len(ds.X)), early)
    masked = Dataset(ds.X, ds.y.mask(only), ds.w.mask(only, 0.), ds.known_at.mask(only))
    other = Dataset(ds.X, ds.y.where(~only, 99.), ds.w.mask(only, 0.), ds.known_at) # weight 0 is enough
    one, two = (clone(model).fit(d) for d in (masked, other))
    assert one.dump() == two.dump() != clone(model).fit(ds).dump()


def test_what_is_not_known_when_the_validation_begins_is_not_learnt():
    "Labels that span into the validation sessions are left out: change them, and nothing moves"
    ds, model = planted(60, takes=6), SMALL["LSTM"]
    axis = ds.sessions.unique()
    spans = np.asarray((ds.sessions < axis[-9]) & (ds.known_at >= axis[-9])) # 9 = round(.15*60)
    changed = Dataset(ds.X, ds.y.where(~spans, 1e3), ds.w, ds.known_at)
    assert spans.sum() == 6*12
    assert clone(model).fit(changed).dump() == (told := clone(model).fit(ds)).dump()
    news = Dataset(ds.X.mask(pd.Series(ds.sessions >= axis[-9], ds.X.index), 50.), ds.y, ds.w, ds.known_at)
    assert (clone(model).fit(news).network_.mean == told.network_.mean).all() # nor does the scale know what comes


def test_folds_that_surround_what_they_test_give_the_same_bits_in_other_processes():
    ds, model, split = planted(40), clone(SMALL["LSTM"]), CPCV(3, 1, embargo=2)
    model.epochs = 1
    here = out_of_fold_paths(model, ds, split, trials=None)
    pd.testing.assert_frame_equal(here, out_of_fold_paths(model, ds, split, trials=None, n_jobs=2), check_exact=True)


def test_names_that_come_late_and_days_that_are_missing_get_finite_scores():
    ds, model = planted(60), clone(SMALL["LSTM"])
    rng = np.random.default_rng(0)
    listed = (ds.X.index.get_level_values("symbol") != "S03") | (ds.sessions >= ds.sessions.unique()[50])
    holes = ds.take(np.flatnonzero((rng.random(len(ds.X)) < .8) & listed))
    holes = Dataset(holes.X.mask(rng.random(holes.X.shape) < .2), holes.y, holes.w, holes.known_at)
    scores = model.fit(holes).predict(holes.X)
    assert np.isfinite(scores).all() and scores.index.equals(holes.X.index)
    assert np.isfinite(model.predict(holes.X.loc[holes.sessions.unique()[-1]:])).all()


@every
def test_kept_and_loaded_again_is_the_same_to_the_bit_and_damage_is_refused(model, tmp_path):
    ds = planted(40)
    fitted = clone(model).fit(ds)
    save(fitted, tmp_path/"m", ds)
    again = load(tmp_path/"m")
    assert (again.predict(ds.X) == fitted.predict(ds.X)).all() and again.dump() == fitted.dump()
    data = fitted.dump()
    rng = np.random.default_rng(0)
    for cut in rng.integers(0, len(data), 10):
        with pytest.raises(ValueError, match="damaged"): clone(model).restore(data[:cut])
    wrong = unpacked(data)
    first = next(iter(wrong[0]))
    with pytest.raises(ValueError, match="do not fit"):
        clone(model).restore(packed_as(wrong[0] | {first: torch.zeros(3, 3)}, wrong[1]))
    with pytest.raises(ValueError, match="do not fit"):
        clone(model).restore(packed_as(wrong[0], wrong[1] | {"features": ["news"]}))


def packed_as(weights, said):
    from safetensors.torch import save
    return save(weights, {"tradenb": json.dumps(said)})


def test_one_name_stops_by_its_loss():
    ds = planted(80, symbols=1)
    with pytest.raises(ValueError, match="metric='loss'"): clone(SMALL["LSTM"]).fit(ds)
    assert np.isfinite(LSTM(**HOW | {"target": "y", "loss": "huber", "metric": "loss"}, hidden=8).fit(ds).predict(ds.X)).all()


def test_the_simulated_market_walks_forward():
    bars = simulate(n_symbols=8, n_sessions=160, rng=1).bars.set_index(["session", "symbol"]).sort_index()
    X, label = core14(bars), forward_return(bars, k=5)
    rows = X.index.intersection(label.index)
    ds = Dataset(X.loc[rows], label.y.loc[rows], pd.Series(1., rows), label.known_at.loc[rows])
    scores = out_of_fold(clone(SMALL["LSTM"]), ds, WalkForward(train=90, test=60, embargo=5), trials=None)
    assert np.isfinite(scores).all() and scores.groupby("session").std().gt(0).all()


@pytest.mark.real
def test_real_prices_give_finite_scores_of_names_that_differ(real_data):
    frame = pd.read_parquet(real_data/"us_stocks_503_daily_2015_2018.parquet").rename(columns={"date": "session"})
    frame = frame.astype({"symbol": str, "session": "datetime64[us]"})
    some = frame[frame.symbol.isin(sorted(frame.symbol.unique())[:60]) & (frame.session < "2016-01-01")]
    bars = some.set_index(["session", "symbol"]).sort_index()
    bars[["open", "high", "low", "close"]] = bars[["open", "high", "low", "close"]].mul(bars.adj_close/bars.close, axis=0)
    X, label = core14(bars), forward_return(bars, k=5, excess=True)
    rows = X.index.intersection(label.index)
    ds = Dataset(X.loc[rows], label.y.loc[rows], pd.Series(1., rows), label.known_at.loc[rows])
    model = LSTM(**HOW | {"window": 20, "epochs": 2}, hidden=16, every=5)
    scores = out_of_fold(model, ds, WalkForward(train=180, test=60, embargo=5), trials=None)
    told = ic_summary(ic(scores, ds.y.reindex(scores.index)), horizon=5)
    assert np.isfinite(scores).all() and abs(told["mean"]) < .25 # a rank IC beyond that would be a leak
