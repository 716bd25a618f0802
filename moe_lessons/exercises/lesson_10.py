"""Lesson 10: finer experts at equal FLOPs."""

from moe_lessons.exercises.exercise import exercise


def my_finer_experts(num_experts, top_k, d_ff, times):
    return (
        num_experts * times,
        top_k * times,
        d_ff // times,
        times**0.5,
    )  # the norm of a mean of `times` as many is √times smaller


FINER_MISTAKES = [
    (lambda e, k, f, n: (e * n, k, f // n, n**0.5),
     "K must grow too: a token needs as many of the finer experts as have the width of the old ones."),
    (lambda e, k, f, n: (e * n, k * n, f, n**0.5),
     "These experts are as wide as before, so a token costs more FLOPs. Each must be narrower."),
    (lambda e, k, f, n: (e * n, k * n, f // n, 1),
     "Sizes are right. But a mean of more outputs has a smaller norm: by which factor?"),
    (lambda e, k, f, n: (e * n, k * n, f // n, n),
     "Sizes are right. With our initialisation a narrow expert's output has the same norm: only the mean shrinks it."),
    (lambda e, k, f, n: (e * n, k * n, f // n, n**-0.5),
     "Sizes are right. Your factor is how much smaller the norm is: what makes up for it?"),
]  # fmt: skip


@exercise(1, my_finer_experts, FINER_MISTAKES, ("num_experts", "top_k", "d_ff", "the factor"))
def finer_experts() -> list[tuple]:
    return [(8, 2, 64, 8), (16, 2, 32, 4), (6, 3, 30, 5), (4, 2, 8, 2)]
