"""The list of golden cases: small networks that test one kind of layer each, and whole networks.

Only descriptions. make_golden.py computes the expected results.
"""

BIG_SEED = 2**32 + 7  # so that both halves of the generator's key count


def layer(kind, **keys):
    """One [[layer]] of a model file."""
    lines = "".join(f"{key} = {toml(value)}\n" for key, value in keys.items())
    return f'\n[[layer]]\nkind = "{kind}"\n{lines}'


def toml(value):
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)


def conv(number, filters, kernel, **keys):
    return layer("conv", name=f"conv{number}", filters=filters, kernel=kernel, **keys)


def linear(number, units):
    return layer("linear", name=f"fc{number}", units=units)


def drop(number, p):
    return layer("dropout", name=f"drop{number}", p=p)


def lrn(size, alpha, beta, k):
    return layer("lrn", size=size, alpha=alpha, beta=beta, k=k)


def max_pool(kernel, stride, **keys):
    return layer("max_pool", kernel=kernel, stride=stride, **keys)


def avg_pool(kernel, stride, **keys):
    return layer("avg_pool", kernel=kernel, stride=stride, **keys)


RELU = layer("relu")


def model(name, layers, towers=2, channels=2, height=10, width=9, normal=True):
    """A model file. Images are higher than wide, so that a swapped axis shows."""
    mean, std = [0.25, 0.5, 0.375][:channels], [0.5, 0.25, 0.3][:channels]
    extra = f", mean = {mean}, std = {std}" if normal else ""
    size = f"channels = {channels}, height = {height}, width = {width}"
    return f'name = "{name}"\ntowers = {towers}\ninput = {{ {size}{extra} }}\n' + "".join(layers)


def small(name, *layers, lr=0.005, weight_decay=5e-4, schedule="constant", seed=7, **shape):
    """A small net: 18 images in batches of 4, so that every fifth step has two images only."""
    return dict(
        name=name,
        model=model(name, layers, **shape),
        train_images=18,
        test_images=5,
        batch=4,
        lr=lr,
        weight_decay=weight_decay,
        schedule=schedule,
        seed=seed,
        steps=20,
        whole_up_to=1200,
        kink_ratio=10.0,
        shakes=8,
    )


def preset(name, **changes):
    """A model of models/, by its name. Of its gradients only samples are kept.

    Noise has no margin that a net could learn, so units keep tipping over, and at a usual rate that feeds on itself
    until f32 and f64 part after a dozen steps. The fashion nets' rate is so small that it doesn't, and still moves the
    loss by about 0.1.
    """
    case = dict(
        name=name,
        preset=name,
        train_images=44,
        test_images=8,
        batch=8,
        lr=5e-5,
        weight_decay=5e-4,
        schedule="constant",
        seed=7,
        steps=20,
        whole_up_to=64,
        kink_ratio=4.0,
        shakes=8,
    )
    return case | changes


def convolutions():
    """Plain, grouped, strided, padded, without bias."""
    first = conv(1, 8, 3, pad=1)
    yield small("conv-plain", first, RELU, conv(2, 12, 3), RELU, linear(3, 6), lr=0.001)
    groups = [conv(2, 16, 3, pad=1, groups=2), RELU, conv(3, 8, 3, groups=4), RELU]
    yield small("conv-grouped", first, RELU, *groups, linear(4, 6), lr=0.002)
    strides = [conv(2, 12, 3, stride=2, pad=1), RELU, conv(3, 8, 4, stride=3, pad=2, groups=2), RELU]
    yield small("conv-strided", first, RELU, *strides, linear(4, 6))
    shape = dict(channels=3, height=13, width=12)
    layers = [conv(1, 8, 5, stride=2, pad=1), RELU, conv(2, 8, 1), RELU, linear(3, 6)]
    yield small("conv-strided-first", *layers, **shape, lr=0.001)
    layers = [conv(1, 8, 3, pad=1, bias=False), RELU, conv(2, 8, 3, groups=2, bias=False), RELU, linear(3, 6)]
    yield small("no-bias", *layers, normal=False, lr=0.002)


def norms_and_pools():
    """What stands between two convolutions."""
    wide = conv(1, 16, 3, pad=1)
    yield small("lrn", wide, RELU, lrn(5, 0.05, 0.75, 2.0), conv(2, 8, 3, groups=2), RELU, linear(3, 6))
    yield small("lrn-even", wide, lrn(4, 0.1, 0.6, 1.0), conv(2, 8, 3), RELU, linear(3, 6), lr=0.0005)
    yield small("lrn-wide", conv(1, 8, 3), RELU, lrn(9, 0.2, 1.0, 1.5), linear(2, 6))
    first, second = conv(1, 8, 3, pad=1), conv(2, 8, 3, pad=1)
    yield small("max-pool", first, RELU, max_pool(3, 2, pad=1), second, max_pool(2, 1), linear(3, 6), lr=0.002)
    grouped = conv(2, 8, 3, pad=1, groups=2)
    yield small("avg-pool", first, RELU, avg_pool(3, 2, pad=1), grouped, avg_pool(2, 2), linear(3, 6))


def units():
    """ReLU, dropout, and linear layers that don't divide by the towers."""
    yield small("relu", conv(1, 8, 3), RELU, linear(2, 10), RELU, linear(3, 6), weight_decay=0.0, lr=0.002)
    layers = [drop(1, 0.3), conv(2, 8, 3, groups=2), RELU, linear(3, 11), RELU, drop(3, 0.5), linear(4, 6)]
    yield small("dropout", conv(1, 8, 3), RELU, *layers, seed=BIG_SEED)
    layers = [linear(2, 11), RELU, drop(2, 0.25), linear(3, 9), RELU, linear(4, 5)]
    yield small("linear-uneven", conv(1, 8, 3), RELU, *layers, lr=0.001)
    yield small("linear-only", linear(1, 13), RELU, linear(2, 5), height=6, width=5)


def schedules():
    """The same little net under each rate that isn't constant; a job of 20 steps, five to the epoch."""
    for name, schedule in (("step", "step:2:0.3"), ("cosine", "cosine"), ("one-cycle", "one-cycle")):
        layers = [linear(1, 8), RELU, linear(2, 4)]
        yield small(f"schedule-{name}", *layers, height=6, width=5, schedule=schedule, lr=0.05)


def whole_nets():
    """Four towers that share ten classes, and the presets."""
    layers = [conv(1, 16, 3, pad=1), RELU, lrn(3, 0.05, 0.75, 1.0), max_pool(2, 2)]
    layers += [conv(2, 16, 3, pad=1, groups=4), RELU, conv(3, 16, 3, pad=1), RELU]
    layers += [conv(4, 16, 3, pad=1, groups=8), RELU, max_pool(2, 2), linear(5, 18), RELU, drop(5, 0.5), linear(6, 10)]
    yield small("four-towers", *layers, towers=4, channels=3, height=12, width=12)
    yield preset("alexnet-fashion")
    yield preset("alexnet-fashion-dense")
    yield preset("alexnet", train_images=2, test_images=2, batch=2, lr=0.001, steps=3, kink_ratio=1.0, shakes=2)


CASES = [*convolutions(), *norms_and_pools(), *units(), *schedules(), *whole_nets()]
