"""Small experiments on the text of Python's help topics, behind the statements of docs/losses/index.md."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from theodolite import losses

Criterion = Callable[[Tensor, Tensor], Tensor]
TEXT = "\n".join(topics[name] for name in sorted(topics))
ALPHABET = sorted(set(TEXT))
CODES = torch.tensor([ALPHABET.index(character) for character in TEXT])
CONTEXT = 8


class CharacterModel(nn.Module):
    """The next character from the eight before it."""

    def __init__(self, seed: int, width: int = 128) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(len(ALPHABET), 16)
        self.hidden, self.out = nn.Linear(16 * CONTEXT, width), nn.Linear(width, len(ALPHABET))

    def forward(self, windows: Tensor) -> Tensor:
        return self.out(torch.relu(self.hidden(self.embed(windows).flatten(1))))


def windows(starts: Tensor) -> tuple[Tensor, Tensor]:
    index = starts[:, None] + torch.arange(CONTEXT + 1)
    rows = CODES[index]
    return rows[:, :-1], rows[:, -1]


def split(seed: int) -> tuple[Tensor, Tensor]:
    """Positions for training (the first nine tenths of the text) and 4,000 for testing."""
    generator = torch.Generator().manual_seed(seed)
    edge = int(0.9 * len(CODES))
    test = edge + torch.randint(len(CODES) - edge - CONTEXT - 1, (4000,), generator=generator)
    return torch.arange(edge - CONTEXT - 1), test


def trained(
    criterion: Criterion, *, seed: int, steps: int = 1000, lr: float = 3e-3, pool: int | None = None, noise: float = 0.0
) -> CharacterModel:
    model, (positions, _) = CharacterModel(seed), split(seed)
    generator = torch.Generator().manual_seed(seed)
    positions = positions if pool is None else positions[torch.randperm(len(positions), generator=generator)[:pool]]
    inputs, targets = windows(positions) if pool is not None else (None, None)
    if noise and targets is not None:
        wrong = torch.rand(len(targets), generator=generator) < noise
        targets = torch.where(wrong, torch.randint(len(ALPHABET), targets.shape, generator=generator), targets)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        drawn = torch.randint(len(positions), (256,), generator=generator)
        x, y = windows(positions[drawn]) if inputs is None or targets is None else (inputs[drawn], targets[drawn])
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    return model


@torch.no_grad()
def tested(model: CharacterModel, seed: int) -> tuple[float, float, float, float]:
    """Accuracy, mean negative log-probability in bits, calibration error, root mean square of log Z."""
    x, y = windows(split(seed)[1])
    z = model(x)
    p = torch.softmax(z, 1)
    error = float(losses.expected_calibration_error(p, y))
    spread = float(torch.logsumexp(z, 1).square().mean().sqrt())
    return float((z.argmax(1) == y).float().mean()), float(F.cross_entropy(z, y)) / math.log(2), error, spread


def overconfidence(seeds: int) -> dict[str, list[list[float]]]:
    """6,000 characters learnt by heart: bits a character, calibration error and accuracy on unseen text."""
    rules: dict[str, Criterion] = {
        "cross_entropy": F.cross_entropy,
        "label smoothing 0.1": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1),
        "focal": lambda z, y: losses.focal(z, y, gamma=3.0),
        "dual_focal": losses.dual_focal,
        "squentropy": losses.squentropy,
    }
    found = {}
    for name, rule in rules.items():
        runs = [tested(trained(rule, seed=s, pool=6000, steps=800), s) for s in range(seeds)]
        found[name] = [[100 * r[2] for r in runs], [r[1] for r in runs], [100 * r[0] for r in runs]]
    return found


def normaliser(seeds: int) -> dict[str, list[list[float]]]:
    """A high learning rate: root mean square of log Z and bits a character, with and without the penalty."""
    found = {}
    for alpha in (0.0, 1e-4, 1e-2):

        def rule(z: Tensor, y: Tensor, alpha: float = alpha) -> Tensor:
            return F.cross_entropy(z, y) + losses.aux_log_z2(z, y, alpha=alpha)

        runs = [tested(trained(rule, seed=s, lr=1e-2), s) for s in range(seeds)]
        found[f"α = {alpha:g}"] = [[r[3] for r in runs], [r[1] for r in runs]]
    return found


def noise(seeds: int) -> dict[str, list[list[float]]]:
    """Two fifths of 30,000 next characters replaced by random ones: accuracy on clean text."""
    rules: dict[str, Criterion] = {
        "cross_entropy": F.cross_entropy,
        "label smoothing 0.1": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1),
        "gce": losses.gce,
        "sce": losses.sce,
        "mae": losses.mae,
    }
    found = {}
    for name, rule in rules.items():
        runs = [tested(trained(rule, seed=s, pool=30_000, noise=0.4), s) for s in range(seeds)]
        found[name] = [[100 * r[0] for r in runs]]
    return found


def memory(seeds: int) -> dict[str, list[list[float]]]:
    """One passage of 1,200 characters seen 300 times: longest run recalled from its own context, and accuracy elsewhere."""
    found = {}
    for k in (math.inf, 4.0, 2.0):
        recalled, elsewhere = [], []
        for seed in range(seeds):
            generator = torch.Generator().manual_seed(seed)
            start = int(torch.randint(100_000, (), generator=generator))
            x, y = windows(start + torch.arange(1200))
            kept = losses.goldfish_mask(y[None], k=k, context=CONTEXT)[0]
            model = CharacterModel(seed, width=256)
            optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
            for _ in range(300):
                optimizer.zero_grad()
                losses.sparse_softmax_ce(model(x), torch.where(kept, y, -100), k=len(ALPHABET)).backward()
                optimizer.step()
            with torch.no_grad():
                right = model(x).argmax(1) == y
            runs = torch.split(right.int(), 1)
            recalled.append(float(_longest(torch.cat(runs))))
            elsewhere.append(100 * tested(model, seed)[0])
        found["cross_entropy" if math.isinf(k) else f"goldfish, k = {k:g}"] = [recalled, elsewhere]
    return found


def _longest(right: Tensor) -> int:
    best = now = 0
    for hit in right.tolist():
        now = now + 1 if hit else 0
        best = max(best, now)
    return best


def passages() -> list[list[str]]:
    """Paragraphs of at least 40 words, as lower-case words."""
    blocks = [re.findall(r"[a-z_]+", block.lower()) for block in re.split(r"\n\s*\n", TEXT)]
    return [block for block in blocks if len(block) >= 40]


def bags(texts: list[list[str]], vocabulary: dict[str, int]) -> Tensor:
    counts = torch.zeros(len(texts), len(vocabulary))
    for row, words in enumerate(texts):
        for word, times in Counter(words).items():
            if word in vocabulary:
                counts[row, vocabulary[word]] = math.log1p(times)
    return counts


def common(texts: list[list[str]], size: int) -> dict[str, int]:
    counts = Counter(word for words in texts for word in set(words))
    return {word: index for index, (word, _) in enumerate(counts.most_common(size))}


def retrieval(seeds: int) -> dict[str, list[list[float]]]:
    """The second half of a paragraph from its first among 200 unseen ones: first hits in per cent."""
    texts = passages()
    vocabulary = common(texts, 800)
    halves = [bags([w[: len(w) // 2] for w in texts], vocabulary), bags([w[len(w) // 2 :] for w in texts], vocabulary)]
    found: dict[str, list[list[float]]] = {}
    for name in ("info_nce", "siglip", "triplet", "alignment alone", "alignment + uniformity"):
        hits = []
        for seed in range(seeds):
            order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))
            test, train = order[:200], order[200:]
            torch.manual_seed(seed)
            encoder = nn.Linear(len(vocabulary), 64)
            scale, bias = nn.Parameter(torch.tensor(math.log(10.0))), nn.Parameter(torch.tensor(-10.0))
            optimizer = torch.optim.Adam([*encoder.parameters(), scale, bias], lr=3e-3)
            for step in range(100):
                picked = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(step))[:128]]
                u, v = (encoder(F.dropout(half[picked], 0.2)) for half in halves)
                optimizer.zero_grad()
                _contrast(name, u, v, scale, bias).backward()
                optimizer.step()
            with torch.no_grad():
                u, v = (F.normalize(encoder(half[test]), dim=1) for half in halves)
                hits.append(100 * float(((u @ v.T).argmax(1) == torch.arange(200)).float().mean()))
        found[name] = [hits]
    return found


def _contrast(name: str, u: Tensor, v: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    if name == "siglip":
        return losses.siglip(u, v, log_scale=scale, bias=bias)
    if name == "triplet":
        labels = torch.arange(len(u)).repeat(2)
        return losses.triplet(torch.cat([u, v]), labels, normalize=True)
    if name.startswith("alignment"):
        spread = losses.uniformity(torch.cat([u, v])) if "uniformity" in name else u.new_zeros(())
        return losses.alignment(u, v) + spread
    return losses.info_nce(u, v)


def labels(seeds: int) -> dict[str, list[list[float]]]:
    """Which of 30 rare words the second half of a paragraph has, from its first: mean AUC and mean best-threshold-free F1."""
    texts = passages()
    vocabulary = common(texts, 1500)
    rare = sorted(vocabulary, key=vocabulary.__getitem__)[150:450:10]
    x = bags([words[: len(words) // 2] for words in texts], vocabulary)
    y = (bags([words[len(words) // 2 :] for words in texts], {word: i for i, word in enumerate(rare)}) > 0).float()
    rules: dict[str, Criterion] = {
        "binary_cross_entropy": F.binary_cross_entropy_with_logits,
        "sigmoid_focal": losses.sigmoid_focal,
        "asymmetric": lambda z, t: losses.asymmetric(z, t) / 30,
        "macro_auc_univariate": losses.macro_auc_univariate,
        "any_loss (F1)": lambda z, t: losses.any_loss(torch.sigmoid(z), t, sharpness=20.0),
    }
    found: dict[str, list[list[float]]] = {}
    for name, rule in rules.items():
        areas, scores = [], []
        for seed in range(seeds):
            order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))
            train, test = order[: len(order) // 2], order[len(order) // 2 :]
            torch.manual_seed(seed)
            model = nn.Linear(len(vocabulary), 30)
            optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=1e-4)
            for _ in range(200):
                optimizer.zero_grad()
                rule(model(x[train]), y[train]).backward()
                optimizer.step()
            with torch.no_grad():
                z, truth = model(x[test]), y[test]
            known = [k for k in range(30) if 0 < float(truth[:, k].sum()) < len(truth)]
            areas.append(100 * sum(losses.roc_auc(z[:, k], truth[:, k] > 0) for k in known) / len(known))
            hit, missed, raised = ((z > 0) * truth).sum(), ((z <= 0) * truth).sum(), ((z > 0) * (1 - truth)).sum()
            scores.append(100 * float(losses.f_score(hit, missed, raised, hit)))
        found[name] = [areas, scores]
    return found


def words(seeds: int) -> dict[str, list[list[float]]]:
    """The next of 1,500 words from the three before: accuracy and milliseconds of value and gradient for a batch of 512."""
    stream = [word for block in passages() for word in block]
    vocabulary = {word: i for i, (word, _) in enumerate(Counter(stream).most_common(1500))}
    codes = torch.tensor([vocabulary.get(word, 0) for word in stream])
    edge = int(0.9 * len(codes))
    rules: dict[str, Criterion] = {
        "cross_entropy": F.cross_entropy,
        "sparse_softmax_ce": losses.sparse_softmax_ce,
        "z_loss_spherical": lambda z, y: losses.z_loss_spherical(z, y, a=0.3, b=8.0),
    }
    found: dict[str, list[list[float]]] = {}
    for name, rule in rules.items():
        right, spent = [], []
        for seed in range(seeds):
            torch.manual_seed(seed)
            model = nn.Sequential(
                nn.Embedding(1500, 32), nn.Flatten(), nn.Linear(96, 128), nn.ReLU(), nn.Linear(128, 1500)
            )
            optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
            generator = torch.Generator().manual_seed(seed)
            for _ in range(150):
                at = torch.randint(edge - 4, (512,), generator=generator)
                rows = codes[at[:, None] + torch.arange(4)]
                optimizer.zero_grad()
                logits = model(rows[:, :3])
                start = time.process_time()
                rule(logits, rows[:, 3]).backward(inputs=[logits], retain_graph=True)
                spent.append(1e3 * (time.process_time() - start))
                logits.backward(logits.grad)
                optimizer.step()
            at = edge + torch.arange(len(codes) - edge - 4)
            rows = codes[at[:, None] + torch.arange(4)]
            with torch.no_grad():
                right.append(100 * float((model(rows[:, :3]).argmax(1) == rows[:, 3]).float().mean()))
        found[name] = [right, [sorted(spent)[len(spent) // 2]] * seeds]
    return found


def preferences(seeds: int, flipped: float = 0.3) -> dict[str, list[list[float]]]:
    """Real against shuffled strings of 12 characters, three tenths of the labels flipped: right preferences on clean pairs."""
    found: dict[str, list[list[float]]] = {}
    for name in ("dpo", "dpo, label_smoothing 0.3", "robust_dpo", "LatentPreferenceLoss", "ipo", "cpo"):
        right = []
        for seed in range(seeds):
            generator = torch.Generator().manual_seed(seed)
            table = nn.Parameter(torch.zeros(len(ALPHABET), len(ALPHABET)))
            latent = losses.LatentPreferenceLoss()
            real, shuffled = _pairs(600, generator)
            swap = torch.rand(600, generator=generator) < flipped
            chosen, rejected = (torch.where(swap[:, None], b, a) for a, b in ((real, shuffled), (shuffled, real)))
            zeros = torch.full((600,), -11 * math.log(len(ALPHABET)))
            optimizer = torch.optim.Adam([table], lr=0.1)
            for _ in range(150):
                optimizer.zero_grad()
                up, down = _log_prob(table, chosen), _log_prob(table, rejected)
                _preferred(name, up, down, zeros, latent).backward()
                optimizer.step()
            with torch.no_grad():
                a, b = _pairs(2000, generator)
                right.append(100 * float((_log_prob(table, a) > _log_prob(table, b)).float().mean()))
        found[name] = [right]
    return found


def _pairs(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    starts = torch.randint(len(CODES) - 12, (count,), generator=generator)
    real = CODES[starts[:, None] + torch.arange(12)]
    order = torch.rand(count, 12, generator=generator).argsort(1)
    return real, real.gather(1, order)


def _log_prob(table: Tensor, strings: Tensor) -> Tensor:
    return torch.log_softmax(table, 1)[strings[:, :-1], strings[:, 1:]].sum(1)


def _preferred(name: str, up: Tensor, down: Tensor, zeros: Tensor, latent: nn.Module) -> Tensor:
    if name == "dpo":
        return losses.dpo(up, down, zeros, zeros)
    if name.startswith("dpo,"):
        return losses.dpo(up, down, zeros, zeros, label_smoothing=0.3)
    if name == "robust_dpo":
        return losses.robust_dpo(up, down, zeros, zeros, flip_rate=0.3)
    if name == "ipo":
        return losses.ipo(up, down, zeros, zeros) / 25
    if name == "cpo":
        return losses.cpo(up, down, torch.full_like(up, 12.0), torch.full_like(up, 12.0))
    return latent(0.1 * (up - down))


EXPERIMENTS = {
    "overconfidence": (overconfidence, ("loss", "calibration error (%)", "bits a character", "accuracy (%)")),
    "normaliser": (normaliser, ("penalty", "root mean square of log Z", "bits a character")),
    "noise": (noise, ("loss", "accuracy (%)")),
    "memory": (memory, ("loss", "longest recalled run (characters)", "accuracy on other text (%)")),
    "retrieval": (retrieval, ("loss", "first hit right (%)")),
    "labels": (labels, ("loss", "mean AUC (%)", "F1 at logit 0 (%)")),
    "words": (words, ("loss", "accuracy (%)", "loss and gradient (ms)")),
    "preferences": (preferences, ("loss", "right preferences (%)")),
}
