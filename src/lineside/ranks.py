"""The processes of a run that torchrun has started: how they meet, share the weights of a model and end together.

Weights, gradients and optimiser are sharded with FSDP2 (arXiv 2304.11277; torch's `fully_shard`): over all processes,
or with several machines over those of each machine, each of which then holds the whole (HSDP). Shards are float32, and
layers compute in the model's number format. A layer's weights are gathered when it is first called in a step, and stay
so until its last backward: so ranks may hold different numbers of packs. Gradients are summed over ranks in float32.

Only this module and runtime.py know torch.distributed. Every function does nothing, or gives its argument back, for a
model that is not sharded. Tried with gloo on a CPU; with NCCL on GPUs not tried yet."""

from __future__ import annotations

import functools
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed import _composable_state as composable
from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lineside.errors import LinesideError
from lineside.machine import launched
from lineside.runtime import Runtime

ROUND = "LINESIDE_ROUND"  # in the environment of a process that has met the others: what they call this time
_KEPT: list[TCPStore] = []  # a store that rank 0 keeps must not end before the process
PATIENCE = timedelta(days=7)  # ranks wait for rank 0 while it labels, evaluates, writes
T = TypeVar("T")
LOST = ("gloo", "nccl", "tcpstore", "connection")  # in what a rank raises when another has ended


class LeftOut(KeyboardInterrupt):
    """An interrupt, raised on all ranks within the same step, which they leave out."""


@contextmanager
def joined(device: torch.device) -> Iterator[Runtime]:
    """All processes that torchrun has started, each computing on its `device`; or this process alone."""
    if launched().count == 1:
        yield Runtime(device)
        return
    backend = "gloo"
    if device.type != "cpu":
        torch.get_device_module(device).set_device(device)
        backend = f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"
    store = _store_of_round()
    dist.init_process_group(backend, timeout=PATIENCE, store=store, rank=launched().rank, world_size=launched().count)
    second: Any = dist.new_group(backend="gloo", timeout=PATIENCE)
    yield Runtime(device, group=dist.group.WORLD, second=second)
    dist.destroy_process_group()  # not after an error: ranks that have ended would be waited for


def is_first_to_fail() -> bool:
    """Whether no other process of the run has ended with an error. So one process says what went wrong: the one that
    met it, not those that then miss it."""
    if launched().count == 1:
        return True
    met = os.environ.get(ROUND) or os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    try:  # torchrun keeps the store, also while processes come and go
        return _store(timedelta(seconds=10)).add(f"lineside/failed/{met}", 1) == 1
    except (RuntimeError, ValueError):
        return launched().rank == 0


def _store(patience: timedelta) -> TCPStore:
    """The store that torchrun keeps for its processes; without torchrun's, one that rank 0 keeps."""
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" or launched().rank > 0 or ROUND in os.environ
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(host, port, is_master=not kept, wait_for_workers=False, timeout=patience)


def _store_of_round() -> PrefixStore:
    """A part of the store for the processes that are there now. Where torchrun has started them again, it still holds
    what those before have written, such as their addresses.

    Rank 0 names the round. Another rank greets by a name that nobody had before, and is told the round; rank 0 goes on
    when all have heard it."""
    me, store, name = launched(), _store(PATIENCE), uuid.uuid4().hex
    if me.rank:
        store.set(f"lineside/hello/{me.rank}", name)
        os.environ[ROUND] = store.get(f"lineside/welcome/{name}").decode()
        store.set(f"lineside/{os.environ[ROUND]}/{me.rank}", "here")
    else:
        missing = set(range(1, me.count))
        while missing:
            for rank in missing:
                if store.check([f"lineside/hello/{rank}"]):
                    store.set(f"lineside/welcome/{store.get(f'lineside/hello/{rank}').decode()}", name)
            time.sleep(0.05)
            missing = {rank for rank in missing if not store.check([f"lineside/{name}/{rank}"])}
        os.environ[ROUND] = name
    _KEPT.append(store)
    return PrefixStore(os.environ[ROUND], store)


def has_lost_a_rank(error: BaseException) -> bool:
    """Whether an error says that another process of the run has ended."""
    known = isinstance(error, RuntimeError) and any(word in str(error).lower() for word in LOST)
    return launched().count > 1 and known


_alone = False


def alone(work: Callable[[], T]) -> T | None:
    """What a rank computes without the others. It may be interrupted there, unlike where they wait for it: then it is
    None, which the others must be told."""
    global _alone
    try:
        _alone = True
        return work()
    except KeyboardInterrupt:
        return None
    finally:
        _alone = False


def is_alone() -> bool:
    """Whether this process is in `alone`."""
    return _alone


# --- shared weights


def shard(model: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """Share out the weights that train over all ranks, those of each of `blocks` together. Frozen weights stay whole.

    Raises LinesideError for a version of torch that lacks what this needs."""
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise LinesideError(f"torch {torch.__version__}: training on several processes needs torch 2.13 or newer")
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # our forward gives views; nobody writes to them
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    frozen = {weight for weight in model.parameters() if not weight.requires_grad}
    compute, device = trained[0].dtype, trained[0].device
    for weight in trained:
        weight.data = weight.data.float()
    policy = MixedPrecisionPolicy(
        param_dtype=None if compute == torch.float32 else compute,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for part in (*blocks, model):
        if not any(weight.requires_grad for weight in part.parameters()):
            continue
        fully_shard(part, mesh=mesh(device.type), mp_policy=policy, reshard_after_forward=False, ignored_params=frozen)
        assert isinstance(part, FSDPModule)
        part.set_force_sum_reduction_for_comms(True)
        part.set_gradient_divide_factor(1.0)  # a sum: losses are divided by the counts of all ranks
        part.set_reduce_scatter_unused_params(True)  # a rank without pictures has no gradient of the projector


@functools.cache
def mesh(kind: str) -> DeviceMesh:
    """All ranks in a row; with several machines of equal size, (machines, ranks of each)."""
    here, count = launched().here, launched().count
    sizes = torch.tensor([here, -here])
    dist.all_reduce(sizes, dist.ReduceOp.MIN)  # the smallest machine, and the largest
    equal = sizes[0] == -sizes[1] and here < count
    shape = (count // here, here) if equal else (count,)
    return init_device_mesh(kind, shape, mesh_dim_names=("machine", "rank")[-len(shape) :])


def ends_step(model: nn.Module, last: bool) -> None:
    """Before a backward: whether it is the rank's last one of the step. It then sums the gradients over all ranks."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        model.set_reshard_after_backward(last)
        model.set_is_last_backward(last)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Within the `with` block the model is whole on every rank, and calls nothing of FSDP: it computes without the
    others, and backends may read its weights. All ranks must enter."""
    parts = _parts(model)
    hooks = [(hooks, hooks.copy()) for part in parts for hooks in (part._forward_pre_hooks, part._forward_hooks)]
    for part in parts:
        fully_shard.state(model)._lazy_init()  # pyright: ignore # else the first part to be gathered is taken for the root
        part.unshard()
        for handle in _hooks(part):
            handle.remove()
    try:
        yield
    finally:
        for known, before in hooks:
            known.clear()
            known.update(before)
        for part in parts:
            for handle in _hooks(part):
                part._forward_pre_hooks_with_kwargs.setdefault(handle.id, True)
            part.reshard()


def make_whole(model: nn.Module, dtype: torch.dtype) -> None:
    """Undo `shard`, on all ranks: the model has plain weights in `dtype` again, and no hooks."""
    parts = _parts(model)
    plain: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if isinstance(weight, DTensor):
                if id(weight) not in plain:
                    plain[id(weight)] = nn.Parameter(weight.full_tensor().to(dtype), weight.requires_grad)
                module._parameters[name] = plain[id(weight)]
    for part in parts:
        for handle in _hooks(part):
            handle.remove()
        for group in fully_shard.state(part)._fsdp_param_groups:  # pyright: ignore[reportAttributeAccessIssue]
            for handles in (group._module_to_pre_save_state_dict_hook_handle,
                            group._module_to_pre_load_state_dict_hook_handle):  # fmt: skip
                for handle in handles.values():
                    handle.remove()
        for key in (STATE_KEY, REGISTRY_KEY):
            part.__dict__.pop(key)
        composable._module_state_mapping.pop(part)
        part.__class__ = type(part).__mro__[FSDPModule._orig_cls_mro_index]


def _parts(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _hooks(part: nn.Module) -> tuple[Any, Any]:
    state: Any = fully_shard.state(part)  # pyright: ignore[reportFunctionMemberAccess]
    return state._pre_forward_hook_handle, state._post_forward_hook_handle


# --- sharded tensors


def is_sharded(tensor: Tensor) -> bool:
    """Whether each rank has a part of it."""
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The tensor in full. All ranks must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor that all ranks have in full, shared out as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def by_owner(function: Callable[[Tensor], Tensor], tensor: Tensor, number: int) -> Tensor:
    """`function` of the whole of a sharded tensor, computed by one rank, and shared out like it. `number` chooses the
    rank, so that equal shares of many tensors fall to each."""
    full = whole(tensor)
    owner = number % dist.get_world_size()
    made = function(full) if owner == dist.get_rank() else torch.empty_like(full)
    made = made.to(full.dtype).contiguous()
    dist.broadcast(made, owner)
    return share(made, tensor)
