"""Random changes to training views: drawn on the CPU with the sample, made on the device with the batch.

    parameters    numpy: what changes, drawn from (seed, epoch, action, view) alone; one row of numbers per view
    pixels        torch: the rows applied to uint8 views, on whatever device the batch is on

So the changes depend neither on workers, ranks or the batch's other views, nor on where a run was resumed, and decoded
clips are cached unchanged.
"""
