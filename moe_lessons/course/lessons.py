"""The lessons, in their order: one table, which the course page and the site read, and the README repeats."""

from typing import NamedTuple


class Lesson(NamedTuple):
    number: str  # as the file's name begins, and the keys of its questions and exercises
    file: str
    title: str
    minutes: int
    goal: str  # afterwards you can say …

    @property
    def link(self) -> str:
        return f"[{self.number} · {self.title}]({self.file})"


# fmt: off
LESSONS = (
    Lesson(
        "00", "00_welcome.ipynb", "Welcome", 30,
        "what the question is; you have trained an MoE and watched it divide the plane",
    ),
    Lesson(
        "01", "01_the_dense_transformer.ipynb", "The dense transformer", 30,
        "what attention and the FFN do and cost, and what *dense* means; you have built a layer and trained a "
        "model that writes",
    ),
    Lesson(
        "02", "02_the_moe_block.ipynb", "The MoE block", 30,
        "how router, top-k and weighted sum work, since you have built them by hand",
    ),
    Lesson(
        "03", "03_parameters_and_compute.ipynb", "Parameters and compute", 30,
        "where the 46.7 billion parameters of Mixtral are, and which 12.9 billion a token meets",
    ),
    Lesson(
        "04", "04_token_routing.ipynb", "Token routing", 30,
        "how to read a heatmap of experts, and against which controls; what our experts divide: mostly the "
        "bytes, a little the domain, hardly the topic",
    ),
    Lesson(
        "05", "05_expert_collapse.ipynb", "Expert collapse", 30,
        "how fast a balanced router loses experts, which loop drives it, and when it costs accuracy",
    ),
    Lesson(
        "06", "06_balancing.ipynb", "Balancing", 30,
        "which remedies balance and which do not, how strong they must be, and over which tokens; you have "
        "written the auxiliary loss",
    ),
    Lesson(
        "06b", "06b_who_sees_the_future.ipynb", "Who sees the future, and the bill", 20,
        "which remedies let a token see the tokens after it, and what each one costs in FLOPs, time and drops",
    ),
    Lesson(
        "07", "07_inference_speed.ipynb", "Inference speed", 30,
        "why a mixture writes faster than a dense model that is as good, and never than one of the same "
        "active size; what a batch and memory have to do with it",
    ),
    Lesson(
        "08", "08_capacity_and_its_price.ipynb", "Capacity and its price", 30,
        "the answer in one sentence, with your own numbers: which dense model is as good as a mixture, and "
        "what the mixture saves against it and pays",
    ),
    Lesson(
        "09", "09_modern_mixtures.ipynb", "Modern mixtures", 30,
        "what fine-grained and shared experts, sigmoid scores with a bias, Soft MoE and expert choice each change, "
        "measured against the classical mixture at equal work; which published model took what",
    ),
    Lesson(
        "10", "10_real_models.ipynb", "Real models", 30,
        "what each family since Mixtral changed; whether a router that you meet is healthy, layer by layer; what of "
        "our small models holds for the real classes, and which figure hides a collapse",
    ),
    Lesson(
        "11", "11_many_machines.ipynb", "Many machines", 30,
        "how the experts of one model stand on many machines: who sends what to whom, what the slowest one costs, and "
        "what happens when one dies; what thousands of devices would take, and how far off such an estimate is",
    ),
    Lesson(
        "12", "12_the_interview.ipynb", "The interview", 45,
        "the answer, in one sentence, in one minute and in five, with your own figures; and what comes next when "
        "an engineer asks on",
    ),
)
# fmt: on
