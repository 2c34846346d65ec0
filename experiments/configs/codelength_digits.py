"""The labels of handwritten digits, in bits: a file as large as the loss, and online codelength.

    python experiments/codelength.py

359 test labels with l2 = 1e-4, and 1,438 training labels sent online:

    loss        55 bits        0.153 a label
    file        50 bytes       a header of 42 and 1.1 more than the loss
    refitted    542 bits       11.3% of the uniform code; control task 5,994
    one pass    1,221 bits     25.6%; control task 5,237

Of labels that features tell nothing about the refitted models learn too much by heart: their
control task is above the uniform code of 4,777. By the precision of the prior, refitted in
another order, measured by hand: 0.1 533, 1 769, 10 1,682. 12 s on two CPU cores, most of it
compilation.
"""

from runs import flags, settings


def get_config(variant: str = ""):
    config = flags.to_config(
        settings.Codelength(
            data=settings.Data(name="digits"), precision=0.1, learning_rate=0.03, batch_size=8
        )
    )
    return flags.vary(config, variant, smoke={"tol": 0.1, "percent": (10.0, 100.0)})
