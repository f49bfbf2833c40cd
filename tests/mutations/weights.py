"""Mutations of a teacher's weights: tensors dropped, renamed, reshaped, spoilt; broken files."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from safetensors.torch import load_file, save_file

from tests.mutations.cases import Case, Change, Expected, Mutation, either, fatal, harmless

Tensors = dict[str, torch.Tensor]
FILE = "model.safetensors"
PREFIXES = ("_orig_mod.", "module.", "base_model.model.", "model.", "encoder.", "student.")


def mutations() -> Iterator[Mutation]:
    for place in range(24):
        yield Mutation("tensor dropped", f"number {place}", _on_one(place, _drop, fatal))
        yield Mutation("tensor renamed", f"number {place}", _on_one(place, _rename, fatal))
        yield Mutation("tensor reshaped", f"number {place}", _on_one(place, _flatten, fatal))
        yield Mutation("tensor shortened", f"number {place}", _on_one(place, _shorten, fatal))
        for what, value in (("NaN", float("nan")), ("infinity", float("inf"))):
            title = f"number {place} is all {what}"
            expected = fatal if what == "NaN" else _spoilt
            yield Mutation("tensor not finite", title, _on_one(place, _filling(value), expected))
        yield Mutation(
            "tensor spoilt", f"number {place} is zeros", _on_one(place, _filling(0.0), _spoilt)
        )
        yield Mutation(
            "tensor spoilt", f"number {place} is random", _on_one(place, _randomise, _spoilt)
        )
    for prefix in PREFIXES:
        yield Mutation("prefix", f"{prefix} before all", _prefixing(prefix))
    yield Mutation("prefix", "base_layer within", _base_layer)
    yield Mutation("prefix", "the family's own taken away", _bare_encoder)
    yield Mutation("prefix", "gamma and beta for the norms", _old_norms)
    for name in _ADDED:
        yield Mutation("tensor added", name, _adding(name))
    for name in ("float16", "bfloat16", "float64", "int8", "int64", "bool"):
        yield Mutation("type of numbers", name, _typing(name))
    yield Mutation("weights", "of random numbers", _all_random)
    yield Mutation("weights", "as a pickle alone", _pickled)
    yield Mutation("weights", "under another name", _moved)
    yield Mutation("weights", "all NaN", _all_nan)


def _load(case: Case) -> Tensors:
    return load_file(case.teacher / FILE)


def _save(case: Case, tensors: Tensors) -> None:
    held = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(held, case.teacher / FILE, {"format": "pt"})


def _spoilt(*_: str) -> Expected:
    return either(*SAYS, "hardly better", weights="folder")


SAYS = ("weight", "safetensors")


def _on_one(
    place: int, change: Callable[[Tensors, str], None], expected: Callable[..., Expected]
) -> Change:
    """Change one tensor, the `place`th by name from the file's end and start in turn."""

    def apply(case: Case) -> Expected:
        tensors = _load(case)
        names = sorted(tensors)
        name = names[-1 - place // 2 if place % 2 == 0 else place // 2]
        change(tensors, name)
        _save(case, tensors)
        if expected is fatal:
            return fatal(*SAYS, "classifier", name.replace(".", r"\."))
        return expected()

    return apply


def _drop(tensors: Tensors, name: str) -> None:
    del tensors[name]


def _rename(tensors: Tensors, name: str) -> None:
    tensors[f"{name}_x"] = tensors.pop(name)


def _flatten(tensors: Tensors, name: str) -> None:
    value = tensors[name]
    tensors[name] = value.reshape(-1) if value.dim() > 1 else value.reshape(1, -1)


def _shorten(tensors: Tensors, name: str) -> None:
    tensors[name] = tensors[name][:-1]


def _randomise(tensors: Tensors, name: str) -> None:
    torch.manual_seed(3)
    tensors[name] = torch.randn_like(tensors[name])


def _filling(value: float) -> Callable[[Tensors, str], None]:
    def change(tensors: Tensors, name: str) -> None:
        tensors[name] = torch.full_like(tensors[name], value)

    return change


def _prefixing(prefix: str) -> Change:
    def apply(case: Case) -> Expected:
        _save(case, {f"{prefix}{name}": value for name, value in _load(case).items()})
        return either(*SAYS, prefix.replace(".", r"\."))

    return apply


def _base_layer(case: Case) -> Expected:
    tensors = _load(case)
    renamed = {
        name.replace(".weight", ".base_layer.weight") if "classifier" not in name else name: value
        for name, value in tensors.items()
    }
    _save(case, renamed)
    return fatal(*SAYS, "base_layer")


def _bare_encoder(case: Case) -> Expected:
    tensors = _load(case)
    heads = tuple(
        name for name in tensors if name.startswith(("classifier", "pre_", "head", "pooler"))
    )
    bare = {
        name if name in heads else name.partition(".")[2]: value for name, value in tensors.items()
    }
    _save(case, bare)
    return either(*SAYS)


def _old_norms(case: Case) -> Expected:
    renamed = {}
    for name, value in _load(case).items():
        old = name
        if "LayerNorm" in name:
            old = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        renamed[old] = value
    _save(case, renamed)
    return either(*SAYS)


_ADDED: dict[str, tuple[tuple[int, ...], bool]] = {  # shape, and whether it must be refused
    "{base}.embeddings.position_ids": ((1, 40), False),
    "{base}.encoder.layer.0.attention.self.distance_embedding.weight": ((79, 16), True),
    "{base}.encoder.layer.0.attention.self.query.lora_A.default.weight": ((4, 32), True),
    "{base}.encoder.layer.0.output.adapters.a.adapter_down.0.weight": ((4, 32), True),
    "{base}.encoder.layer.2.output.dense.weight": ((32, 64), True),
    "foo.bar": ((3,), True),
    "classifier.extra": ((3,), True),
}


def _adding(name: str) -> Change:
    shape, refused = _ADDED[name]

    def apply(case: Case) -> Expected:
        tensors = _load(case)
        base = next(x.partition(".")[0] for x in sorted(tensors) if "embeddings" in x)
        value = torch.arange(40)[None] if name.endswith("position_ids") else torch.ones(shape)
        _save(case, tensors | {name.format(base=base): value})
        return fatal(*SAYS) if refused else either(*SAYS)

    return apply


def _typing(name: str) -> Change:
    def apply(case: Case) -> Expected:
        kind = getattr(torch, name)
        _save(case, {key: value.to(kind) for key, value in _load(case).items()})
        if name in ("float16", "bfloat16", "float64"):
            return harmless(weights="folder")
        return either(*SAYS, weights="folder")

    return apply


def _all_random(case: Case) -> Expected:
    torch.manual_seed(5)
    _save(case, {name: torch.randn_like(value) for name, value in _load(case).items()})
    case.recipe["train_teacher"]["min_lead"] = 0.5
    return fatal("min_lead", "hardly better", "worse")


def _all_nan(case: Case) -> Expected:
    _save(case, {name: torch.full_like(value, torch.nan) for name, value in _load(case).items()})
    return fatal(*SAYS, "finite", "NaN")


def _pickled(case: Case) -> Expected:
    torch.save(_load(case), case.teacher / "pytorch_model.bin")
    (case.teacher / FILE).unlink()
    return fatal("safetensors", r"pytorch_model\.bin")


def _moved(case: Case) -> Expected:
    (case.teacher / FILE).rename(case.teacher / "adapter_model.safetensors")
    return fatal("safetensors")
