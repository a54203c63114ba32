"""Several processes, one training run: who they are, what they agree on, how a model is spread."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from enum import Enum
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from lightconv_mt.data.batching import Batch
from lightconv_mt.errors import ConfigError, ProcessError

Value = TypeVar("Value")

# How long the others wait for the first one to tokenise a corpus.
PATIENCE = timedelta(days=2)


class Parallel(Enum):
    """How processes share a model: each holds all of it (ddp), or a part (fsdp, FSDP2)."""

    ddp = "ddp"
    fsdp = "fsdp"


class Distributed:
    """The processes of a training run; one alone unless `torchrun` started several."""

    def __init__(self, parallel: Parallel = Parallel.ddp) -> None:
        """Look who is there; a process group must exist if there are several."""
        self.parallel = parallel
        self.rank, self.size = 0, 1
        if dist.is_initialized():
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
            self._patient = dist.new_group(backend="gloo", timeout=PATIENCE)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and logs."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    @property
    def holds_parts(self) -> bool:
        """Whether each process holds a part of the model only."""
        return self.parallel is Parallel.fsdp and not self.is_alone

    def total(self, *values: float | Tensor) -> list[float]:
        """Sums over all processes, each in float64."""
        numbers = torch.tensor([float(value) for value in values], dtype=torch.float64)
        if not self.is_alone:
            dist.all_reduce(numbers)
        return numbers.tolist()

    def highest(self, value: int) -> int:
        """The largest of the processes' values."""
        number = torch.tensor(value)
        if not self.is_alone:
            dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)

    def of_main(self, value: int) -> int:
        """The main process's value."""
        number = torch.tensor(value)
        if not self.is_alone:
            dist.broadcast(number, src=0)
        return int(number)

    def interleaved(self, share: Sequence[Value]) -> list[Value]:
        """Join what every process made of its `all[rank::size]`, in the order of `all`."""
        if self.is_alone:
            return list(share)
        shares: list[Any] = [None] * self.size
        dist.all_gather_object(shares, list(share))
        joined = [None] * sum(map(len, shares))
        for rank, part in enumerate(shares):
            joined[rank :: self.size] = part
        return joined  # type: ignore[return-value]

    def wait(self) -> None:
        """Until all processes are here."""
        if not self.is_alone:
            dist.barrier(self._patient)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Around work whose result on disk the others find."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    def spread(
        self, model: nn.Module, layers: Sequence[nn.Module], device: torch.device
    ) -> nn.Module:
        """Share a model among the processes; its parameters stay where they are in it.

        Args:
            model: on `device`, equal in all processes.
            layers: parts of it, gathered one at a time where each process holds a part.
            device: of this process.

        Returns:
            What to call instead of the model.
        """
        if self.is_alone:
            return model
        if self.parallel is Parallel.ddp:
            ids = [device.index] if device.type == "cuda" else None
            return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
        from torch.distributed.fsdp import fully_shard  # takes a second, which only it is worth

        mesh = init_device_mesh(device.type, (self.size,))
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model

    def share(self, batches: Sequence[Batch]) -> list[Batch]:
        """This process's part of a step.

        Whole micro-batches if they can be dealt out evenly, else some sentences of each; every
        process gets as many batches, one without a token if need be.
        """
        if self.is_alone or len(batches) % self.size == 0:
            return list(batches[self.rank :: self.size])
        return [self._part(batch) for batch in batches]

    def accumulating(self, model: nn.Module, *, more: bool) -> AbstractContextManager[Any]:
        """Around a backward pass; its gradients are not exchanged yet if there is more to come.

        Parts of a sharded model always are: whole gradients would not fit.
        """
        if more and isinstance(model, DistributedDataParallel):
            return model.no_sync()
        return nullcontext()

    def _part(self, batch: Batch) -> Batch:
        parts = batch.split(self.size)
        if self.rank < len(parts):
            return parts[self.rank]
        return parts[0].without_tokens()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which this process may hold a part; called by all processes then."""
    if not dist.is_initialized():
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_as(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, where `like` is spread; else the tensor itself."""
    if not dist.is_initialized():
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return tensor
    device = like.device_mesh.device_type
    return distribute_tensor(
        tensor.to(device), like.device_mesh, like.placements, src_data_rank=None
    )


def share_of(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, which may be a part; it is no copy."""
    if not dist.is_initialized():
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _meet(timeout: timedelta) -> tuple[Any, int, int]:
    """The processes' common store, and this one's place among how many."""
    try:
        return next(rendezvous("env://", timeout=timeout))
    except ValueError as error:
        raise ConfigError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} says that there are several processes, but "
            f"their meeting fails ({error}); start them by torchrun, or unset WORLD_SIZE"
        ) from error


@contextmanager
def join_processes(
    parallel: Parallel, device: torch.device, timeout_seconds: float
) -> Iterator[Distributed]:
    """Meet the processes that `torchrun` started, if it did.

    Args:
        parallel: see `Parallel`.
        device: of this process.
        timeout_seconds: how long to wait for a process that has stopped answering.

    Raises:
        ProcessError: when another process is gone or does not answer in time.
        ConfigError: when the environment has a part only of what `torchrun` sets.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield Distributed(parallel)
        return
    try:
        timeout = timedelta(seconds=timeout_seconds)
        store, rank, size = _meet(timeout)
        if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            # torchrun's store outlives a restart: without a name of its own a process would find
            # the address that one before it had (pytorch issue 135712).
            attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            store = dist.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=timeout,
        )
        yield Distributed(parallel)
        dist.destroy_process_group()
    except RuntimeError as error:  # gloo has no class of its own
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            reason = str(error).strip().splitlines()[0]
            raise ProcessError(
                f"process {os.environ['RANK']} has lost another one ({reason}); see what that one "
                f"said; the same command goes on from what is saved"
            ) from error
        raise
