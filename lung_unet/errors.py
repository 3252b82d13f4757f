"""The one exception for what a user can put right."""

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # XLA's status, in the text of its errors; no type tells


class InputError(Exception):
    """Bad input, told in one line that names the file and the remedy; commands exit 1 with it."""


class Stopped(InputError):
    """Nothing is wrong: it was told to end, and the same command goes on."""


def out_of_memory(error: BaseException) -> str | None:
    """What to say where XLA found no memory on the device; None if the error is another."""
    _, status, text = str(error).partition(OUT_OF_MEMORY)
    told = text.partition("\n")[0].strip(" :")
    if not status:
        return None
    return (
        f"out of memory on the device ({told}); for training see config.train.accumulate and "
        "model.remat, or, in another --workdir once there are checkpoints, train.batch_size and "
        "data.patch, for prediction config.evaluation.batch_size "
        "and window, which main's command stores when it runs once more"
    )


def unexpected(source: object, error: BaseException) -> InputError:
    """What no check foresaw, in a line that names the source, so that others can go on."""
    told = out_of_memory(error)
    if told is None:
        message = " ".join(str(error).split())[:300]
        told = f"{type(error).__name__}: {message}; a fault of lung_unet, please report it"
    return InputError(f"{source}: {told}")
