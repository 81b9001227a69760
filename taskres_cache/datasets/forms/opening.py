"""All forms of input, in the order in which they are tried."""

from taskres_cache.datasets.dataset import Dataset
from taskres_cache.datasets.forms.archives import ARCHIVE
from taskres_cache.datasets.forms.form import Form, FormOptions
from taskres_cache.datasets.forms.hugging_face import HUB
from taskres_cache.datasets.forms.lists.files import EXPORT, LIST
from taskres_cache.datasets.forms.shards import SHARDS
from taskres_cache.datasets.forms.tables import TABLE

FORMS: tuple[Form, ...] = (LIST, EXPORT, SHARDS, ARCHIVE, TABLE, HUB)  # the first that recognises the text reads it


def read_form(typed: str, options: FormOptions) -> Dataset | None:
    """Return the data set that a text refers to, or None if no form recognises it.

    Raises
    ------
    DatasetError
        A form recognises it and cannot read it.
    """
    form = next((form for form in FORMS if form.recognises(typed)), None)
    return None if form is None else form.read(typed, options)
