"""Training on several devices: each backend's own way, with the mathematics of one device.

Each device gets an equal share of every batch, and BatchNormalization sees the statistics of the
whole batch, so the loss and its gradient are those of one device. JAX shares a batch among all
devices of all processes that ``keras.distribution.initialize`` has joined; TensorFlow among the
devices of one machine.
"""

import contextlib
import math
from collections.abc import Iterator

import keras
import numpy as np

from chexnet.generator import AugmentedImageSequence


@contextlib.contextmanager
def data_parallel() -> Iterator[int]:
    """Within it, what is built and trained uses every device; build the network inside.

    Yields:
        the number of devices that share a batch. One device needs nothing, and nothing is set.

    Raises:
        ValueError: there are several devices, and the backend is neither JAX nor TensorFlow.
    """
    with contextlib.ExitStack() as stack:
        if keras.backend.backend() == "jax":
            devices = len(keras.distribution.list_devices())
            if devices > 1:
                # The sharding by process is ours: Keras shards only tf.data by itself.
                every = keras.distribution.DataParallel(auto_shard_dataset=False)
                stack.enter_context(every.scope())
        elif keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
            names = [device.name for device in tf.config.list_logical_devices(kind)]
            devices = len(names)
            if devices > 1:
                stack.enter_context(tf.distribute.MirroredStrategy(names).scope())
        else:
            import torch

            devices = max(1, torch.cuda.device_count())
            if devices > 1:
                raise ValueError(
                    f"{devices} devices and KERAS_BACKEND={keras.backend.backend()}: Keras shares "
                    "a batch among devices on jax and tensorflow; on torch set "
                    "CUDA_VISIBLE_DEVICES to one of them"
                )
        yield devices


def devices_and_process() -> tuple[int, int, int]:
    """How batches are shared where this is called.

    Returns:
        devices that share a batch, processes that they belong to, and which of these this is.
    """
    every = keras.distribution.distribution()
    if every is not None:
        return every.num_model_replicas, every.num_processes, every.data_shard_id
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.distribute.get_strategy().num_replicas_in_sync, 1, 0
    return 1, 1, 0


def shard(sequence: "AugmentedImageSequence") -> keras.utils.PyDataset:
    """The batches to train on, as this process must give them to Keras.

    Args:
        sequence: the global batches.

    Returns:
        on one device ``sequence`` itself; otherwise this process' share of each batch, see
        `shard_rows`. Processes augment their shares with seeds of their own.

    Raises:
        ValueError: the number of devices does not divide the size of a batch, so that each would
            get the whole batch.
    """
    devices, processes, process = devices_and_process()
    if devices == 1:
        return sequence
    if sequence.batch_size % devices:
        raise ValueError(
            f"batch_size={sequence.batch_size} on {devices} devices: expected a multiple of "
            f"{devices}, so that each gets as many films"
        )
    return _Shard(sequence, devices, processes, process)


def all_gather(number: int) -> list[int]:
    """What each process gives here, in their order; all must come here, and wait until all have."""
    if devices_and_process()[1] == 1:
        return [number]
    from jax.experimental import multihost_utils  # no other backend joins processes

    return multihost_utils.process_allgather(np.array(number)).tolist()


def shard_rows(rows: np.ndarray, devices: int, processes: int, process: int) -> np.ndarray:
    """One process' share of a batch.

    Every device must get as many films as the others. A batch that cannot be divided so, such as
    the last of an epoch, is repeated whole until it can: its mean loss, its gradient and its batch
    statistics stay what they are. For that one batch a device may get as many films as the whole
    batch has, and the ``loss`` of ``history.csv``, a mean over films, counts it more than once.

    Args:
        rows: int ``(n,)``, the global batch.
        devices: that share it, a multiple of ``processes``.
        processes: that the devices belong to, as many to each.
        process: which of them, from 0.

    Returns:
        int, of the same length in every process, a multiple of its devices.
    """
    repeated = np.tile(rows, devices // math.gcd(len(rows), devices))
    return np.split(repeated, processes)[process]


@contextlib.contextmanager
def whole_batch_statistics(model: keras.Model) -> Iterator[None]:
    """Within it, BatchNormalization is trained on the statistics of the whole batch.

    JAX does so by itself; on TensorFlow each device would else use those of its own share. The
    setting does not stay: a network saved with it would load on TensorFlow alone.
    """
    norms = _norms(model)
    synchronise = keras.backend.backend() == "tensorflow" and devices_and_process()[0] > 1
    for norm in norms:
        norm.synchronized = synchronise
    try:
        yield
    finally:
        for norm in norms:
            norm.synchronized = False


@contextlib.contextmanager
def single_device_copy(model: keras.Model) -> Iterator[keras.Model]:
    """Within it, a network that scores batches of any size and can be saved.

    Yields:
        on one device ``model`` itself; otherwise a copy of it as it is now: on JAX on one device
        of this process, so that no other has to take part, on TensorFlow on all.
    """
    if devices_and_process()[0] == 1:
        yield model
        return
    every = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        copy = keras.models.clone_model(model)
        for norm in _norms(copy):
            norm.synchronized = False
        copy.set_weights(model.get_weights())
        yield copy
    finally:
        keras.distribution.set_distribution(every)


class _Shard(keras.utils.PyDataset):
    def __init__(
        self, sequence: "AugmentedImageSequence", devices: int, processes: int, process: int
    ) -> None:
        super().__init__(workers=sequence.workers, max_queue_size=sequence.max_queue_size)
        self.sequence = sequence
        self.place = (devices, processes, process)

    def __len__(self) -> int:
        return len(self.sequence)

    def __getitem__(self, index: int) -> tuple:
        of_all = self.sequence
        devices, processes, process = self.place
        rows = of_all.rows(of_all.epoch, index)
        if processes > 1 and len(rows) % devices == 0:
            mine = shard_rows(rows, *self.place)
            return of_all.examples(mine, seed=[of_all.seed, of_all.epoch, index, process])
        # Repeated after its augmentation, or it would not be the same batch again.
        whole = of_all[index]
        mine = shard_rows(np.arange(len(rows)), *self.place)
        return keras.tree.map_structure(lambda array: array[mine], whole)

    def on_epoch_begin(self) -> None:
        self.sequence.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self.sequence.on_epoch_end()


def _norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    return [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
