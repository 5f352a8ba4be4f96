class LogitsProcessor:
    pass


def process_dict_updates(held, update, new):
    """`update`: all rows of the batch, in place of the changes that vLLM tells."""
    held.clear()
    held |= {place: new(params, None, []) for place, params in enumerate(update)}
