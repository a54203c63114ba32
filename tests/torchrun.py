"""How the tests start several processes."""

from functools import cache

from torch.distributed.run import get_args_parser


@cache
def torchrun() -> tuple[str, ...]:
    """Words for Python; where torchrun can be told how long to wait for a stop, that is short."""
    known = get_args_parser().format_help()
    waits = ("--shutdown-timeout=5",) if "--shutdown-timeout" in known else ()
    return ("-m", "torch.distributed.run", "--standalone", *waits)
