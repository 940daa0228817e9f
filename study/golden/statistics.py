"""Makes statistics.json: the same statistics by SciPy, statsmodels and NumPy, on random data.

    pip install numpy scipy statsmodels
    python study/golden/statistics.py > study/golden/statistics.json

BCa intervals use Convoy's own draws (Philox4x32-10), generated here by a separate implementation.
"""

import json

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_paired

M32 = np.uint64(0xFFFFFFFF)


def philox(counter, key):
    """Philox4x32-10 on arrays of 64-bit integers that hold 32-bit words."""
    c = [np.asarray(x, dtype=np.uint64) for x in counter]
    k = [np.uint64(x) for x in key]
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ k[0], p1 & M32, (p0 >> np.uint64(32)) ^ c[3] ^ k[1], p0 & M32]
        k = [(k[0] + np.uint64(0x9E3779B9)) & M32, (k[1] + np.uint64(0xBB67AE85)) & M32]
    return c


def fnv1a(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) % 2**64
    return value


def words(seed, purpose, first, count):
    """Words `first` to `first + count` of (seed, purpose)."""
    index = np.arange(first, first + count, dtype=np.uint64)
    block, place = index // np.uint64(4), index % np.uint64(4)
    purpose = fnv1a(purpose)
    zero = np.zeros_like(block)
    four = philox(
        [block & M32, block >> np.uint64(32), zero + np.uint64(purpose % 2**32), zero + np.uint64(purpose >> 32)],
        [seed % 2**32, seed >> 32],
    )
    return np.choose(place.astype(int), four)


def weights(purpose, draw, count):
    drawn = (words(1, purpose, draw * count, count) * np.uint64(count)) >> np.uint64(32)
    return np.bincount(drawn.astype(int), minlength=count)


def bca(difference, draws, confidence):
    """BCa over rows and columns, with SciPy's acceleration for several samples, scaled to the standard error of a two-way layout."""
    n, m = difference.shape
    resampled = np.array(
        [
            weights("bootstrap seeds", b, n) @ difference @ weights("bootstrap images", b, m) / (n * m)
            for b in range(draws)
        ]
    )
    observed = difference.mean()
    share = ((resampled < observed).mean() + (resampled <= observed).mean()) / 2
    z0 = stats.norm.ppf(share)
    top = bottom = 0.0
    for axis, size in ((0, n), (1, m)):
        jackknife = np.array([np.delete(difference, i, axis=axis).mean() for i in range(size)])
        u = (size - 1) * (jackknife.mean() - jackknife)
        top += (u**3).sum() / size**3
        bottom += (u**2).sum() / size**2
    a = top / (6 * bottom**1.5)
    z = stats.norm.ppf(0.5 + confidence / 2)
    level = [stats.norm.cdf(z0 + (z0 + s) / (1 - a * (z0 + s))) for s in (-z, z)]
    # Two-way analysis of variance with both effects random, and Satterthwaite's degrees of freedom.
    rows, columns = difference.mean(axis=1, keepdims=True), difference.mean(axis=0, keepdims=True)
    ms = {
        "rows": m * rows.var(ddof=1),
        "columns": n * columns.var(ddof=1),
        "luck": ((difference - rows - columns + observed) ** 2).sum() / ((n - 1) * (m - 1)),
    }
    total = max(ms["rows"] + ms["columns"] - ms["luck"], ms["rows"], ms["columns"])
    df = {"rows": n - 1, "columns": m - 1, "luck": (n - 1) * (m - 1)}
    freedom = max(total**2 / sum(ms[k] ** 2 / df[k] for k in ms), 1)
    p = 0.5 + confidence / 2
    scale = np.sqrt(total / (n * m) / resampled.var(ddof=1)) * stats.t.ppf(p, freedom) / stats.norm.ppf(p)
    return [float(observed + scale * (np.quantile(resampled, x) - observed)) for x in level]


def main():
    rng = np.random.default_rng(19)
    out = {"distributions": [], "pairs": [], "holm": [], "sign_flip": [], "wilson": [], "bca": []}
    for df in (1, 2, 3, 7, 9, 19, 39.5, 200, 5000):
        for t in (-30.0, -4.2, -1.0, -0.01, 0.0, 0.3, 2.0, 12.5):
            out["distributions"].append(
                {"df": df, "t": t, "cdf": stats.t.cdf(t, df), "normal": stats.norm.cdf(t), "two_sided": 2 * stats.t.sf(abs(t), df)}
            )
        for p in (1e-6, 0.005, 0.025, 0.2, 0.5, 0.9, 0.975, 0.9999):
            out["distributions"].append({"df": df, "p": p, "t_quantile": stats.t.ppf(p, df), "normal_quantile": stats.norm.ppf(p)})
    for n in (2, 4, 8, 10, 20, 57):
        a = rng.normal(92, 0.2, n)
        b = a * rng.choice([0, 0.5]) + rng.normal(46, 0.2, n) * rng.choice([1, 2])
        b += a.mean() - b.mean() + rng.normal(0, 0.1)
        paired, welch = stats.ttest_rel(a, b), stats.ttest_ind(a, b, equal_var=False)
        ci, welch_ci = paired.confidence_interval(0.95), welch.confidence_interval(0.95)
        out["pairs"].append(
            {
                "a": list(a),
                "b": list(b),
                "p": paired.pvalue,
                "interval": list(ci),
                "equivalence": {"margin": 0.2, "p": ttost_paired(a, b, -0.2, 0.2)[0]},
                "welch": {"p": welch.pvalue, "df": welch.df, "interval": list(welch_ci)},
                "correlation": stats.pearsonr(a, b).statistic if n > 2 else None,
            }
        )
    for n in (1, 3, 6, 20):
        p = rng.uniform(0, 0.2, n)
        out["holm"].append({"p": list(p), "adjusted": list(multipletests(p, method="holm")[1])})
    for n in (4, 6, 8, 12):
        for spread in (3, 40):
            d = np.rint(rng.normal(spread * 0.4, spread, n)).astype(int)
            test = stats.permutation_test(
                (d.astype(float),), lambda x: x.sum(), permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
            )
            out["sign_flip"].append({"differences": d.tolist(), "p": float(test.pvalue)})
    for wins, n in ((0, 8), (3.5, 8), (8, 8), (13, 20)):
        out["wilson"].append({"wins": wins, "n": n, "interval": list(proportion_confint(wins, n, 0.05, method="wilson"))})
    for n, m, draws in ((6, 40, 400), (10, 200, 300)):
        skill = rng.uniform(0.5, 1, m)
        a, b = (rng.uniform(size=(n, m)) < np.minimum(skill + shift, 1) for shift in (0.05, 0))
        out["bca"].append(
            {
                "a": ["".join("01"[int(x)] for x in row) for row in a],
                "b": ["".join("01"[int(x)] for x in row) for row in b],
                "draws": draws,
                "interval": bca(a.astype(float) - b.astype(float), draws, 0.95),
            }
        )
    out["representation"] = []
    for channels, samples in ((6, 50), (16, 400)):
        base = rng.normal(size=(samples, 3))
        a, b = (
            np.maximum(base @ rng.normal(size=(3, channels)) + rng.normal(size=(samples, channels)), 0).astype(np.float32)
            for _ in range(2)
        )
        r = np.corrcoef(a.astype(float), rowvar=False)
        group = np.arange(channels) * 2 // channels
        upper = np.triu_indices(channels, 1)
        same = (group[:, None] == group[None, :])[upper]
        shares = np.linalg.eigvalsh(r).clip(0)
        shares = shares[shares > 0] / shares.sum()

        def cka(x, y):
            x, y = (v.astype(float) - v.astype(float).mean(axis=0) for v in (x, y))
            return np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))

        half = channels // 2
        out["representation"].append(
            {
                "channels": channels,
                "a": a.ravel().tolist(),
                "b": b.ravel().tolist(),
                "all": np.abs(r[upper]).mean(),
                "within": np.abs(r[upper])[same].mean(),
                "between": np.abs(r[upper])[~same].mean(),
                "effective_rank": np.exp(-(shares * np.log(shares)).sum()),
                "halves": cka(a[:, :half], a[:, half:]),
                "both": cka(a, b),
            }
        )
    rng = np.random.default_rng(20)
    out["chi_squared"] = []
    for df in (1, 2, 3, 9, 19, 100, 3000):
        for x in (0.001, 0.5, 1.0, 7.3, 40.0, 110.0, 2900.0):
            out["chi_squared"].append({"df": df, "x": x, "cdf": stats.chi2.cdf(x, df)})
        for p in (1e-6, 0.025, 0.5, 0.975, 0.9999):
            out["chi_squared"].append({"df": df, "p": p, "quantile": stats.chi2.ppf(p, df)})
    out["deviation"] = []
    for n in (2, 3, 10, 57):
        values = rng.normal(92, 0.2, n)
        square = values.var(ddof=1) * (n - 1)
        interval = [float(np.sqrt(square / stats.chi2.ppf(p, n - 1))) for p in (0.975, 0.025)]
        out["deviation"].append({"values": list(values), "interval": interval})
    print(json.dumps(out, indent=1, default=float))


main()
