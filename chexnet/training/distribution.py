"""Training on several devices: each backend's own way, with the mathematics of one device.

Each device gets an equal share of every batch, and BatchNormalization uses the statistics of the
whole batch, so the loss and its gradient are those of one device. JAX shares a batch among all
devices of all processes that ``keras.distribution.initialize`` has joined; TensorFlow among the
devices of one machine.
"""

import contextlib
import math
from collections.abc import Iterator

import numpy as np

from chexnet.backend import keras
from chexnet.generator import AugmentedImageSequence


@contextlib.contextmanager
def data_parallel() -> Iterator[int]:
    """Within it, what is built and trained uses every device; build the network inside.

    Yields:
        the number of devices that share a batch. With one device nothing is changed.

    Raises:
        ValueError: there are several devices, and the backend is neither JAX nor TensorFlow.

    Example:
        >>> from chexnet.model import build_chexnet
        >>> from chexnet.training import data_parallel
        >>> with data_parallel() as devices:
        ...     model = build_chexnet(32, weights=None)  # then train(model, ...), also in here
        >>> batch_size = 16 * devices  # a multiple of the number of devices
    """
    backend = keras.backend.backend()
    if backend not in ("jax", "tensorflow"):
        import torch

        if torch.cuda.device_count() > 1:
            raise ValueError(
                f"{torch.cuda.device_count()} devices and KERAS_BACKEND={backend}: Keras shares a "
                "batch among devices on jax and tensorflow; on torch set CUDA_VISIBLE_DEVICES to "
                "one of them"
            )
        yield 1
        return
    names = keras.distribution.list_devices()
    scope: contextlib.AbstractContextManager = contextlib.nullcontext()
    if len(names) > 1 and backend == "jax":
        # Keras shards only tf.data itself; `shard` does it here.
        scope = keras.distribution.DataParallel(auto_shard_dataset=False).scope()
    elif len(names) > 1:
        import tensorflow as tf

        scope = tf.distribute.MirroredStrategy(names).scope()
    with scope:
        yield len(names)


def devices_and_process() -> tuple[int, int, int]:
    """The devices that share a batch, the number of their processes, and which of these this is."""
    parallel = keras.distribution.distribution()
    if parallel is not None:
        return parallel.num_model_replicas, parallel.num_processes, parallel.data_shard_id
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.distribute.get_strategy().num_replicas_in_sync, 1, 0
    return 1, 1, 0


def shard(sequence: AugmentedImageSequence) -> keras.utils.PyDataset:
    """This process' share of each batch, as `shard_rows` gives it; on one device the sequence."""
    devices = devices_and_process()[0]
    if devices == 1:
        return sequence
    if sequence.batch_size % devices:
        raise ValueError(
            f"batch_size={sequence.batch_size} on {devices} devices: expected a multiple of "
            f"{devices}, so that each gets the same number of films"
        )
    return _Shard(sequence)


def all_gather(number: int) -> list[int]:
    """The number that each process gives here, in their order; waits until all have come."""
    if devices_and_process()[1] == 1:
        return [number]
    from jax.experimental import multihost_utils  # no other backend joins processes

    return multihost_utils.process_allgather(np.array(number)).tolist()


def shard_rows(rows: np.ndarray, devices: int, processes: int, process: int) -> np.ndarray:
    """One process' share of the rows ``(n,)`` of a batch; every device gets the same number.

    A batch that cannot be divided, such as the last of an epoch, is repeated whole until it can:
    its mean loss, gradient and batch statistics do not change. But the ``loss`` of
    ``history.csv``, a mean over films, counts this batch more than once.
    """
    repeated = np.tile(rows, devices // math.gcd(len(rows), devices))
    return np.split(repeated, processes)[process]


@contextlib.contextmanager
def whole_batch_statistics(model: keras.Model) -> Iterator[None]:
    """Within it, BatchNormalization on TensorFlow is trained on the whole batch, as on JAX.

    The setting is taken back: a network saved with it can be loaded on TensorFlow only.
    """
    norms = _norms(model)
    synchronized = keras.backend.backend() == "tensorflow" and devices_and_process()[0] > 1
    for norm in norms:
        norm.synchronized = synchronized
    try:
        yield
    finally:
        for norm in norms:
            norm.synchronized = False


@contextlib.contextmanager
def single_device_copy(model: keras.Model) -> Iterator[keras.Model]:
    """Within it, a network that scores batches of any size and can be saved.

    With several devices it is a copy: on JAX on one device of this process, so that other
    processes need not take part; on TensorFlow on all devices.
    """
    if devices_and_process()[0] == 1:
        yield model
        return
    parallel = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        copy = keras.models.clone_model(model)
        for norm in _norms(copy):
            norm.synchronized = False
        copy.set_weights(model.get_weights())
        yield copy
    finally:
        keras.distribution.set_distribution(parallel)


class _Shard(keras.utils.PyDataset):
    # Every process augments the whole batch, with the same seed: the films are those of one device.
    def __init__(self, sequence: AugmentedImageSequence) -> None:
        super().__init__(workers=sequence.workers, max_queue_size=sequence.max_queue_size)
        self.sequence = sequence
        self.place = devices_and_process()  # known in this thread only
        self.on_epoch_begin = sequence.on_epoch_begin
        self.on_epoch_end = sequence.on_epoch_end

    def __len__(self) -> int:
        return len(self.sequence)

    def __getitem__(self, index: int) -> tuple:
        batch = self.sequence[index]
        rows = shard_rows(np.arange(len(batch[0])), *self.place)
        return keras.tree.map_structure(lambda array: array[rows], batch)


def _norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    return [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
