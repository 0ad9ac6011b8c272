"""What a run may use up of a server that is paid by the token."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rpp.llms.base import Usage
from rpp.types import InputError, LanguageModelStop

AGAIN = (
    "run the same command again, with --ckpt_path last if an epoch was finished; what was answered"
    " is in the cache"
)


@dataclass(frozen=True)
class Budget:
    """What a run may use up.

    Attributes:
        max_total_tokens: Prompt and reply tokens; ``None`` sets no limit.
        max_cost: Price of these tokens, in the currency of the prices; ``None`` sets no limit.
        prompt_price: Price of a million prompt tokens.
        reply_price: Price of a million reply tokens.

    Raises:
        InputError: If there is a limit of the cost and no price.
    """

    max_total_tokens: int | None = None
    max_cost: float | None = None
    prompt_price: float = 0.0
    reply_price: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a limit that could never be reached."""
        if self.max_cost is not None and not self.prompt_price + self.reply_price > 0:
            raise InputError(
                f"max_cost {self.max_cost:g} needs prompt_price and reply_price, the prices of a"
                " million tokens"
            )

    def part(self, n: int) -> Budget:
        """One of ``n`` equal parts."""
        tokens = None if self.max_total_tokens is None else self.max_total_tokens // n
        cost = None if self.max_cost is None else self.max_cost / n
        return replace(self, max_total_tokens=tokens, max_cost=cost)

    def cost(self, usage: Usage) -> float:
        r"""What tokens cost: :math:`(n_p c_p + n_r c_r) / 10^6`."""
        prompts = usage.prompt_tokens * self.prompt_price
        return (prompts + usage.reply_tokens * self.reply_price) / 1e6

    def check(self, usage: Usage) -> None:
        """Stop where the budget is spent.

        Raises:
            LanguageModelStop: If either limit is reached.
        """
        tokens = usage.prompt_tokens + usage.reply_tokens
        if self.max_total_tokens is not None and tokens >= self.max_total_tokens:
            limit = f"{self.max_total_tokens} tokens is spent: raise max_total_tokens"
        elif self.max_cost is not None and self.cost(usage) >= self.max_cost:
            limit = f"{self.max_cost:g} is spent after {tokens} tokens: raise max_cost"
        else:
            return
        raise LanguageModelStop(f"the budget of {limit} in environment.llm.init_args and {AGAIN}")
